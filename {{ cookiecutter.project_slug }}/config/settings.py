"""
Your settings. What the stack sets, stack/settings.py, may be overridden below.

What differs between development and production comes from .env, where every name is explained.
https://docs.djangoproject.com/en/6.1/ref/settings/
https://docs.celeryq.dev/en/stable/userguide/configuration.html
"""

import os
from pathlib import Path

from django.utils.csp import CSP

from stack.environment import env
from stack.settings import *

BASE_DIR = Path(__file__).resolve().parent.parent
PROJECT_NAME = "{{ cookiecutter.project_name }}"

# Application --------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "accounts",
{%- if cookiecutter.example %}
    "notifications",
    "posts",
{%- endif %}
    "stack",
    "stack.dashboard",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "stack.middleware.request_id",
    "stack.middleware.measure",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "stack.middleware.ServiceUnavailableMiddleware",
    "stack.middleware.one_thread",  # the last
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
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
STATICFILES_DIRS = [BASE_DIR / "static"]
ROOT_URLCONF = "config.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# In development: https://django-debug-toolbar.readthedocs.io, and each mail in the admin and in the log.
# https://github.com/ui/django-post_office
if DEBUG and "PYTEST_VERSION" not in os.environ:
    INSTALLED_APPS += ["debug_toolbar", "post_office"]
    MIDDLEWARE.insert(0, "debug_toolbar.middleware.DebugToolbarMiddleware")
    DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": lambda request: True, "SHOW_COLLAPSED": True}
    MAILERS = {"default": {"BACKEND": "post_office.EmailBackend"}, "log": MAILERS["default"]}
    POST_OFFICE = {"DEFAULT_MAILER": "log", "DEFAULT_PRIORITY": "now"}

# Users and security -------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "/"
# A browser sends the cookies of a host to all its ports: on localhost, to all projects.
_name = env("COMPOSE_PROJECT_NAME", default="{{ cookiecutter.project_slug }}")
SESSION_COOKIE_NAME = f"{_name}_sessionid"
CSRF_COOKIE_NAME = f"{_name}_csrftoken"

SECURE_CSP = {"default-src": [CSP.SELF], "frame-ancestors": [CSP.NONE], "object-src": [CSP.NONE]}

# Language, time and mail --------------------------------------------------------------------------

LANGUAGE_CODE = "en"
TIME_ZONE = "{{ cookiecutter.timezone }}"

DEFAULT_FROM_EMAIL = SERVER_EMAIL = env("EMAIL_FROM", default="{{ cookiecutter.email }}")

# Tasks --------------------------------------------------------------------------------------------

# Each queue has a worker in compose.yaml, which ./manage.py check compares.
QUEUES = ["default"{% for queue in cookiecutter.__queues.split() %}, "{{ queue }}"{% endfor %}]

# Tasks of an app with the name of a queue run on that queue, all others on "default". What runs
# elsewhere is listed here, by app ("shop.*") or by task ("shop.tasks.send_receipt").
CELERY_TASK_ROUTES: dict[str, dict[str, str]] = {% if cookiecutter.example %}{
    "posts.*": {"queue": "crawl"},
    "notifications.*": {"queue": "notify"},
}{% else %}{}{% endif %}

CELERY_BEAT_SCHEDULE = {
    "clear-sessions": {"task": "stack.tasks.clear_sessions", "schedule": 24 * 3600},
{%- if cookiecutter.example %}
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
{%- endif %}
}
{%- if cookiecutter.example %}

# The example --------------------------------------------------------------------------------------

# Sites with one of these hosts may have a private address.
CRAWL_PRIVATE_HOSTS = env.list("CRAWL_PRIVATE_HOSTS", default=["sample-site"] if DEBUG else [])
{%- endif %}
