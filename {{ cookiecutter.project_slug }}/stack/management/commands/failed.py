from collections.abc import Iterable
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
        "Show the last tasks that failed, the newest first, and what was to run after them, and"
        " the dead letters; or send them again as they were, so that the rest of a chain then"
        " runs, too; or drop them. Failed tasks are known for as long as results are kept,"
        " TASK_RESULT_EXPIRES."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the options."""
        parser.add_argument(
            "--limit", type=int, default=20, metavar="TASKS", help="how many to show (20)"
        )
        parser.add_argument("--task", metavar="NAME", help="only those of this task")
        parser.add_argument("--dead-letters", action="store_true", help="only dead letters")
        change = parser.add_mutually_exclusive_group()
        change.add_argument("--retry", metavar="ID", help='send this one again, or "all"')
        change.add_argument(
            "--drop", metavar="ID", help='take this one from the list, or "all"; its result stays'
        )
        parser.add_argument("--no-input", "--yes", action="store_true", help="do not ask")

    def handle(self, *args: object, **options: Any) -> None:
        """Raise CommandError for an unknown id, and when the broker or the result backend is unavailable."""
        only, dead = options["task"], options["dead_letters"]
        again = bool(options["retry"])
        chosen = options["retry"] or options["drop"]
        try:
            if not chosen:
                self.show(only, dead, options["limit"])
            elif chosen == "all":
                self.change_all(only, dead, again, ask=not options["no_input"])
            else:
                self.change(chosen, dead, again)
        except (ValueError, OperationalError) as error:
            raise CommandError(str(error)) from error
        except redis.RedisError as error:
            raise CommandError("The results cannot be read: docker compose ps") from error

    def show(self, only: str | None, dead: bool, limit: int) -> None:
        """Print a row for each."""
        tasks = [] if dead else [entry for entry in failed.tasks() if only in (None, entry.task)]
        letters, count = self.letters()
        letters = [entry for entry in letters if only in (None, entry.task)]
        found = [*tasks[:limit], *letters[:limit]]
        if not tasks and not dead:
            self.stdout.write("No task has failed.")
        if not letters and dead:
            self.stdout.write("There are no dead letters.")
        if not found:
            return
        rows = [("failed", "id", "task", "queue", "error")]
        for entry in found:
            if entry.dead:
                error = f"dead letter: {entry.error} {' '.join(entry.arguments.values())}"
            else:
                error = f"{entry.error}: {entry.text}"
            at = timezone.localtime(entry.at)
            rows.append(
                (f"{at:%Y-%m-%d %H:%M:%S}", entry.task_id, entry.task, entry.queue, error[:120])
            )
            rows += [
                ("not run", step, name, "", f"waits for {entry.task_id}")
                for step, name in entry.not_run
            ]
        for line in table.lines(rows):
            self.stdout.write(line)
        if more := max(0, len(tasks) - limit) + max(0, len(letters) - limit):
            self.stdout.write(f"{more} more: --limit {max(len(tasks), len(letters))}")
        if count > failed.MOST:
            self.stdout.write(f"{count} dead letters; the oldest {failed.MOST} are known here.")

    def letters(self) -> tuple[list[failed.Entry], int]:
        """Return the dead letters, and how many there are; none when the broker does not answer."""
        try:
            return failed.letters()
        except OperationalError as error:
            self.stderr.write(f"The dead letters are not known: {error}")
            return [], 0

    def change_all(self, only: str | None, dead: bool, again: bool, ask: bool) -> None:
        """Send all again or drop them, the oldest first."""

        def is_meant(entry: failed.Entry) -> bool:
            return only in (None, entry.task)

        if not again and ask and not self.confirmed(only, dead):
            raise CommandError("Nothing was dropped.")
        if dead:
            done = failed.change_letters(is_meant, again)
        else:
            ids = [entry.id for entry in failed.tasks() if is_meant(entry)]
            done = failed.change_tasks(reversed(ids), again)
        self.report(done, again)

    def confirmed(self, only: str | None, dead: bool) -> bool:
        """Ask; no terminal means no."""
        what = "dead letters, for good" if dead else "failed tasks from the list"
        try:
            answer = input(f"Drop all {what}{f' of {only}' if only else ''}? [y/N] ")
        except EOFError:
            return False
        return answer.strip().lower() in ("y", "yes")

    def change(self, chosen: str, dead: bool, again: bool) -> None:
        """Send one again or drop it; CommandError when it is not there."""
        backend = current_app.backend
        tasks = backend.failed() if isinstance(backend, Results) and not dead else {}

        def is_meant(entry: failed.Entry) -> bool:
            return chosen in (entry.id, entry.task_id)

        if chosen in tasks:
            done = list(failed.change_tasks([chosen], again))
        else:
            done = list(failed.change_letters(is_meant, again))
        if not done:
            for task_id, meta in tasks.items():
                if chosen in [step for step, _ in failed.not_run(meta)]:
                    raise CommandError(f"{chosen} has not run, it waits for {task_id}: retry that.")
            raise CommandError(f"No failed task has the id {chosen}: ./manage.py failed")
        if done[0].why_not:
            raise CommandError(done[0].why_not)
        self.report(done, again)

    def report(self, done: Iterable[failed.Done], again: bool) -> None:
        """Print a line for each."""
        for one in done:
            sentence = f"{one.task} {one.task_id} is {'sent again' if again else 'dropped'}."
            self.stdout.write(one.why_not or sentence)
