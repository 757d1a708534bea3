"""
Django's settings that no project should have to change.

The project's settings import all of these, and override those that they want otherwise. What comes from
.env (DEBUG, HTTPS, the mail server, …) is changed there, because other settings follow from it.

"from stack.settings import *" replaces no setting that is there already, so it may be the first line or
the last one. To take one from here all the same: "del CACHES" before the import.
Celery's settings are in celery/defaults.py; they are made once the project's own are known.
https://docs.djangoproject.com/en/6.1/ref/settings/
"""

import sys
from typing import Any

import django
from django.core.exceptions import ImproperlyConfigured

from .environment import env

PROJECT_NAME = env("COMPOSE_PROJECT_NAME", default="Django")  # the title of the dashboard

# Security -----------------------------------------------------------------------------------------

# ops/rotate changes these. In between, the database and RabbitMQ know us by another name, too.
SECRET_KEY = env("SECRET_KEY")
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
ROTATING = env.list("ROTATING", default=[])
DEBUG = env.bool("DEBUG", default=False)
# The last two are for developers, and for commands inside the containers.
ALLOWED_HOSTS = [*env.list("ALLOWED_HOSTS", default=[]), "localhost", "127.0.0.1"]

# The proxy sets this header itself, whatever a client sends.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
_https = env("HTTPS", default="false" if DEBUG else "acme")
if _https not in ("acme", "files", "balancer", "false"):
    raise ImproperlyConfigured(
        f'HTTPS in .env is "{_https}"; make it acme, files, balancer or false.'
    )
HTTPS = _https != "false"
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
# The proxy sends HSTS, as .env has it, with each response: those of Flower and files are not Django's.
SILENCED_SYSTEM_CHECKS = ["security.W004"]

# Database and cache -------------------------------------------------------------------------------

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": env("POSTGRES_HOST", default="") or "db",
        "PORT": env("POSTGRES_PORT", default="5432"),
        "NAME": env("POSTGRES_DB", default="app"),
        "USER": "rotating"
        if "POSTGRES_PASSWORD" in ROTATING
        else env("POSTGRES_USER", default="app"),
        "PASSWORD": env("POSTGRES_PASSWORD", default=""),
        "OPTIONS": {"connect_timeout": 5},
    }
}
# The web shares a few connections among all requests; under ASGI persistent ones would leak one per
# thread. https://docs.djangoproject.com/en/6.1/ref/databases/#connection-pool
if _pool_size := env.int("DATABASE_POOL_SIZE", default=0):
    from . import database  # noqa: F401 - its check of a connection

    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    DATABASES["default"]["OPTIONS"]["pool"] = {
        "min_size": 1,
        "max_size": _pool_size,
        "timeout": 10,  # seconds that a request waits for a free connection
    }

# What workers report is there, too, whatever else the project has as its cache (activity.py).
_cache_password = env("CACHE_PASSWORD", default="")
_cache_url = env("CACHE_URL", default="")
CACHE_URL = _cache_url or f"redis://:{_cache_password}@cache:6379/0"
CACHES: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": CACHE_URL,
        "OPTIONS": {
            "serializer": "stack.cache.JsonSerializer",
            "socket_connect_timeout": 2,
            "socket_timeout": 2,
        },
        "VERSION": 2,  # of the keys: under 1 a running older release stores pickles
    }
}

# Tasks --------------------------------------------------------------------------------------------

QUEUES = ["default"]  # each has a worker in compose.yaml

# The longest that a task may run, in seconds; compose waits that long and a minute for a worker.
TASK_TIME_LIMIT = env.int("TASK_TIME_LIMIT", default=300)

# The containers that BROKER chooses. RabbitMQ keeps no results, so they are in the cache's Redis. Flower
# has no password of that, and needs no results. Of a server of yours one database is all that is used.
_broker_user = "rotating" if "BROKER_PASSWORD" in ROTATING else "app"
_broker_password = env("BROKER_PASSWORD", default="")
_broker_url = env("CELERY_BROKER_URL", default="")
_urls = {
    "redis": (
        f"redis://:{_broker_password}@broker:6379/0",
        f"redis://:{_broker_password}@broker:6379/1",
    ),
    "rabbitmq": (
        f"amqp://{_broker_user}:{_broker_password}@broker:5672//",
        _cache_url
        or (f"redis://:{_cache_password}@cache:6379/1" if _cache_password else "disabled://"),
    ),
}
BROKER = env("BROKER", default="redis")
if BROKER not in _urls:
    raise ImproperlyConfigured(f'BROKER in .env is "{BROKER}"; make it redis or rabbitmq.')
_results_url = _urls["rabbitmq" if _broker_url else BROKER][1]
if _broker_url.startswith("redis"):
    _results_url = _broker_url
CELERY_BROKER_URL = _broker_url or _urls[BROKER][0]
CELERY_RESULT_BACKEND = env("CELERY_RESULT_BACKEND", default="") or _results_url

# Django's own task framework, since 6.0: https://docs.djangoproject.com/en/6.1/topics/tasks/
TASKS = {"default": {"BACKEND": "stack.celery.django_tasks.CeleryBackend"}}

# Files --------------------------------------------------------------------------------------------

STATIC_URL = "/static/"
STATIC_ROOT = "/srv/static"
MEDIA_URL = "/media/"
MEDIA_ROOT = "/srv/media"
if DEBUG:  # the containers' user, DEV_UID, may change; its group does not
    FILE_UPLOAD_PERMISSIONS = 0o664
    FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o2775
STORAGES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG
        else "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    },
}

# Mail ---------------------------------------------------------------------------------------------

# Without a server there is no mailer: every start warns, and sending a mail is an error.
# https://docs.djangoproject.com/en/6.1/topics/email/
_mail_backends = "django.core.mail.backends"
_mail_server = env("EMAIL_HOST", default="")
_use_ssl = env.bool("EMAIL_USE_SSL", default=False)
_smtp: dict[str, Any] = {
    "host": _mail_server,
    "port": env.int("EMAIL_PORT", default=587),
    "username": env("EMAIL_HOST_USER", default=""),
    "password": env("EMAIL_HOST_PASSWORD", default=""),
    "use_tls": env.bool("EMAIL_USE_TLS", default=not _use_ssl),
    "use_ssl": _use_ssl,
    "timeout": 15,  # seconds
}
if django.VERSION >= (6, 1):
    MAILERS: dict[str, dict[str, Any]] = {}
    if DEBUG:  # mails are printed
        MAILERS["default"] = {"BACKEND": f"{_mail_backends}.console.EmailBackend"}
    elif _mail_server:
        MAILERS["default"] = {"BACKEND": f"{_mail_backends}.smtp.EmailBackend", "OPTIONS": _smtp}
else:
    EMAIL_BACKEND = f"{_mail_backends}.{'console' if DEBUG else 'smtp'}.EmailBackend"
    EMAIL_HOST, EMAIL_PORT, EMAIL_TIMEOUT = _smtp["host"], _smtp["port"], _smtp["timeout"]
    EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _smtp["username"], _smtp["password"]
    EMAIL_USE_TLS, EMAIL_USE_SSL = _smtp["use_tls"], _smtp["use_ssl"]

# Metrics ------------------------------------------------------------------------------------------

METRICS_TOKEN = env("METRICS_TOKEN", default="")  # of /metrics, for those who come by the proxy

# Logs and errors ----------------------------------------------------------------------------------

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "stack.logs.Text" if DEBUG else "stack.logs.Json"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        # Their own handlers and levels go, so that the ones below hold for them too.
        **dict.fromkeys(
            ["django", "uvicorn", "uvicorn.error"],
            {"handlers": [], "level": "NOTSET", "propagate": True},
        ),
        # nginx logs each request, without health checks. Without a handler uvicorn writes none.
        "uvicorn.access": {"handlers": [], "propagate": env.bool("LOG_REQUESTS", default=False)},
        "celery.worker.strategy": {"level": "WARNING"},  # one line per task: how it ended
    },
    "root": {"handlers": ["console"], "level": env("LOG_LEVEL", default="INFO")},
}

# Errors are sent to Sentry, or to a service with the same protocol, when .env has its address.
if _dsn := env("SENTRY_DSN", default=""):
    from . import sentry

    sentry.start(_dsn)


def __getattr__(name: str) -> list[str]:
    """Return, as __all__ for the module that imports, the settings that it has not set itself."""
    if name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    theirs = sys._getframe(1).f_globals
    # Django refuses MAILERS beside the settings that it replaces.
    refused = {"MAILERS"} if theirs.keys() & {"EMAIL_BACKEND", "EMAIL_HOST"} else set()
    return [own for own in globals() if own.isupper() and own not in theirs.keys() | refused]
