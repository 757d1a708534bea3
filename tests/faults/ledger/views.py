from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from .models import Entry
from .tasks import work


@csrf_exempt
def order(request: HttpRequest, key: str) -> JsonResponse:
    """Write a row and send its task: 202 once the broker has it."""
    with transaction.atomic():
        Entry.objects.create(key=key)
        work.delay_on_commit(key, 0.01)
    Entry.accept(key)
    return JsonResponse({"accepted": key}, status=202)
