"""A version with other versions of PostgreSQL and Redis is deployed to a VM."""

import pytest

from tests.stack.test_data_upgrade import UNRESTORABLE, make_earlier_images, name_images

from .conftest import Installed
from .test_journeys import WAIT
from .test_mishaps import BROKEN_BEAT
from .vm import ProductionVm


def make_user(vm: ProductionVm, name: str) -> None:
    """Insert a row."""
    vm.python(f"from accounts.models import User; User.objects.create(username='{name}')")


def users(vm: ProductionVm) -> set[str]:
    """Select the rows."""
    code = "from accounts.models import User; [print(user) for user in User.objects.all()]"
    return set(vm.python(code).split())


def execute(vm: ProductionVm, statements: str) -> None:
    """Execute SQL as the owner of the database."""
    vm.python(f"from django.db import connection; connection.cursor().execute({statements!r})")


@pytest.mark.long
def test_a_deploy_upgrades_the_data_and_takes_it_back(
    installed: Installed,
) -> None:
    make_earlier_images()
    vm = installed.vm
    name_images(vm.stack, "before")
    old = vm.commit()
    vm.deploy(*vm.first_settings(), WAIT)
    containers, services = vm.running(), set(vm.running())
    make_user(vm, "before")
    vm.here("docker compose stop worker-crawl")
    vm.send("work", "waiting", 20, 0.1)
    vm.here("docker compose start worker-crawl")

    name_images(vm.stack, "now")
    new = vm.commit()
    printed = vm.deploy(WAIT, code=1)
    assert "The data of broker is of version 7.0, and redis:8.0 needs 8.0" in printed
    assert f"Not taken live; {old} serves as before." in printed
    assert vm.running().keys() == containers.keys()
    assert vm.running()["db"] == containers["db"]
    assert vm.get("/readyz").status_code == 200

    # An upgrade that fails: the data is as before, and the site runs again.
    execute(vm, UNRESTORABLE)
    printed = vm.deploy("--upgrade-data", WAIT, code=1)
    assert "All data is as it was before." in printed
    assert f"Not taken live; {old} serves as before." in printed
    assert vm.get("/readyz").status_code == 200
    assert vm.running()["db"].startswith("postgres:17 ")
    assert users(vm) == {"before"}
    execute(vm, "DROP TABLE t; DROP FUNCTION f")

    # Versions that do not work, before and after containers are replaced: their data is given up, too.
    printed = vm.deploy(
        "--upgrade-data", vm.image("bad", "USER root\nRUN rm -r probe\n"), WAIT, code=1
    )
    assert f"Not taken live; {old} serves as before." in printed
    vm.wait_until_healthy(services)
    assert vm.running()["db"].startswith("postgres:17 ")
    assert users(vm) == {"before"}
    printed = vm.deploy("--upgrade-data", vm.image("ill", BROKEN_BEAT), WAIT, code=1)
    assert f"ill did not become healthy; {old} is live again." in printed
    vm.wait_until_healthy(services)
    assert vm.running()["db"].startswith("postgres:17 ")
    assert users(vm) == {"before"}

    vm.deploy("--upgrade-data", WAIT)
    vm.wait_until_healthy(services)
    assert vm.version() == new
    assert vm.running()["db"].startswith("postgres:18 ")
    assert users(vm) == {"before"}
    accepted = "count(accepted_at), count(*) FILTER (WHERE done = 1)"
    assert vm.count(accepted, "waiting") == [20, 20]
    make_user(vm, "after")

    printed = vm.ops("rollback", "--host", vm.host, code=1)
    assert "The data of broker is of version 8.0, newer than redis:7.0" in printed
    assert vm.version() == new
    vm.ops("upgrade-data", "--host", vm.host, "--back", "--yes")
    vm.ops("rollback", "--host", vm.host)
    vm.wait_until_healthy(services)
    assert vm.version() == old
    assert users(vm) == {"before"}

    vm.deploy("--upgrade-data", WAIT)
    vm.ops("upgrade-data", "--host", vm.host, "--confirm", "--yes")
    vm.here("docker compose restart db broker")
    vm.wait_until_healthy(services)
    assert users(vm) == {"before"}
    assert "no data of a version before" in vm.ops(
        "upgrade-data", "--host", vm.host, "--back", "--yes", code=1
    )
