from datetime import datetime
from typing import Any

import redis
from celery import current_app
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from kombu.exceptions import OperationalError

from stack import logs
from stack.celery.results import Results
from stack.management import table


class Command(BaseCommand):
    help = (
        "Show the last tasks that failed, the newest first, or send them again with the arguments"
        " that they had. They are known for as long as results are kept, TASK_RESULT_EXPIRES."
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
                    self.send(backend, task_id, meta)
            elif retry in failed:
                self.send(backend, retry, failed[retry])
            else:
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
        for line in table.lines(rows):
            self.stdout.write(line)
        if len(failed) > limit:
            self.stdout.write(f"{len(failed) - limit} more: --limit {len(failed)}")

    def send(self, backend: Results, task_id: str, meta: dict[str, Any]) -> None:
        """Send a task again, unless another did so meanwhile."""
        if not backend.take_failed(task_id):
            return
        if meta["request_id"]:  # so that the log has both under one name
            logs.fields.set({"request_id": meta["request_id"]})
        try:
            # By its name: whatever this process knows, the worker decides.
            again = current_app.send_task(
                meta["name"], meta["args"], meta["kwargs"], queue=meta["queue"] or None
            )
        except (OperationalError, KeyError) as error:
            backend.put_failed_back(task_id)
            raise CommandError(f"{task_id} was not sent again: {error}") from error
        self.stdout.write(f"{meta['name']} {task_id} is sent again as {again.id}")
