from django.shortcuts import redirect, render

from .models import Order
from .tasks import send_receipt


def home(request):
    return render(request, "pages/home.html", {"orders": Order.objects.order_by("pk")})


def receipts(request):
    for order in Order.objects.all():
        send_receipt.delay_on_commit(order.pk)
    return redirect("home")
