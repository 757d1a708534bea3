"""A VM that has nothing but sshd, and the laptop that deploys to it."""

import os
import shlex
import subprocess
from pathlib import Path

import requests

from tests.stack.stack import PRODUCTION, Stack
from tests.systemd.machine import Vm, docker

PROBE = Path(__file__).parent.parent / "stack" / "probe"


class ProductionVm(Vm):
    """A bare Debian, and a rendered project whose ops/ are used on it as a person uses them."""

    def __init__(self, folder: Path) -> None:
        """Render a project into `folder`, and make a key that shall log in."""
        # Two workers show what is to be seen of three.
        super().__init__(Stack(folder / "project", PRODUCTION, queues="crawl", example="false"))
        self.stack.add_app(PROBE)
        self.key = folder / "key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "laptop", "-f", self.key],
            check=True,
        )
        # What a person has in ~/.ssh/config.
        options = f"-i {self.key} -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null"
        self.bin = folder / "bin"
        self.bin.mkdir()
        ssh = self.bin / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F none {options} -oLogLevel=ERROR "$@"\n')
        ssh.chmod(0o755)

    @property
    def address(self) -> str:
        """Return its IP address."""
        inspect = ["inspect", "--format={{.NetworkSettings.IPAddress}}", self.name]
        return docker(*inspect).strip()

    @property
    def host(self) -> str:
        """Name it as ssh does."""
        return f"deploy@{self.address}"

    @property
    def folder(self) -> str:
        """Name the project's folder on the VM."""
        return f"/srv/{self.stack.slug}"

    def start_ops(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a command of ops/ on the laptop, which has no terminal."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")}
        return subprocess.Popen(
            [self.stack.folder / "ops" / command, *arguments],
            env=env | {"PATH": f"{self.bin}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ops(self, command: str, *arguments: str, code: int = 0) -> str:
        """Run a command of ops/ on the laptop; return what it said. It must end with `code`."""
        with self.start_ops(command, *arguments) as process:
            said, _ = process.communicate(timeout=600)
        assert process.returncode == code, said
        return said

    def install(self, *arguments: str) -> str:
        """Run ops/install on the VM as root; return what it said."""
        key = self.key.with_suffix(".pub").read_text().strip()
        return self.run("/root/ops/install", "--yes", "--key", key, *arguments, timeout=600)

    def first_settings(self) -> list[str]:
        """Say what .env.example cannot know of this VM."""
        values = {"HTTPS": "false", "ALLOWED_HOSTS": self.address, "TASK_TIME_LIMIT": 60}
        return [f"--set={name}={value}" for name, value in values.items()]

    def deploy(self, *arguments: str, code: int = 0) -> str:
        """Run ops/deploy to this machine."""
        return self.ops("deploy", self.host, *arguments, code=code)

    def here(self, command: str, check: bool = True, timeout: float = 300) -> str:
        """Run a shell's line as the user who deploys, in the project's folder on the VM."""
        line = f"cd {self.folder} && {command}"
        return self.run(
            "runuser", "--user", "deploy", "--", "sh", "-c", line, check=check, timeout=timeout
        )

    def settings(self) -> dict[str, str]:
        """Return the names and values of the VM's .env."""
        lines = self.here("cat .env").splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def python(self, code: str) -> str:
        """Run `code` in Django's shell on the VM and return what it prints."""
        shell = "docker compose exec -T web-a ./manage.py shell --no-imports --command"
        return self.here(f"{shell} {shlex.quote(code)}").strip()

    def get(self, path: str, **options: object) -> requests.Response:
        """GET from the VM's port 80, on a connection of its own."""
        headers = {"Connection": "close"}
        url = f"http://{self.address}{path}"
        return requests.get(url, timeout=30, headers=headers, allow_redirects=False, **options)

    def running(self) -> dict[str, str]:
        """Return the id and the image of each running container, by service."""
        line = "docker ps --no-trunc --format '{{.Label \"com.docker.compose.service\"}} {{.ID}} {{.Image}}'"
        rows = [row.split() for row in self.here(line).splitlines()]
        return {service: f"{image} {number}" for service, number, image in rows}

    def version(self) -> str:
        """Return the tag that all of the project's containers have."""
        tags = {
            image.split()[0].partition(":")[2]
            for image in self.running().values()
            if image.startswith(f"{self.stack.slug}:")
        }
        assert len(tags) == 1, self.running()
        return tags.pop()
