"""The machinery of a project from django-celery-compose: see README.md beside this file."""

__version__ = "1.0.0"
