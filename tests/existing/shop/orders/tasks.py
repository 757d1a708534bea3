from celery import shared_task
from django.db.models import F

from .models import Order


@shared_task(bind=True)
def send_receipt(self, order_id):
    Order.objects.filter(pk=order_id).update(receipts=F("receipts") + 1)
    return self.request.hostname
