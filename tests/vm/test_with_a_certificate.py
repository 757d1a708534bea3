"""The site of test_journeys.py gets a certificate, and has it after the power was cut."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import acme
from tests.stack.stack import wait_for
from tests.systemd.machine import docker

from .vm import SITE as NAME
from .vm import ProductionVm


@pytest.fixture(scope="module")
def authority(vm: ProductionVm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run Pebble beside the VM, which knows it by name; return the folder with its own certificate."""
    folder = tmp_path_factory.mktemp("acme") / "authority"
    folder.mkdir()
    acme.self_signed(folder, "authority")
    (folder / "key.pem").chmod(0o644)
    (folder / "config.json").write_text(acme.configuration(days=90, port=80))
    name = f"{vm.name}-acme"
    docker("build", "--quiet", f"--tag={name}", str(acme.HERE), timeout=600)
    try:
        docker(
            *("run", "--detach", f"--name={name}", f"--add-host={NAME}:{vm.address}"),
            *(f"--volume={folder}:/authority:ro", name, "pebble", "-config=/authority/config.json"),
        )
        inspect = ["inspect", "--format={{.NetworkSettings.IPAddress}}", name]
        (folder / "address").write_text(docker(*inspect).strip())
        yield folder
    finally:
        docker("rm", "--force", name, check=False)
        docker("image", "rm", "--force", name, check=False)


@pytest.fixture
def trusting(vm: ProductionVm, authority: Path) -> Iterator[ProductionVm]:
    """The VM and a project that trusts the authority; afterwards the site has no certificate."""
    stack = vm.stack
    files = [stack.folder / name for name in ("compose.production.yaml", "ops/deploy")]
    before = [file.read_text() for file in files]
    (stack.folder / "authority.pem").write_text((authority / "cert.pem").read_text())
    stack.edit("ops/deploy", '    "docs",\n', '    "authority.pem",\n    "docs",\n')
    for old, new in (
        ("      ACME_EMAIL:", "      CURL_CA_BUNDLE: /authority.pem\n      ACME_EMAIL:"),
        ('["acme:/srv/acme", ', '["./authority.pem:/authority.pem:ro", "acme:/srv/acme", '),
        (
            "    networks: [outside]\n",
            f'    networks: [outside]\n    extra_hosts: ["authority:{(authority / "address").read_text()}"]\n',
        ),
    ):
        stack.edit("compose.production.yaml", old, new)
    yield vm
    for file, text in zip(files, before, strict=True):
        file.write_text(text)
    (stack.folder / "authority.pem").unlink()
    vm.deploy(*vm.first_settings())


@pytest.mark.long
def test_a_deploy_gives_the_site_a_certificate_that_a_power_cut_leaves(
    trusting: ProductionVm,
) -> None:
    vm = trusting
    vm.deploy(
        *("--wait=400", "--set=HTTPS=acme", f"--set=ALLOWED_HOSTS={NAME},{vm.address}"),
        "--set=ACME_DIRECTORY=https://authority:14000/dir",
    )
    root = vm.here(
        "docker compose exec -T certificates curl --silent --fail https://authority:15000/roots/0"
    )
    site = (vm.address, 443)

    def certificate() -> bytes | None:
        try:
            with acme.connect(site, NAME, root) as connection:
                return connection.getpeercert(binary_form=True)
        except OSError:
            return None

    first = wait_for("a certificate of this authority", certificate)
    settings = vm.settings()
    password = f"{settings['FLOWER_USER']}:{settings['FLOWER_PASSWORD']}".encode()
    log_in = {"Authorization": f"Basic {base64.b64encode(password).decode()}"}
    assert acme.get(site, NAME, "/flower/workers", root)[0] == 401
    assert acme.get(site, NAME, "/flower/workers", root, **log_in)[0] == 200
    assert vm.get("/flower/").headers["Location"] == f"https://{NAME}/flower/"
    vm.cut_power()
    wait_for("the site", lambda: certificate() and acme.get(site, NAME, "/readyz", root)[0] == 200)
    assert certificate() == first
