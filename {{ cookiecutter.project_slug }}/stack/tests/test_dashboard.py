import pytest
from celery import current_app
from django.test import Client

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_page_shows_every_queue(client: Client, settings) -> None:
    settings.DEBUG = True
    page = client.get("/status/").content.decode()
    assert all(f'value="{queue}"' in page for queue in settings.QUEUES)


@pytest.mark.parametrize(
    "path", ["/status/", "/status/live/", "/status/sample/00000000-0000-0000-0000-000000000000/"]
)
def test_in_production_visitors_are_sent_to_the_log_in(client: Client, path: str) -> None:
    assert client.get(path).headers["Location"].startswith("/admin/login/")


def test_in_production_staff_sees_the_page(admin_client: Client) -> None:
    assert admin_client.get("/status/").status_code == 200


def test_an_unknown_queue_is_refused(admin_client: Client) -> None:
    answer = admin_client.post("/status/sample/", {"queue": "unread"})
    assert (answer.status_code, answer.json()) == (400, {"error": "There is no such queue."})


def test_a_sample_task_fails_when_asked_to(admin_client: Client, worker) -> None:
    sent = admin_client.post("/status/sample/", {"queue": "default", "fail": ""}).json()
    current_app.AsyncResult(sent["id"]).get(timeout=120, propagate=False)
    task = admin_client.get(f"/status/sample/{sent['id']}/").json()
    assert (task["state"], task["error"]) == ("FAILURE", "This task was sent to fail.")


def test_a_sample_task_runs_to_its_end(client: Client, worker, settings) -> None:
    settings.DEBUG = True
    sent = client.post("/status/sample/", {"queue": "default"})
    current_app.AsyncResult(sent.json()["id"]).get(timeout=120)
    task = client.get(f"/status/sample/{sent.json()['id']}/").json()
    assert (task["state"], task["progress"]) == ("SUCCESS", 1)
    assert task["result"].startswith("Done by ")
