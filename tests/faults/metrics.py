"""Compares the figures of /metrics with the ledger."""

import time
from collections import Counter
from collections.abc import Callable

from tests.stack.stack import Stack, figures, wait_for

from .helpers import TOKEN, Ledger, judge_after, wait_until_healthy


def scrape(stack: Stack) -> str:
    """Return /metrics, a second after the last answer, which was kept for so long."""
    time.sleep(1.1)
    answer = stack.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    return answer.text


def tasks(stack: Stack) -> Counter[tuple[str, ...]]:
    """Return how many tasks have ended, by name and state; all are of one queue."""
    found = figures(scrape(stack), "stack_tasks_total")
    return Counter(
        {
            (task.rpartition(".")[2], state): count
            for (queue, state, task), count in found.items()
            if queue == "crawl"
        }
    )


def nothing_held(stack: Stack) -> bool:
    """Return whether all that workers took is acknowledged."""
    held = stack.compose("exec", "--no-TTY", "broker", "redis-cli", "hlen", "unacked")
    return held.strip() == "0"


def kill_and_wait(stack: Stack, kill: Callable[[], object], *services: str) -> None:
    """Kill something, and wait until these services have been started again and all is healthy."""

    def since() -> set[str]:
        return {stack.containers(name)[name].attrs["State"]["StartedAt"] for name in services}

    before = since()
    kill()
    wait_for("they are started again", lambda: not since() & before)
    wait_until_healthy(stack)
    stack.wait_for_proxy()


def count_tasks(
    stack: Stack, ledger: Ledger, number: int, *happenings: Callable[[Stack], None]
) -> None:
    """Send tasks that succeed, fail and retry while all that happens; compare the figures."""
    wait_for("nothing of other tests is held", lambda: nothing_held(stack))
    before = tasks(stack)
    key = f"counted-{len(happenings)}"
    ledger.send("retry_late", f"{key}-retried", 3, 0)
    assert ledger.drain(f"{key}-retried").lost == 0
    ledger.send("work_of_another_class", f"{key}-class", 3)
    ledger.send("fail_once", f"{key}-failing", number)
    verdict = judge_after(ledger, f"{key}-work", number, *happenings)
    wait_for("all are acknowledged", lambda: nothing_held(stack))
    assert ledger.drain(f"{key}-class").lost == 0
    # One that was begun before its worker was killed succeeds when it is redelivered.
    done = ledger.done(f"{key}-failing")
    counted = tasks(stack) - before
    del counted["work", "retried"]  # without a network there is no database
    assert counted == Counter(
        {
            ("work", "succeeded"): verdict.accepted,
            ("work_of_another_class", "succeeded"): 3,
            ("retry_late", "retried"): 3,
            ("retry_late", "succeeded"): 3,
            ("fail_once", "failed"): number - done,
            ("fail_once", "succeeded"): done,
        }
    ) - Counter({("fail_once", "succeeded"): 0})
    text = scrape(stack)
    assert key not in text  # they are arguments of tasks
    secrets = [
        value for name, value in stack.settings.items() if "PASSWORD" in name or "KEY" in name
    ]
    assert not [secret for secret in secrets if secret and secret in text]
