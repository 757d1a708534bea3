import time

from celery import Task, shared_task
from django.core.management import call_command

from . import logs, pings


class SampleError(Exception):
    """The failure that was asked for."""


@shared_task(bind=True)
def sample(self: Task, steps: int = 5, pause: float = 0.3, fail: bool = False) -> str:
    """
    Report progress `steps` times, `pause` seconds apart; return the name of the worker.

    With `fail`, raise SampleError after half of the steps.
    """
    for done in range(steps):
        if fail and done >= steps / 2:
            raise SampleError("This task was sent to fail.")
        self.update_state(state="PROGRESS", meta={"done": done, "steps": steps})
        time.sleep(pause)
    return f"Done by {self.request.hostname}."


@shared_task
def clear_sessions() -> None:
    """Delete expired sessions; running it twice changes nothing."""
    call_command("clearsessions")


@shared_task(bind=True, ignore_result=True)
def ping(self: Task) -> None:
    """Show the dead man's switch at PING_URL that this queue is alive; beat sends it every minute."""
    pings.send(logs.queue(self.request), self.request.hostname)
