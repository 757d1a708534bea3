"""What the benchmarks share: a rendered stack that leaves nothing behind, options and results."""

import argparse
import contextlib
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import docker
from docker.errors import APIError, DockerException, NotFound
from tables import Result, Table

ROOT = Path(__file__).resolve().parent.parent
Parts = list[Table | str]
Found = Parts | Iterable[tuple[str, Parts]]
LONGEST = 540  # seconds that a benchmark may take before it gives up


class Failed(Exception):
    """The benchmark cannot go on; the text says why."""


class Stack:
    """A rendered project in its production variant, with names and a port of its own."""

    def __init__(self, slug: str, folder: Path) -> None:
        """Take the rendered `folder`; `slug` is its compose project and its image."""
        self.slug, self.folder = slug, folder
        self.env: dict[str, str] | None = None  # of its commands; None is that of this process
        self.engine = docker.from_env(timeout=60)
        self.images: set[str] = set()  # ids that lost their name to a newer build

    def compose(self, *words: str, timeout: float = 180) -> str:
        """Run docker compose and return what it prints; `timeout` in seconds, else Failed."""
        command = ("docker", "compose", *words)
        return run(*command, cwd=self.folder, timeout=timeout, env=self.env)

    def build(self, *options: str) -> float:
        """Build both images and return the seconds it took; Failed when the build fails."""
        self.images |= {image.id for image in self.own_images()}
        started = time.monotonic()
        self.compose("build", "--quiet", *options, timeout=300)
        return time.monotonic() - started

    def up(self, *options: str, timeout: float = 120) -> float:
        """Start every service and return the seconds until all are healthy; else Failed."""
        started = time.monotonic()
        self.compose("up", "--detach", "--wait", "--no-build", *options, timeout=timeout)
        return time.monotonic() - started

    def python(self, module: str, *words: object, timeout: float = 180) -> dict:
        """Run a module of bench/ in web-a and return the JSON that it prints; else Failed."""
        command = ("exec", "--no-TTY", "web-a", "python", "-m", module, *map(str, words))
        return json.loads(self.compose(*command, timeout=timeout))

    def containers(self) -> dict[str, docker.models.containers.Container]:
        """Return the running containers by the name of their service."""
        return {
            container.labels["com.docker.compose.service"]: container
            for container in self.engine.containers.list(filters=self.own())
        }

    def address(self, service: str) -> str:
        """Return the address of a service in the proxy's network, where the load comes from."""
        networks = self.containers()[service].attrs["NetworkSettings"]["Networks"]
        return networks[f"{self.slug}_edge"]["IPAddress"]

    def bases(self) -> list[str]:
        """Return the images that the project's Dockerfile starts from: Python, then nginx."""
        text = (self.folder / "Dockerfile").read_text()
        return re.findall(r"^FROM (\S+:\S+)", text, re.MULTILINE)

    def own(self) -> dict[str, str]:
        """Return the filter that finds what belongs to this stack."""
        return {"label": f"com.docker.compose.project={self.slug}"}

    def own_images(self) -> list[docker.models.images.Image]:
        """Return the images that this stack built."""
        return self.engine.images.list(filters={"reference": f"{self.slug}*"})

    def remove(self) -> None:
        """Remove containers, networks, volumes and images of this stack; say what stays."""
        api, own = self.engine, self.own()
        gone = [
            lambda c=c: c.remove(v=True, force=True) for c in api.containers.list(True, filters=own)
        ]
        gone += [network.remove for network in api.networks.list(filters=own)]
        gone += [volume.remove for volume in api.volumes.list(filters=own)]
        names = {image.id for image in self.own_images()} | self.images
        gone += [lambda name=name: api.images.remove(name, force=True) for name in names]
        for remove in gone:
            try:
                remove()
            except NotFound:
                pass
            except APIError as error:
                report(f"could not remove something of {self.slug}: {error.explanation}")


@contextlib.contextmanager
def stack(
    purpose: str, change: Callable[[Path], None] = lambda folder: None, *answers: str
) -> Iterator[Stack]:
    """
    Render the template for production without TLS, on a free port; with its default answers or others.

    `purpose` becomes part of the names. `change` edits the rendered folder before anything is
    built. Whatever happens inside, a signal included, nothing of the stack is left afterwards.
    """
    slug = f"dccbench-{purpose}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix=slug) as parent:
        report(f"rendering {slug}")
        words = ("--no-input", "--default-config", "--output-dir", parent, str(ROOT))
        run(sys.executable, "-m", "cookiecutter", *words, f"project_slug={slug}", *answers)
        folder = Path(parent, slug)
        with (folder / ".env").open("a") as env:
            env.write("COMPOSE_FILE=compose.yaml:compose.production.yaml\nHTTPS=false\n")
            for name in ("HTTP_PORT", "HTTPS_PORT"):
                env.write(f"{name}=127.0.0.1:{free_port()}\n")
        change(folder)
        project = Stack(slug, folder)
        try:
            yield project
        finally:
            begin_to_clean()
            project.remove()


def begin_to_clean() -> None:
    """Print that it is removed, and ignore signals meanwhile."""
    report("cleaning up")
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(name, signal.SIG_IGN)


def add_bench(folder: Path) -> None:
    """Put the app bench/, with its views and tasks, into a rendered project."""
    shutil.copytree(ROOT / "benchmarks" / "bench", folder / "bench")
    for name, text in {
        "settings.py": 'INSTALLED_APPS += ["bench"]\n',
        "urls.py": "from bench.urls import urlpatterns as bench\n\nurlpatterns += bench\n",
    }.items():
        with (folder / "config" / name).open("a") as file:
            file.write(text)


def free_port() -> int:
    """Return a TCP port that is free on 127.0.0.1 at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(*command: str, timeout: float = 60, **options: object) -> str:
    """Run a command and return its standard output; `timeout` in seconds; raises Failed."""
    name = " ".join(command[:4])
    # A session of its own: Ctrl-C reaches this program only, which then cleans up.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"{name} … took more than {timeout:g} s") from None
        finally:
            if process.poll() is None:  # with its plugins, so that none goes on behind the cleaning
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise Failed(f"{name} … ended with {process.returncode}:\n{(out + err)[-3000:]}")
    return out


def working_set(memory: dict) -> int:
    """
    Return the bytes that a container uses, from the "memory_stats" of its statistics.

    The page cache that the kernel would drop first is not counted, as in docker stats.
    """
    detail = memory["stats"]
    inactive = detail.get("total_inactive_file", detail.get("inactive_file", 0))  # cgroup v1, v2
    return memory["usage"] - inactive


def report(text: str) -> None:
    """Show progress, apart from the tables on standard output."""
    print(f"… {text}", file=sys.stderr, flush=True)


def heading() -> str:
    """Return when, where and how the figures below it were measured."""
    info = docker.from_env().info()
    machine = [f"{info['NCPU']} cores", f"{info['MemTotal'] / 2**30:.1f} GiB", processor()]
    version = f"Docker {info['ServerVersion']} (cgroup v{info.get('CgroupVersion', '1')})"
    load = f"load {os.getloadavg()[0]:.1f} before"
    command = shlex.join(
        [".venv/bin/python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    )
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{when}; {', '.join(machine)}; {version}; {load}; `{command}`"


def processor() -> str:
    """Return the processor's model."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(
    description: str,
    measure: Callable[..., Found],
    longest: int = LONGEST,
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """
    Read the options, measure, print the heading and what `measure` returns; with --save store it.

    `measure` takes whether to be quick, and what `options` adds, by name, and at most `longest`
    seconds. What it returns is saved under the benchmark's name; one that yields gives a name with each
    result. Ends the process with 1 and a sentence on failure.
    """
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=description)
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--quick", action="store_true", help="short runs, to try the benchmark itself"
    )
    add_save(either)
    options(parser)
    chosen = vars(parser.parse_args())
    save = chosen.pop("save", False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(longest)
    try:
        first = heading()
        found = measure(**chosen)
        for each, parts in [(name, found)] if isinstance(found, list) else found:
            finish(each, Result(first, parts), save)
    except (Failed, DockerException) as failure:
        sys.exit(f"{name}: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


def add_save(parser: argparse.ArgumentParser) -> None:
    """Add the option that stores what was measured."""
    parser.add_argument(
        "--save", action="store_true", help="also store the results here, in results/ and README.md"
    )


def finish(name: str, result: Result, save: bool) -> None:
    """Print a result, and store it under that name if asked."""
    print(f"{result.markdown()}\n", flush=True)
    if save:
        result.save(name)
        report(f"saved as {name}; the charts are drawn by benchmarks/charts.py")


def too_long(*_: object) -> None:
    """End a benchmark that hangs."""
    raise Failed("took too long")
