"""Alerts of Prometheus, which knows the history of the metrics: docs/monitoring.md."""

import http.client
import json
import logging
import os
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

HOST, PORT, PATH = "monitoring", 9090, "/monitoring/api/v1/alerts"
TIMEOUT = 1  # seconds
OURS = "StackProblem"  # the alert for what stack/problems.py has found


class Alert(NamedTuple):
    """What is wrong: a paragraph of docs/runbook.md, with what it happens to, and one sentence."""

    problem: str
    subject: str
    sentence: str


def firing() -> list[Alert]:
    """Return the alerts that fire; none without COMPOSE_PROFILES=monitoring, or without an answer."""
    if "monitoring" not in os.environ.get("COMPOSE_PROFILES", "").replace(" ", "").split(","):
        return []
    try:
        return read(ask())
    # Whatever it is: that a container is not healthy is another problem.
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        logger.warning("Prometheus does not tell its alerts: %r", error)
        return []


def ask() -> Any:
    """Return what Prometheus answers. Raises OSError or HTTPException, ValueError for no JSON."""
    connection = http.client.HTTPConnection(HOST, PORT, timeout=TIMEOUT)
    try:
        connection.request("GET", PATH)
        return json.load(connection.getresponse())
    finally:
        connection.close()


def read(answer: Any) -> list[Alert]:
    """Return the firing alerts in an answer of https://prometheus.io/docs/prometheus/latest/querying/api/#alerts"""
    found = [
        Alert(
            alert["labels"]["problem"],
            alert["labels"].get("subject", ""),
            alert["annotations"]["summary"],
        )
        for alert in answer["data"]["alerts"]
        if alert["state"] == "firing" and alert["labels"]["alertname"] != OURS
    ]
    return sorted(found)
