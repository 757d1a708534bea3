"""Refuse an answer that cannot work, in one sentence and right after its question.

cookiecutter.json calls the filter `refuse` after each question. Hooks run only after the last one, and
cookiecutter adds a traceback to what they say.
https://cookiecutter.readthedocs.io/en/stable/advanced/local_extensions.html
"""

import re
import sys
import zoneinfo

from cookiecutter.utils import simple_filter

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
    "beat broker cache certificates db flower migrate monitoring proxy sample-site"
    " web web-a web-b worker"
).split()


def refused_project_name(name: str, answers: dict) -> list[str]:
    """Return why this is no line that can be shown everywhere."""
    if name.strip() and len(name) <= 200 and name.isprintable() and not re.search(r'["\\{}]', name):
        return []
    return [
        "project_name must be one line of 1 to 200 characters"
        " without double quotes, backslashes or braces."
    ]


def refused_project_slug(slug: str, answers: dict) -> list[str]:
    """Return why neither an image nor a container can have this name."""
    return [] if is_name(slug) else [f'project_slug "{slug}" {NAME_RULE}.']


def is_name(text: str) -> bool:
    """Return whether Docker accepts this as a name everywhere."""
    return bool(NAME.fullmatch(text)) and len(text) <= LONGEST


def refused_domain_name(domain: str, answers: dict) -> list[str]:
    """Return why this is no host name."""
    if is_domain(domain):
        return []
    return [f'domain_name "{domain}" is not a domain; give one such as example.com.']


def is_domain(text: str) -> bool:
    """Return whether this is a host name in lower case, without a port or a final dot."""
    return bool(DOMAIN.fullmatch(text)) and len(text) <= 253


def refused_email(email: str, answers: dict) -> list[str]:
    """Return why this is no address."""
    user, _, host = email.rpartition("@")
    if EMAIL_USER.fullmatch(user) and is_domain(host):
        return []
    return [f'email "{email}" is not an address such as admin@example.com.']


def refused_queues(text: str, answers: dict) -> list[str]:
    """Return a sentence for each name that cannot become a service, a queue and a route."""
    if text.strip() == "none":
        return []
    queues = [queue.strip() for queue in text.split(",") if queue.strip()]
    found = []
    for queue in queues:
        if not is_name(queue):
            found.append(f'Queue "{queue}" {NAME_RULE}.')
        elif queue == "none":
            found.append('Give "none" alone, or leave it out.')
        elif queue == "default":
            found.append('Leave the queue "default" out; it always exists.')
        elif queue in SERVICES:
            found.append(f'Queue "{queue}" has the name of a service; choose another name.')
    same = [queue.replace("-", "_") for queue in queues]
    twice = sorted({queue for queue in same if same.count(queue) > 1})
    return found + [
        f'Queue "{queue}" is given twice (- and _ count as the same).' for queue in twice
    ]


def refused_example(example: bool, answers: dict) -> list[str]:
    """Return why the example cannot run with the queues that were chosen."""
    queues = {queue.strip() for queue in answers["queues"].split(",")}
    if not example or queues >= {"crawl", "notify"}:
        return []
    return [
        'The example asks for the queues "crawl" and "notify": add them, or give example=false.'
    ]


def refused_timezone(zone: str, answers: dict) -> list[str]:
    """Return why this is no time zone of the IANA database."""
    zones = zoneinfo.available_timezones() or {zone}  # none on a Windows without tzdata
    if zone in zones and re.fullmatch(r"[A-Za-z0-9_+/-]+", zone):
        return []
    return [f'timezone "{zone}" is unknown; give a name such as Europe/Berlin.']


RULES = {
    "project_name": refused_project_name,
    "project_slug": refused_project_slug,
    "domain_name": refused_domain_name,
    "email": refused_email,
    "queues": refused_queues,
    "example": refused_example,
    "timezone": refused_timezone,
}


@simple_filter
def refuse(answers: dict) -> str:
    """Return nothing, or exit with what is wrong with the last answer.

    `answers` are those given so far, by their question, and cookiecutter's own values.
    """
    question = [name for name in answers if not name.startswith("_")][-1]
    sentences = RULES[question](answers[question], answers)
    # An answer in the sentence may itself have line breaks.
    if refused := [f"Refused: {' '.join(sentence.split())}" for sentence in sentences]:
        sys.exit("\n".join(refused))
    return ""
