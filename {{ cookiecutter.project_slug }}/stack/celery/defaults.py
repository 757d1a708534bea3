"""
Celery's settings that no project should have to change.

They are made when the project's settings are complete, so what follows from QUEUES or TASK_TIME_LIMIT
follows from the project's own. The project overrides any of them with CELERY_<NAME> in its settings.
https://docs.celeryq.dev/en/stable/userguide/configuration.html
"""

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from stack import brokers, pings
from stack.environment import SERVICE, env, for_worker

SOFT = 0.9  # of the hard time limit, when only one of the two is given
# Seconds within which a producer's last attempt to reach the broker begins; a broker that accepts
# connections and is silent costs up to 5 more. A request holds one of the few connections to the
# database meanwhile, so the web waits as long as a short restart takes.
PATIENCE = 3 if SERVICE == "web" else 20


def for_settings() -> dict[str, Any]:
    """Return the defaults for those that the project's settings do not set."""
    # What Celery calls defaults would win otherwise.
    return {
        name: value
        for name, value in everything().items()
        if not hasattr(settings, f"CELERY_{name.upper()}")
    }


def complete(source: Any, **kwargs: object) -> None:
    """
    Add to those of the project's settings that would replace all of the stack's.

    Tasks of an app with a queue's name go to that queue, after the project's own routes; options of the
    broker hold that the project does not set; pings are in beat's schedule, whatever else is.
    """
    source.broker_transport_options = transport_options() | source.broker_transport_options
    own = source.task_routes or []
    by_name = {f"{name}.*": {"queue": name} for name in settings.QUEUES}
    source.task_routes = [*(own if isinstance(own, list | tuple) else [own]), by_name]
    if scheduled := pings.schedule():
        source.beat_schedule = scheduled | source.beat_schedule


def transport_options() -> dict[str, Any]:
    """Return kombu's options for the broker."""
    broker = brokers.module(settings.CELERY_BROKER_URL)
    return broker.transport_options(
        visibility_timeout=2 * settings.TASK_TIME_LIMIT, patience=PATIENCE
    )


def verified(url: str | None) -> dict[str, str] | None:
    """Return what makes rediss:// verify the server unless the URL says otherwise: kombu would not."""
    return {"ssl_cert_reqs": "required"} if (url or "").startswith("rediss:") else None


def everything() -> dict[str, Any]:
    """Return all defaults; ImproperlyConfigured when a worker's time limit is too long."""
    broker = brokers.module(settings.CELERY_BROKER_URL)

    # One number, in seconds, from which the others follow: no task runs longer than
    # TASK_TIME_LIMIT, compose waits that long and a minute before it kills a worker, and a task
    # that was not acknowledged for twice as long was lost with its worker and is redelivered.
    time_limit = for_worker("TIME_LIMIT", settings.TASK_TIME_LIMIT)
    if time_limit > settings.TASK_TIME_LIMIT:
        raise ImproperlyConfigured(
            "A worker's TIME_LIMIT may not exceed TASK_TIME_LIMIT; raise TASK_TIME_LIMIT in .env."
        )
    every_second = {
        "max_retries": PATIENCE,
        "interval_start": 1,
        "interval_step": 0,
        "interval_max": 1,
    }
    return {
        # Queues
        "task_queues": [broker.queue(name) for name in settings.QUEUES],
        "task_default_queue": "default",
        # A misspelt queue is an error, not a queue that nobody consumes.
        # https://docs.celeryq.dev/en/stable/userguide/configuration.html#task-create-missing-queues
        "task_create_missing_queues": False,
        # JSON loads no code: https://docs.celeryq.dev/en/stable/userguide/security.html#serializers
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "timezone": settings.TIME_ZONE,
        # Workers
        "worker_concurrency": for_worker("CONCURRENCY", 2),
        # Against leaks:
        # https://docs.celeryq.dev/en/stable/userguide/workers.html#max-tasks-per-child-setting
        "worker_max_tasks_per_child": for_worker("MAX_TASKS_PER_CHILD", 1000),
        "worker_max_memory_per_child": for_worker("MAX_MEMORY_PER_CHILD", 200_000),  # KiB
        "task_time_limit": time_limit,
        "task_soft_time_limit": SOFT * time_limit,
        # A task is acknowledged when it has ended, so that it survives its worker; it must be
        # idempotent: https://docs.celeryq.dev/en/stable/faq.html#should-i-use-retry-or-acks-late
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # Take no more than can be run now.
        # https://docs.celeryq.dev/en/stable/userguide/optimizing.html#prefetch-limits
        "worker_prefetch_multiplier": 1,
        # A lost connection does not cancel what runs; its message is redelivered and finds the work
        # done.
        # https://docs.celeryq.dev/en/stable/userguide/configuration.html#worker-cancel-long-running-tasks-on-connection-loss
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # ops/roll runs two workers of one name for a while. RabbitMQ would refuse the second one the
        # exclusive queue of the first, and will refuse one that is neither exclusive nor durable:
        # https://www.rabbitmq.com/docs/queues#durability
        "control_queue_exclusive": False,
        "control_queue_durable": True,
        # Events are what Flower shows.
        # https://docs.celeryq.dev/en/stable/userguide/monitoring.html#events
        "worker_send_task_events": broker.REMOTE_CONTROL,
        "worker_enable_remote_control": broker.REMOTE_CONTROL,
        "worker_consumer": "stack.celery.consumer:Consumer",
        # Broker
        "broker_use_ssl": verified(settings.CELERY_BROKER_URL),
        "broker_transport_options": transport_options(),
        # Services start in any order and may be unavailable for long.
        # https://docs.celeryq.dev/en/stable/userguide/configuration.html#broker-connection-retry-on-startup
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # When the broker is silent, all connections are in use; task.py ends a request's attempts with it.
        "broker_pool_acquire_timeout": PATIENCE if SERVICE == "web" else None,
        # https://docs.celeryq.dev/en/stable/userguide/calling.html#message-sending-retry
        "task_publish_retry_policy": every_second,
        # Results
        "redis_backend_use_ssl": verified(settings.CELERY_RESULT_BACKEND),
        "result_expires": env.int("TASK_RESULT_EXPIRES", default=24 * 3600),  # seconds
        # A producer subscribes to the result before it sends the task.
        "result_backend_transport_options": {"retry_policy": every_second},
        "redis_socket_timeout": 1.0 if SERVICE == "web" else 120.0,  # Celery's own
        "redis_socket_connect_timeout": 1 if SERVICE == "web" else None,
        "task_store_errors_even_if_ignored": True,  # for ./manage.py failed
        # Beat
        # Write down at once what was sent, or a beat that is killed sends it again.
        # https://docs.celeryq.dev/en/stable/userguide/configuration.html#beat-sync-every
        "beat_sync_every": 1,
    }
