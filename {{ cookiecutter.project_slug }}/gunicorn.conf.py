"""gunicorn reads this file by itself: https://docs.gunicorn.org/en/stable/settings.html"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker


class Worker(UvicornWorker):
    """uvicorn's worker without ASGI lifespan, which Django does not support."""

    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | {"lifespan": "off"}

    def init_signals(self) -> None:
        """Set what uvicorn leaves a SIGTERM to, once it has answered all requests."""
        super().init_signals()
        signal.signal(signal.SIGTERM, end)


def end(number: int, frame: FrameType | None) -> None:
    """Report the last requests for /metrics, and end."""
    if metrics := sys.modules.get("stack.metrics"):
        metrics.counts.push()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


# Set here and not in compose.yaml: a command in the same container has no use for a pool, whose
# threads would keep it from ending cleanly.
os.environ.setdefault("DATABASE_POOL_SIZE", os.environ.get("WEB_DATABASE_POOL_SIZE", "10"))

wsgi_app = os.environ["UVICORN_APP"]
bind = "0.0.0.0:8000"
worker_class = Worker
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
worker_tmp_dir = "/tmp"  # in memory: a slow disk must not look like a hung worker
control_socket_disable = True

timeout = 30  # a worker whose event loop is blocked for this long is replaced
graceful_timeout = 30  # below stop_grace_period in compose.yaml
keepalive = 75  # longer than nginx keeps an idle connection, so that nginx closes it

# Against leaks a worker is replaced, rarely, because its requests wait for a second meanwhile; with
# the jitter web-a and web-b do not do it at the same time.
max_requests = int(os.environ.get("WEB_MAX_REQUESTS", "100000"))
max_requests_jitter = max_requests // 5

# The same lines as LOGGING in stack/settings.py, which a worker loads late and the master never.
loglevel = os.environ.get("LOG_LEVEL", "INFO")
logconfig_dict = {
    "formatters": {"line": {"()": "stack.logs.Json"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": dict.fromkeys(
        ["gunicorn.error", "gunicorn.access"], {"handlers": ["console"], "level": loglevel}
    ),
}
# Not published: it is reached by the proxy, and by containers of this project, which are trusted with
# the addresses of visitors since they have secrets that are worth more (docs/security.md).
forwarded_allow_ips = "*"


def on_starting(server: Arbiter) -> None:
    """Remove the uploads that a killed process left; those of a day may be in use by the other one."""
    for path in Path("/var/tmp").glob("*.upload*"):
        if path.stat().st_mtime < time.time() - 24 * 3600:
            path.unlink(missing_ok=True)


def when_ready(server: Arbiter) -> None:
    """Touch the heartbeat for stack/watchdog from the master's loop, which runs every second."""
    murder_workers = server.murder_workers

    def touch_and_murder_workers() -> None:
        Path("/tmp/heartbeat").touch()
        murder_workers()

    server.murder_workers = touch_and_murder_workers
