"""What the lines of a unit file do, and their equals in the stack."""

import re
import time

from tests.stack.stack import wait_for

from .machine import ROLES, SIDES, Machine, State, both

PROC_LIMIT = re.compile(r"^Max open files +(\d+) +(\d+)", re.MULTILINE)


def read(machine: Machine, state: State, role: str, name: str) -> dict[str, str]:
    """Return a file of /proc/PID for the main process of a role, by side."""
    return {side: machine.run("cat", f"/proc/{state[side][role]['pid']}/{name}") for side in SIDES}


def environment(machine: Machine, state: State, role: str) -> dict[str, dict[str, str]]:
    """Return the environment of a role's main process, by side."""
    return {
        side: dict(line.split("=", 1) for line in text.split("\0") if line)
        for side, text in read(machine, state, role, "environ").items()
    }


def test_no_process_runs_as_root(machine: Machine) -> None:
    state = machine.start()
    for role in ROLES:
        for text in read(machine, state, role, "status").values():
            assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", text, re.MULTILINE)
    stack = read(machine, state, "worker", "status")["stack"]
    assert "CapBnd:\t0000000000000000" in stack  # nor can anybody become root
    assert "NoNewPrivs:\t1" in stack


def test_the_working_directory(machine: Machine) -> None:
    state = machine.start()
    for side in SIDES:
        for role in state[side].values():
            assert machine.run("readlink", f"/proc/{role['pid']}/cwd") == "/app\n"


def test_the_environment_comes_from_the_same_file(machine: Machine) -> None:
    processes = environment(machine, machine.start(), "worker")
    written = machine.stack.settings
    for name in ("SECRET_KEY", "ALLOWED_HOSTS", "POSTGRES_PASSWORD", "TASK_TIME_LIMIT"):
        assert {side: processes[side][name] for side in SIDES} == dict.fromkeys(
            SIDES, written[name]
        )


def test_dollar_and_hash_are_read_in_another_way(machine: Machine) -> None:
    processes = environment(machine, machine.start(), "worker")
    assert {processes[side]["QUOTED"] for side in SIDES} == {"a$HOME # b"}
    assert processes["systemd"]["BARE"] == "a$HOME # b"
    assert processes["stack"]["BARE"] == "a/root"


def test_open_files(machine: Machine) -> None:
    limits = read(machine, machine.start(), "web", "limits")
    assert PROC_LIMIT.search(limits["systemd"]).groups() == ("16384", "16384")
    soft, hard = map(int, PROC_LIMIT.search(limits["stack"]).groups())
    assert soft >= 1024
    assert hard >= soft


def test_the_web_gets_more_cpu_than_the_worker(machine: Machine) -> None:
    weights = machine.run("systemctl", "show", "--property=CPUWeight", "--value", "web", "worker")
    shares = [
        machine.inspect(service)["HostConfig"]["CpuShares"]
        for service in ("web-a", "worker-default")
    ]
    web, worker = map(int, weights.split())
    assert web / worker == shares[0] / shares[1] == 4


def shown(machine: Machine, name: str) -> set[str]:
    """Return the values that a directive has in the units."""
    units = machine.run("systemctl", "show", f"--property={name}", "--value", *ROLES)
    return set(units.split())


def test_there_is_a_limit_of_processes(machine: Machine) -> None:
    limits = {machine.inspect(service)["HostConfig"]["PidsLimit"] for service in ROLES.values()}
    assert shown(machine, "TasksMax") == set(map(str, limits)) == {"500"}


def test_no_limit_of_memory_is_doubled_by_swap(machine: Machine) -> None:
    assert shown(machine, "MemorySwapMax") == {"0"}
    for service in ROLES.values():
        host = machine.inspect(service)["HostConfig"]
        assert host["MemorySwap"] == host["Memory"] > 0  # the former is both together


def test_no_pid_file_and_no_folder_has_to_be_made(machine: Machine) -> None:
    machine.start()
    for service in ROLES.values():
        container = machine.inspect(service)
        assert container["HostConfig"]["ReadonlyRootfs"], service
    found = machine.compose(
        *("exec", "--no-TTY", "beat", "find", "/tmp", "/srv/beat", "-type", "f"),
        *("-printf", "%p %U\n"),
    )
    assert "/tmp/heartbeat 10001" in found
    assert re.search(r"^/srv/beat/schedule\S* 10001$", found, re.MULTILINE)
    assert ".pid" not in found


def test_a_stop_lets_the_running_task_end(machine: Machine) -> None:
    machine.start()
    send = (
        "import time; from stack.tasks import sample; task = sample.delay(steps=40, pause=0.5)\n"
        "while task.state != 'PROGRESS': time.sleep(0.1)\n"
        "print(task.id)"
    )
    ask = (
        "from config.celery import app; task = app.AsyncResult('{}');"
        "print(task.state, task.date_done.timestamp())"
    )
    tasks = both(lambda: machine.python("systemd", send), lambda: machine.python("stack", send))
    stopped = time.time()
    both(
        lambda: machine.run("systemctl", "stop", "worker"),
        lambda: machine.compose("stop", "worker-default"),
    )
    now = machine.look()
    for side in SIDES:
        assert now[side]["worker"]["pid"] == 0
        state, ended = machine.python(side, ask.format(tasks[side])).split()
        assert state == "SUCCESS"
        assert float(ended) > stopped, "the task had ended before the stop"


def test_how_long_a_stop_may_take(machine: Machine) -> None:
    machine.start()
    limit = int(machine.stack.settings["TASK_TIME_LIMIT"])
    assert machine.inspect("worker-default")["Config"]["StopTimeout"] == limit + 60
    unit = machine.run("systemctl", "show", "--property=TimeoutStopUSec", "--value", "worker")
    assert unit.strip() == "6min"
    # At a shutdown the engine waits as long, but its own unit does not.
    engine = machine.run("systemctl", "show", "--property=TimeoutStopUSec", "--value", "docker")
    assert engine.strip() == "1min 30s"


def test_a_reload_replaces_the_children_only(machine: Machine) -> None:
    before = machine.start()
    machine.run("systemctl", "reload", "web")
    machine.compose("exec", "--no-TTY", "web-a", "bash", "-c", "kill -HUP 1")

    def replaced() -> bool:
        now = machine.look()
        return all(
            now[side]["web"]["works"]
            and now[side]["web"]["children"]
            and not set(now[side]["web"]["children"]) & set(before[side]["web"]["children"])
            for side in SIDES
        )

    wait_for("other children", replaced)
    now = machine.look()
    for side in SIDES:
        assert now[side]["web"]["process"] == before[side]["web"]["process"]


def replaced(machine: Machine, before: State) -> bool:
    """Return whether both workers are other processes, whether they work or not."""
    now = machine.outcomes(before, 0, roles=["worker"])
    return not {"untouched", "down"} & set(now.values())


def test_the_order_of_starts_does_not_matter(machine: Machine) -> None:
    before = machine.start()
    # Masked, or Wants= would start it again with the worker.
    machine.run("systemctl", "mask", "--runtime", "--now", "redis-server")
    machine.compose("stop", "broker")
    try:
        machine.kill("KILL", *(before[side]["worker"]["pid"] for side in SIDES))
        wait_for("other processes", lambda: replaced(machine, before))
    finally:
        machine.run("systemctl", "unmask", "--runtime", "redis-server")
        machine.run("systemctl", "start", "redis-server")
        machine.compose("start", "broker")
    code = "from stack.tasks import sample; print(sample.delay(steps=1).get(timeout=180))"
    for side in SIDES:
        assert machine.python(side, code).startswith("Done by default@")


def test_systemds_own_start_limit_gives_up(machine: Machine) -> None:
    machine.run("systemctl", "start", "impatient")

    def result() -> str:
        return machine.run("systemctl", "show", "--property=ActiveState", "--value", "impatient")

    wait_for("it has given up", lambda: result() == "failed\n")
    journal = machine.run("journalctl", "--unit=impatient", "--output=cat")
    assert "Start request repeated too quickly" in journal


def test_logs_have_a_limit(machine: Machine) -> None:
    machine.start()
    assert machine.inspect("worker-default")["HostConfig"]["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-file": "5", "max-size": "10m"},
    }
