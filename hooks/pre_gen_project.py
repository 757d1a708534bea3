"""Refuse answers that cannot work, each in one sentence, before anything is rendered."""

import json
import re
import sys
import zoneinfo
from pathlib import Path

# tojson leaves no quote, newline or "<" unescaped, so an answer cannot break out of this literal.
answers = json.loads(r"""{{ cookiecutter|tojson }}""")

# Docker names networks, volumes and hosts after them, and a DNS label ends at 63 characters.
LONGEST = 40
# Docker's rule for the name of an image: nothing at the end but a letter or digit, and - and _ not
# side by side.
NAME = re.compile(r"[a-z][a-z0-9]*((_|__|-+)[a-z0-9]+)*")
NAME_RULE = (
    "must start with a lower-case letter, then have only lower-case letters, digits, single - and _"
    f" between them, and at most {LONGEST} characters"
)
DOMAIN = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
EMAIL_USER = re.compile(r"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*")
SERVICES = (
    "beat broker cache certificates db flower migrate proxy sample-site web web-a web-b worker"
).split()


def refusals() -> list[str]:
    """Return what is wrong with the answers, one sentence each."""
    name, slug, domain = (answers[key] for key in ("project_name", "project_slug", "domain_name"))
    found = []
    if not name.strip() or len(name) > 200 or not name.isprintable() or re.search(r'["\\{}]', name):
        found.append(
            "project_name must be one line of 1 to 200 characters"
            " without double quotes, backslashes or braces."
        )
    if not NAME.fullmatch(slug) or len(slug) > LONGEST:
        found.append(f'project_slug "{slug}" {NAME_RULE}.')
    if not DOMAIN.fullmatch(domain) or len(domain) > 253:
        found.append(f'domain_name "{domain}" is not a domain; give one such as example.com.')
    user, _, host = answers["email"].rpartition("@")
    # The host of a derived address is the domain, about which one sentence is enough.
    good_host = host == domain or (DOMAIN.fullmatch(host) and len(host) <= 253)
    if not EMAIL_USER.fullmatch(user) or not good_host:
        found.append(f'email "{answers["email"]}" is not an address such as admin@example.com.')
    zone = answers["timezone"]
    zones = zoneinfo.available_timezones() or {zone}  # none on a Windows without tzdata
    if zone not in zones or not re.fullmatch(r"[A-Za-z0-9_+/-]+", zone):
        found.append(f'timezone "{zone}" is unknown; give a name such as Europe/Berlin.')
    queues = [queue.strip() for queue in answers["queues"].split(",")]
    refused = refused_queues([] if queues == ["none"] else queues)
    if not refused and answers["example"] and not {"crawl", "notify"}.issubset(queues):
        refused = [
            'The example asks for the queues "crawl" and "notify": add them, or give example=false.'
        ]
    return found + refused


def refused_queues(queues: list[str]) -> list[str]:
    """Return a sentence for each name that cannot become a service, a queue and a route."""
    found = []
    for queue in filter(None, queues):
        if not NAME.fullmatch(queue) or len(queue) > LONGEST:
            found.append(f'Queue "{queue}" {NAME_RULE}.')
        elif queue == "none":
            found.append('Give "none" alone, or leave it out.')
        elif queue == "default":
            found.append('Leave the queue "default" out; it always exists.')
        elif queue in SERVICES:
            found.append(f'Queue "{queue}" has the name of a service; choose another name.')
    same = [queue.replace("-", "_") for queue in filter(None, queues)]
    twice = sorted({queue for queue in same if same.count(queue) > 1})
    found += [f'Queue "{queue}" is given twice (- and _ count as the same).' for queue in twice]
    return found


if any(Path().iterdir()):
    sys.exit(f"Refused: the folder {Path().resolve().name} is not empty and stays as it is.")
if wrong := refusals():
    # An answer in the sentence may itself have line breaks.
    sys.exit("\n".join(f"Refused: {' '.join(sentence.split())}" for sentence in wrong))
