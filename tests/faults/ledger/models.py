from django.db import models
from django.db.models import F
from django.db.models.functions import Coalesce, Now


class Entry(models.Model):
    """One task: when the broker took it, how often and when it was first done."""

    key = models.CharField(primary_key=True, max_length=100)
    accepted_at = models.DateTimeField(null=True)
    started = models.IntegerField(default=0)
    done = models.IntegerField(default=0)
    first_done_at = models.DateTimeField(null=True)

    @classmethod
    def accept(cls, key: str) -> None:
        """Note that the broker has taken the task `key`."""
        cls.objects.filter(key=key).update(accepted_at=Now())

    @classmethod
    def start(cls, key: str) -> int:
        """Count one more start of the task `key`; return the count."""
        cls.objects.filter(key=key).update(started=F("started") + 1)
        return cls.objects.values_list("started", flat=True).get(key=key)

    @classmethod
    def finish(cls, key: str) -> None:
        """Count one more completion of the task `key`; LookupError when there is no such row."""
        done = cls.objects.filter(key=key).update(
            done=F("done") + 1, first_done_at=Coalesce("first_done_at", Now())
        )
        if not done:
            raise LookupError(key)
