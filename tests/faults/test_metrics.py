"""The figures of /metrics equal the ledger, whatever dies."""

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.stack.stack import Stack, figures, wait_for

from . import faults
from .helpers import Ledger, judge_after, ledger_stack, main_process, wait_until_healthy


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack with the app `ledger`, and a token for /metrics."""
    stack = ledger_stack(tmp_path_factory.mktemp("metrics"))
    stack.set(METRICS_TOKEN="a-token-of-tests")
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.remove()


@pytest.fixture
def ledger(stack: Stack) -> Ledger:
    """The ledger of the stack."""
    return Ledger(stack)


def scrape(stack: Stack) -> str:
    """Return /metrics, a second after the last answer, which was kept for so long."""
    time.sleep(1.1)
    answer = stack.get("/metrics", headers={"Authorization": "Bearer a-token-of-tests"})
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


def count_tasks(
    stack: Stack, ledger: Ledger, number: int, *happenings: Callable[[Stack], None]
) -> None:
    """Send tasks that succeed, fail and retry while all that happens; compare the figures."""
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
    assert tasks(stack) - before == Counter(
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


def test_each_task_is_counted_once_whatever_dies(stack: Stack, ledger: Ledger) -> None:
    count_tasks(
        stack, ledger, 14, faults.kill_pool_child, faults.kill_main_process, faults.kill_broker
    )


@pytest.mark.long
def test_each_task_is_counted_once_after_many_kills(stack: Stack, ledger: Ledger) -> None:
    def kill_broker(stack: Stack) -> None:
        faults.kill_broker(stack)
        wait_until_healthy(stack)  # or the next tasks are refused

    kinds = [
        faults.kill_main_process,
        faults.kill_pool_child,
        kill_broker,
        faults.cut_network,
        faults.recreate,
        faults.restart_broker,
    ]
    count_tasks(stack, ledger, 100, *kinds * 4)


def test_the_token_opens_the_page(stack: Stack) -> None:
    assert stack.get("/metrics").status_code == 403
    assert "stack_up" in scrape(stack)


def test_a_killed_web_instance_loses_no_request_that_was_reported(stack: Stack) -> None:
    page = ("200", "admin:login")

    def requests() -> int:
        return figures(scrape(stack), "stack_request_seconds_count")[page]

    before = requests()
    for _ in range(40):
        assert stack.get("/admin/login/").status_code == 200
    time.sleep(3)  # they are reported every two seconds
    for service in ("web-a", "web-b"):
        faults.kill(main_process(stack, service))
    wait_until_healthy(stack)
    stack.wait_for_proxy()
    assert requests() == before + 40
    # One that is stopped reports what is left.
    for _ in range(10):
        assert stack.get("/admin/login/").status_code == 200
    stack.compose("restart", "--no-deps", "web-a", "web-b")
    wait_until_healthy(stack)
    stack.wait_for_proxy()
    assert requests() == before + 50
