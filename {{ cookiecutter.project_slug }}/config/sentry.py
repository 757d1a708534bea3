"""Sends errors to Sentry: https://docs.sentry.io/platforms/python"""

import sentry_sdk
from sentry_sdk.types import Event, Hint

from core import logs

from .environment import env


def start(dsn: str) -> None:
    """Send what nobody caught, and what is logged as an error, with nothing of the users' data."""
    sentry_sdk.init(
        dsn,
        release=env("IMAGE_TAG", default="") or None,
        before_send=finish,
        send_default_pii=False,
        # These may hold anything.
        max_request_body_size="never",
        include_local_variables=False,
        max_breadcrumbs=0,
    )
    sentry_sdk.get_global_scope().set_tag("service", env("QUEUE", default="") or env("SERVICE"))


def finish(event: Event, hint: Hint) -> Event:
    """Name the request and the task as the log does; drop what a user typed into an address."""
    event.setdefault("tags", {}).update(logs.fields.get())
    event.get("request", {}).pop("query_string", None)
    return event
