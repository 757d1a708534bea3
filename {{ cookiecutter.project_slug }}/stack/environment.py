"""The environment, which compose fills from .env: https://django-environ.readthedocs.io"""

import os

import environ

env = environ.Env()

# What this process is, as compose.yaml says: "web", "worker", "beat", "flower" or "migrate".
QUEUES = env.list("CELERY_WORKER_QUEUES", default=[])  # that it consumes, when it is a worker
SERVICE = "worker" if QUEUES else env("SERVICE", default="")


def for_worker(name: str, default: int) -> int:
    """
    Return WORKER_<QUEUE>_<NAME> for the worker of that queue, else WORKER_<NAME>, else default.

    Of a worker with several queues it is the first that has such a value.
    """
    queues = [queue.upper().replace("-", "_") for queue in QUEUES or ["default"]]
    names = [*(f"WORKER_{queue}_{name}" for queue in queues), f"WORKER_{name}"]
    found = next(filter(os.environ.get, names), None)
    return env.int(found) if found else default
