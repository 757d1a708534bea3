import time

from celery.result import AsyncResult
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from stack.tasks import sample


class Command(BaseCommand):
    help = "Send the sample task through queues, wait, and show which worker did each."

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the options."""
        parser.add_argument("queue", nargs="*", help="queues; all when none is named")
        parser.add_argument(
            "--timeout", type=float, default=30, metavar="SECONDS", help="how long to wait (30)"
        )

    def handle(self, *args: object, queue: list[str], timeout: float, **options: object) -> None:
        """Raise CommandError for an unknown queue, and when a task does not end in time."""
        queues = queue or settings.QUEUES
        if unknown := set(queues).difference(settings.QUEUES):
            raise CommandError(
                f"No such queue: {', '.join(sorted(unknown))}. There are {', '.join(settings.QUEUES)}."
            )
        results = {name: sample.apply_async(queue=name) for name in queues}
        width = max(map(len, queues))
        deadline = time.monotonic() + timeout
        failed = [
            name
            for name, result in results.items()
            if not self.show(name.ljust(width), result, deadline - time.monotonic())
        ]
        if failed:
            raise CommandError(
                f"Not done after {timeout:g} s: {', '.join(failed)}."
                " Which workers are up? ./manage.py queues"
            )

    def show(self, name: str, result: AsyncResult, seconds: float) -> bool:
        """Wait up to `seconds` for `result`, print its row, return whether it succeeded."""
        try:
            answer = result.get(timeout=max(seconds, 0.1), propagate=False)
        except TimeoutError:
            answer = "no answer"
        self.stdout.write(f"{name}  {result.state:8}  {answer}")
        return result.successful()
