"""The same fault to units and to the stack: what comes back is what docs/systemd.md says."""

import re
import time
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tests.stack.stack import PATIENCE, wait_for

from .document import table
from .machine import ROLES, SIDES, Machine, State, docker

# The handlers in faults/sitecustomize.py.
EXIT_1, EXIT_0, HOG = "RTMIN+1", "RTMIN+2", "RTMIN+3"
# A process that came back after a stop would have done so in a tenth of it.
STAYS = 5
# How often each process is killed, more than systemd's own limit of 5. Both sides wait longer each
# time, the last time for 12.8 s.
FLAPS = 8


def documented(fault: str) -> dict[str, str]:
    """Return the outcome on both sides as the document has it."""
    rows = {row[0]: dict(zip(SIDES, row[1:3], strict=True)) for row in table("What comes back")}
    return rows[fault]


@pytest.mark.parametrize(
    ("fault", "signal", "ending"),
    [
        ("exit 1", EXIT_1, "exit 1"),
        ("exit 0", EXIT_0, "exit 0"),
        ("SIGKILL of the main process", "KILL", "signal 9"),
        ("OOM", HOG, "signal 9"),
    ],
)
def test_a_main_process_that_ends(machine: Machine, fault: str, signal: str, ending: str) -> None:
    before, since = machine.start(), time.time()
    machine.kill(signal, *(role["pid"] for side in before.values() for role in side.values()))
    assert machine.outcomes(before) == documented(fault)
    assert machine.look("endings", since) == {
        side: {role: [ending] for role in ROLES} for side in SIDES
    }
    if signal == HOG:
        assert all(killed_for_memory(machine).values()), killed_for_memory(machine)


def killed_for_memory(machine: Machine) -> dict[str, bool]:
    """Return for which units and containers the kernel says that it enforced their limit."""
    groups = re.findall(r"oom_memcg=(\S+?),", machine.run("dmesg"))
    owners = {role: f"/{role}.service" for role in ROLES}
    for service in ROLES.values():
        owners[service] = machine.compose("ps", "--quiet", "--no-trunc", service).strip()
    machine_id = docker("inspect", "--format={{.Id}}", machine.name).strip()
    return {
        name: any(machine_id in group and owner in group for group in groups)
        for name, owner in owners.items()
    }


def run_with(machine: Machine, *policies: str) -> None:
    """Start a container for each restart policy; it ends well when it is told to, as Celery does."""
    image = f"{machine.stack.slug}:latest"
    script = "trap 'exit 0' TERM; while :; do sleep 0.2; done"
    for policy in policies:
        name = f"with-{policy}"
        machine.run("docker", "rm", "--force", name, check=False)
        machine.run(
            *("docker", "run", "--detach", f"--name={name}", f"--restart={policy}", image),
            *("bash", "-c", script),
        )


def runs_with(machine: Machine, policy: str) -> bool:
    """Return whether that container runs."""
    command = ("docker", "inspect", "--format={{.State.Running}}", f"with-{policy}")
    return machine.run(*command) == "true\n"


@dataclass
class Rebooted:
    """What a reboot left, with web and worker running before, beat stopped, flower disabled."""

    running: dict[str, str]
    stopped: dict[str, str]
    disabled: dict[str, str]
    policies: dict[str, bool]  # whether a container with another restart policy runs
    logs: list[str]


@pytest.fixture(scope="module")
def rebooted(machine: Machine) -> Rebooted:
    """Reboot, and look at once, whatever the tests do in between."""
    before = machine.start()
    run_with(machine, "always", "on-failure")
    machine.run("systemctl", "restart", "worker")
    machine.compose("restart", "worker-default")
    machine.run("systemctl", "stop", "beat")
    machine.compose("stop", "beat")
    machine.run("systemctl", "disable", "--now", "flower")
    machine.compose("rm", "--stop", "--force", "flower")
    machine.reboot()
    return Rebooted(
        running=machine.outcomes(before, roles=["web", "worker"]),
        stopped=machine.outcomes(before, roles=["beat"]),
        disabled=machine.outcomes(before, STAYS, ["flower"]),
        policies={policy: runs_with(machine, policy) for policy in ("always", "on-failure")},
        logs=[
            machine.run("journalctl", "--unit=worker", "--output=cat"),
            machine.compose("logs", "worker-default"),
        ],
    )


def test_a_reboot(rebooted: Rebooted) -> None:
    assert rebooted.running == documented("reboot")


def test_a_stop_and_a_reboot(rebooted: Rebooted) -> None:
    assert rebooted.stopped == documented("stop, then reboot")


def test_a_disable_and_a_reboot(rebooted: Rebooted) -> None:
    assert rebooted.disabled == documented("disable, then reboot")


def test_another_policy_stays_down_after_a_reboot(rebooted: Rebooted) -> None:
    assert rebooted.policies == {"always": True, "on-failure": False}


def test_the_log_outlives_a_restart_and_a_reboot(rebooted: Rebooted) -> None:
    for log in rebooted.logs:
        assert "worker: Warm shutdown" in log, log[-3000:]


def flap(machine: Machine) -> tuple[State, dict[str, dict[str, list[dict[str, float]]]]]:
    """Kill each process FLAPS times; return the state before, and when each was killed and began."""
    if any(role["restarts"] for side in machine.start().values() for role in side.values()):
        # What happened before counts: the test after the next one.
        machine.run("systemctl", "restart", *ROLES)
        machine.compose("restart", *ROLES.values())
    return machine.start(), machine.look("flap", FLAPS, timeout=PATIENCE)


def test_flapping(machine: Machine) -> None:
    before, kills = flap(machine)
    next_waits = {role: next_wait(machine, role) for role in ROLES}
    assert machine.outcomes(before) == documented("flapping")

    for role in ROLES:
        # Both wait ever longer, beginning with 0.1 s. The engine says no figure, so its waits are
        # measured: they can be longer than they were meant to be, on a busy machine, not shorter.
        assert next_waits[role] > 1
        found = waits(kills["stack"][role])
        assert all(waited >= meant for waited, meant in found), f"{role} waited and meant: {found}"


def waits(kills: list[dict[str, float]]) -> list[tuple[float, float]]:
    """Return how long each restart took, and the least that it may take, in seconds.

    Counted from the kill, not from the engine's "die" event: its wait begins before it says so, by
    seconds on a busy machine.
    """
    found = []
    restarts = 0
    for killed, restarted in pairwise(kills):
        if restarted["began"] - killed["began"] >= 10:
            restarts = 0  # it may have been a good run, as far as the engine knows: see below
        found.append((restarted["began"] - killed["killed"], at_least(restarts)))
        restarts += 1
    return found


def at_least(restarts: int) -> float:
    """Return how many seconds the engine waits after so many, less the clock's inaccuracy."""
    return 0.1 * 2**restarts - 0.02


def pauses(machine: Machine, role: str, since: float, until: float) -> list[float]:
    """Return how many seconds the engine waited before each start of a container that had ended."""
    events = machine.run(
        *("docker", "events", f"--since={since}", f"--until={until}"),
        *("--filter=event=die", "--filter=event=start", "--format={{.Action}} {{.TimeNano}}"),
        f"--filter=container={machine.stack.slug}-{ROLES[role]}-1",
    )
    found = [(action, int(moment)) for action, moment in map(str.split, events.splitlines())]
    return [
        (started - died) / 1e9
        for (first, died), (second, started) in pairwise(found)
        if (first, second) == ("die", "start")
    ]


def next_wait(machine: Machine, role: str) -> float:
    """Return how many seconds systemd would wait before the next start of a unit."""
    return seconds(machine.run("systemctl", "show", "--property=RestartUSecNext", "--value", role))


def test_after_a_good_run_the_stack_is_quick_again_and_systemd_is_not(machine: Machine) -> None:
    before = machine.start()
    if min(roles["beat"]["restarts"] for roles in before.values()) < FLAPS:
        flap(machine)
        # Not "start": what it starts has no restarts, for the engine.
        before = wait_for("all work", machine.all_work)
    time.sleep(11)  # a good run, for the engine, is one of 10 s

    since = time.time()
    machine.kill("KILL", before["stack"]["beat"]["pid"])
    assert machine.outcomes(before, roles=["beat"], sides=["stack"])["stack"] == "back"
    (wait,) = pauses(machine, "beat", since, time.time())
    # 0.1 s here, and the start, for which there are 25 s; there, what the last failure left behind.
    assert wait < at_least(before["stack"]["beat"]["restarts"])
    assert next_wait(machine, "beat") > 1


def seconds(span: str) -> float:
    """Read a span as systemd writes it: "1min 2s", "160ms"."""
    units = {"min": 60, "s": 1, "ms": 1e-3, "us": 1e-6}
    return sum(
        float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(min|ms|us|s)", span)
    )


SQUATTER = """
[Unit]
Before=docker.service
[Socket]
ListenStream=127.0.0.1:8080
[Install]
WantedBy=sockets.target
"""


@pytest.fixture(scope="module")
def cut_off(machine: Machine) -> dict[str, str]:
    """
    Cut the power; return what became of both sides.

    At the next boot somebody else has the proxy's port.
    """
    before = machine.start()
    folder = "/etc/systemd/system"
    machine.run("sh", "-c", f"printf '{SQUATTER}' > {folder}/squatter.socket")
    machine.run("sh", "-c", f"printf '[Service]\nExecStart=true\n' > {folder}/squatter.service")
    machine.run("sh", "-c", f"cp ops/systemd/revive@.* {folder}/ && systemctl daemon-reload")
    machine.run("systemctl", "enable", "squatter.socket")
    # As docs/production.md says.
    timer = "revive@$(systemd-escape --path /srv/stack).timer"
    machine.run("sh", "-c", f"docker compose stop proxy && systemctl enable --now {timer}")
    machine.cut_power()
    return machine.outcomes(before)


def test_a_power_cut(cut_off: dict[str, str]) -> None:
    assert cut_off == documented("power cut")


@pytest.mark.usefixtures("cut_off")
def test_what_could_not_start_at_boot_is_started_within_a_minute(machine: Machine) -> None:
    def state(service: str) -> str:
        return machine.inspect(service)["State"]["Status"]

    machine.compose("stop", "beat")
    tried = "systemctl show --property=ExecMainStartTimestampMonotonic --value revive@srv-stack"
    first = machine.run("sh", "-c", tried)
    wait_for("the timer tried", lambda: machine.run("sh", "-c", tried) != first)
    assert "address already in use" in machine.inspect("proxy")["State"]["Error"]
    assert state("proxy") != "running"
    machine.run("systemctl", "disable", "--now", "squatter.socket")
    wait_for("the proxy is back", lambda: state("proxy") == "running")
    assert state("beat") == "exited"


def test_the_engine_is_killed(machine: Machine) -> None:
    before = machine.start()
    run_with(machine, "always", "unless-stopped")
    machine.kill_engine()
    assert machine.outcomes(before, sides=["stack"]) == documented("engine killed")
    # The other policy, which most examples have.
    assert [runs_with(machine, policy) for policy in ("always", "unless-stopped")] == [True, False]


def test_both_sides_still_run_tasks_after_all_that(machine: Machine) -> None:
    machine.start()
    for side in SIDES:
        code = "from stack.tasks import sample; print(sample.delay(steps=1).get(timeout=180))"
        assert machine.python(side, code).startswith("Done by default@")


@pytest.fixture(scope="module")
def ended_by_command(machine: Machine) -> tuple[dict[str, str], dict[str, str]]:
    """Stop web and worker, kill beat and flower, with the commands for it; return what became."""
    before = machine.start()
    machine.run("systemctl", "stop", "web", "worker")
    machine.compose("stop", "web-a", "worker-default")
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "beat", "flower")
    machine.compose("kill", "beat", "flower")
    # What is not back on the other side by then stays down.
    machine.outcomes(before, roles=["beat", "flower"], sides=["systemd"])
    time.sleep(STAYS)
    return (
        machine.outcomes(before, 0, ["web", "worker"]),
        machine.outcomes(before, 0, ["beat", "flower"]),
    )


def test_a_stop(ended_by_command: tuple[dict[str, str], dict[str, str]]) -> None:
    stopped, _ = ended_by_command
    assert stopped == documented("stop")


def test_a_kill_command(ended_by_command: tuple[dict[str, str], dict[str, str]]) -> None:
    _, killed = ended_by_command
    assert killed == documented("`systemctl kill`, `docker kill`")


def test_each_row_of_the_document_was_shown() -> None:
    shown = {"exit 1", "exit 0", "SIGKILL of the main process", "OOM", "flapping", "stop"}
    shown |= {"`systemctl kill`, `docker kill`"}
    shown |= {"stop, then reboot", "disable, then reboot", "reboot", "power cut", "engine killed"}
    assert {row[0] for row in table("What comes back")} == shown
