"""
Django's and Celery's settings.

What differs between a laptop and a VM comes from .env, where every name is explained.
https://docs.djangoproject.com/en/6.1/ref/settings/
https://docs.celeryq.dev/en/stable/userguide/configuration.html
"""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from django.utils.csp import CSP

from . import broker
from .environment import env

BASE_DIR = Path(__file__).resolve().parent.parent
PROJECT_NAME = "{{ cookiecutter.project_name }}"

# Security -----------------------------------------------------------------------------------------

SECRET_KEY = env("SECRET_KEY")
DEBUG = env.bool("DEBUG", default=False)
# "localhost" is what the health checks ask for.
ALLOWED_HOSTS = [*env.list("ALLOWED_HOSTS", default=[]), "localhost", "127.0.0.1"]

# The proxy sets this header itself, whatever a client sends.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
CERTIFICATE = env("HTTPS", default="false" if DEBUG else "acme")
if CERTIFICATE not in ("acme", "files", "balancer", "false"):
    raise ImproperlyConfigured(
        f'HTTPS in .env is "{CERTIFICATE}"; make it acme, files, balancer or false.'
    )
HTTPS = CERTIFICATE != "false"
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$"]
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_CSP = {"default-src": [CSP.SELF], "frame-ancestors": [CSP.NONE], "object-src": [CSP.NONE]}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

# Application --------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "core",
    "home",
{%- if cookiecutter.example %}
    "notifications",
    "posts",
{%- endif %}
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "core.middleware.named_in_the_log",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "core.middleware.AwayMiddleware",
    "core.middleware.in_one_thread",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "/"

LANGUAGE_CODE = "en"
TIME_ZONE = "{{ cookiecutter.timezone }}"

# Mail ---------------------------------------------------------------------------------------------

DEFAULT_FROM_EMAIL = SERVER_EMAIL = env("EMAIL_FROM", default="{{ cookiecutter.email }}")
# Without a server there is no mailer: every start warns, and whoever sends a mail gets an error.
# https://docs.djangoproject.com/en/6.1/topics/email/
MAILERS: dict[str, dict] = {}
if DEBUG:  # mails are printed
    MAILERS["default"] = {"BACKEND": "django.core.mail.backends.console.EmailBackend"}
elif mail_server := env("EMAIL_HOST", default=""):
    use_ssl = env.bool("EMAIL_USE_SSL", default=False)
    MAILERS["default"] = {
        "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "OPTIONS": {
            "host": mail_server,
            "port": env.int("EMAIL_PORT", default=587),
            "username": env("EMAIL_HOST_USER", default=""),
            "password": env("EMAIL_HOST_PASSWORD", default=""),
            "use_tls": env.bool("EMAIL_USE_TLS", default=not use_ssl),
            "use_ssl": use_ssl,
            "timeout": 15,  # seconds
        },
    }

# Log ----------------------------------------------------------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "core.logs.Text" if DEBUG else "core.logs.Json"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        # These bring handlers and levels of their own; here only the ones below hold.
        **dict.fromkeys(
            ["django", "uvicorn", "uvicorn.error"],
            {"handlers": [], "level": "NOTSET", "propagate": True},
        ),
        "celery.worker.strategy": {"level": "WARNING"},  # one line a task: how it ended
    },
    "root": {"handlers": ["console"], "level": env("LOG_LEVEL", default="INFO")},
}

# Errors go to Sentry, or to what takes the same messages, when .env says where that is.
if SENTRY_DSN := env("SENTRY_DSN", default=""):
    from . import sentry

    sentry.start(SENTRY_DSN)

# The laptop's image has a toolbar: https://django-debug-toolbar.readthedocs.io
if DEBUG and "PYTEST_VERSION" not in os.environ:
    INSTALLED_APPS += ["debug_toolbar"]
    MIDDLEWARE.insert(0, "debug_toolbar.middleware.DebugToolbarMiddleware")
    DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": lambda request: True, "SHOW_COLLAPSED": True}

# Files --------------------------------------------------------------------------------------------

STATIC_URL = "/static/"
STATIC_ROOT = "/srv/static"
MEDIA_URL = "/media/"
MEDIA_ROOT = "/srv/media"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG
        else "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    },
}

# Database and cache -------------------------------------------------------------------------------

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": env("POSTGRES_HOST", default="db"),
        "NAME": env("POSTGRES_DB", default="app"),
        "USER": env("POSTGRES_USER", default="app"),
        "PASSWORD": env("POSTGRES_PASSWORD", default=""),
        "OPTIONS": {"connect_timeout": 5},
    }
}
# The web shares a few connections among all requests; under ASGI persistent ones would leak one per
# thread. https://docs.djangoproject.com/en/6.1/ref/databases/#connection-pool
if pool_size := env.int("DATABASE_POOL_SIZE", default=0):
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    DATABASES["default"]["OPTIONS"]["pool"] = {
        "min_size": 1,
        "max_size": pool_size,
        "timeout": 10,  # seconds that a request waits for a free connection
    }

CACHE_PASSWORD = env("CACHE_PASSWORD", default="")
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": env("CACHE_URL", default=f"redis://:{CACHE_PASSWORD}@cache:6379/0"),
        "OPTIONS": {"socket_connect_timeout": 2, "socket_timeout": 2},
    }
}

# Celery -------------------------------------------------------------------------------------------

# The one list. Each queue has a worker of its own in compose.yaml, which ./manage.py check compares,
# and takes the tasks of an app with its name. Add a route for another app, or for a single task:
# CELERY_TASK_ROUTES["shop.tasks.*"] = {"queue": "default"}
QUEUES = ["default"{% for queue in cookiecutter.__queues.split() %}, "{{ queue }}"{% endfor %}]

CELERY_TASK_QUEUES = [broker.queue(name) for name in QUEUES]
CELERY_TASK_ROUTES = {f"{name}.*": {"queue": name} for name in QUEUES}
CELERY_TASK_DEFAULT_QUEUE = "default"
# A misspelt queue is an error, not a queue nobody reads.
# https://docs.celeryq.dev/en/stable/userguide/configuration.html#task-create-missing-queues
CELERY_TASK_CREATE_MISSING_QUEUES = False

# JSON loads no code: https://docs.celeryq.dev/en/stable/userguide/security.html#serializers
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_TIMEZONE = TIME_ZONE


def worker_env(name: str, default: int) -> int:
    """Read WORKER_<QUEUE>_<NAME> for the worker of that queue, else WORKER_<NAME>, else default."""
    queue = env("QUEUE", default="default").upper().replace("-", "_")
    return env.int(f"WORKER_{queue}_{name}", default=env.int(f"WORKER_{name}", default=default))


CELERY_WORKER_CONCURRENCY = worker_env("CONCURRENCY", 2)
# Against leaks: https://docs.celeryq.dev/en/stable/userguide/workers.html#max-tasks-per-child-setting
CELERY_WORKER_MAX_TASKS_PER_CHILD = worker_env("MAX_TASKS_PER_CHILD", 1000)
CELERY_WORKER_MAX_MEMORY_PER_CHILD = worker_env("MAX_MEMORY_PER_CHILD", 200_000)  # KiB

# One number, in seconds, from which the others follow: no task runs longer than TASK_TIME_LIMIT,
# compose waits that long and a minute before it kills a worker, and a task that was not
# acknowledged for twice as long was lost with its worker and goes to another.
TASK_TIME_LIMIT = env.int("TASK_TIME_LIMIT", default=300)
CELERY_TASK_TIME_LIMIT = worker_env("TIME_LIMIT", TASK_TIME_LIMIT)
CELERY_TASK_SOFT_TIME_LIMIT = CELERY_TASK_TIME_LIMIT * 0.9
if CELERY_TASK_TIME_LIMIT > TASK_TIME_LIMIT:
    raise ImproperlyConfigured(
        "A worker's TIME_LIMIT may not exceed TASK_TIME_LIMIT; raise TASK_TIME_LIMIT in .env."
    )

# How many seconds the sender of a task waits for a broker that is away. A request holds one of the
# few connections to the database meanwhile, so the web waits as long as a short restart takes.
BROKER_PATIENCE = 5 if pool_size else 20

CELERY_BROKER_URL = broker.URL
CELERY_BROKER_TRANSPORT_OPTIONS = broker.transport_options(
    visibility_timeout=2 * TASK_TIME_LIMIT, patience=BROKER_PATIENCE
)
# Peers start in any order and may be away for long.
# https://docs.celeryq.dev/en/stable/userguide/configuration.html#broker-connection-retry-on-startup
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None

# A task is acknowledged when it has ended, so that it survives its worker; it must be idempotent.
# https://docs.celeryq.dev/en/stable/faq.html#should-i-use-retry-or-acks-late
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
# Take no more than can be run now.
# https://docs.celeryq.dev/en/stable/userguide/optimizing.html#prefetch-limits
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# A lost connection does not cancel what runs; its message comes back and finds the work done.
# https://docs.celeryq.dev/en/stable/userguide/configuration.html#worker-cancel-long-running-tasks-on-connection-loss
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False

# A try each second: https://docs.celeryq.dev/en/stable/userguide/calling.html#message-sending-retry
CELERY_TASK_PUBLISH_RETRY_POLICY = {
    "max_retries": BROKER_PATIENCE,
    "interval_start": 1,
    "interval_step": 0,
    "interval_max": 1,
}

# https://docs.celeryq.dev/en/stable/userguide/configuration.html#result-expires
CELERY_RESULT_BACKEND = broker.RESULT_BACKEND
# Whoever sends a task asks for its result first.
CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {"retry_policy": CELERY_TASK_PUBLISH_RETRY_POLICY}
CELERY_RESULT_EXPIRES = env.int("TASK_RESULT_EXPIRES", default=24 * 3600)
# For ./manage.py failed.
CELERY_TASK_STORE_ERRORS_EVEN_IF_IGNORED = True

# Events are what Flower shows: https://docs.celeryq.dev/en/stable/userguide/monitoring.html#events
CELERY_WORKER_SEND_TASK_EVENTS = True
CELERY_WORKER_CONSUMER = "config.consumer:Consumer"

CELERY_BEAT_SCHEDULER = "config.scheduler:Scheduler"
# Write down what was sent at once, or a beat that is killed sends it again when it is back.
# https://docs.celeryq.dev/en/stable/userguide/configuration.html#beat-sync-every
CELERY_BEAT_SYNC_EVERY = 1
CELERY_BEAT_SCHEDULE = {
    "clear-sessions": {"task": "core.tasks.clear_sessions", "schedule": 24 * 3600},
}
{%- if cookiecutter.example %}

# The example --------------------------------------------------------------------------------------

CELERY_TASK_ROUTES |= {"posts.*": {"queue": "crawl"}, "notifications.*": {"queue": "notify"}}
CELERY_BEAT_SCHEDULE |= {
    # "expires": while no worker runs, they do not pile up.
    "crawl-sites": {
        "task": "posts.tasks.crawl_sites",
        "schedule": 120,
        "options": {"expires": 120},
    },
    "send-overdue": {
        "task": "notifications.tasks.send_overdue",
        "schedule": 600,
        "options": {"expires": 600},
    },
}
# Sites with one of these hosts may have a private address.
CRAWL_PRIVATE_HOSTS = env.list("CRAWL_PRIVATE_HOSTS", default=["sample-site"] if DEBUG else [])
{%- endif %}
