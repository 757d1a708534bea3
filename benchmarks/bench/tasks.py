"""Tasks under the settings as shipped, on the queue "default"."""

from celery import shared_task

from . import work

nothing = shared_task(work.nothing, name="bench.nothing")
note_delay = shared_task(work.note_delay, name="bench.note_delay")
