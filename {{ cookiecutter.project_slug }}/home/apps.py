from django.apps import AppConfig


class HomeConfig(AppConfig):
    """The start page, and the buttons that send a sample task."""

    name = "home"
