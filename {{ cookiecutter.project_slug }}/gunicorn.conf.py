"""gunicorn reads this file by itself: https://docs.gunicorn.org/en/stable/settings.html"""

import os
from pathlib import Path

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker


class Worker(UvicornWorker):
    """Asks Django for no ASGI lifespan, which it does not have: a line less at each start."""

    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | {"lifespan": "off"}


bind = "0.0.0.0:8000"
worker_class = Worker
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
worker_tmp_dir = "/tmp"  # in memory: a slow disk must not look like a hung worker
control_socket_disable = True

timeout = 30  # a worker whose event loop does not turn for this long is replaced
graceful_timeout = 30  # below stop_grace_period in compose.yaml
keepalive = 75  # longer than nginx keeps an idle connection, so that nginx is the one to close it

# A worker that leaks is replaced, rarely, because its requests wait for a second meanwhile; the
# jitter keeps web-a and web-b from doing it together.
max_requests = int(os.environ.get("WEB_MAX_REQUESTS", "100000"))
max_requests_jitter = max_requests // 5

# Lines as LOGGING in config/settings.py has them, which a worker reads late and the master never.
loglevel = os.environ.get("LOG_LEVEL", "INFO")
logconfig_dict = {
    "formatters": {"line": {"()": "core.logs.Json"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": dict.fromkeys(
        ["gunicorn.error", "gunicorn.access"], {"handlers": ["console"], "level": loglevel}
    ),
}
forwarded_allow_ips = "*"  # only the proxy can reach this port


def when_ready(server: Arbiter) -> None:
    """Let the master's own loop, which looks after the workers every second, beat for config/alive."""
    look = server.murder_workers

    def beat_and_look() -> None:
        Path("/tmp/heartbeat").touch()
        look()

    server.murder_workers = beat_and_look
