"""What the tests of faults share."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from docker.models.containers import Container

from tests.stack.stack import PATIENCE, PRODUCTION, Stack, wait_for

WORKER = "worker-crawl"  # which all tasks of the ledger go to
TIME_LIMIT = 10  # seconds; small, because tests wait for it
SWEEP = 5  # seconds between two looks for lost tasks, TEND in stack/brokers/redis_transport.py
SECONDS = 0.2  # that a task runs; two at a time
TOKEN = "a-token-of-tests"  # of /metrics
RETURNS = "returns: "  # before a key, in the worker's log: ledger/tasks.py
RETURN = 60  # seconds after which a lost task is back in its queue


def main_process(stack: Stack, service: str) -> int:
    """Return the pid, as this machine sees it, of the first child of docker-init."""
    return main_process_of(stack.containers()[service])


def main_process_of(container: Container) -> int:
    """Return the same of a container; ValueError when it does not run."""
    return min(children(container, int(container.attrs["State"]["Pid"])))


def children(container: Container, parent: int) -> list[int]:
    """Return the pids of the children of `parent` in a container."""
    rows = container.top(ps_args="-eo pid,ppid")["Processes"]
    return [int(pid) for pid, of in rows if int(of) == parent]


def ledger_stack(folder: Path, **answers: str) -> Stack:
    """
    Render a stack into `folder` with the app `ledger` and a small time limit; not started.

    It has no example, whose tasks have time limits of their own, above this one.
    """
    stack = Stack(folder, PRODUCTION, **{"example": "false"} | answers)
    shutil.copytree(Path(__file__).parent / "ledger", stack.folder / "ledger")
    stack.edit("config/settings.py", '    "stack",\n', '    "stack",\n    "ledger",\n')
    stack.edit(
        "config/urls.py",
        "urlpatterns = [\n",
        'urlpatterns = [\n    path("ledger/", include("ledger.urls")),\n',
    )
    stack.set(TASK_TIME_LIMIT=TIME_LIMIT, WORKER_MEMORY="320m", METRICS_TOKEN=TOKEN)
    return stack


@dataclass
class Verdict:
    """What became of the tasks whose keys begin alike."""

    accepted: int
    lost: int  # accepted, never done
    doubled: int  # done more than once
    longest: float  # seconds from acceptance to completion, of those that are done


class Ledger:
    """Sends tasks and judges what became of them."""

    def __init__(self, stack: Stack) -> None:
        """Judge in the database of `stack`."""
        self.stack = stack

    def send(
        self,
        task: str,
        key: str,
        count: int,
        *arguments: object,
        pause: float | None = None,
        **options: object,
    ) -> list:
        """
        Send `count` tasks with keys that begin with `key`; return the ids of those accepted.

        With `pause`, in seconds, they are sent one after the other, and a refused one ends nothing.
        """
        words = [task, key, str(count), json.dumps(arguments), f"--options={json.dumps(options)}"]
        words += [] if pause is None else [f"--pause={pause}"]
        return self.stack.manage("send", *words).split()

    def ask(self, what: str, key: str) -> list[str]:
        """
        Select `what` of the tasks whose keys begin with `key`; return the row's columns.

        A database that was restarted just now gets 30 seconds, else AssertionError.
        """
        query = f"SELECT {what} FROM ledger_entry WHERE key LIKE '{key}-%'"
        command = ["psql", "--username=app", "--dbname=app", "-tA", "-c", query]

        def answer() -> str:
            database = self.stack.docker.containers.get(f"{self.stack.slug}-db-1")
            code, printed = database.exec_run(command)
            return printed.decode().strip() if code == 0 else ""

        return wait_for("an answer of the database", answer).split("|")

    def started(self, key: str) -> int:
        """Return how often tasks were begun, of the kinds that count it."""
        return int(self.ask("coalesce(sum(started), 0)", key)[0])

    def done(self, key: str) -> int:
        """Count the tasks that are done."""
        return int(self.ask("count(*) FILTER (WHERE done > 0)", key)[0])

    def judge(self, key: str) -> Verdict:
        """Judge as things stand now."""
        accepted, lost, doubled, longest = self.ask(
            "count(accepted_at), count(*) FILTER (WHERE accepted_at IS NOT NULL AND done = 0),"
            " count(*) FILTER (WHERE done > 1),"
            " coalesce(extract(epoch FROM max(first_done_at - accepted_at)), 0)",
            key,
        )
        return Verdict(int(accepted), int(lost), int(doubled), float(longest))

    def drain(self, key: str, seconds: float = PATIENCE) -> Verdict:
        """Wait until every accepted task is done, at most `seconds`; then judge."""
        deadline = time.monotonic() + seconds
        while (verdict := self.judge(key)).lost and time.monotonic() < deadline:
            time.sleep(1)
        return verdict

    def wait_for_progress(self, key: str, more: int = 2) -> None:
        """Wait until `more` tasks are done than now."""
        goal = self.done(key) + more
        wait_for(f"{goal} tasks done", lambda: self.done(key) >= goal)


def wait_until_healthy(stack: Stack) -> None:
    """Wait until every service but the one-shots is healthy."""

    label = f"com.docker.compose.project={stack.slug}"

    def ill() -> dict[str, str]:
        found = stack.docker.api.containers(all=True, filters={"label": label})
        states = {c["Labels"]["com.docker.compose.service"]: c["Status"] for c in found}
        states.pop("migrate", None)
        return {service: state for service, state in states.items() if "(healthy)" not in state}

    try:
        wait_for("all healthy", lambda: not ill())
    except AssertionError as error:
        raise AssertionError(f"{error}: {ill()}") from None


def judge_after(
    ledger: Ledger,
    key: str,
    count: int,
    *happenings: Callable[[Stack], None],
    seconds: float = SECONDS,
) -> Verdict:
    """
    Let faults happen one after the other while tasks of `seconds` run; judge once all is well.

    Before each fault so many are sent that `count` wait: however slow this machine is, the fault
    comes when there is work to lose.
    """
    sent = 0
    for number, happening in enumerate(happenings):
        missing = count - (sent - ledger.done(key))
        ledger.send("work", f"{key}-{number}", missing, seconds)
        sent += missing
        ledger.wait_for_progress(key)
        happening(ledger.stack)
    ledger.wait_for_progress(key)
    wait_until_healthy(ledger.stack)
    verdict = ledger.drain(key)
    assert verdict.accepted == sent
    print(key, verdict)
    return verdict
