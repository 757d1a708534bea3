import pytest
from django.test import Client


def test_healthz_asks_nobody(client: Client) -> None:
    assert client.get("/healthz").content == b"ok"


@pytest.mark.django_db(transaction=True)
def test_readyz_names_each_part(client: Client) -> None:
    answer = client.get("/readyz")
    assert answer.json() == {"database": "ok", "broker": "ok", "cache": "ok"}
    assert answer.status_code == 200


@pytest.mark.django_db(transaction=True)
def test_readyz_names_the_dead_part(client: Client, settings) -> None:
    settings.CACHES = {
        "default": {**settings.CACHES["default"], "LOCATION": "redis://localhost:1/0"}
    }
    answer = client.get("/readyz")
    assert answer.json()["cache"] == "down"
    assert answer.status_code == 503
