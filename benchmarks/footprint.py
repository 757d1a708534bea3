"""Size of the images, time to build and to start, memory and CPU of the idle stack."""

import re
import time
from pathlib import Path
from statistics import median

from common import Parts, Stack, main, report, stack, working_set
from tables import Table

MIB = 2**20
AIMS = {
    "app image, added by the project": (95, "MB"),
    "proxy image, added by the project": (5, "MB"),
    "cold build": (9, "s"),
    "rebuild after a change of source": (1, "s"),
    "`up` on empty volumes until all are healthy": (6, "s"),
    "idle memory, sum": (560, "MiB"),
    "idle CPU, sum": (0.6, "s/min"),
}


def measure(quick: bool) -> Parts:
    """Return the table of aims and the table of services."""
    settle, window = (5, 20) if quick else (60, 120)  # seconds
    with stack("footprint", own_pip_cache) as project:
        report("building without any cache")
        cold = project.build("--no-cache")
        report("building once more, with pip's downloads")
        downloaded = project.build("--no-cache")
        report("building after changes of source")
        rebuilds = [rebuild(project, number) for number in range(1 if quick else 3)]
        sizes = image_sizes(project)
        report("starting")
        healthy = project.up()
        report(f"idling for {settle} + {window} s")
        time.sleep(settle)
        memory, cpu = idle(project, window)

    measured = {
        **{f"{name} image, total": f"{total:.0f} MB" for name, (total, _) in sizes.items()},
        **{f"{name} image, added by the project": added for name, (_, added) in sizes.items()},
        "cold build": cold,
        "cold build, pip's downloads cached": f"{downloaded:.1f} s",
        "rebuild after a change of source": median(rebuilds),
        "`up` on empty volumes until all are healthy": healthy,
        "idle memory, sum": sum(memory.values()),
        "idle CPU, sum": sum(cpu.values()),
    }
    services = [
        (name, f"{memory[name]:.0f}", f"{cpu[name]:.2f}")
        for name in sorted(memory, key=memory.__getitem__, reverse=True)
    ]
    figures = [judged(*item) for item in measured.items()]
    return [
        Table(("figure", "measured", "aim", "met"), figures),
        Table(("service, idle", "memory, MiB", "CPU, s/min"), services),
    ]


def judged(name: str, value: float | str) -> tuple[str, str, str, str]:
    """Return the row of a figure; one that comes as text has no aim."""
    if isinstance(value, str):
        return name, value, "", ""
    aim, unit = AIMS[name]
    return (
        name,
        f"{value:.{2 if aim < 2 else 1}f} {unit}",
        f"≤ {aim} {unit}",
        "yes" if value <= aim else "no",
    )


def own_pip_cache(folder: Path) -> None:
    """Start the build with a cache of downloads that starts empty, whatever was built before."""
    file = folder / "Dockerfile"
    mount = f"--mount=type=cache,id={folder.name}-"
    file.write_text(
        re.sub(r"--mount=type=cache,target=(\S+)", rf"{mount}\1,target=\1", file.read_text())
    )


def rebuild(project: Stack, number: int) -> float:
    """Change a Python file of the project and give the seconds that the build then takes."""
    with (project.folder / "stack" / "tasks.py").open("a") as file:
        file.write(f"# change {number}\n")
    return project.build()


def image_sizes(project: Stack) -> dict[str, tuple[float, float]]:
    """Give, for app and proxy, the size of the image and what is not of its base, in MB."""
    python, nginx = project.bases()
    sizes = {}
    for name, tag, base in (
        ("app", project.slug, python),
        ("proxy", f"{project.slug}-proxy", nginx),
    ):
        total, of_base = (
            project.engine.images.get(image).attrs["Size"] / 1e6 for image in (tag, base)
        )
        sizes[name] = total, total - of_base
    return sizes


def idle(project: Stack, window: float) -> tuple[dict[str, float], dict[str, float]]:
    """Watch for `window` seconds; give MiB, and CPU seconds per minute, of each service."""
    before = readings(project)
    time.sleep(window)
    after = readings(project)
    memory = {name: used / MIB for name, (_, used, _) in after.items()}
    cpu = {
        name: (used - before[name][2]) * 60 / (at - before[name][0])
        for name, (at, _, used) in after.items()
    }
    return memory, cpu


def readings(project: Stack) -> dict[str, tuple[float, float, float]]:
    """Return for each service the time in seconds, its working set in bytes, its CPU seconds."""
    found = {}
    for name, container in project.containers().items():
        stats = container.stats(stream=False, one_shot=True)
        used = stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
        found[name] = time.monotonic(), working_set(stats["memory_stats"]), used
    return found


if __name__ == "__main__":
    main(__doc__, measure)
