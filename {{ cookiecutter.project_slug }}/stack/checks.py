"""System checks, run at every start: each task has a queue, and each queue a worker."""

import os
import re

from celery import current_app
from celery.exceptions import QueueNotFound
from django.conf import settings
from django.core.checks import Error, register
from django.utils.module_loading import autodiscover_modules

# How a service of compose says which queues its worker consumes.
CONSUMED = re.compile(
    r"""^[^#\n]*?(?:CELERY_WORKER_QUEUES["']?\s*[:=]|-Q["']?,?)\s*["']?([\w-]+(?:,[\w-]+)*)""",
    re.MULTILINE,
)


def worker_queues() -> set[str]:
    """Return the queues that workers consume in the compose files of this project."""
    names = os.environ.get("COMPOSE_FILE", "compose.yaml:compose.override.yaml")
    files = [settings.BASE_DIR / name for name in re.split("[:;]", names)]  # ";" on Windows
    texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
    return {
        name
        for text in texts
        for consumed in CONSUMED.findall(text)
        for name in consumed.split(",")
    }


@register()
def queues_have_workers(**kwargs: object) -> list[Error]:
    """Return an error for each queue without a worker, and each worker's queue not in QUEUES."""
    workers = worker_queues()
    errors = [
        Error(
            f'No worker in compose.yaml consumes the queue "{queue}".',
            hint=f"Add a service worker-{queue} with CELERY_WORKER_QUEUES: {queue} to compose.yaml.",
            id="stack.E001",
        )
        for queue in settings.QUEUES
        if queue not in workers
    ]
    return errors + [
        Error(
            f'A worker in compose.yaml consumes the queue "{queue}", which is not in QUEUES.',
            hint=f'Add "{queue}" to QUEUES in config/settings.py.',
            id="stack.E002",
        )
        for queue in sorted(workers.difference(settings.QUEUES))
    ]


@register()
def tasks_have_queues(**kwargs: object) -> list[Error]:
    """Return an error for each task whose route names a queue that is not in QUEUES."""
    autodiscover_modules("tasks")  # not Celery's own loader, which runs these checks
    errors = []
    for name in sorted(current_app.tasks):
        try:
            current_app.amqp.router.route({}, name)
        except QueueNotFound as error:
            errors.append(
                Error(
                    f'The route of the task "{name}" is wrong: {error}.',
                    hint="Add the queue to QUEUES in config/settings.py, or correct the route.",
                    id="stack.E003",
                )
            )
    return errors


@register()
def scheduled_tasks_exist(**kwargs: object) -> list[Error]:
    """Return an error for each entry of beat's schedule that names an unknown task."""
    autodiscover_modules("tasks")  # not Celery's own loader, which runs these checks
    return [
        Error(
            f'"{name}" in beat\'s schedule sends the unknown task "{entry["task"]}".',
            hint="Correct the name in CELERY_BEAT_SCHEDULE, or define the task.",
            id="stack.E004",
        )
        for name, entry in current_app.conf.beat_schedule.items()
        if entry["task"] not in current_app.tasks
    ]
