"""Stop, reload and roll: what a person does on purpose loses nothing. Start failures are mended."""

import socket
import subprocess
import threading

from tests.stack.stack import Stack, wait_for


def start_tasks(stack: Stack, count: int, steps: int) -> list[str]:
    """Send `count` sample tasks of about 0.3 s times `steps` to `notify`; return their ids."""
    code = (
        "from stack.tasks import sample;"
        f"print(*(sample.apply_async(kwargs={{'steps': {steps}}}, queue='notify').id for _ in range({count})))"
    )
    return stack.python(code).split()


def all_done(stack: Stack, tasks: list[str]) -> int:
    """Return how many of `tasks` ended well; waits up to three minutes for each."""
    code = (
        "from config.celery import app;"
        f"[app.AsyncResult(task).get(timeout=180) for task in {tasks!r}];"
        f"print(sum(app.AsyncResult(task).successful() for task in {tasks!r}))"
    )
    return int(stack.python(code))


def test_a_rolled_worker_always_has_a_consumer_and_loses_no_task(production: Stack) -> None:
    before = production.containers()["worker-notify"].id
    tasks = start_tasks(production, count=12, steps=5)
    consumers: list[int] = []
    rolling = threading.Event()

    def count_consumers() -> None:
        # A worker counts from "ready" on; it is healthy from about then.
        filters = {
            "label": [
                f"com.docker.compose.project={production.slug}",
                "com.docker.compose.service=worker-notify",
            ]
        }
        while not rolling.wait(0.2):
            found = production.docker.containers.list(filters=filters | {"health": "healthy"})
            consumers.append(len(found))

    watcher = threading.Thread(target=count_consumers)
    watcher.start()
    try:
        printed = subprocess.check_output(
            [production.folder / "ops" / "roll", "worker-notify"], text=True
        )
    finally:
        rolling.set()
        watcher.join()
    assert "worker-notify: replaced" in printed
    assert min(consumers) >= 1
    assert all_done(production, tasks) == len(tasks)
    assert production.containers()["worker-notify"].id != before
    production.up()
    assert len(production.compose("ps", "--quiet", "worker-notify").split()) == 1


def test_roll_names_the_services_there_are(production: Stack) -> None:
    done = subprocess.run(
        [production.folder / "ops" / "roll", "beat"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "Not to be rolled: beat. There are"
        " worker-crawl, worker-default, worker-notify, web-a, web-b.\n"
    )


def test_a_reload_of_web_fails_no_request(production: Stack) -> None:
    def children() -> set[str]:
        rows = production.containers()["web-a"].top(ps_args="-eo pid,args")["Processes"]
        return {pid for pid, args in rows if "gunicorn" in args}

    started = production.containers()["web-a"].attrs["State"]["StartedAt"]
    before = children()
    answers: list[int] = []
    reloaded = threading.Event()

    def ask() -> None:
        while not reloaded.is_set():
            answers.append(production.get("/healthz").status_code)

    def wait_for_answers() -> None:
        enough = len(answers) + 10  # more than one from each of the webs
        wait_for("ten more answers", lambda: len(answers) >= enough)

    client = threading.Thread(target=ask)
    client.start()
    try:
        wait_for_answers()
        production.compose("exec", "--no-TTY", "web-a", "bash", "-c", "kill -HUP 1")
        wait_for("other children", lambda: len(children() - before) >= 1)
        wait_for("the old ones are gone", lambda: len(children() & before) <= 2)
        wait_for_answers()
    finally:
        reloaded.set()
        client.join()
    assert set(answers) == {200}
    assert production.containers()["web-a"].attrs["State"]["StartedAt"] == started


def test_what_could_not_start_is_started_and_what_was_stopped_is_not(production: Stack) -> None:
    revive = production.folder / "ops" / "revive"
    production.compose("stop", "proxy", "beat")
    with socket.create_server(("127.0.0.1", production.port)):
        production.compose("start", "proxy", check=False)
        subprocess.run([revive], check=True)
        assert production.containers()["proxy"].attrs["State"]["Status"] != "running"
    printed = subprocess.check_output([revive], text=True)
    assert "proxy" in printed
    assert "beat" not in printed
    wait_for("the site is back", lambda: production.health("proxy") == "healthy")
    assert production.containers()["beat"].attrs["State"]["Status"] == "exited"
    production.compose("stop", "proxy")
    assert subprocess.check_output([revive], text=True) == ""
    production.start("proxy", "beat")
