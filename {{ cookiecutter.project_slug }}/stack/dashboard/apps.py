from django.apps import AppConfig


class DashboardConfig(AppConfig):
    """The dashboard: queues, workers and services, live, and buttons that send a sample task."""

    name = "stack.dashboard"
    label = "stack_dashboard"  # "dashboard" is left to the project
