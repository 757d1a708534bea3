"""The environment, which compose fills from .env: https://django-environ.readthedocs.io"""

import environ

env = environ.Env()

# What this process is, as compose.yaml says: "web", "worker", "beat", "flower" or "migrate".
QUEUES = env.list("CELERY_WORKER_QUEUES", default=[])  # that it consumes, when it is a worker
SERVICE = "worker" if QUEUES else env("SERVICE", default="")


def for_worker(name: str, default: int) -> int:
    """Return WORKER_<QUEUE>_<NAME> for the worker of that queue, else WORKER_<NAME>, else default."""
    queue = (QUEUES or ["default"])[0].upper().replace("-", "_")
    return env.int(f"WORKER_{queue}_{name}", default=env.int(f"WORKER_{name}", default=default))
