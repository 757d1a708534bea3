"""A VM that has nothing but sshd, and the laptop that deploys to it."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import requests

from tests import ops
from tests.evidence import step
from tests.stack.stack import PATIENCE, PRODUCTION, Stack, wait_for
from tests.systemd.machine import Vm, docker

TESTS = Path(__file__).parent.parent
SITE = "site.test"  # its name; its address may be another one after each boot
TIME_LIMIT = 20  # seconds; small, because what a power cut interrupts returns after twice as long


class ProductionVm(Vm):
    """A bare Debian, and a rendered project whose ops/ are used on it as a person uses them."""

    def __init__(self, folder: Path) -> None:
        """Render a project into `folder`, and make a key that shall log in."""
        # Two workers show what is to be seen of three.
        super().__init__(Stack(folder / "project", PRODUCTION, queues="crawl", example="false"))
        self.stack.add_app(TESTS / "stack" / "probe")
        self.stack.add_app(TESTS / "faults" / "ledger")
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

    def boot_bare(self, *options: str) -> None:
        """Build and boot it with sshd, Python and ops/ only; with options of "docker create"."""
        self.build("--target=bare")
        self.create(*options)
        docker("cp", f"{self.stack.folder}/ops", f"{self.name}:/root/ops")
        self.boot()

    def boot(self) -> None:
        """Switch on, and learn the address, once: each visitor of the site needs it all the time."""
        super().boot()
        inspect = ["inspect", "--format={{.NetworkSettings.IPAddress}}", self.name]
        self.address = docker(*inspect).strip()

    @property
    def host(self) -> str:
        """Return the name that ssh uses."""
        return f"deploy@{self.address}"

    @property
    def folder(self) -> str:
        """Return the project's folder on the VM."""
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
        """Run a command of ops/ on the laptop; return what it printed. It must end with `code`."""
        with step(f"ops/{command} {' '.join(arguments)}", self) as notes:
            with self.start_ops(command, *arguments) as process:
                printed, _ = process.communicate(timeout=900)
            notes.append(f"exit {process.returncode}")
        assert process.returncode == code, printed
        return printed

    def install(self, *arguments: str) -> str:
        """Run ops/install on the VM as root; return what it printed."""
        key = self.key.with_suffix(".pub").read_text().strip()
        return self.run("/root/ops/install", "--yes", "--key", key, *arguments, timeout=600)

    def first_settings(self) -> list[str]:
        """Return what .env.example cannot know of this VM."""
        values = {"HTTPS": "false", "ALLOWED_HOSTS": SITE, "TASK_TIME_LIMIT": TIME_LIMIT}
        return [f"--set={name}={value}" for name, value in values.items()]

    def deploy(self, *arguments: str, code: int = 0) -> str:
        """Run ops/deploy to this machine."""
        return self.ops("deploy", self.host, *arguments, code=code)

    def here(self, command: str, check: bool = True, timeout: float = 600) -> str:
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
        return self.ask("GET", path, **options)

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, **options: object
    ) -> requests.Response:
        """Ask for something else than a page, also on a connection of its own."""
        headers = {"Connection": "close", "Host": SITE} | (headers or {})
        options = {"timeout": 30, "allow_redirects": False} | options
        return requests.request(method, f"http://{self.address}{path}", headers=headers, **options)

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

    def wait_until_healthy(self, services: set[str], seconds: float = PATIENCE) -> None:
        """Wait until these services run, and no others, and are healthy."""

        def healthy() -> bool:
            # ops/status costs much, so that it is asked only at the end.
            line = (
                "docker ps --filter label=com.docker.compose.oneoff=False"
                " --format '{{.Label \"com.docker.compose.service\"}} {{.Status}}' || true"
            )
            rows = [row.split(maxsplit=1) for row in self.here(line).splitlines()]
            there = {service for service, status in rows if "(healthy)" in status}
            look = "ops/status > /dev/null && echo healthy || true"
            return there == services and len(rows) == len(there) and "healthy" in self.here(look)

        try:
            wait_for("all healthy", healthy, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.here('ops/status || true')}") from None

    def wait_until_free(self) -> None:
        """Wait until nobody deploys to it."""
        look = "flock --nonblock versions/lock true && echo free || true"
        wait_for("nobody deploys", lambda: "free" in self.here(look), seconds=600)

    # Versions --------------------------------------------------------------------------------------

    def commit(self) -> str:
        """Commit what the laptop has; return the name that ops/deploy gives to that version."""
        git = ["git", "-C", self.stack.folder, "-c", "user.name=test", "-c", "user.email=test@test"]
        for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "next"]):
            subprocess.run([*git, *words], check=True)
        return ops.load(self.stack.folder, "deploy").version()

    def image(self, tag: str, dockerfile: str) -> str:
        """Build an image `tag` on the laptop, some lines on top of what runs; return --tag=TAG."""
        name = f"{self.stack.slug}:{tag}"
        text = f"FROM {self.stack.slug}:{self.version()}\n{dockerfile}"
        build = ["docker", "build", "--quiet", f"--tag={name}", "-"]
        subprocess.run(build, input=text, text=True, check=True, capture_output=True)
        return f"--tag={tag}"

    # Tasks -----------------------------------------------------------------------------------------

    def send(self, task: str, key: str, count: int, *arguments: object) -> None:
        """Send tasks of the ledger."""
        words = shlex.join([task, key, str(count), json.dumps(arguments)])
        self.here(f"docker compose exec -T web-a ./manage.py send {words}")

    def count(self, what: str, key: str) -> list[int]:
        """Select `what` of the ledger's tasks whose keys begin with `key`."""
        query = f"SELECT {what} FROM ledger_entry WHERE key LIKE '{key}-%'"
        psql = ("psql", "--username=app", "--dbname=app", "-tA", "-c", query)
        printed = self.run("docker", "exec", f"{self.stack.slug}-db-1", *psql)
        return [int(number) for number in printed.strip().split("|")]

    # Network ---------------------------------------------------------------------------------------

    @contextmanager
    def cut(self, *rules: str) -> Iterator[None]:
        """Drop what these rules of iptables match, as a network does that fails."""
        for rule in rules:
            self.run("iptables", "-I", *rule.split(), "-j", "DROP")
        try:
            yield
        finally:
            for rule in rules:
                self.run("iptables", "-D", *rule.split(), "-j", "DROP")

    def no_ssh(self) -> AbstractContextManager[None]:
        """Cut off sshd."""
        return self.cut("INPUT -p tcp --dport 22", "OUTPUT -p tcp --sport 22")

    def no_network(self) -> AbstractContextManager[None]:
        """Cut off the VM and its containers; `docker exec` still gets in."""
        host = ("INPUT -i eth0", "OUTPUT -o eth0")
        return self.cut(*host, "FORWARD -i eth0", "FORWARD -o eth0")

    @contextmanager
    def full(self, folder: str) -> Iterator[None]:
        """Put a disk with hardly any space in place of a folder."""
        owner = self.run("stat", "--format=uid=%u,gid=%g,mode=%a", folder).strip()
        self.run("mount", "-t", "tmpfs", "-o", f"size=64k,{owner}", "tmpfs", folder)
        try:
            yield
        finally:
            self.run("umount", folder)
