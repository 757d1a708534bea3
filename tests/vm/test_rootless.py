"""Development with a rootless engine, in which root of the containers is the person."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.stack import LAPTOP, Stack, wait_for
from tests.systemd.machine import Vm, docker

SOCKET = "/run/person/docker.sock"
HOME = "/home/person"
ENGINE = "/usr/share/docker.io/contrib/dockerd-rootless.sh --data-root /var/lib/docker/rootless"


class Rootless(Vm):
    """A machine whose only engine is that of one person."""

    def boot(self) -> None:
        """Build the machine and start it, with the engine and a copy of the project."""
        self.build("--target=rootless")
        self.create()
        docker("start", self.name)
        self.run("sh", "-c", "install -d -o person /run/person /var/lib/docker/rootless")
        self.run("chmod", "666", "/dev/net/tun")
        docker("exec", "--detach", self.name, *self.person(f"exec {ENGINE} >~/engine.log 2>&1"))
        version = self.person("docker", "version", "--format={{.Server.Version}}")
        wait_for("the engine", lambda: docker("exec", self.name, *version, check=False).strip())
        dockerfile = (self.stack.folder / "Dockerfile").read_text()
        bases = {line.split()[1] for line in dockerfile.splitlines() if line.startswith("FROM ")}
        services = self.stack.compose("config", "--images").split()
        images = {base for base in bases if ":" in base}
        self.load(images | {image for image in services if self.stack.slug not in image})
        docker("cp", str(self.stack.folder), f"{self.name}:{HOME}/shop")
        self.run("rm", f"{HOME}/shop/.env")  # a clone has none
        self.run("chown", "--recursive", "person:", f"{HOME}/shop")

    def person(self, *command: str) -> list[str]:
        """Return the words that run a command as the person."""
        settings = f"XDG_RUNTIME_DIR=/run/person DOCKER_HOST=unix://{SOCKET} PATH=$PATH:/usr/sbin"
        return ["su", "person", "-c", f"export {settings}; {' '.join(command)}"]

    def loading(self) -> list[str]:
        """Return the words that load images from stdin."""
        return self.person(*super().loading())

    def shell(self, command: str) -> str:
        """Run a command in the project's folder as the person; return what it printed."""
        return self.run(*self.person(f"cd {HOME}/shop && {command}"))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Rootless]:
    """The machine, with a clone of a project."""
    machine = Rootless(Stack(tmp_path, LAPTOP, queues="none", example="false"))
    try:
        machine.boot()
        yield machine
    finally:
        machine.remove()


@pytest.mark.long
def test_a_clone_starts_on_a_rootless_engine_and_its_files_are_the_persons(
    machine: Rootless,
) -> None:
    assert "rootless" in machine.shell("docker info --format {{.SecurityOptions}}")
    machine.shell("ops/make-env")
    assert machine.shell("grep DEV_UID .env").strip() == "DEV_UID=0"
    machine.shell("docker compose --progress quiet up --detach --wait --build")
    machine.shell("docker compose --progress quiet run --rm web ./manage.py startapp other")
    assert machine.shell("stat -c %u other/models.py").strip() == "1234"
    assert "Done by default@" in machine.shell("docker compose exec -T web-a ./manage.py sample")
    assert "It works" in machine.shell("curl --silent --fail localhost:8080")
