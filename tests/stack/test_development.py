"""docs/development.md: breakpoints, debuggers, mails and the dev container, by the manual's own lines."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
from docker.models.containers import Container
from playwright.sync_api import Browser

from .stack import PATIENCE, Stack, free_port, wait_for

VIEW = """\
from django.http import HttpResponse


def stop(request):
    {line}
    return HttpResponse(request.path)


urlpatterns = [
    path("stop", stop),
"""
FIRST = '    """'  # of the sample task's docstring


@contextmanager
def in_a_terminal(stack: Stack, command: str) -> Iterator[pexpect.spawn]:
    """Run a command as a person does who sits in front of it, and end it with Ctrl-C."""
    terminal = pexpect.spawn(
        "bash",
        ["-c", f"exec {command}"],
        cwd=str(stack.folder),
        env=stack.environment() | {"TERM": "dumb"},
        timeout=PATIENCE,
        encoding="utf-8",
    )
    try:
        yield terminal
        terminal.sendintr()
        # Once it was at a breakpoint, pdb catches Ctrl-C, and asks before it quits.
        if terminal.expect([pexpect.EOF, r"\(Pdb\) "]):
            terminal.sendline("q")
            if terminal.expect([pexpect.EOF, r"\[y/n\]"]):
                terminal.sendline("y")
                terminal.expect(pexpect.EOF)
    finally:
        terminal.close(force=True)


def one_off(stack: Stack, service: str) -> Container:
    """Return the container that `docker compose run` started for a service."""
    labels = [
        f"com.docker.compose.project={stack.slug}",
        f"com.docker.compose.service={service}",
        "com.docker.compose.oneoff=True",
    ]
    (found,) = stack.docker.containers.list(filters={"label": labels})
    return found


@contextmanager
def stopped(stack: Stack, service: str) -> Iterator[None]:
    """Stop a service, and start it again."""
    stack.compose("stop", service)
    try:
        yield
    finally:
        stack.compose("start", service)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that are not answered soon."""
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def breakpoints(laptop: Stack, restored: None) -> Stack:
    """The project with a breakpoint in a view and one in the sample task."""
    laptop.edit("config/urls.py", "urlpatterns = [\n", VIEW.format(line="breakpoint()"))
    path = laptop.folder / "stack/tasks.py"
    head, body = path.read_text().split("def sample", 1)
    body = body.replace(FIRST, f"    breakpoint()\n{FIRST}", 1)
    path.write_text(f"{head}def sample{body}")
    return laptop


def test_a_breakpoint_in_a_view_opens_in_the_terminal(
    breakpoints: Stack, pool: ThreadPoolExecutor
) -> None:
    stop, run, start = breakpoints.manual("development.md", "Breakpoints")[:3]
    assert (stop, start) == ("docker compose stop web-a", "docker compose start web-a")
    with stopped(breakpoints, "web-a"), in_a_terminal(breakpoints, run) as terminal:
        wait_for("web", lambda: breakpoints.get("/healthz").status_code == 200)
        answer = pool.submit(breakpoints.get, "/stop")
        terminal.expect(r"\(Pdb\) ")
        terminal.sendline("request.path")
        terminal.expect("'/stop'")
        terminal.sendline("continue")
        assert answer.result().text == "/stop"


def test_a_breakpoint_in_a_task_opens_in_the_terminal(breakpoints: Stack) -> None:
    stop, run, start = breakpoints.manual("development.md", "Breakpoints")[3:]
    service = "worker-default"
    assert (stop, start) == (f"docker compose stop {service}", f"docker compose start {service}")
    with stopped(breakpoints, service), in_a_terminal(breakpoints, run) as terminal:
        task = breakpoints.send("default", steps=1)
        terminal.expect(r"\(Pdb\) ")
        terminal.sendline("steps + 41")
        terminal.expect("42")
        # However long it takes, it is not taken for a process that hangs.
        look = "touch -d '1 hour ago' /tmp/heartbeat && stack/watchdog broker"
        done = one_off(breakpoints, service).exec_run(["sh", "-c", look])
        assert done.exit_code == 0, done.output
        terminal.sendline("continue")
        assert breakpoints.result(task) == f"Done by default@{breakpoints.slug}."


class Debugger:
    """What an editor does: https://microsoft.github.io/debug-adapter-protocol/specification"""

    def __init__(self, port: int) -> None:
        """Connect to debugpy, which may be about to start."""
        self.socket = wait_for("debugpy", lambda: self.connect(port))
        self.file = self.socket.makefile("rwb")
        self.sent = 0

    def connect(self, port: int) -> socket.socket | None:
        """Return a connection on which it says something."""
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            # The engine accepts for a container in which nothing listens yet, and closes then.
            if connection.recv(1, socket.MSG_PEEK):
                return connection
            connection.close()
        except OSError:
            pass
        return None

    def send(self, command: str, **arguments: Any) -> None:
        """Send a request."""
        self.sent += 1
        request = {"seq": self.sent, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(request).encode()
        self.file.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.file.flush()

    def receive(self, name: str) -> dict[str, Any]:
        """Wait for the event, or for the response to the command, of this name; return its body."""
        while True:
            size = 0
            while line := self.file.readline().strip():
                size = int(line.partition(b":")[2])
            assert size, "debugpy closed the connection"
            message = json.loads(self.file.read(size))
            if name in (message.get("event"), message.get("command")):
                assert message.get("success", True), message
                return message.get("body", {})

    def attach(self, file: str, line: int) -> None:
        """Attach, with a breakpoint."""
        self.send("initialize", adapterID="tests")
        self.receive("initialize")
        self.send("attach", justMyCode=True)
        self.receive("initialized")
        self.send("setBreakpoints", source={"path": file}, breakpoints=[{"line": line}])
        assert self.receive("setBreakpoints")["breakpoints"][0]["verified"]
        self.send("configurationDone")
        self.receive("attach")

    def go_on(self) -> tuple[str, int]:
        """Wait until it stops, and let it go on; return the file and the line."""
        thread = self.receive("stopped")["threadId"]
        self.send("stackTrace", threadId=thread)
        frame = self.receive("stackTrace")["stackFrames"][0]
        self.send("continue", threadId=thread)
        return frame["source"]["path"], frame["line"]


@pytest.fixture
def view(laptop: Stack, restored: None) -> tuple[str, int]:
    """Return file and line of a view, for a breakpoint."""
    laptop.edit("config/urls.py", "urlpatterns = [\n", VIEW.format(line="line = 1"))
    lines = (laptop.folder / "config/urls.py").read_text().splitlines()
    return "/app/config/urls.py", lines.index("    line = 1") + 1


def with_debugpy(stack: Stack, number: int) -> tuple[str, int]:
    """Return a command of the manual, with a free port instead of its own, and that."""
    command = stack.manual("development.md", "VS Code, PyCharm and other debuggers")[number]
    port = free_port()
    return command.replace("127.0.0.1:5678:", f"127.0.0.1:{port}:"), port


def test_a_debugger_stops_in_a_view(
    laptop: Stack, view: tuple[str, int], pool: ThreadPoolExecutor
) -> None:
    command, port = with_debugpy(laptop, 0)
    with stopped(laptop, "web-a"), in_a_terminal(laptop, command):
        debugger = Debugger(port)
        debugger.attach(*view)
        wait_for("web", lambda: laptop.get("/healthz").status_code == 200)
        answer = pool.submit(laptop.get, "/stop")
        assert debugger.go_on() == view
        assert answer.result().text == "/stop"


def test_a_debugger_stops_in_a_task(laptop: Stack) -> None:
    command, port = with_debugpy(laptop, 1)
    lines = (laptop.folder / "stack/tasks.py").read_text().splitlines()
    last = next(number for number, line in enumerate(lines, 1) if 'return f"Done by' in line)
    with stopped(laptop, "worker-default"), in_a_terminal(laptop, command):
        debugger = Debugger(port)
        debugger.attach("/app/stack/tasks.py", last)
        task = laptop.send("default", steps=1)
        assert debugger.go_on() == ("/app/stack/tasks.py", last)
        assert laptop.result(task) == f"Done by default@{laptop.slug}."


def test_the_configuration_of_vs_code_finds_the_source(laptop: Stack) -> None:
    manual = (laptop.folder / "docs/development.md").read_text()
    (launch,) = re.findall(r"```json\n(.*?)```", manual, re.DOTALL)
    assert json.loads(launch)["configurations"][0]["pathMappings"][0]["remoteRoot"] == "/app"


@pytest.mark.browser
def test_a_mail_is_read_in_the_browser(laptop: Stack, browser: Browser) -> None:
    # Not the fixture "page": post_office has styles that our policy blocks, and looks well without.
    laptop.python(
        "from django.core.mail import EmailMultiAlternatives as Mail;"
        "mail = Mail('Your receipt', 'In plain text', to=['jane@example.com']);"
        "mail.attach_alternative('<p>In <b>HTML</b></p>', 'text/html');"
        "mail.attach('receipt.txt', 'Order 3', 'text/plain');"
        "mail.send()"
    )
    (path,) = set(re.findall("`(/admin/.*?)`", (laptop.folder / "docs/development.md").read_text()))
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(laptop.url + path)
    page.fill("#id_username", laptop.settings["DJANGO_SUPERUSER_USERNAME"])
    page.fill("#id_password", laptop.settings["DJANGO_SUPERUSER_PASSWORD"])
    page.click("[type=submit]")
    page.locator("tr", has_text="Your receipt").locator("th a").first.click()
    page.locator("p", has_text="In HTML").locator("b").wait_for()
    page.locator("summary", has_text="Text Email").click()
    page.locator("pre", has_text="In plain text").wait_for()
    page.locator("[title='receipt.txt']").wait_for()
    context.close()


def test_the_dev_container_can_be_worked_in(laptop: Stack, tmp_path: Path) -> None:
    """What the editor's command does with devcontainer.json, by hand."""
    folder = laptop.folder / ".devcontainer"
    settings = json.loads((folder / "devcontainer.json").read_text())
    service = settings["service"]
    # With "overrideCommand".
    override = tmp_path / "override.json"
    wait = ["sh", "-c", "while sleep 1000 & wait $!; do :; done"]
    override.write_text(json.dumps({"services": {service: {"entrypoint": wait, "command": []}}}))
    files = [f"--file={(folder / name).resolve()}" for name in settings["dockerComposeFile"]]
    files += [f"--file={override}"]
    assert set(settings["runServices"]) <= set(laptop.containers())
    laptop.shell(settings["initializeCommand"])
    try:
        laptop.compose(*files, "up", "--detach", *settings["runServices"], service)
        work = "cd $HOME && cp /bin/true server && ./server && cd - && touch edited && rm edited"
        run = ["exec", "--no-TTY", "--workdir", settings["workspaceFolder"], service]
        laptop.compose(*files, *run, "sh", "-c", work)
        printed = laptop.compose(*files, *run, "pytest", "-q", "tests")
        assert re.search(r"\d+ passed", printed)
    finally:
        laptop.compose(*files, "rm", "--stop", "--force", service)
