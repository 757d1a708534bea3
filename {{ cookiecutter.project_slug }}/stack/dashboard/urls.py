from django.urls import path

from . import views

app_name = "stack_dashboard"
urlpatterns = [
    path("", views.index, name="index"),
    path("live/", views.stream, name="stream"),
    path("sample/", views.send, name="send"),
    path("retry/", views.retry, name="retry"),
    path("run/", views.run, name="run"),
    path("monitoring/", views.monitoring, name="monitoring"),
    path("monitoring/allowed/", views.monitoring_allowed),  # for nginx
    path("runbook/", views.runbook, name="runbook"),
    path("sample/<uuid:task_id>/", views.status, name="status"),
]
