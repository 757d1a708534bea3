"""Visitors of the site, who notice every failure."""

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Self

import requests

from tests.stack.stack import wait_for
from tests.systemd.machine import docker

from .vm import ProductionVm

CLIENTS = 10
STREAM = 5  # seconds
QUEUES = ("default", "crawl")
BOUNDARY = "boundary"
FILE = b"x" * 500_000
# Every running container with its health, once a second.
WATCH = """while :; do
    docker ps --format '{{.Label "com.docker.compose.service"}} {{.Status}}'; echo end; sleep 1
done"""


def slowly(body: bytes) -> Iterator[bytes]:
    """Return the body in pieces, over about five seconds."""
    size = len(body) // 20 + 1
    for start in range(0, len(body), size):
        yield body[start : start + size]
        time.sleep(0.25)


class Visitors:
    """Clients without keep-alive, who ask for a page again and again until they are left."""

    def __init__(self, vm: ProductionVm, clients: int = 2) -> None:
        """Be ready to ask `vm`."""
        self.vm = vm
        self.kinds = [self.visit] * clients
        self.failures: list[str] = []
        self.served: list[float] = []  # seconds that each answer took
        self.answers: Counter[str] = Counter()  # by the name of what was asked for
        self.versions: set[str] = set()  # that answered
        self.over = threading.Event()

    def __enter__(self) -> Self:
        """Begin; return when all of it was answered once."""
        self.threads = [threading.Thread(target=self.go_on, args=(kind,)) for kind in self.kinds]
        for thread in self.threads:
            thread.start()
        try:
            self.wait_for_answers()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """End when all of it was answered once more."""
        try:
            if error is None:
                self.wait_for_answers()
        finally:
            self.end()

    def end(self) -> None:
        """End, when each has its answer."""
        self.over.set()
        for thread in self.threads:
            thread.join()

    def wait_for_answers(self) -> None:
        """Wait until everything that is asked for was asked for and answered after this call."""
        kinds = Counter(kind.__name__ for kind in self.kinds)
        # As many may be on their way already.
        enough = {name: self.answers[name] + count + 1 for name, count in kinds.items()}
        wait_for("answers of every kind", lambda: all(self.answers[n] >= enough[n] for n in enough))

    def go_on(self, ask: Callable[[], requests.Response]) -> None:
        """Ask again and again."""
        while not self.over.is_set():
            start = time.monotonic()
            try:
                answer = ask()
                if answer.status_code != 200:
                    self.failures.append(f"{ask.__name__}: {answer.status_code}")
                self.served.append(time.monotonic() - start)
                self.answers[ask.__name__] += 1
            except (requests.RequestException, AssertionError) as error:
                self.failures.append(f"{ask.__name__}: {error!r}")

    def visit(self) -> requests.Response:
        """Ask for a page on a connection of its own."""
        time.sleep(0.1)
        answer = self.vm.get("/probe/request")
        if answer.status_code == 200:
            self.versions.add(answer.json()["version"])
        return answer


class Load(Visitors):
    """Ten of them, an upload, a streaming response, and tasks."""

    def __init__(self, vm: ProductionVm) -> None:
        """Be ready to ask `vm`."""
        super().__init__(vm, CLIENTS)
        self.kinds += [self.upload, self.stream, self.send]
        self.tasks: list[str] = []

    def __enter__(self) -> Self:
        """Begin, and watch the containers meanwhile."""
        self.watch = subprocess.Popen(
            ["docker", "exec", self.vm.name, "sh", "-c", WATCH], stdout=subprocess.PIPE, text=True
        )
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        """End when all of it was answered once more."""
        try:
            super().__exit__(*error)
        finally:
            docker("exec", self.vm.name, "pkill", "-f", "sleep 1", check=False)
            self.watch.terminate()
        self.seen = self.watch.communicate()[0].split("end\n")[:-1]

    def send(self) -> requests.Response:
        """Send a task through a page."""
        queue = QUEUES[len(self.tasks) % len(QUEUES)]
        answer = self.vm.get(f"/probe/send/{queue}")
        if answer.status_code == 200:
            self.tasks.append(answer.json()["id"])
        time.sleep(0.5)
        return answer

    def upload(self) -> requests.Response:
        """Upload a file slowly."""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = head.encode() + FILE + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self.vm.ask("POST", "/probe/upload", kind, data=slowly(body), timeout=120)

    def stream(self) -> requests.Response:
        """Read a response that takes seconds, to its end."""
        answer = self.vm.get(f"/probe/stream/{STREAM}")
        assert answer.text.endswith("end"), answer.text
        return answer

    def least_and_most(self, service: str) -> tuple[int, int]:
        """Return how few healthy and how many running containers of a service there were."""
        rows = [
            [row for row in look.splitlines() if row.startswith(f"{service} ")]
            for look in self.seen
        ]
        healthy = [sum("(healthy)" in row for row in look) for look in rows]
        return min(healthy), max(map(len, rows))
