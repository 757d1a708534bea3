"""ops/alarm: a problem is mailed when it begins and when it ends, and pinged meanwhile."""

import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runbook import forget_what_was_counted
from tests.systemd.machine import docker

from .alarm import KEY, Alarm, Receivers
from .stack import Stack, wait_for


@pytest.fixture(scope="module")
def receivers() -> Iterator[Receivers]:
    """A mail server and a receiver of pings."""
    receivers = Receivers()
    try:
        yield receivers
    finally:
        receivers.remove()


@pytest.fixture
def alarm(production: Stack, receivers: Receivers, tmp_path: Path) -> Alarm:
    """ops/alarm of the stack, which sends to them."""
    forget_what_was_counted(production)
    return Alarm(production, tmp_path, **receivers.settings())


@pytest.fixture
def no_engine(alarm: Alarm) -> Alarm:
    """The same, where Docker does not answer."""
    alarm.env["DOCKER_HOST"] = "unix:///none.sock"
    return alarm


@pytest.fixture
def broken(production: Stack) -> Iterator[list[str]]:
    """Containers of the project that are unhealthy, restart, and could not start."""
    labels = (f"com.docker.compose.project={production.slug}", "com.docker.compose.oneoff=False")
    names = {
        "unhealthy": ("run", "--health-cmd=false", "--health-interval=1s", "--health-retries=1"),
        "restarts": ("run",),
        "created": ("create",),
    }
    for name, (command, *options) in names.items():
        detach = ["--detach"] if command == "run" else []
        program = "false" if name == "restarts" else "sleep infinity"
        docker(
            *(command, *detach, f"--name={production.slug}-{name}", "--restart=always", *options),
            *(f"--label={label}" for label in labels),
            *(f"--label=com.docker.compose.service={name}", "redis:8.0", *program.split()),
        )
    yield [f"{production.slug}-{name}" for name in names]
    docker("rm", "--force", *(f"{production.slug}-{name}" for name in names), check=False)


def test_a_problem_is_mailed_once_when_it_has_lasted_and_once_when_it_is_over(
    production: Stack, receivers: Receivers, alarm: Alarm
) -> None:
    name = f"{production.slug}-vm-{os.uname().nodename}".lower()
    before, title = len(receivers.mails()), f"{production.slug} on {os.uname().nodename}"
    wait_for("nothing is wrong", lambda: not alarm.run() and not alarm.problems())
    production.compose("stop", "proxy")  # nothing else is wrong then: it was stopped on purpose
    try:
        alarm.run()
        assert alarm.problems().keys() == {"site-down"}
        alarm.age(110)
        alarm.run()
        assert len(receivers.mails()) == before
        assert receivers.pings(name)[-1] == ("?create=1", "")
        alarm.age(10)
        alarm.run()
        ((subject, text),) = receivers.mails()[before:]
        assert subject == f"{title}: PROBLEM: site-down"
        assert "The site is down: port" in text
        assert "docs/runbook.md#site-down" in text
        path, body = receivers.pings(name)[-1]
        assert path == "/fail?create=1"
        assert body.startswith("site-down: The site is down: port")
    finally:
        production.start("proxy")
    # Back, and away once more: it flaps.
    wait_for("the site", lambda: not alarm.run() and not alarm.problems())
    alarm.age(200)
    production.compose("stop", "proxy")
    alarm.run()
    production.start("proxy")
    alarm.run()
    alarm.age(200)
    alarm.run()
    assert receivers.pings(name)[-1][0] == "/fail?create=1"
    assert len(receivers.mails()) == before + 1
    alarm.age(100)
    alarm.run()
    assert receivers.mails()[before + 1][0] == f"{title}: over: site-down"
    alarm.age(300)
    alarm.run()
    assert len(receivers.mails()) == before + 2
    assert receivers.pings(name)[-1] == ("?create=1", "")
    assert stat.S_IMODE((alarm.folder / ".alarm.json").stat().st_mode) == 0o600


@pytest.mark.long
def test_what_is_wrong_is_found_and_mailed_together(
    broken: list[str], production: Stack, receivers: Receivers, alarm: Alarm
) -> None:
    before = len(receivers.mails())
    backups = alarm.folder / "backups"
    backups.mkdir()
    old = backups / f"{production.slug}-20261101T030000Z.tar"
    old.touch()
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    expected = {
        "container-unhealthy unhealthy": "unhealthy is unhealthy",
        "container-unhealthy created": "created could not start",
        "container-restarts restarts": "restarts restarted",
        "backup-old": "The last backup is 3 days old",
    }
    # Its first look finds out how often a container has restarted until then.
    wait_for("all of it", lambda: not alarm.run() and alarm.problems().keys() == expected.keys())
    for key, sentence in expected.items():
        assert alarm.problems()[key].startswith(sentence)
    alarm.age(300)
    env = alarm.folder / ".env"
    text = env.read_text()
    env.write_text(re.sub(r"(?m)^EMAIL_PORT=.*", "EMAIL_PORT=1", text))
    printed = alarm.run()
    assert "The mail to ALARM_EMAIL could not be sent" in printed
    assert alarm.run() == ""  # it says so once
    env.write_text(text)
    alarm.run()
    ((subject, mail),) = receivers.mails()[before:]
    assert all(key in subject for key in expected)
    assert mail.count("What to do") == 4
    docker("rm", "--force", *broken)
    old.touch()
    alarm.run()
    alarm.age(300)
    alarm.run()
    ((subject, mail),) = receivers.mails()[before + 1 :]
    assert ": over: " in subject
    assert all(key in subject for key in expected)
    assert mail.count("Since") == 4
    secrets = {
        value for name, value in production.settings.items() if re.search("PASSWORD|KEY", name)
    }
    everything = json.dumps([receivers.mails(), receivers.pings("")])
    assert not [secret for secret in {*secrets, KEY} if secret and secret in everything]


def test_a_test_says_what_is_sent_and_what_is_missing(alarm: Alarm, receivers: Receivers) -> None:
    before = len(receivers.mails())
    printed = alarm.run("--test").splitlines()
    assert printed == [
        "A mail was sent to ops@example.com, chief@example.com.",
        "A ping was sent to PING_URL.",
    ]
    assert receivers.mails()[before][0].endswith(": test")
    env = alarm.folder / ".env"
    text = env.read_text()
    without = re.sub(r"(?m)^(EMAIL_HOST|PING_URL)=.*\n", "", text)
    env.write_text(without)
    assert alarm.run("--test", code=1).splitlines() == [
        "ALARM_EMAIL is in .env, but there is no mail server: set EMAIL_HOST.",
        "PING_URL is not in .env.",
    ]
    env.write_text(f"{without}PING_URL=http://127.0.0.1:1/{KEY}\n")
    printed = alarm.run("--test", code=1)
    assert "PING_URL could not be requested (ConnectionRefusedError)." in printed
    assert KEY not in printed


def test_a_damaged_file_is_replaced(no_engine: Alarm) -> None:
    for text in (
        "{",
        '{"known": {"x": {"problem": "x", "subject": "", "sentence": "", "since": "now"}}}',
    ):
        (no_engine.folder / ".alarm.json").write_text(text)
        no_engine.run()
        assert no_engine.problems().keys() == {"engine-gone"}


def test_what_cannot_be_written_down_is_pinged_and_never_mailed(
    no_engine: Alarm, receivers: Receivers
) -> None:
    before = len(receivers.mails())
    no_engine.run()
    no_engine.age(300)
    (no_engine.folder / ".alarm.json.half").mkdir()
    assert ".alarm.json cannot be written" in no_engine.run()
    path, body = receivers.pings("")[-1]
    assert "/fail?create=1" in path
    assert "cannot be written" in body
    assert len(receivers.mails()) == before


def test_what_was_seen_before_a_boot_has_not_lasted(no_engine: Alarm) -> None:
    no_engine.run()
    assert no_engine.problems().keys() == {"engine-gone"}
    no_engine.age(float(Path("/proc/uptime").read_text().split()[0]) + 10)
    no_engine.run()
    assert no_engine.problems().keys() == {"engine-gone"}
    assert not no_engine.is_on("engine-gone")


def test_a_deploy_may_take_longer(no_engine: Alarm) -> None:
    (no_engine.folder / "versions").mkdir()
    lock = no_engine.folder / "versions" / "lock"
    with subprocess.Popen(
        ["flock", lock, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as deploy:
        no_engine.run()
        no_engine.age(300)
        no_engine.run()
        assert not no_engine.is_on("engine-gone")
        deploy.stdin.close()
        deploy.wait(timeout=60)
    no_engine.run()
    assert no_engine.is_on("engine-gone")


@pytest.mark.long
def test_what_the_site_sees_is_mailed_too_and_it_hears_of_the_vm(
    production: Stack, receivers: Receivers, alarm: Alarm
) -> None:
    before, code = len(receivers.mails()), "from stack import problems; print(problems.{})"
    production.compose("stop", "worker-crawl", "proxy")
    try:
        both = {"no-worker crawl", "site-down"}
        wait_for("both", lambda: not alarm.run() and alarm.problems().keys() == both)
        alarm.age(300)
        alarm.run()  # the site hears of what has lasted
        subject, text = receivers.mails()[before]
        assert all(key in subject for key in both)
        assert "consumes the queue crawl" in text
        seen = production.python(code.format("current()"))
        assert f"{os.uname().nodename}: The site is down" in seen
    finally:
        production.start("worker-crawl", "proxy")
    wait_for("neither", lambda: not alarm.run() and not alarm.problems())
    report = production.python(code.format("reports()[0]"))
    assert "'disk': 0." in report
