"""A connection to Redis beside Celery's, for measuring."""

import os

from redis import Redis

SHIPPED, DEFAULTS, NOTES = 0, 14, 15  # databases: the stack's, the reference's, the delays


def redis(database: int) -> Redis:
    """Connect to a database of the stack's broker."""
    return Redis("broker", db=database, password=os.environ["BROKER_PASSWORD"])
