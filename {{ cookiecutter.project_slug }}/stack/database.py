"""The web's pool of database connections."""

from psycopg import Connection
from psycopg_pool import ConnectionPool

# Before Django 6.1 a pool takes no other check than this one.
check_connection = ConnectionPool.check_connection


def check(connection: Connection) -> None:
    """
    Check a connection before a request gets it; if it is broken, replace all that wait in the pool.

    After a restart of the server all of them are broken. psycopg_pool itself finds out one by one, with
    pauses of 1, 2, 4, … seconds in between, so that a request would fail although the server is up.
    Raises what psycopg raises for a broken connection; the pool then takes another one.
    """
    from django.db import connection as current  # the settings import this module

    try:
        check_connection(connection)
    except Exception:
        current.pool.drain()  # type: ignore[attr-defined]
        raise


ConnectionPool.check_connection = staticmethod(check)  # type: ignore[method-assign, assignment]
