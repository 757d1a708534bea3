import re

from celery import current_app
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from kombu.exceptions import OperationalError

from stack import brokers
from stack.checks import workers
from stack.management import table


class Command(BaseCommand):
    help = (
        "Limit how many of a task each worker starts, until it restarts: 10/s, 10/m or 10/h, or 0 for no"
        " limit. To make it permanent, set rate_limit= in the task itself. The worker keeps the limited"
        " tasks that it took, and those behind them wait: give such a task a queue of its own."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the arguments."""
        parser.add_argument("task", help="such as stack.tasks.sample")
        parser.add_argument("rate", help="such as 10/m, or 0")

    def handle(self, *args: object, task: str, rate: str, **options: object) -> None:
        """Raise CommandError for an unknown task, a malformed rate, and when no worker obeys."""
        current_app.loader.import_default_modules()
        if task not in current_app.tasks:
            known = ", ".join(
                sorted(name for name in current_app.tasks if not name.startswith("celery."))
            )
            raise CommandError(f'There is no task "{task}", but {known}.')
        if not re.fullmatch(r"0|\d+(\.\d+)?/[smh]", rate):
            raise CommandError(f'"{rate}" is no rate: 10/s, 10/m or 10/h is, or 0 for no limit.')
        if not current_app.conf.worker_enable_remote_control:
            raise CommandError(
                "With this broker no worker can be told: set rate_limit= in the task."
            )
        try:
            # A busy worker may take a while; when as many as compose.yaml has replied, it is over.
            # On a connection of its own: what still waits there would take the replies that follow.
            with current_app.connection_for_write() as connection:
                replies = current_app.control.rate_limit(
                    task,
                    0 if rate == "0" else rate,
                    reply=True,
                    timeout=5,
                    limit=len(workers()),
                    connection=connection,
                )
            nodes = [node for reply in replies or [] for node in reply]
            inspect = current_app.control.inspect(nodes, timeout=5)
            consumed = (inspect.active_queues() if nodes else None) or {}
        except OperationalError as error:
            raise CommandError(brokers.NO_ANSWER) from error
        answers = {node: said for reply in replies or [] for node, said in reply.items()}
        obeyed = [node for node, said in answers.items() if "ok" in said]
        rows = [(node, said.get("error") or rate) for node, said in sorted(answers.items())]
        answered = {queue["name"] for queues in consumed.values() for queue in queues}
        rows += [(name, "no answer") for name in settings.QUEUES if name not in answered]
        for line in table.lines([("worker", task), *rows]):
            self.stdout.write(line)
        if not obeyed:
            raise CommandError("No worker obeys. Is one up? docker compose ps")
