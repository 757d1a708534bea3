import json
import time

from django.core.management.base import BaseCommand, CommandParser
from django.db import connection
from ledger import tasks
from ledger.models import Entry


class Command(BaseCommand):
    help = "Send tasks to the queue crawl, and note each as accepted once the broker has it."

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the arguments."""
        parser.add_argument("task")
        parser.add_argument("key", help="begins the keys of all")
        parser.add_argument("count", type=int)
        parser.add_argument("arguments", nargs="?", type=json.loads, default=[])
        parser.add_argument("--options", type=json.loads, default={}, help="for apply_async")
        parser.add_argument(
            "--pause", type=float, help="seconds after each; then a refused task ends nothing"
        )

    def handle(
        self,
        *args: object,
        task: str,
        key: str,
        count: int,
        arguments: list,
        pause: float | None,
        **options: object,
    ) -> None:
        """Print the id of each task that was accepted."""
        send = getattr(tasks, task).apply_async
        keys = [f"{key}-{number}" for number in range(count)]
        Entry.objects.bulk_create(Entry(key=key) for key in keys)
        for key in keys:
            try:
                sent = send((key, *arguments), queue="crawl", **options["options"])
                Entry.accept(key)
            except Exception as error:
                if pause is None:
                    raise
                self.stderr.write(f"{key}: {error!r}")
                connection.close()  # the database may be what failed
            else:
                self.stdout.write(sent.id)
            time.sleep(pause or 0)
