"""The Celery app that workers, beat, flower and the web share."""

import gc
import os

from celery import Celery
from celery.signals import (
    before_task_publish,
    heartbeat_sent,
    setup_logging,
    task_postrun,
    task_prerun,
    worker_init,
    worker_shutdown,
    worker_shutting_down,
)

from core import logs
from core.pulse import pulse

from .heartbeat import beat, beat_to_the_end

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("config", task_cls="config.task:Task")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
# Which has no setting: Celery's own results, with what ./manage.py failed needs.
app.loader.override_backends = dict.fromkeys(["redis", "rediss"], "config.results:Results")

# The worker's event loop sends one every few seconds, also when all its children are busy.
heartbeat_sent.connect(beat)
worker_shutting_down.connect(beat_to_the_end)
# The same for those who look at the start page.
heartbeat_sent.connect(pulse.worker)
worker_shutting_down.connect(pulse.worker_stops)
worker_shutdown.connect(pulse.worker_ended)
# What the log tells of a task, and of the request that it comes from.
before_task_publish.connect(logs.pass_on)
task_prerun.connect(logs.begin)
task_postrun.connect(logs.end)


@worker_init.connect
def freeze(**kwargs: object) -> None:
    """Keep the garbage collector from copying shared memory into each child: 40 MB a worker."""
    gc.collect()
    gc.freeze()


@setup_logging.connect
def leave_logging_to_django(**kwargs: object) -> None:
    """Let LOGGING in settings.py hold for workers and beat too: Celery sets up none of its own."""
