"""What Django's cache keeps, and what it does not run."""

import asyncio
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.backends.cache import SessionStore
from django.core.cache import cache

from stack import activity
from stack.health import check_cache


class RunsWhenUnpickled:
    """Makes a file when pickle loads it, as an attacker's object would do something else."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_cache_that_an_attacker_writes_to_runs_no_code(tmp_path: Path) -> None:
    """/readyz, which anybody may request, reads this key."""
    key = cache.make_key("readyz")
    activity.store().set(key, pickle.dumps(RunsWhenUnpickled(tmp_path / "ran")))
    try:
        with pytest.raises(ValueError):
            check_cache()
    finally:
        cache.delete("readyz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "ä", [1, "a"], {"a": {"b": None}}])
def test_the_cache_returns_what_was_stored(value: object) -> None:
    cache.set("kept", value)
    assert cache.get("kept", "missing") == value
    assert type(cache.get("kept")) is type(value)


def test_a_number_is_counted_and_an_object_is_refused() -> None:
    cache.set("number", 1)
    assert cache.incr("number") == 2
    assert asyncio.run(cache.aget("number")) == 2
    with pytest.raises(TypeError, match="JSON"):
        cache.set("object", object())


def test_sessions_may_be_in_the_cache() -> None:
    session = SessionStore()
    session["cart"] = {"tea": 2}
    session.save()
    assert SessionStore(session.session_key)["cart"] == {"tea": 2}
