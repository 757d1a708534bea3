from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from kombu.exceptions import OperationalError

from stack import brokers, queues


class Command(BaseCommand):
    help = (
        "Move the tasks that wait in a queue to another one, such as those of a queue that was renamed"
        " or removed. When it is interrupted, each task is in one of the two: run it again. Tasks that"
        " wait for a countdown, an eta or a retry come to the old queue later."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the arguments."""
        parser.add_argument("old", help="any queue of the broker")
        parser.add_argument("new", help=", ".join(settings.QUEUES))

    def handle(self, *args: object, old: str, new: str, **options: object) -> None:
        """Raise CommandError for an unknown queue, and when the broker is unavailable."""
        queues.check_name(new, CommandError)
        if old == new:
            raise CommandError("Name two queues.")
        moved = shown = 0
        try:
            with queues.connect() as connection:
                for moved in queues.move(connection, old, new):
                    if moved >= shown + 10_000:
                        shown = moved
                        self.stdout.write(f"{moved} ...")
        except ValueError as error:
            raise CommandError(str(error)) from error
        except OperationalError as error:
            raise CommandError(brokers.NO_ANSWER) from error
        self.stdout.write(f"Moved {queues.number(moved)} from {old} to {new}.")
