"""A system check, run by "migrate" at every start: no task may go where no worker reads."""

import re

from django.conf import settings
from django.core.checks import Error, register


def worker_queues() -> set[str]:
    """Name the queues after "-Q" in the commands of compose.yaml."""
    compose = (settings.BASE_DIR / "compose.yaml").read_text(encoding="utf-8")
    lists = re.findall(r"-Q,? *([\w-]+(?:,[\w-]+)*)", compose)
    return {name for names in lists for name in names.split(",")}


@register()
def queues_have_workers(**kwargs: object) -> list[Error]:
    """Compare settings.QUEUES, the routes and the workers of compose.yaml."""
    workers = worker_queues()
    errors = [
        Error(
            f'No worker in compose.yaml consumes the queue "{queue}".',
            hint=f"Add a service worker-{queue} with -Q {queue} to compose.yaml.",
            id="core.E001",
        )
        for queue in settings.QUEUES
        if queue not in workers
    ]
    errors += [
        Error(
            f'The worker of "{queue}" in compose.yaml has no queue.',
            hint=f'Add "{queue}" to QUEUES in config/settings.py.',
            id="core.E002",
        )
        for queue in sorted(workers.difference(settings.QUEUES))
    ]
    errors += [
        Error(
            f'The route "{name}" names the queue "{route["queue"]}", which is not in QUEUES.',
            hint="Add the queue to QUEUES in config/settings.py, or correct the route.",
            id="core.E003",
        )
        for name, route in settings.CELERY_TASK_ROUTES.items()
        if route["queue"] not in settings.QUEUES
    ]
    return errors
