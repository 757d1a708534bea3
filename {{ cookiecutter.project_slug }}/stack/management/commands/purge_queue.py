from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from kombu.exceptions import OperationalError

from stack import brokers, queues


class Command(BaseCommand):
    help = "Delete the tasks that wait in a queue, for good; those that a worker took still run."

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the arguments."""
        parser.add_argument("queue", help=f"{', '.join(settings.QUEUES)}, or one without a worker")
        parser.add_argument("--no-input", "--yes", action="store_true", help="do not ask")

    def handle(self, *args: object, queue: str, no_input: bool, **options: object) -> None:
        """Raise CommandError for an unknown queue, without a yes, and when the broker is unavailable."""
        try:
            with queues.connect() as connection:
                tasks = queues.stranded(connection).get(queue)
                if tasks is None:
                    queues.check_name(queue, CommandError)
                    tasks = queues.waiting(connection)[queue].tasks
                if not no_input and not self.confirmed(queue, tasks):
                    raise CommandError("Nothing was deleted.")
                # As "celery purge" does.
                channel: Any = connection.default_channel
                count = channel.queue_purge(queue)
                if not brokers.current().PURGE_COUNTS:
                    count = tasks
        except OperationalError as error:
            raise CommandError(brokers.NO_ANSWER) from error
        self.stdout.write(f"Deleted {queues.number(count)} from {queue}.")

    def confirmed(self, queue: str, tasks: int) -> bool:
        """Ask; no terminal means no."""
        try:
            answer = input(f"Delete {queues.number(tasks)} from {queue}, for good? [y/N] ")
        except EOFError:
            return False
        return answer.strip().lower() in ("y", "yes")
