import os
import subprocess
from pathlib import Path

import pytest

from stack.checks import PROJECT

OPS = PROJECT / "ops"
COMMANDS = sorted(
    path.name for path in OPS.iterdir() if path.is_file() and os.access(path, os.X_OK)
)


def run(*command: str) -> subprocess.CompletedProcess:
    """Run a command of ops/ without an engine, and return what became of it."""
    path = [str(OPS / command[0]), *command[1:]]
    return subprocess.run(path, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_there_are_commands() -> None:
    assert "deploy" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_help(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert len(done.stdout.splitlines()) > 4


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["deploy"], "Name the VM, user@host, or a file, --bundle FILE."),
        (
            ["rotate", "DEBUG"],
            "No such secret: DEBUG. There are SECRET_KEY, FLOWER_PASSWORD, POSTGRES_PASSWORD, "
            "BROKER_PASSWORD, CACHE_PASSWORD.",
        ),
        (["deploy", "--set", "x", "vm"], "--set takes NAME=VALUE or NAME, not x."),
        (
            ["deploy", "--set", "SECRET_KEY=x", "vm"],
            "Others can see this command line: use --set SECRET_KEY, which reads the value.",
        ),
        (
            ["deploy", "--set", "CACHE_URL=redis://:x@host", "vm"],
            "Others can see this command line: use --set CACHE_URL, which reads the value.",
        ),
        (
            ["deploy", "--set", "PING_URL=https://hc-ping.com/key", "vm"],
            "Others can see this command line: use --set PING_URL, which reads the value.",
        ),
        (
            ["deploy", "--set", "SECRET_KEY", "vm"],
            "Standard input has no value for SECRET_KEY.",
        ),
        (["install"], "This changes the system: run it as root, sudo ops/install."),
        (["release", "--before"], "There is no version before this one."),
        (
            ["restore", "none.tar"],
            f"{Path.cwd()}/none.tar is neither a backup of ops/backup nor a dump of pg_dump, or it is damaged.",
        ),
    ],
)
def test_a_command_that_cannot_work_says_why_in_one_sentence(
    command: list[str], sentence: str
) -> None:
    done = run(*command)
    assert done.returncode != 0
    assert done.stderr.strip() == sentence
