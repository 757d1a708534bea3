from datetime import datetime
from typing import Any

import redis
from celery import current_app
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from kombu.exceptions import OperationalError

from stack import failed
from stack.celery.results import Results
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
            raise CommandError(failed.ONLY_REDIS)
        try:
            tasks = backend.failed()
            if retry is None:
                self.show(tasks, limit)
            elif retry == "all":
                for task_id, meta in reversed(tasks.items()):
                    if reason := failed.why_not(task_id, meta):
                        self.stdout.write(reason)
                    else:
                        self.send(backend, task_id, meta)
            elif retry in tasks:
                if reason := failed.why_not(retry, tasks[retry]):
                    raise CommandError(reason)
                self.send(backend, retry, tasks[retry])
            else:
                for task_id, meta in tasks.items():
                    if retry in [step for step, _ in failed.not_run(meta)]:
                        raise CommandError(
                            f"{retry} has not run, it waits for {task_id}: retry that."
                        )
                raise CommandError(f"No failed task has the id {retry}: ./manage.py failed")
        except redis.RedisError as error:
            raise CommandError("The results cannot be read: docker compose ps") from error

    def show(self, tasks: dict[str, dict[str, Any]], limit: int) -> None:
        """Print a row for each."""
        if not tasks:
            self.stdout.write("No task has failed.")
            return
        rows = [("failed", "id", "task", "queue", "error")]
        for task_id, meta in list(tasks.items())[:limit]:
            ended = timezone.localtime(datetime.fromisoformat(meta["date_done"]))
            error = f"{type(meta['result']).__name__}: {meta['result']}"
            rows.append(
                (f"{ended:%Y-%m-%d %H:%M:%S}", task_id, meta["name"], meta["queue"], error[:120])
            )
            rows += [
                ("not run", step, name, "", f"waits for {task_id}")
                for step, name in failed.not_run(meta)
            ]
        for line in table.lines(rows):
            self.stdout.write(line)
        if len(tasks) > limit:
            self.stdout.write(f"{len(tasks) - limit} more: --limit {len(tasks)}")

    def send(self, backend: Results, task_id: str, meta: dict[str, Any]) -> None:
        """Send a task again, unless another did so meanwhile."""
        try:
            sent = failed.send(backend, task_id, meta)
        except OperationalError as error:
            raise CommandError(str(error)) from error
        if sent:
            self.stdout.write(f"{meta['name']} {task_id} is sent again.")
