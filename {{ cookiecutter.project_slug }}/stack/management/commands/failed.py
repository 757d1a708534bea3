from datetime import datetime
from typing import Any

import redis
from celery import current_app
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from kombu.exceptions import OperationalError

from stack import logs
from stack.celery.results import Results
from stack.celery.task import forget_redeliveries
from stack.management import table


class Command(BaseCommand):
    help = (
        "Show the last tasks that failed, the newest first, and what was to run after them; or send"
        " them again as they were: the rest of a chain then runs, too. They are known for as long as"
        " results are kept, TASK_RESULT_EXPIRES."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the options."""
        parser.add_argument(
            "--limit", type=int, default=20, metavar="TASKS", help="how many to show (20)"
        )
        parser.add_argument("--retry", metavar="ID", help='send this one again, or "all"')

    def handle(self, *args: object, limit: int, retry: str | None, **options: object) -> None:
        """Raise CommandError for an unknown id, and when the broker or the result backend is unavailable."""
        backend = current_app.backend
        if not isinstance(backend, Results):
            raise CommandError("Failed tasks are known only if the results are in Redis.")
        try:
            failed = backend.failed()
            if retry is None:
                self.show(failed, limit)
            elif retry == "all":
                for task_id, meta in reversed(failed.items()):
                    if reason := why_not(task_id, meta):
                        self.stdout.write(reason)
                    else:
                        self.send(backend, task_id, meta)
            elif retry in failed:
                if reason := why_not(retry, failed[retry]):
                    raise CommandError(reason)
                self.send(backend, retry, failed[retry])
            else:
                for task_id, meta in failed.items():
                    if retry in [step for step, _ in not_run(meta)]:
                        raise CommandError(
                            f"{retry} has not run, it waits for {task_id}: retry that."
                        )
                raise CommandError(f"No failed task has the id {retry}: ./manage.py failed")
        except redis.RedisError as error:
            raise CommandError("The results cannot be read: docker compose ps") from error

    def show(self, failed: dict[str, dict[str, Any]], limit: int) -> None:
        """Print a row for each."""
        if not failed:
            self.stdout.write("No task has failed.")
            return
        rows = [("failed", "id", "task", "queue", "error")]
        for task_id, meta in list(failed.items())[:limit]:
            ended = timezone.localtime(datetime.fromisoformat(meta["date_done"]))
            error = f"{type(meta['result']).__name__}: {meta['result']}"
            rows.append(
                (f"{ended:%Y-%m-%d %H:%M:%S}", task_id, meta["name"], meta["queue"], error[:120])
            )
            rows += [
                ("not run", step, name, "", f"waits for {task_id}") for step, name in not_run(meta)
            ]
        for line in table.lines(rows):
            self.stdout.write(line)
        if len(failed) > limit:
            self.stdout.write(f"{len(failed) - limit} more: --limit {len(failed)}")

    def send(self, backend: Results, task_id: str, meta: dict[str, Any]) -> None:
        """Send a task again under its id, unless another did so meanwhile."""
        if not backend.take_failed(task_id):
            return
        # So that the log has both under one name.
        request_id = {"request_id": meta["request_id"]} if meta["request_id"] else {}
        token = logs.fields.set(request_id)
        message = {"task_id": task_id} | meta.get("message", {})
        forget_redeliveries(task_id)
        try:
            # By its name: whatever this process knows, the worker decides.
            current_app.send_task(
                meta["name"], meta["args"], meta["kwargs"], queue=meta["queue"] or None, **message
            )
        except (OperationalError, KeyError) as error:
            backend.put_failed_back(task_id)
            raise CommandError(f"{task_id} was not sent again: {error}") from error
        finally:
            logs.fields.reset(token)
        self.stdout.write(f"{meta['name']} {task_id} is sent again.")


def not_run(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """Return id and name of each task that was to run after one that failed, in their order."""
    message = meta.get("message", {})
    steps = [*message.get("link", []), *reversed(message.get("chain", []))]
    if message.get("chord"):
        steps.append(message["chord"])
    return [(step["options"].get("task_id") or "", step["task"]) for step in steps]


def why_not(task_id: str, meta: dict[str, Any]) -> str:
    """Return why a task cannot be sent again, or ""."""
    if meta["args"] is None:
        return f"{task_id} is not sent again: its message could not be read."
    message = meta.get("message", {})
    chords = [
        message.get("chord"),
        *(step["options"].get("chord") for step in message.get("chain", [])),
    ]
    callback = next(filter(None, chords), None)
    if not callback:
        return ""
    return (
        f"{task_id} is not sent again: it belongs to a chord, whose callback {callback['task']} failed"
        " with it and would not run. Send the chord again."
    )
