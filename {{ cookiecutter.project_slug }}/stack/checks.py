"""System checks, run at every start: queues, workers, routes, schedules and time limits agree."""

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery import current_app
from celery.exceptions import ImproperlyConfigured, QueueNotFound
from django.apps import apps
from django.conf import settings
from django.core.checks import ERROR, WARNING, CheckMessage, Error, Info, Tags, Warning, register
from django.core.management import find_commands, get_commands
from django.utils.module_loading import autodiscover_modules
from kombu.exceptions import OperationalError

from . import brokers, queues
from .celery import Celery
from .celery.task import Task, check_time_limits
from .environment import env

# The broker does not answer, or its package is missing, which stack.E009 names.
UNAVAILABLE = (OperationalError, ImportError)
PROJECT = Path(__file__).resolve().parent.parent  # with the compose files
# How a service of compose says which queues its worker consumes.
CONSUMED = re.compile(
    r"""^[^#\n]*?(?:CELERY_WORKER_QUEUES["']?\s*[:=]|-Q["']?,?)\s*["']?([\w-]+(?:,[\w-]+)*)""",
    re.MULTILINE,
)


def workers() -> list[list[str]]:
    """Return the queues of each worker in the compose files of this project."""
    names = os.environ.get("COMPOSE_FILE", "compose.yaml:compose.override.yaml")
    files = [PROJECT / name for name in re.split("[:;]", names)]  # ";" on Windows
    texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
    return [consumed.split(",") for text in texts for consumed in CONSUMED.findall(text)]


def worker_queues() -> set[str]:
    """Return the queues that they consume."""
    return {name for queues in workers() for name in queues}


@register()
def queues_have_workers(**kwargs: object) -> list[Error]:
    """Return an error for each queue without a worker, and each worker's queue not in QUEUES."""
    consumed = worker_queues()
    errors = [
        Error(
            f'No worker in compose.yaml consumes the queue "{queue}".',
            hint=f"Add a service worker-{queue} with CELERY_WORKER_QUEUES: {queue} to compose.yaml.",
            id="stack.E001",
        )
        for queue in settings.QUEUES
        if queue not in consumed
    ]
    return errors + [
        Error(
            f'A worker in compose.yaml consumes the queue "{queue}", which is not in QUEUES.',
            hint=f'Add "{queue}" to QUEUES in your settings.',
            id="stack.E002",
        )
        for queue in sorted(consumed.difference(settings.QUEUES))
    ]


@register()
def tasks_have_queues(**kwargs: object) -> list[Error]:
    """Return an error for each task and each entry of beat's schedule with a queue not in QUEUES."""
    autodiscover_modules("tasks")  # not Celery's own loader, which runs these checks
    found: list[tuple[str, str, dict[str, Any]]] = [
        (f'the task "{name}"', name, {}) for name in sorted(current_app.tasks)
    ]
    found += [
        (f'"{name}" in beat\'s schedule', entry["task"], entry.get("options") or {})
        for name, entry in current_app.conf.beat_schedule.items()
    ]
    return [
        Error(
            f"The queue of {what} is wrong: {error.args[0]}.",
            hint="Add the queue to QUEUES in your settings, or correct its name.",
            id="stack.E003",
        )
        for what, task, options in found
        if (error := route_error(task, options))
    ]


def route(name: str, options: dict[str, Any]) -> Any:
    """Return the queue of a task with these options of apply_async, None when that is not known yet."""
    task = current_app.tasks.get(name)
    # The names that Celery looks at, first the call's, then the decorator's, then the routes'.
    queue = options.get("queue") or getattr(task, "queue", None)
    try:
        return current_app.amqp.router.route({"queue": queue} if queue else {}, name).get("queue")
    except QueueNotFound:
        raise
    except Exception:  # a function among the routes that needs the task's arguments
        return None


def route_error(name: str, options: dict[str, Any]) -> QueueNotFound | None:
    """Return what sending a task with these options of apply_async would raise, or None."""
    try:
        route(name, options)
    except QueueNotFound as error:
        return error
    return None


def in_queue_of_the_stack(name: str) -> bool:
    """Return whether a task's queue is one of QUEUES, with what the broker should know of it; or not known."""
    try:
        queue = route(name, {})
    except QueueNotFound:  # that is an error of its own
        return True
    if queue is None or queue.name not in settings.QUEUES:
        return queue is None
    wanted = brokers.current().queue(queue.name).queue_arguments or {}
    return wanted.items() <= (queue.queue_arguments or {}).items()


@register()
def app_is_the_stacks(**kwargs: object) -> list[Error]:
    """Return an error when tasks belong to a Celery app that has nothing of the stack."""
    if isinstance(current_app, Celery):
        return []
    return [
        Error(
            "The Celery app is not the stack's.",
            hint='Create it with "from stack.celery import Celery", and import it in the __init__.py'
            " of its package, which CELERY_APP in the Dockerfile names.",
            id="stack.E007",
        )
    ]


@register()
def promises_hold(**kwargs: object) -> list[Warning]:
    """Return a warning that names the tasks whose class or queue is not one of the stack's."""
    if not isinstance(current_app, Celery):
        return []
    autodiscover_modules("tasks")
    tasks = sorted(current_app.tasks.items())
    others = [name for name, task in tasks if not isinstance(task, Task)]
    elsewhere = [name for name, _ in tasks if not in_queue_of_the_stack(name)]
    return [
        Warning(
            f"What docs/broker.md promises does not hold for {', '.join(names)}: {reason}.",
            hint=hint,
            id="stack.W003",
        )
        for names, reason, hint in (
            (
                others,
                "of another class than stack.celery.task.Task",
                "Derive the class in base= from that one, or remove base=.",
            ),
            (
                elsewhere,
                "in a queue that is not in QUEUES, or not declared as those are",
                "Add the queue to QUEUES in your settings, and remove CELERY_TASK_QUEUES.",
            ),
        )
        if names
    ]


@register()
def commands_are_the_stacks(**kwargs: object) -> list[Error]:
    """Return an error for each command of the stack, some of which a deploy runs, that is another app's."""
    known = get_commands()
    return [
        Error(
            f"./manage.py {name} is that of {known[name]}, not the stack's.",
            hint='Rename it, or put "stack" before that app in INSTALLED_APPS.',
            id="stack.E008",
        )
        for name in find_commands(str(PROJECT / "stack/management"))
        if known[name] != "stack"
    ]


@register()
def source_can_be_written(**kwargs: object) -> list[CheckMessage]:
    """Return a warning when commands of development, such as startapp, cannot write their files."""
    if not settings.DEBUG or os.access(PROJECT, os.W_OK):
        return []
    owner = os.stat(PROJECT).st_uid
    return [
        Warning(
            f"User {os.getuid()} cannot write to the source, which belongs to user {owner}.",
            hint=f"Set DEV_UID={owner} in .env, then: docker compose up -d"
            if owner
            else "With a rootless engine set DEV_UID=0 in .env, then: docker compose up -d."
            " Otherwise, as root: chgrp -R 10001 . && chmod -R g+w .",
            id="stack.W002",
        )
    ]


@register()
def source_can_be_read(**kwargs: object) -> list[CheckMessage]:
    """Return a warning for each folder of the source that development cannot watch for changes."""
    if not settings.DEBUG:
        return []
    return [
        Warning(
            f'User {os.getuid()} cannot read the folder "{folder.name}": web does not see each change'
            " in other folders, and with WATCHFILES_FORCE_POLLING nothing starts.",
            hint=f'Move it out of the source, or: chmod a+rx "{folder.name}"',
            id="stack.W004",
        )
        for folder in sorted(PROJECT.iterdir())
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    ]


@register()
def settings_are_those_of_env(**kwargs: object) -> list[Warning]:
    """Return a warning for each setting of the project that silently undoes a line of .env."""
    found = []
    if not settings.DEBUG and os.environ.get("SECRET_KEY") != settings.SECRET_KEY:
        sentence = "SECRET_KEY in your settings wins over .env, where ops/rotate replaces it."
        found.append(Warning(sentence, hint="Remove it from your settings.", id="stack.W005"))
    redirects = "django.middleware.security.SecurityMiddleware" in settings.MIDDLEWARE
    if settings.SECURE_SSL_REDIRECT and not redirects:
        sentence = "Nothing redirects to https: SecurityMiddleware is not in MIDDLEWARE."
        found.append(Warning(sentence, hint="Add it as the first.", id="stack.W006"))
    return found


@register()
def time_limits_fit(**kwargs: object) -> list[Error]:
    """Return an error for each task whose time limits contradict each other or TASK_TIME_LIMIT."""
    autodiscover_modules("tasks")
    errors = []
    for name, task in sorted(current_app.tasks.items()):
        try:
            check_time_limits(task.time_limit, task.soft_time_limit)
        except ValueError as error:
            errors.append(Error(f'The task "{name}" cannot run: {error}', id="stack.E005"))
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


@register()
def outbox_is_scheduled(**kwargs: object) -> list[Error]:
    """Return an error when nothing sends what stays in the outbox."""
    task = "stack.outbox.tasks.send_overdue"
    scheduled = {entry["task"] for entry in current_app.conf.beat_schedule.values()}
    if task in scheduled or not apps.is_installed("stack.outbox"):
        return []
    return [
        Error(
            f'"stack.outbox" is in INSTALLED_APPS, and no entry of beat\'s schedule sends "{task}".',
            hint="Add one to CELERY_BEAT_SCHEDULE, as in docs/how-to.md.",
            id="stack.E006",
        )
    ]


# What to add to pyproject.toml, where that is not Celery's or kombu's extra of the same name.
PACKAGES = {
    "cache": '"pymemcache"',
    "db": '"sqlalchemy", and for PostgreSQL begin with db+postgresql+psycopg://',
    "django-db": '"django-celery-results", and "django_celery_results" to INSTALLED_APPS',
    "kafka": '"kombu[confluentkafka]"',
}


@register()
def broker_and_results_are_installed(**kwargs: object) -> list[Error]:
    """Return an error when a package is missing for the broker or for the result backend."""
    errors = []
    for setting, library, load in (
        ("CELERY_BROKER_URL", "kombu", lambda: current_app.connection_for_write().transport),
        ("CELERY_RESULT_BACKEND", "celery", lambda: current_app.backend),
    ):
        kind = brokers.scheme(getattr(settings, setting, None) or "")
        try:
            load()
        # The last: a model that is not in INSTALLED_APPS.
        except (ImportError, ImproperlyConfigured, RuntimeError) as error:
            sentence = " ".join(str(error).split())
            package = PACKAGES.get(kind, f'"{library}[{kind.lower()}]"')
            errors.append(
                Error(
                    f'{setting} begins with "{kind}", for which something is missing: {sentence}',
                    hint=f"In pyproject.toml add {package}, and compile: docs/dependencies.md.",
                    id="stack.E009",
                )
            )
        except Exception:  # noqa: S112  # it is installed, and does not answer now
            continue
    return errors


@register("queues", Tags.database)  # with "migrate" and "check --tag queues": it asks the broker
def no_task_is_stranded(**kwargs: object) -> list[CheckMessage]:
    """
    Return a warning for each queue that holds tasks and is not in QUEUES.

    It is an error for "migrate" of a version that ops/release tries, with REFUSE_STRANDED.
    """
    if not isinstance(current_app, Celery):
        return []
    try:
        with queues.connect() as connection:
            found = queues.stranded(connection)
    except UNAVAILABLE:
        sentence = "The broker does not answer: it may hold tasks in queues that are not in QUEUES."
        return [Info(sentence, id="stack.I001")]
    level = ERROR if env.bool("REFUSE_STRANDED", default=False) else WARNING
    return [
        CheckMessage(
            level,
            f'The queue "{name}" holds {queues.number(tasks)} and is not in QUEUES: no worker consumes it.',
            hint=f"./manage.py move_queue {name} OTHER, or ./manage.py purge_queue {name}",
            id="stack.W001",
        )
        for name, tasks in found.items()
    ]


# What names a server in .env, and the container that there is without it.
SERVERS = {
    "POSTGRES_HOST": "db",
    "CELERY_BROKER_URL": "broker",
    "CELERY_RESULT_BACKEND": "",
    "CACHE_URL": "cache",
}
WITH_HOST = ("redis", "rediss", "amqp", "amqps", "pyamqp")  # of other URLs it may be none


@register(Tags.database)  # with "migrate" only: what runs may start again while no name is resolved
def servers_are_found(databases: object = None, **kwargs: object) -> list[Error]:
    """Return an error for each server in .env that cannot be found, or is a container not started."""
    if not databases:  # Django 5.2 calls it always, and says so by this
        return []
    return [
        Error(
            f'Cannot find the host "{host}" from {name} in .env: {why}.',
            hint=(f"Without this line it is the container {container}. " if container else "")
            + "Migrations and beat reach other networks with BEAT_INTERNAL=false in .env.",
            id="stack.E010",
        )
        for name, container in SERVERS.items()
        for host in hosts(name, os.environ.get(name, ""))
        if (why := "it is not started" if host == container else unreachable(host))
    ]


def hosts(name: str, value: str) -> list[str]:
    """Return the hosts in a setting: names for libpq, or URLs separated by semicolons."""
    if name == "POSTGRES_HOST":
        return [host for host in value.split(",") if host and not host.startswith("/")]
    parts = [urlsplit(url) for url in value.split(";")]
    return [part.hostname for part in parts if part.hostname and part.scheme in WITH_HOST]


def unreachable(host: str) -> str:
    """Return why a host has no address, or no route to it, or ""; nothing is sent there."""
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return "its name has no address here"
    for family, *_, address in found:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return ""
    return "there is no route to it"
