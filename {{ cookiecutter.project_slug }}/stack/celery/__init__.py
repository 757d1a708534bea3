"""
Celery with what this stack adds to it. This is the map of everything that hooks into Celery:

| hook | where | why |
|---|---|---|
| the project's settings | settings.py | a worker shows Flower its configuration: no settings but Celery's |
| default settings | defaults.py | reliability; each may be overridden as CELERY_… in the project's settings |
| class of every task | task.py | refusals, redeliveries, retries |
| class of a worker's request | request.py | log lines about a task whose child process ended; results; counts for /metrics |
| a worker's consumer | consumer.py | unknown and unreadable tasks, tasks that began when it stops, events in batches |
| result backend | results.py | what ./manage.py failed shows; results with the acknowledgement |
| backend of Django's own tasks | django_tasks.py | @task runs on Celery, too |
| every signal | signals.py | logs, heartbeats, memory |
| kombu's transport for Redis | ../brokers/redis_transport.py | no lost task, early redelivery |
"""

from collections.abc import Mapping
from typing import Any

import celery

from . import defaults, signals
from .settings import CelerySettings


class Celery(celery.Celery):
    """Celery's app class with all of the above; a project makes one instance, in config/celery.py."""

    task_cls = "stack.celery.task:Task"

    def __init__(self, *args: Any, **options: Any) -> None:
        """Create the app, with the arguments of Celery's own class."""
        super().__init__(*args, **options)
        self.add_defaults(defaults.for_settings)
        self.on_after_configure.connect(defaults.complete)
        # Has no setting: Celery's own results, with what ./manage.py failed needs.
        self.loader.override_backends = dict.fromkeys(
            ["redis", "rediss"], "stack.celery.results:Results"
        )
        # Has none either: tasks of other classes are counted, too.
        celery.Task.Request = "stack.celery.request:Counted"
        signals.connect()

    def prepare_config(self, c: Mapping[str, Any]) -> Any:
        """Return what Celery reads the project's settings from."""
        return super().prepare_config(CelerySettings(c))  # type: ignore[arg-type]
