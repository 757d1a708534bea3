import redis
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from kombu.exceptions import OperationalError

from stack import activity, brokers, queues
from stack.management import table


class Command(BaseCommand):
    help = (
        "Show each queue, also one that holds tasks and has no worker: the tasks that wait in it, how"
        " long the oldest has waited, the workers that are up, the tasks that they run, and those that"
        " ended and those that failed in the last minute. Tasks that wait for a countdown, an eta, a"
        " retry or a rate limit are not counted."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the arguments."""
        parser.add_argument("queue", nargs="*", help="queues; all when none is named")

    def handle(self, *args: object, queue: list[str], **options: object) -> None:
        """Raise CommandError for an unknown queue, and when the broker or the cache is unavailable."""
        names = queue or settings.QUEUES
        for name in names:
            queues.check_name(name, CommandError)
        try:
            with queues.connect() as connection:
                waiting = queues.waiting(connection)
                stranded = {} if queue else queues.stranded(connection)
        except OperationalError as error:
            raise CommandError(brokers.NO_ANSWER) from error
        try:
            workers, _ = activity.read(names)
        except redis.RedisError as error:
            raise CommandError("The cache does not answer: docker compose ps cache") from error
        rows = [("queue", "waiting", "oldest", "workers", "running", "done/min", "failed/min")]
        for name in names:
            tasks, oldest = waiting[name].tasks, waiting[name].oldest
            row = workers[name]
            rows.append(
                (
                    name,
                    str(tasks),
                    "-" if oldest is None else f"{oldest:.0f} s",
                    str(row.up or "down"),
                    str(row.running),
                    str(row.done[-1]),
                    str(row.failed[-1]),
                )
            )
        rows += [(name, str(tasks), "-", "none", "-", "-", "-") for name, tasks in stranded.items()]
        for line in table.lines(rows, str.rjust):
            self.stdout.write(line)
        for name in stranded:
            self.stdout.write(
                f"{name} is not in QUEUES: move its tasks, ./manage.py move_queue {name} OTHER, or delete"
                f" them, ./manage.py purge_queue {name}."
            )
        if explanation := brokers.current().AGE_UNKNOWN:
            self.stdout.write(explanation)
