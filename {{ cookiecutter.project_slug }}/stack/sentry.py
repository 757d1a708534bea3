"""Errors for Sentry: https://docs.sentry.io/platforms/python"""

import sentry_sdk
from sentry_sdk.types import Event, Hint

from . import logs
from .environment import QUEUES, SERVICE, env


def start(dsn: str) -> None:
    """Send uncaught exceptions and logged errors from now on, without data of users."""
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
    sentry_sdk.get_global_scope().set_tag("service", ",".join(QUEUES) or SERVICE)


def finish(event: Event, hint: Hint) -> Event:
    """Add the fields that a log line has; drop the query string, which a user may have typed."""
    event.setdefault("tags", {}).update(logs.fields.get())
    event.get("request", {}).pop("query_string", None)
    return event
