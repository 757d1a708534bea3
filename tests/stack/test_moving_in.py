"""docs/moving-in.md on a real engine: the project that moved in runs, with its data."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.moving_in import blocks, move_in

from .stack import LAPTOP, Stack, wait_for


class MovedIn(Stack):
    """A project that moved in, as the guide says."""

    def render(self, parent: Path, **answers: str) -> Path:
        """Follow the guide; return the project's folder."""
        return move_in(parent, self.slug)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MovedIn]:
    """The project, started with the guide's last commands."""
    stack = MovedIn(tmp_path_factory.mktemp("moving-in"), LAPTOP)
    try:
        (start,) = blocks("4. Packages", "sh")
        stack.shell(start, timeout=1200)
        yield stack
    finally:
        stack.remove()


def test_the_project_runs_as_before(shop: MovedIn) -> None:
    create = "from shop.orders.models import Order; print(Order.objects.create(title='Tea').pk)"
    order = shop.python(create)
    assert "Tea: 0 receipts" in shop.get("/").text
    assert shop.get("/receipts/").status_code == 302  # the view sends a task on commit
    wait_for("the task", lambda: "Tea: 1 receipts" in shop.get("/").text)
    # on its own queue, and seen there in Flower
    code = f"from shop.orders.tasks import send_receipt; print(send_receipt.delay({order}).id)"
    task = shop.python(code)
    assert shop.result(task) == f"mail@{shop.slug}"
    auth = ("admin", shop.settings["FLOWER_PASSWORD"])
    flower = f"/flower/task/{task}"
    wait_for("Flower's page", lambda: shop.get(flower, auth=auth).status_code == 200)
    assert "shop.orders.tasks.send_receipt" in shop.get(flower, auth=auth).text
    page = shop.get("/").text
    (style,) = re.findall(r'href="(/static/.*?)" *>\n<link rel="icon"', page)
    assert shop.get(style).status_code == 200
    assert shop.get("/static/css/shop.css").status_code == 200
    assert shop.get("/admin/login/").status_code == 200
    assert shop.get("/readyz").json() == {"database": "ok", "broker": "ok", "cache": "ok"}


# What the old server has and this one has not: a role that owns a table, and one that may read it.
ROLES = """
CREATE ROLE shop; CREATE ROLE reporting;
ALTER TABLE orders_order OWNER TO shop; GRANT SELECT ON orders_order TO reporting;
"""
NO_ROLES = """
ALTER TABLE orders_order OWNER TO app; DROP OWNED BY reporting; DROP ROLE shop, reporting;
DELETE FROM orders_order;
"""


def test_its_data_comes_along(shop: MovedIn) -> None:
    psql = "docker compose exec -T db psql --username=app_admin --quiet"
    shop.python("from shop.orders.models import Order; Order.objects.create(title='Coffee')")
    shop.shell(f"{psql} -c '{ROLES}'")
    shop.shell("docker compose exec -T db pg_dump --username=app_admin -Fc app > ../shop.dump")
    shop.shell(f"{psql} -c '{NO_ROLES}'")
    shop.shell("mkdir ../media && echo coffee > ../media/coffee.txt")
    (restore,) = blocks("5. Data", "sh")
    shop.shell(f"{restore.strip()} --yes")
    shop.wait_for_proxy()
    assert "Coffee: 0 receipts" in shop.get("/").text
    assert shop.get("/media/coffee.txt").text == "coffee\n"
