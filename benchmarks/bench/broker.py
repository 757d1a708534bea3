"""A connection to Redis beside Celery's, for measuring."""

import os

from redis import Redis

SHIPPED, DEFAULTS, NOTES = 0, 14, 15  # databases: the stack's, the reference's, the delays


def redis(database: int) -> Redis:
    """Connect to a database of the stack's broker."""
    return Redis("broker", db=database, password=os.environ["BROKER_PASSWORD"])


def empty(database: Redis) -> None:
    """Delete what is in a database; its user may not do that at once."""
    for key in database.scan_iter():
        database.delete(key)
