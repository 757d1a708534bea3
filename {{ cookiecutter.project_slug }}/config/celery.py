"""The Celery app of workers, beat, Flower and the web."""

from stack.celery import Celery

app = Celery("config")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
