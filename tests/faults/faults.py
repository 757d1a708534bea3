"""What may happen to a stack; each returns once the fault is over, not when all is well again."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.stack.stack import Stack, wait_for

from .helpers import WORKER, children, main_process, main_process_of


def kill(pid: int) -> None:
    """SIGKILL, from the host: what "docker kill" does is not a crash, and nothing restarts it."""
    os.kill(pid, signal.SIGKILL)


def kill_main_process(stack: Stack) -> None:
    """SIGKILL to the worker's main process."""
    kill(main_process(stack, WORKER))


def kill_pool_child(stack: Stack) -> None:
    """SIGKILL to one of the worker's busy children."""
    worker = stack.containers()[WORKER]
    kill(max(children(worker, main_process_of(worker))))


@contextmanager
def stopped_children(stack: Stack) -> Iterator[Callable[[], None]]:
    """Keep the worker's children from running, until the function that this yields is called."""
    worker = stack.containers()[WORKER]
    pids = children(worker, main_process_of(worker))

    def resume() -> None:
        for pid in pids:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(pid, signal.SIGCONT)

    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield resume
    finally:
        resume()


@contextmanager
def stopped_main_process(stack: Stack) -> Iterator[int]:
    """Keep the worker's main process from running; yield its pid, for a SIGKILL at the end."""
    pid = main_process(stack, WORKER)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def run_out_of_memory(stack: Stack) -> None:
    """Wait until the kernel ended a process of the worker; the task "eat" makes it do so."""
    wait_for("the kernel killed", lambda: out_of_memory_kills(stack) > 0)


def out_of_memory_kills(stack: Stack) -> int:
    """Count the processes that the kernel ended in the worker's container since it started."""
    files = "cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control"
    printed = stack.containers()[WORKER].exec_run(["sh", "-c", f"{files} 2>/dev/null"]).output
    return sum(
        int(line.split()[1])
        for line in printed.decode().splitlines()
        if line.startswith("oom_kill ")
    )


def stop_and_start(stack: Stack) -> None:
    """Stop the worker, and start it again."""
    stack.compose("stop", WORKER)
    stack.compose("up", "--detach", WORKER)


def restart(stack: Stack) -> None:
    """Restart the worker."""
    stack.compose("restart", "--no-deps", WORKER)


def recreate(stack: Stack) -> None:
    """Replace the worker's container."""
    stack.compose("up", "--detach", "--no-deps", "--force-recreate", WORKER)


def restart_broker(stack: Stack) -> None:
    """Restart the broker."""
    stack.compose("restart", "--no-deps", "broker")


def kill_broker(stack: Stack) -> None:
    """SIGKILL to the broker's main process."""
    kill(stack.containers()["broker"].attrs["State"]["Pid"])


def pause_broker(
    stack: Stack, meanwhile: Callable[[], None] = lambda: None, seconds: float = 60
) -> None:
    """Freeze the broker for `seconds`, in which something else may happen."""
    stack.compose("pause", "broker")
    try:
        end = time.monotonic() + seconds
        meanwhile()
        time.sleep(max(0, end - time.monotonic()))
    finally:
        stack.compose("unpause", "broker")


def cut_network(stack: Stack, seconds: float = 5) -> None:
    """Take the worker out of the network of the broker for `seconds`."""
    network = stack.docker.networks.get(f"{stack.slug}_inside")
    worker = stack.containers()[WORKER]
    network.disconnect(worker)
    time.sleep(seconds)
    network.connect(worker, aliases=[WORKER])


def restart_database(stack: Stack) -> None:
    """Restart the database."""
    stack.compose("restart", "--no-deps", "db")


@contextmanager
def full_broker(stack: Stack) -> Iterator[None]:
    """Leave the broker so little memory that it takes no tasks; afterwards as much as before."""

    def ask(*words: str) -> None:
        stack.compose("exec", "--no-TTY", "broker", *words)

    if stack.containers()["broker"].image.tags[0].startswith("redis:"):
        # With what is there already 19 to 20.5 of 21 MB; senders end at 18.9.
        admin = 'REDISCLI_AUTH=$(cat /tmp/admin) exec redis-cli --user admin "$@"'
        limit = ("sh", "-c", admin, "sh", "config", "set", "maxmemory")
        steps = [("redis-cli", "setrange", "filler", "18200000", "x"), (*limit, "20mb")]
        back = [(*limit, "256mb"), ("redis-cli", "del", "filler")]
    else:
        limit = ("rabbitmqctl", "set_vm_memory_high_watermark", "absolute")
        steps, back = [(*limit, "20MB")], [(*limit, "256MB")]
    try:
        for step in steps:
            ask(*step)
        yield
    finally:
        for step in back:
            ask(*step)
