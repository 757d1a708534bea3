"""
What a deploy, a reboot, a backup and a restore take, on a VM of its own.

The VM is the one of tests/vm, a container with systemd, sshd and an engine, whose requests and
tasks come from ten clients without keep-alive.
"""

import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import SubprocessError

import requests
from common import ROOT, Failed, Parts, begin_to_clean, main, report
from tables import Table

sys.path.append(str(ROOT))
from tests.systemd.machine import docker
from tests.vm.load import CLIENTS, Load
from tests.vm.vm import ProductionVm

DEPLOYS = 3  # after changes of the source
QUIET = 20  # seconds of the same load without a deploy
GIGABYTE = 1_000_000_000  # half of it in files, half in a table
ROW = 500  # bytes, which do not compress to nothing
AIMS = {
    "first deploy, until the site answers": "≤ 15 s",
    "deploy after a change, until the new version answers": "≤ 12 s",
    "until ops/deploy ends": "≤ 25 s",
}
FILL_TABLE = """
    CREATE TABLE filler AS SELECT (
        SELECT string_agg(md5(random()::text || number || part), '')
        FROM generate_series(1, {parts}) AS part
    ) FROM generate_series(1, {rows}) AS number
"""


class Clients(Load):
    """The load of the tests, which also notes when each page was asked for and by whom answered."""

    def __init__(self, vm: ProductionVm) -> None:
        """Be ready to ask `vm`."""
        super().__init__(vm)
        self.waits: list[float] = []  # seconds, of pages
        self.first: dict[str, float] = {}  # when each version first answered

    def visit(self) -> requests.Response:
        """Ask for a page and note it."""
        started = time.monotonic()
        answer = super().visit()
        self.waits.append(time.monotonic() - started - 0.1)  # the pause before each
        self.first.setdefault(answer.json()["version"], time.monotonic())
        return answer


def timed(act: Callable[[], object]) -> float:
    """Return the seconds that it took."""
    started = time.monotonic()
    act()
    return time.monotonic() - started


def shipped(printed: str) -> str:
    """Return what ops/deploy shipped."""
    return f"{re.search(r'shipped ([0-9.]+) MB', printed)[1]} MB"


def first_deploy(vm: ProductionVm) -> list[tuple[str, str]]:
    """Deploy onto a VM that has nothing but an engine."""
    report("the first deploy")
    started = time.monotonic()
    with ThreadPoolExecutor() as pool:
        deploying = pool.submit(vm.deploy, *vm.first_settings())
        while not deploying.done() and not answers(vm):
            time.sleep(0.2)
        served = time.monotonic() - started
    return [
        ("first deploy, until the site answers", f"{served:.1f} s"),
        ("shipped", shipped(deploying.result())),
    ]


def answers(vm: ProductionVm) -> bool:
    """Return whether the site serves."""
    try:
        return vm.get("/readyz").status_code == 200
    except requests.RequestException:
        return False


def next_deploys(vm: ProductionVm, count: int) -> list[tuple[str, str]]:
    """Change the source and deploy it, under load."""
    report("the load alone")
    with Clients(vm) as quiet:
        time.sleep(QUIET)
    until_served, until_ended, sizes, failures, waits, asked = [], [], [], [], [], 0
    sent = lost = 0
    for number in range(count):
        report(f"deploy {number + 1} of {count} after a change")
        before = vm.version()
        with (vm.stack.folder / "stack" / "tasks.py").open("a") as file:
            file.write(f"# change {number}\n")
        with Clients(vm) as clients:
            started = time.monotonic()
            sizes.append(shipped(vm.deploy()))
            until_ended.append(time.monotonic() - started)
        (new,) = clients.first.keys() - {before}
        until_served.append(clients.first[new] - started)
        failures += clients.failures
        waits += clients.waits
        asked += len(clients.served) + len(clients.failures)
        sent += len(clients.tasks)
        lost += len(clients.tasks) - done(vm, clients.tasks)
    return [
        ("deploy after a change, until the new version answers", spread(until_served)),
        ("until ops/deploy ends", spread(until_ended)),
        ("shipped", ", ".join(sizes)),
        ("requests meanwhile, failed", f"{asked}, {len(failures)}"),
        ("tasks meanwhile, lost", f"{sent}, {lost}"),
        ("a page, median and worst", f"{statistics.median(waits):.2f} s, {max(waits):.2f} s"),
        (
            "the same without a deploy",
            f"{statistics.median(quiet.waits):.2f} s, {max(quiet.waits):.2f} s",
        ),
    ]


def done(vm: ProductionVm, tasks: list[str]) -> int:
    """Return how many of these tasks end within three minutes."""
    code = f"""
import time
from config.celery import app
until, left = time.monotonic() + 180, {tasks!r}
while left and time.monotonic() < until:
    left = [task for task in left if app.AsyncResult(task).state != "SUCCESS"]
    time.sleep(0.5)
print({len(tasks)} - len(left))
"""
    return int(vm.python(code))


def spread(seconds: list[float]) -> str:
    """Show the median, and the extremes where there are several."""
    around = f" ({min(seconds):.1f} to {max(seconds):.1f})" if len(seconds) > 1 else ""
    return f"{statistics.median(seconds):.1f} s{around}"


def power(vm: ProductionVm) -> list[tuple[str, str]]:
    """Reboot, and cut the power."""
    services = set(vm.running())
    rows = []
    for what, off in {
        "reboot": lambda: vm.run("systemctl", "reboot", check=False),
        "power cut": lambda: docker("kill", vm.name),
    }.items():
        report(what)
        off()
        docker("wait", vm.name)
        seconds = timed(lambda: (vm.boot(), vm.wait_until_healthy(services)))
        rows.append((f"{what}: from power on until all are healthy", f"{seconds:.1f} s"))
    return rows


def backups(vm: ProductionVm, size: int) -> list[tuple[str, str]]:
    """Back up and restore `size` bytes."""
    report("filling")
    vm.here(
        "docker compose run --rm -T --no-deps web sh -c"
        f" 'head -c {size // 2} /dev/urandom > /srv/media/filler'"
    )
    fill = FILL_TABLE.format(parts=ROW // 32, rows=size // 2 // ROW)
    vm.here(f'docker compose exec -T db psql -q -U app -d app -c "{fill}"')
    report("backup")
    backup = timed(lambda: vm.here("ops/backup"))
    written = int(vm.here("stat --format=%s backups/*.tar"))
    report("restore")
    restore = timed(lambda: vm.here("ops/restore --yes backups/*.tar"))
    return [
        (f"backup of {size / 1e9:g} GB", f"{backup:.1f} s"),
        ("its file", f"{written / 1e9:.2f} GB"),
        ("restore, until all are healthy", f"{restore:.1f} s"),
    ]


def measure(quick: bool) -> Parts:
    """Go the whole way on one VM; return the table."""
    with tempfile.TemporaryDirectory(prefix="dccbench-deploy") as folder:
        vm = ProductionVm(Path(folder))
        try:
            report("making a VM")
            vm.build("--target=bare")
            vm.create()
            docker("cp", f"{vm.stack.folder}/ops", f"{vm.name}:/root/ops")
            vm.boot()
            rows = [("ops/install", f"{timed(vm.install):.1f} s")]
            rows += first_deploy(vm)
            rows += next_deploys(vm, 1 if quick else DEPLOYS)
            rows += power(vm)
            rows += backups(vm, GIGABYTE // 20 if quick else GIGABYTE)
        except (AssertionError, SubprocessError, requests.RequestException) as error:
            raise Failed(error) from None
        finally:
            begin_to_clean()
            vm.remove()
    head = (f"one VM, {CLIENTS} clients", "measured", "aim")
    return [Table(head, [(name, value, AIMS.get(name, "")) for name, value in rows])]


if __name__ == "__main__":
    main(__doc__, measure, longest=900)
