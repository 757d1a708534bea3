from datetime import datetime
from typing import Any

from celery import current_app, states
from celery.app.task import Context
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from kombu.exceptions import OperationalError

from stack import brokers, failed, logs
from stack.celery.results import why_unknown
from stack.management import table

# What a worker says of a task that it has.
AT_WORKER = {
    "active": "running",
    "reserved": "taken by a worker that is busy",
    "scheduled": "waiting in a worker for its time",
}
UNKNOWN = (
    "No worker has it and there is no result: it waits in its queue, its result has expired, or"
    " there never was such a task."
)

NOT_ASKED = (
    "There is no result, and with this broker no worker can be asked: it waits in its queue, it runs, its"
    " result has expired, or there never was such a task."
)
NO_RESULT: dict[str, Any] = {"status": states.PENDING, "result": None}


class Command(BaseCommand):
    help = (
        "Show all that is known of a task: its state, queue, worker, times, and result or error."
        " The arguments are known while a worker has it, and when it has failed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Define the argument."""
        parser.add_argument(
            "task_id", metavar="ID", help="of the task, as in the log and in Flower"
        )

    def handle(self, *args: object, task_id: str, **options: object) -> None:
        """Raise CommandError when the broker or the result backend is unavailable."""
        asked = current_app.conf.worker_enable_remote_control
        unknown = why_unknown(current_app.backend)
        try:
            found = (current_app.control.inspect().query_task(task_id) or {}) if asked else {}
        except OperationalError as error:
            raise CommandError(brokers.NO_ANSWER) from error
        try:
            meta = NO_RESULT if unknown else current_app.backend.get_task_meta(task_id)
        except Exception as error:  # whatever the library of the result backend raises
            raise CommandError("The results cannot be read: docker compose ps") from error
        at_worker = [tasks[task_id] for tasks in found.values() if task_id in tasks]
        rows = result_rows(meta)
        if at_worker and meta["status"] not in states.READY_STATES:
            rows |= worker_rows(*at_worker[0])
        for line in table.lines(rows.items()):
            self.stdout.write(line)
        if meta["status"] == states.PENDING and not at_worker:
            self.stdout.write(unknown or (UNKNOWN if asked else NOT_ASKED))
        if meta.get("traceback"):
            self.stdout.write(f"\n{meta['traceback'].rstrip()}")


def moment(when: datetime) -> str:
    """Write a time as of TIME_ZONE."""
    return f"{timezone.localtime(when):%Y-%m-%d %H:%M:%S}"


def result_rows(meta: dict[str, Any]) -> dict[str, str]:
    """Return the rows with what the result backend knows."""
    state, result = meta["status"], meta["result"]
    rows = {"state": state}
    for name, key in (("task", "name"), ("queue", "queue"), ("worker", "worker")):
        if meta.get(key):
            rows[name] = meta[key]
    rows |= failed.arguments(meta)
    if meta.get("request_id"):
        rows["request"] = meta["request_id"]
    if meta.get("date_done"):
        rows["ended"] = moment(failed.ended(meta))
    if isinstance(result, BaseException):
        rows["error"] = f"{type(result).__name__}: {result}"
    elif state == states.SUCCESS:
        rows["result"] = repr(result)
    elif result:
        rows["progress"] = repr(result)
    return rows


def worker_rows(state: str, about: Any) -> dict[str, str]:
    """Return the rows with what a worker knows about a task that it holds."""
    begun = about["time_start"]
    return {
        "state": AT_WORKER.get(state, state),
        "task": about["name"],
        "queue": logs.queue(Context(about)),
        "worker": about["hostname"],
        **failed.arguments(about),
        "started": moment(datetime.fromtimestamp(begun).astimezone()) if begun else "-",
    }
