"""What a client is told when a service fails: 503 is an invitation to send the request again."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from kombu import Connection

from stack.tasks import sample

pytestmark = pytest.mark.django_db
real_commits = pytest.mark.django_db(transaction=True)

RAISE = "DO $$ BEGIN RAISE EXCEPTION 'for the test' USING ERRCODE = '{}'; END $$"
END = "SELECT pg_terminate_backend(pg_backend_pid())"
# The server ends the connection while it commits.
END_AT_COMMIT = """
CREATE TEMPORARY TABLE ended (id int);
CREATE FUNCTION pg_temp.ended() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER ended AFTER INSERT ON ended DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION pg_temp.ended();
INSERT INTO ended VALUES (1)
"""


def send() -> None:
    """Send a task to a broker that does not listen."""
    nowhere = Connection("redis://127.0.0.1:1", transport_options={"max_retries": 0})
    options: dict[str, Any] = {"connection": nowhere, "retry": False}
    sample.apply_async(**options)


def save() -> None:
    """Write a row."""
    get_user_model().objects.create(username="saved")


def query(text: str) -> None:
    """Ask the database."""
    with connection.cursor() as cursor:
        cursor.execute(text)


def connect() -> None:
    """Connect to a database that does not listen."""
    with connection.wrap_database_errors:
        psycopg.connect("host=127.0.0.1 port=1")


def wait_for_a_connection() -> None:
    """Ask a pool whose only connection is in use."""
    options = connection.settings_dict
    database = {"host": options["HOST"], "dbname": options["NAME"]}
    login = {"user": options["USER"], "password": options["PASSWORD"]}
    with (
        psycopg_pool.ConnectionPool(kwargs=database | login, min_size=1, max_size=1) as pool,
        pool.connection(),
        connection.wrap_database_errors,
        pool.connection(timeout=0.01),
    ):
        pass


@pytest.fixture
def request_of(settings, client: Client) -> Iterator[Callable[..., Any]]:
    """A function that sends a request to a view that calls another function."""

    def view(request: HttpRequest) -> HttpResponse:
        called[0]()
        return HttpResponse("done")

    def send_request(function: Callable[[], object], accept: str = "*/*") -> Any:
        called[:] = [function]
        return client.post("/", headers={"Accept": accept})

    called: list[Callable[[], object]] = []
    settings.SECURE_SSL_REDIRECT = False
    settings.ROOT_URLCONF = (path("", view),)
    client.raise_request_exception = False
    yield send_request
    if not connection.is_usable():
        connection.close()


def saved() -> bool:
    """Return whether there is a row."""
    return get_user_model().objects.filter(username="saved").exists()


@pytest.mark.parametrize(
    "function",
    [
        connect,
        wait_for_a_connection,
        *[lambda code=code: query(RAISE.format(code)) for code in ("57P01", "57P03", "53300")],
    ],
)
def test_a_database_that_is_not_reached_is_503(request_of, function) -> None:
    answer = request_of(function)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
    assert answer.json() == {"error": "The database is unavailable. Try again in a minute."}


@real_commits
def test_so_is_one_that_ends_the_connection(request_of) -> None:
    assert request_of(lambda: query(END)).status_code == 503


@pytest.mark.parametrize(
    "text",
    [
        RAISE.format("40P01"),  # a deadlock
        RAISE.format("55P03"),  # a lock timeout
        RAISE.format("53100"),  # a full disk
        "SET LOCAL statement_timeout = 1; SELECT pg_sleep(10)",
    ],
)
def test_what_a_database_in_reach_refuses_is_500(request_of, text: str) -> None:
    answer = request_of(lambda: query(text))
    assert (answer.status_code, "Retry-After" in answer.headers) == (500, False)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "application/json"),
    ],
)
def test_a_browser_gets_a_page_and_others_get_json(request_of, accept: str, expected: str) -> None:
    answer = request_of(send, accept)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
    assert answer.headers["Content-Type"].partition(";")[0] == expected
    assert "The task queue is unavailable. Try again in a minute." in answer.text


@real_commits
def test_a_task_that_a_transaction_cannot_send_is_503_and_nothing_is_saved(request_of) -> None:
    def order() -> None:
        with transaction.atomic():
            save()
            send()

    assert (request_of(order).status_code, saved()) == (503, False)


def order_on_commit() -> None:
    """Save, and send when that is committed."""
    with transaction.atomic():
        save()
        transaction.on_commit(send)


def order_without_transaction() -> None:
    """Save and send, both at once."""
    save()
    transaction.on_commit(send)


@real_commits
@pytest.mark.parametrize("order", [order_on_commit, order_without_transaction])
@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_a_task_that_is_not_sent_after_a_commit_is_no_invitation_to_try_again(
    request_of, order, accept: str
) -> None:
    answer = request_of(order, accept)
    assert (answer.status_code, "Retry-After" in answer.headers) == (500, False)
    assert "The data was saved" in answer.text
    assert "Do not send it again." in answer.text
    assert saved()


@real_commits
def test_so_is_one_with_atomic_requests(request_of, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    answer = request_of(order_without_transaction)
    assert (answer.status_code, "The data was saved" in answer.text) == (500, True)
    assert saved()


@real_commits
def test_a_commit_whose_outcome_is_unknown_is_none_either(request_of) -> None:
    def order() -> None:
        with transaction.atomic():
            query(END_AT_COMMIT)

    answer = request_of(order)
    assert (answer.status_code, "Retry-After" in answer.headers) == (500, False)
    assert "may have been saved" in answer.json()["error"]
