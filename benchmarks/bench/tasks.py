"""Tasks under the settings as shipped, on the queue "default" unless the sender names another."""

from celery import shared_task

from . import work

nothing = shared_task(work.nothing, name="bench.nothing")
note_delay = shared_task(work.note_delay, name="bench.note_delay")
wait = shared_task(work.wait, name="bench.wait")
fail = shared_task(work.fail, name="bench.fail")
burn = shared_task(work.burn, name="bench.burn")
notify = shared_task(work.notify, name="bench.notify")
