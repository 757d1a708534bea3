"""docs/runbook.md of a rendered project: its commands, as a person copies them, and what they are for."""

import json
import re
from pathlib import Path

from tests.stack.stack import Stack

REPORT = {"vm": "test", "problems": []}


def sections(folder: Path) -> dict[str, str]:
    """Return the commands of each section, by its heading."""
    text = (folder / "docs/runbook.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return {
        heading: "".join(re.findall(r"```sh\n(.*?)```", part, re.DOTALL))
        for heading, part in zip(parts[::2], parts[1::2], strict=True)
    }


def follow(stack: Stack, problem: str) -> str:
    """Run the commands for a problem; return what they print."""
    return stack.shell(sections(stack.folder)[problem])


def problems(stack: Stack, service: str = "web-a") -> dict[tuple[str, str], str]:
    """Return what web sees, as ops/alarm asks for it: each sentence by problem and subject."""
    code = (
        "from urllib.request import Request, urlopen;"
        f"report = {json.dumps(REPORT).encode()!r};"
        "print(urlopen(Request('http://localhost:8000/vm', report)).read().decode())"
    )
    answer = json.loads(stack.compose("exec", "--no-TTY", service, "python", "-c", code))
    return {(one["problem"], one["subject"]): one["sentence"] for one in answer["problems"]}


def forget_what_was_counted(stack: Stack) -> None:
    """Forget refusals, failures, 5xx and reports of VMs of the tests before: they count for minutes."""
    stack.python(
        "from stack import activity; store = activity.store();"
        "store.delete('metrics:failing', 'problems:vms', *store.scan_iter('metrics:lately:*'))"
    )
