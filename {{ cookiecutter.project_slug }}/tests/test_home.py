from django.test import Client


def test_the_home_page_is_there(client: Client) -> None:
    assert client.get("/").status_code == 200
