import logging
from typing import ClassVar, Self

from celery import current_app
from django.db import models, transaction
from kombu.exceptions import OperationalError
from kombu.utils import json

logger = logging.getLogger(__name__)


class Message(models.Model):
    """A task that is to be sent."""

    name = models.CharField(max_length=255)
    task_id = models.CharField(max_length=255)
    body = models.TextField()  # arguments and options
    created_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[models.Manager[Self]] = models.Manager()

    class Meta:
        ordering = ["pk"]
        verbose_name = "unsent task"

    def __str__(self) -> str:
        """Return the name and the id of the task."""
        return f"{self.name}[{self.task_id}]"

    def send(self) -> bool:
        """
        Send the task and delete the row, unless another process is doing that.

        Errors are logged, and the row stays. Return False when the broker was unavailable.
        """
        using = self._state.db
        try:
            with transaction.atomic(using=using):
                rows = Message.objects.using(using).select_for_update(skip_locked=True)
                if row := rows.filter(pk=self.pk).first():
                    args, kwargs, options = json.loads(row.body)
                    task = current_app.tasks[row.name]
                    task.apply_async(args, kwargs, task_id=row.task_id, **options)
                    row.delete()
        except Exception as error:  # whatever it is: the data is saved
            logger.error("%s is not sent, and stays in the outbox: %r", self, error)
            return not isinstance(error, OperationalError)
        return True
