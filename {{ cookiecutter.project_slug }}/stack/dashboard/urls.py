from django.urls import path

from . import failures, views

app_name = "stack_dashboard"
urlpatterns = [
    path("", views.index, name="index"),
    path("live/", views.stream, name="stream"),
    path("sample/", views.send, name="send"),
    path("retry/", views.retry, name="retry"),
    path("failed/", failures.index, name="failed"),
    path("failed/change/", failures.change, name="failed_change"),
    path("run/", views.run, name="run"),
    path("monitoring/", views.monitoring, name="monitoring"),
    path("monitoring/allowed/", views.monitoring_allowed),  # for nginx
    path("runbook/", views.runbook, name="runbook"),
    path("sample/<uuid:task_id>/", views.status, name="status"),
]
