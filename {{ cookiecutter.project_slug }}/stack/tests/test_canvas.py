"""What ./manage.py failed does with tasks of chains, groups and chords, with a real worker."""

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord, current_app, group, shared_task
from celery.canvas import Signature
from django.core.cache import cache
from django.core.management import CommandError, call_command

from stack.celery.results import FAILED, Results
from stack.testing import wait_for

pytestmark = pytest.mark.django_db


@shared_task
def flaky(name: str) -> str:
    """Fail the first time."""
    if cache.incr(f"canvas:{name}") == 1:
        raise ValueError(name)
    return name


@shared_task
def step(name: str) -> str:
    """Count that it ran."""
    cache.incr(f"canvas:{name}")
    return name


@shared_task
def collect(names: list[str], name: str) -> str:
    """Count that it ran; what it is called with does not matter."""
    return step(name)


NAMES = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def nothing_ran(worker: None) -> Iterator[None]:
    """No task failed, and none of the names ran; there is a worker."""
    results().client.delete(FAILED)
    cache.set_many({f"canvas:{name}": 0 for name in NAMES})
    yield
    cache.delete_many([f"canvas:{name}" for name in NAMES])


def results() -> Results:
    """Return the result backend."""
    assert isinstance(current_app.backend, Results)
    return current_app.backend


def ran() -> list[int]:
    """Return how often each of the names ran."""
    return [cache.get(f"canvas:{name}") for name in NAMES]


def send(signature: Signature) -> list[list[str]]:
    """Send a signature, and wait for a failure; return the rows of ./manage.py failed."""
    signature.apply_async()
    wait_for(lambda: results().failed())
    time.sleep(0.5)  # whatever would run now, wrongly
    return rows()


def rows() -> list[list[str]]:
    """Return state, id, task and the rest of each row of ./manage.py failed."""
    out = io.StringIO()
    call_command("failed", stdout=out)
    lines = out.getvalue().splitlines()[1:]
    found = []
    for line in lines:
        state = "not run" if line.startswith("not run") else "failed"
        _, _, task_id, task, *rest = line.split()
        found.append([state, task_id, task.rpartition(".")[2], " ".join(rest)])
    return found


def test_the_rest_of_a_chain_runs_once_its_failed_step_does() -> None:
    signature = chain(flaky.si("a"), step.si("b"), step.si("c"))
    failed, second, third = send(signature)
    assert [failed[0], failed[2], failed[3]] == ["failed", "flaky", "default ValueError: a"]
    waits = f"waits for {failed[1]}"
    assert [second[0], second[2:], third[0], third[2:]] == [
        "not run", ["step", waits], "not run", ["step", waits],
    ]  # fmt: skip
    with pytest.raises(CommandError, match=f"{third[1]} has not run, it {waits}: retry that"):
        call_command("failed", retry=third[1])
    assert ran() == [1, 0, 0, 0]
    call_command("failed", retry="all")
    wait_for(lambda: ran() == [2, 1, 1, 0])
    # The one who sent the chain has the last step's result.
    assert current_app.AsyncResult(third[1]).get(timeout=60) == "c"
    assert rows() == []


def test_a_chain_that_ends_with_a_chord_runs_all_of_it() -> None:
    failed, *_ = send(chain(flaky.si("a"), group(step.si("b"), step.si("c")), collect.s("d")))
    assert ran() == [1, 0, 0, 0]
    call_command("failed", retry=failed[1])
    wait_for(lambda: ran() == [2, 1, 1, 1])
    assert rows() == []


def test_a_task_of_a_group_completes_it() -> None:
    result: Any = group(flaky.si("a"), step.si("b")).apply_async()
    wait_for(lambda: results().failed())
    call_command("failed", retry="all")
    # Looked up each time: a result remembers that it failed.
    wait_for(lambda: all(current_app.AsyncResult(each.id).successful() for each in result))
    assert ran() == [2, 1, 0, 0]


@pytest.mark.parametrize(
    "header", [flaky.si("a"), chain(flaky.si("a"), step.si("c"))], ids=["task", "chain"]
)
def test_a_task_of_a_chord_is_not_sent_again_and_says_why(header: Signature, capsys) -> None:
    failed, *rest = send(chord([header, step.si("b")], collect.s("d")))
    assert failed[2] == "flaky"
    assert {row[0] for row in rest} == {"not run"}  # and no row for the callback that has failed
    sentence = (
        f"{failed[1]} is not sent again: it belongs to a chord, whose callback"
        f" {collect.name} failed with it and would not run. Send the chord again."
    )
    with pytest.raises(CommandError) as refused:
        call_command("failed", retry=failed[1])
    assert str(refused.value) == sentence
    call_command("failed", retry="all")
    assert capsys.readouterr().out == f"{sentence}\n"
    assert rows()[0] == failed
    wait_for(lambda: ran() == [1, 1, 0, 0])


def test_a_retry_has_all_that_its_message_had() -> None:
    options: dict[str, Any] = {"priority": 3, "time_limit": 10, "headers": {"tenant": "acme"}}
    flaky.apply_async(("a",), link=step.si("b"), link_error=step.si("c"), **options)
    wait_for(lambda: ran() == [1, 0, 1, 0])
    (meta,) = results().failed().values()
    message = meta["message"]
    assert (message["priority"], message["time_limit"], message["soft_time_limit"]) == (3, 10, 9)
    assert message["headers"]["tenant"] == "acme"
    call_command("failed", retry="all")
    wait_for(lambda: ran() == [2, 1, 1, 0])


def test_a_retry_has_all_its_attempts_again_and_no_longer_expires() -> None:
    options: dict[str, Any] = {"expires": 600, "retries": 3}
    flaky.apply_async(("a",), **options)
    wait_for(lambda: results().failed())
    (meta,) = results().failed().values()
    assert meta["message"].keys().isdisjoint(options)
    call_command("failed", retry="all")
    wait_for(lambda: ran() == [2, 0, 0, 0])
