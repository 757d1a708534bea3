"""The same tasks under Celery's own defaults, in another database of the same broker."""

import os

from celery import Celery

from . import work
from .broker import DEFAULTS

app = Celery("bench", broker=f"redis://:{os.environ['BROKER_PASSWORD']}@broker:6379/{DEFAULTS}")
nothing = app.task(work.nothing, name="bench.nothing")
note_delay = app.task(work.note_delay, name="bench.note_delay")
