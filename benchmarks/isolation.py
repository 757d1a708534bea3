"""Whether a flood in one queue is felt in another and on the web, and what each knob does to that."""

import http.client
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from common import Failed, Parts, Stack, add_bench, main, report, stack
from tables import Table

PAGE = "/bench/row"
PAGES = 20  # a second
NOTIFY = 10  # a second
QUIET = 0.4  # CPU cores that all else may use on the machine, or the figures are no answer
AIM, FLOOR = 2.0, 0.8  # of the idle stack's p99 at most, of the flood's speed alone at least
WORKERS = ["worker-default", "worker-crawl", "worker-notify"]
ALL = [*WORKERS, "proxy", "web-a", "web-b", "beat", "flower", "broker", "cache", "db"]
PREFETCH = """
CELERY_WORKER_PREFETCH_MULTIPLIER = env.int("BENCH_PREFETCH", default=1)
"""


@dataclass
class Case:
    """A way to run the stack, and what runs on it."""

    name: str
    flood: str = "crawl"  # queue
    notify: str = "notify"  # queue
    flooded: bool = True
    asked: bool = True  # for pages and short tasks
    shares: dict[str, int] = field(default_factory=dict)  # cpu_shares by service
    settings: dict[str, object] = field(default_factory=dict)  # lines of .env
    changed: list[str] = field(default_factory=list)  # workers that read them
    stopped: list[str] = field(default_factory=list)  # workers


@dataclass
class Found:
    """What was measured: milliseconds of each short task and page, flood tasks a second."""

    notified: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)  # CPU cores that were not the stack's
    failed: int = 0  # pages
    missing: int = 0  # short tasks


IDLE = Case("idle", flooded=False)
ALONE = Case("the flood alone", asked=False)
SHIPPED = Case("flood, as shipped")
VARIANTS = [
    Case("CPU shares: all equal", shares=dict.fromkeys(ALL, 1024)),
    Case("CPU shares: crawl 128", shares={"worker-crawl": 128}),
    Case("CPU shares: workers 128", shares=dict.fromkeys(WORKERS, 128)),
    Case("CPU shares: data 2048", shares=dict.fromkeys(["db", "broker", "cache"], 2048)),
    Case("prefetch multiplier 4", settings={"BENCH_PREFETCH": 4}, changed=["worker-crawl"]),
    *(
        Case(
            f"crawl's concurrency {number}",
            settings={"WORKER_CRAWL_CONCURRENCY": number},
            changed=["worker-crawl"],
        )
        for number in (1, 4)
    ),
]
SHARED = Case(
    "one queue, one worker",
    flood="default",
    notify="default",
    settings={"WORKER_DEFAULT_CONCURRENCY": 6},  # as many as the three workers have
    changed=["worker-default"],
    stopped=["worker-crawl", "worker-notify"],
)


def measure(quick: bool) -> Parts:
    """Return the table of all cases, with their ratios to the idle stack and to the flood alone."""
    # A p99 of fewer pages or tasks says little.
    tasks, seconds, rounds = (300, 4, 1) if quick else (2000, 45, 3)
    with stack("isolation", prepare) as project:
        report("building and starting")
        project.build()
        project.up()
        shipped = shares_of(project)
        env = (project.folder / ".env").read_text()
        found = {}
        for case in [*[IDLE, ALONE, SHIPPED] * rounds, *VARIANTS, SHARED]:
            report(f"{case.name}: {seconds} s")
            set_up(project, case, shipped, env)
            run_case(project, case, found.setdefault(case.name, Found()), tasks, seconds)
    idle, alone = found[IDLE.name], found[ALONE.name]
    rows = [row(name, one, idle, alone) for name, one in found.items()]
    head = ("", "notify p50, ms", "p99, ms", "of idle", "page p50, ms", "p99, ms", "of idle")
    missing = sum(one.missing for one in found.values())
    failed = sum(one.failed for one in found.values())
    return [
        Table((*head, "flood, tasks/s", "of alone", "others, cores", "aim met"), rows),
        f"Aim: both p99 at most {AIM:g} times the idle ones, the flood at {FLOOR:g} of its speed or more. "
        f"{seconds} s a case, the first three {rounds} time(s) in turns. "
        f"Short tasks that took too long to be counted: {missing}. Pages that were no 200: {failed}. "
        f"No answer (?) where others used more than {QUIET} cores.",
    ]


def prepare(folder: Path) -> None:
    """Add the measured views and tasks, and a name in .env for the prefetch multiplier."""
    add_bench(folder)
    with (folder / "config" / "settings.py").open("a") as file:
        file.write(PREFETCH)


def shares_of(project: Stack) -> dict[str, int]:
    """Return the cpu_shares of each service; Docker's default is 1024, which it calls 0."""
    containers = project.containers().items()
    return {name: one.attrs["HostConfig"]["CpuShares"] or 1024 for name, one in containers}


def set_up(project: Stack, case: Case, shipped: dict[str, int], env: str) -> None:
    """Set each service to what the case needs, and otherwise to what is shipped."""
    if case.settings:
        lines = "".join(f"{name}={value}\n" for name, value in case.settings.items())
        (project.folder / ".env").write_text(env + lines)
        up = ("up", "--detach", "--wait", "--no-build", "--no-deps")
        project.compose(*up, *case.changed)
    containers = project.containers()
    for name in case.stopped:
        containers.pop(name).stop(timeout=60)
    for name, container in containers.items():
        shares = case.shares.get(name, shipped[name])
        container.reload()
        if (container.attrs["HostConfig"]["CpuShares"] or 1024) != shares:
            container.update(cpu_shares=shares)


def run_case(project: Stack, case: Case, found: Found, tasks: int, seconds: int) -> None:
    """Add to `found` what one run of the case shows; Failed when the flood ended too early."""
    over, begin, before = threading.Event(), time.monotonic(), used_by_others(project)
    address = project.address("proxy")
    with ThreadPoolExecutor(1) as visiting:
        visits = visiting.submit(visit, address, over) if case.asked else None
        count, rate = tasks if case.flooded else 0, NOTIFY if case.asked else 0
        try:
            words = (case.flood, count, case.notify, rate, seconds)
            seen = project.python("bench.flood", *words, timeout=300)
        finally:
            over.set()
    used = used_by_others(project) - before
    found.others.append(used / (time.monotonic() - begin))
    if case.flooded and not seen["waiting"]:
        raise Failed(f"{case.name}: the flood was over before the measurement; send more tasks")
    found.notified += [1000 * took for took in seen["notified"]]
    found.missing += seen["sent"] - len(seen["notified"])
    if case.flooded:
        found.speeds.append(seen["burned"] / (seen["end"] - seen["begin"]))
    for due, took in visits.result() if visits else []:
        if seen["begin"] <= due < seen["end"]:
            found.failed += took is None
            found.pages += [] if took is None else [1000 * took]


def used_by_others(project: Stack) -> float:
    """Return the CPU seconds of this machine, stolen ones included, that were not the stack's."""
    numbers = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, numbers)
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    for container in project.containers().values():
        stats = container.stats(stream=False, one_shot=True)
        busy -= stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
    return busy


def visit(
    address: str, over: threading.Event, port: int = 8080, page: str = PAGE
) -> list[tuple[float, float | None]]:
    """
    Ask for a page PAGES times a second, however slowly the answers come, until `over` is set.

    Give, for each, when it was due and the seconds from then to its answer; None when it failed.
    """

    def ask(due: float) -> tuple[float, float | None]:
        connection = http.client.HTTPConnection(address, port, timeout=30)
        try:
            connection.request("GET", page, headers={"Host": "localhost"})
            answer = connection.getresponse()
            answer.read()
            return due, time.time() - due if answer.status == 200 else None
        except OSError:
            return due, None
        finally:
            connection.close()

    begin, asked = time.time(), []
    with ThreadPoolExecutor(64) as clients:
        while not over.wait(max(0, begin + len(asked) / PAGES - time.time())):
            asked.append(clients.submit(ask, begin + len(asked) / PAGES))
    return [one.result() for one in asked]


def row(name: str, found: Found, idle: Found, alone: Found) -> tuple[str, ...]:
    """Return the row of a case."""
    cells, ratios = [], []
    for values, base in ((found.notified, idle.notified), (found.pages, idle.pages)):
        if values:
            ratios.append(p99(values) / p99(base))
            cells += [f"{median(values):.1f}", f"{p99(values):.1f}", f"{ratios[-1]:.2f}"]
        else:
            cells += [""] * 3
    others = f"{max(found.others):.1f}"
    if not found.speeds:
        return name, *cells, "", "", others, ""
    speed = median(found.speeds)
    share = speed / median(alone.speeds)
    if not ratios:
        met = ""
    elif max(found.others + idle.others + alone.others) > QUIET:
        met = "?"
    else:
        met = "yes" if max(ratios) <= AIM and share >= FLOOR else "no"
    return name, *cells, f"{speed:.1f}", f"{share:.2f}", others, met


def p99(values: list[float]) -> float:
    """Return the 99th percentile."""
    return quantiles(values, n=100, method="inclusive")[98]


if __name__ == "__main__":
    main(__doc__, measure, longest=2400)
