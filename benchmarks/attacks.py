"""What one address can do to the pages of another, without a password, by seven attacks of a minute."""

import asyncio
import json
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from common import Parts, Stack, add_bench, main, report, stack, working_set
from tables import Table

MIB = 2**20
# A client with an address of its own: 20 pages per second, each by a new connection.
CLIENT = """
import http.client, json, ssl, sys, threading, time
found, trust = [], ssl._create_unverified_context()

def get(due):
    try:
        client = http.client.HTTPSConnection("proxy", 8443, timeout=30, context=trust)
        client.request("GET", "/", headers={"Host": "localhost"})
        answer = client.getresponse()
        answer.read()
        status = answer.status
    except OSError:
        status = 0
    found.append((status, 1000 * (time.monotonic() - due)))

begun, threads = time.monotonic(), []
for number in range(20 * int(sys.argv[1])):
    due = begun + number / 20
    time.sleep(max(0, due - time.monotonic()))
    threads.append(threading.Thread(target=get, args=(due,)))
    threads[-1].start()
for thread in threads:
    thread.join()
print(json.dumps(found))
"""
TRUST = ssl.create_default_context()
TRUST.check_hostname = False
TRUST.verify_mode = ssl.CERT_NONE


@dataclass
class Attack:
    """Connections at a time; each sends `head` and a body of `size` bytes, in parts, and reads."""

    name: str
    connections: int
    head: str
    size: int = 0  # of the body, in bytes
    part: int = 65536
    pause: float = 0  # seconds, after each part


def post(path: str, size: int) -> str:
    """Return the head of a POST."""
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"


def get(path: str) -> str:
    """Return a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


LARGE = 19_900_000
ATTACKS = [
    Attack("none", 0, ""),
    Attack("large bodies, 60 at a time", 60, post("/admin/none/", LARGE), LARGE),
    Attack("bodies at a byte per 5 s, 400", 400, post("/none/", 1000), 1000, part=1, pause=5),
    Attack("half a request, 1000 at a time", 1000, "GET / HTTP/1.1\r\nHost: localhost\r\nX: "),
    Attack("idle TLS connections, 1000", 1000, get("/proxy-alive").replace("close", "keep-alive")),
    Attack("log-in attempts, 20 at a time", 20, post("/admin/login/", 0)),
    Attack("streams, 250 at a time", 250, get("/bench/stream")),
    Attack("pages that do not exist, 20 at a time", 20, get("/none")),
]  # fmt: skip


def measure(quick: bool) -> Parts:
    """Return the table of all attacks."""
    seconds = 5 if quick else 60
    with stack("attacks", change) as project:
        report("building and starting")
        project.build()
        project.up()
        rows = [row(project, attack, seconds) for attack in ATTACKS]
    head = ("attack", "answers to it", "pages that failed, of", "p50, ms", "p99, ms")
    return [Table((*head, "proxy, MiB", "a web instance, MiB", "killed"), rows)]


def row(project: Stack, attack: Attack, seconds: int) -> tuple[object, ...]:
    """Attack while the other client asks for pages; return the row of the table."""
    report(attack.name)
    before, peaks, over = starts(project), Counter(), threading.Event()
    watching = threading.Thread(target=watch, args=(project, peaks, over))
    port = int(next(line for line in env(project) if line.startswith("HTTPS_PORT")).split(":")[1])
    answers: Counter[str] = Counter()
    attacking = threading.Thread(target=asyncio.run, args=(run(attack, port, over, answers),))
    watching.start()
    attacking.start()
    try:
        time.sleep(0 if attack.connections == 0 else 5)  # all connections are open
        client = ("run", "--rm", "--no-TTY", "--no-deps", "web", "python", "-c", CLIENT)
        found = json.loads(project.compose(*client, str(seconds), timeout=seconds + 60))
    finally:
        over.set()
        watching.join()
        attacking.join()
    times = quantiles([duration for _, duration in found], n=100)
    failed = sum(status != 200 for status, _ in found)
    after = starts(project)
    return (
        attack.name,
        ", ".join(f"{status}: {count}" for status, count in answers.most_common(3)) or "none",
        f"{failed}, {len(found)}",
        *(f"{times[number - 1]:.0f}" for number in (50, 99)),
        *(f"{peaks[name] / MIB:.0f}" for name in ("proxy", "web")),
        sum(after[name] != before[name] for name in before),
    )


def env(project: Stack) -> list[str]:
    """Return the lines of .env, the last of which count."""
    return (project.folder / ".env").read_text().splitlines()[::-1]


def starts(project: Stack) -> dict[str, tuple[bool, str]]:
    """Return whether something in a container was killed for its memory, and when it started."""
    states = {name: each.attrs["State"] for name, each in project.containers().items()}
    return {
        name: (state["OOMKilled"], state["StartedAt"])
        for name, state in states.items()
        if name in ("proxy", "web-a", "web-b", "flower")
    }


def watch(project: Stack, peaks: Counter[str], over: threading.Event) -> None:
    """Keep the largest working set of the proxy and of a web instance."""
    while not over.wait(0.5):
        for name, container in project.containers().items():
            if name in ("proxy", "web-a", "web-b"):
                memory = container.stats(stream=False, one_shot=True)["memory_stats"]
                kind = name.partition("-")[0]
                peaks[kind] = max(peaks[kind], working_set(memory))


async def run(attack: Attack, port: int, over: threading.Event, answers: Counter[str]) -> None:
    """Attack until the client has its pages."""
    tasks = [asyncio.create_task(repeat(attack, port, answers)) for _ in range(attack.connections)]
    while not over.is_set():
        await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def repeat(attack: Attack, port: int, answers: Counter[str]) -> None:
    """Open a connection, send, read the answer, and the same again."""
    part = bytes(attack.part)
    while True:
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=TRUST)
            writer.write(attack.head.encode())
            answer = asyncio.ensure_future(reader.readline())
            for _ in range(0, attack.size, attack.part):
                writer.write(part)
                await writer.drain()
                if (await asyncio.wait({answer}, timeout=attack.pause))[0]:
                    break
            line = await answer
            answers[line.decode().split()[1] if line else "closed"] += 1
            await reader.read()
            await asyncio.sleep(0.05)
        except (OSError, ssl.SSLError):
            answers["closed"] += 1
            await asyncio.sleep(0.1)
        finally:
            if writer:
                writer.transport.abort()


def change(folder: Path) -> None:
    """Add the views, and TLS with the certificate that stands in for one."""
    add_bench(folder)
    with (folder / ".env").open("a") as env:
        env.write("HTTPS=files\n")


if __name__ == "__main__":
    main(__doc__, measure, 900)
