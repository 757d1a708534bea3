"""A rendered project, running on the real engine."""

import ipaddress
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import requests
from docker.models.containers import Container

from tests import evidence
from tests.baking import bake
from tests.evidence import step

from .django_shell import DjangoShell

LAPTOP = ""
PRODUCTION = "compose.yaml:compose.production.yaml"
# Seconds after which what has not happened is a failure. No test depends on it: a busy machine only
# makes the tests slower.
PATIENCE = 180


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(what: str, look: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Call `look` until its answer is true and return that; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = 0.1  # and longer each time: to look costs, a "docker exec" some 0.2 CPU seconds
    with step(f"wait for {what}"):
        while True:
            answer = look()
            if answer:
                return answer
            assert time.monotonic() < deadline, (
                f"not within {seconds:g} s: {what} (last: {answer!r})"
            )
            time.sleep(pause)
            pause = min(1, 1.5 * pause)


def figures(text: str, name: str) -> Counter[tuple[str, ...]]:
    """Return the figures of a name in /metrics, by the values of its labels, which are sorted by name."""
    found: Counter[tuple[str, ...]] = Counter()
    for line in text.splitlines():
        row = re.fullmatch(r"(\w+)(?:{(.*)})? (\S+)", line)
        if row and row[1] == name:
            labels = sorted(re.findall(r'(\w+)="([^"]*)"', row[2] or ""))
            found[tuple(value for _, value in labels)] = int(float(row[3]))
    return found


class Stack:
    """
    One rendered project with names and a port of its own.

    `folder` holds it, `slug` is its compose project and image name, `url` the address of its proxy,
    `settings` what its .env says.
    """

    def __init__(self, parent: Path, compose_files: str, **answers: str) -> None:
        """Render into `parent`; `compose_files` is the COMPOSE_FILE to use, LAPTOP or PRODUCTION."""
        self.slug = f"dcctest_{secrets.token_hex(4)}"
        self.django_shell: DjangoShell | None = None
        self.code_changes = compose_files == LAPTOP
        self.folder = self.render(parent, **answers)
        self.use_engine("")
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        if compose_files == LAPTOP:
            self.set(HTTP_PORT=self.port, DEV_UID=4242)
            for path in [self.folder, *self.folder.rglob("*")]:
                shutil.chown(path, 4242, 4242)
        else:
            # No certificate, unless a test wants one; published on this machine only.
            self.tls_port = free_port()
            self.set(COMPOSE_FILE=compose_files, HTTPS="false")
            self.set(HTTP_PORT=f"127.0.0.1:{self.port}", HTTPS_PORT=f"127.0.0.1:{self.tls_port}")

    def render(self, parent: Path, **answers: str) -> Path:
        """Render the project into `parent`; return its folder."""
        return bake(parent, project_slug=self.slug, **answers)

    def use_engine(self, url: str) -> None:
        """Use the engine at `url`; "" is the one of this machine."""
        self.engine = url
        self.docker = docker.DockerClient(url) if url else docker.from_env()

    def environment(self) -> dict[str, str]:
        """Return what commands run with: this machine's, without settings for compose."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")}
        return env | ({"DOCKER_HOST": self.engine} if self.engine else {})

    @property
    def settings(self) -> dict[str, str]:
        """Return the names and values of .env."""
        lines = (self.folder / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def set(self, **values: object) -> None:
        """Write `values` into .env, as a person with an editor does."""
        path = self.folder / ".env"
        text = path.read_text()
        for name, value in values.items():
            line = f"{name}={value}"
            text, found = re.subn(rf"^(# )?{name}=.*$", line, text, count=1, flags=re.MULTILINE)
            text = text if found else f"{text}{line}\n"
        path.write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace `old`, which must be there once, by `new` in the file `name`."""
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))

    def add_app(self, app: Path) -> None:
        """Add a Django app as its owner would, with its urls below its name."""
        shutil.copytree(app, self.folder / app.name)
        self.edit("config/settings.py", '    "stack",\n', f'    "stack",\n    "{app.name}",\n')
        self.edit(
            "config/urls.py",
            "urlpatterns = [\n",
            f'urlpatterns = [\n    path("{app.name}/", include("{app.name}.urls")),\n',
        )

    def compose(self, *arguments: str, check: bool = True, timeout: float = 600) -> str:
        """Run `docker compose` as a person types it; return what it printed."""
        with step(f"docker compose {' '.join(arguments)}", self) as notes:
            done = subprocess.run(
                ["docker", "compose", "--progress", "quiet", *arguments],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
            notes += [f"exit {done.returncode}"] if done.returncode else []
        if check and done.returncode:
            raise AssertionError(
                f"docker compose {' '.join(arguments)}: {done.stdout}{done.stderr}"
            )
        return done.stdout if check else done.stdout + done.stderr

    def shell(self, script: str, timeout: float = 600, **environment: str) -> str:
        """Run lines of a shell in the project's folder as a person types them; return the output."""
        with step(script, self) as notes:
            done = subprocess.run(
                ["bash", "-e", "-c", script],
                cwd=self.folder,
                env=self.environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
            notes += [f"exit {done.returncode}"] if done.returncode else []
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def manual(self, name: str, heading: str) -> list[str]:
        """Return the commands that docs/`name` gives below a heading, as a person would copy them."""
        _, found, rest = (self.folder / "docs" / name).read_text().partition(f"\n## {heading}\n")
        assert found, f"{name} has no heading {heading!r}"
        blocks = re.findall(r"```sh\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)
        return [line.strip() for block in blocks for line in block.splitlines()]

    def up(self, *arguments: str) -> None:
        """Start everything and wait until it is healthy."""
        self.compose("up", "--detach", "--wait", *arguments)
        self.wait_for_proxy()

    def start(self, *services: str) -> None:
        """Start services that were stopped, wait until they are healthy; unlike "up", no more."""
        with step(f"start {' '.join(services)}", self):
            for service in services:
                self.containers(service)[service].start()
            wait_for("all healthy", lambda: {*map(self.health, services)} == {"healthy"})
        self.wait_for_proxy()

    def restart_paused(self, *services: str) -> None:
        """Restart services that were paused: the engine would call them unhealthy for a minute more."""
        self.compose("restart", "--no-deps", *services)
        wait_for("all healthy", lambda: {*map(self.health, services)} == {"healthy"})
        wait_for("all ready", lambda: self.get("/readyz").status_code == 200)

    def wait_for_proxy(self) -> None:
        """Wait until the proxy, if it runs, has heard of all that is behind it."""
        proxy = self.containers("proxy").get("proxy")
        if proxy and proxy.status == "running" and not self.engine:
            # When all that is behind it has new addresses, nginx needs a moment to hear of them.
            wait_for("the proxy to reach web and Flower", self.reaches_all)

    def reaches_all(self) -> bool:
        """Return whether the proxy reaches a web, and Flower if that runs."""
        flower = self.containers("flower").get("flower")
        paths = ["/healthz", *(["/flower/"] if flower and flower.status == "running" else [])]
        try:
            return all(self.get(path).status_code not in (502, 504) for path in paths)
        except requests.ConnectionError:
            return False

    def remove(self) -> None:
        """Remove containers, volumes, networks and images of this project."""
        evidence.keep_before_removal()
        self.close_shell()
        self.compose(
            "--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "0", check=False
        )
        # Not images.list(), which asks for each once more and fails when one was removed meanwhile.
        for image in self.docker.api.images():
            for tag in image["RepoTags"] or []:
                if tag.startswith((f"{self.slug}:", f"{self.slug}-")):
                    self.docker.images.remove(tag, force=True)

    def containers(self, service: str = "") -> dict[str, Container]:
        """Return the containers by the name of their service, one-shots included; or only one."""
        evidence.involve(self)
        labels = [f"com.docker.compose.project={self.slug}"]
        labels += [f"com.docker.compose.service={service}"] if service else []
        found = self.docker.containers.list(all=True, filters={"label": labels})
        return {container.labels["com.docker.compose.service"]: container for container in found}

    def reaches_the_host(self, service: str, network: str) -> bool:
        """Return whether a service can connect to a port of the host by the host's address in a network."""
        subnet = self.docker.networks.get(f"{self.slug}_{network}").attrs["IPAM"]["Config"][0][
            "Subnet"
        ]
        with socket.create_server(("", 0)) as server:
            address = (str(ipaddress.ip_network(subnet)[1]), server.getsockname()[1])
            code = f"import socket; s = socket.socket(); s.settimeout(5); print(s.connect_ex({address}))"
            return self.compose("exec", "--no-TTY", service, "python", "-c", code).strip() == "0"

    def health(self, service: str) -> str:
        """Return "healthy", "unhealthy" or "starting"."""
        return self.containers(service)[service].attrs["State"]["Health"]["Status"]

    def manage(self, *arguments: str, check: bool = True) -> str:
        """Run ./manage.py in web-a; return what it printed."""
        code = f"from django.core.management import execute_from_command_line as run; run({['./manage.py', *arguments]})"
        # The second time in another shell, when the container of the first was replaced.
        done = self.python_by_shell(code) or self.python_by_shell(code)
        if done is None:
            command = ("exec", "--no-TTY", "web-a", "./manage.py", *arguments)
            return self.compose(*command, check=check)
        status, out, err = done
        if check:
            assert status == 0, f"./manage.py {' '.join(arguments)}: {out}{err}"
        return out if check else out + err

    def python(self, code: str) -> str:
        """Run `code` in Django's shell, in web-a, and return what it prints."""
        return self.manage("shell", "--no-imports", "--command", code).strip()

    def python_by_shell(self, code: str) -> tuple[int, str, str] | None:
        """Return status, stdout and stderr; None when the shell is in use, or web-a is not there."""
        sources = self.sources() if self.code_changes else {}
        if self.django_shell and self.django_shell.sources != sources:
            self.close_shell()
        if not self.django_shell:
            container = (self.compose("ps", "--quiet", "web-a", check=False).split() or [""])[0]
            self.django_shell = DjangoShell(container, self.environment(), sources)
        shell = self.django_shell
        if not shell.lock.acquire(blocking=False):
            return None
        try:
            with step(f"python {code}", self) as notes:
                done = shell.run(code)
                notes += [f"exit {done[0]}"] if done and done[0] else []
        finally:
            shell.lock.release()
        if done is None:  # its container was replaced, or killed
            self.close_shell()
        return done

    def sources(self) -> dict[Path, int]:
        """Return the time of the last change of each module."""
        return {path: path.stat().st_mtime_ns for path in self.folder.rglob("*.py")}

    def close_shell(self) -> None:
        """End the Django shell, if there is one."""
        if self.django_shell:
            self.django_shell.close()
            self.django_shell = None

    def staff(self) -> dict[str, str]:
        """Return the cookie of a new member of the staff."""
        code = """
import secrets
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore
user = get_user_model().objects.create_user(f"watcher-{secrets.token_hex(4)}", is_staff=True)
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.create()
print(session.session_key)
"""
        return {f"{self.slug}_sessionid": self.python(code)}

    def inspect(self, method: str) -> dict[str, Any]:
        """Ask the running workers as `celery inspect METHOD` does; wait until each replied."""
        running = [name for name, found in self.containers().items() if found.status == "running"]
        nodes = [
            f"{name.removeprefix('worker-')}@{self.slug}"
            for name in running
            if name.startswith("worker-")
        ]

        code = (
            "import json; from config import celery_app as app;"
            f"inspect = app.control.inspect({nodes}, timeout=10);"
            f"print(json.dumps(inspect.{method}() or {{}}))"
        )

        def replies() -> dict[str, Any] | None:
            # It ends as soon as all have replied. A worker that has just started misses a question.
            try:
                found = json.loads(self.python(code).splitlines()[-1])
            except AssertionError:  # the broker does not answer
                return None
            return found if found.keys() >= set(nodes) else None

        return wait_for("a reply of each worker", replies)

    def send(self, queue: str, **kwargs: object) -> str:
        """Send the sample task to `queue`; return its id."""
        code = f"from stack.tasks import sample; print(sample.apply_async(kwargs={kwargs!r}, queue={queue!r}).id)"
        return self.python(code)

    def result(self, task_id: str, timeout: float = PATIENCE) -> str:
        """Wait up to `timeout` seconds for the result of a task."""
        code = f"from config import celery_app as app; print(app.AsyncResult({task_id!r}).get(timeout={timeout}))"
        return self.python(code)

    def get(self, path: str, **options: Any) -> requests.Response:
        """GET through the proxy, without following redirects."""
        options.setdefault("allow_redirects", False)
        with step(f"GET {path}", self) as notes:
            answer = requests.get(self.url + path, timeout=60, **options)
            notes.append(str(answer.status_code))
        return answer

    def staff_session(self) -> requests.Session:
        """Return a session of a new member of the staff, who has logged in."""
        session = requests.Session()
        session.cookies.update(self.staff())
        return session

    def evidence(self) -> dict[str, str]:
        """Return how the containers are, and the end of each one's log."""
        label = f"com.docker.compose.project={self.slug}"
        found = self.docker.containers.list(all=True, filters={"label": label}, ignore_removed=True)
        return evidence.of_containers(found)
