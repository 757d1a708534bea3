"""What /metrics adds to a request and to a task, beside what these cost."""

from common import Parts, add_bench, main, report, stack
from tables import Table
from tasks import drain


def measure(quick: bool) -> Parts:
    """Return the table of both, measured in one run."""
    count, tasks = (2000, 500) if quick else (50_000, 5000)
    with stack("metrics", add_bench) as project:
        report("building and starting")
        project.build()
        project.up()
        report("what is added")
        found = project.python("bench.counting", count)
        worker = project.containers()["worker-default"]
        worker.stop(timeout=30)
        report(f"{tasks} tasks")
        project.python("bench.measure", "fill", "shipped", tasks)
        seconds = drain(project, "shipped", worker, tasks)["seconds"]
    added = found["counted_task"] + found["counted_in_redis"]
    rows = [
        row("a page that does nothing", found["page"], found["counted_page"]),
        row("a task that does nothing", seconds / tasks * 1e6, added),
    ]
    return [Table(("what", "µs", "of it for /metrics, µs", "%"), rows)]


def row(what: str, whole: float, added: float) -> tuple[str, ...]:
    """Return a row with the share of what is added."""
    return what, f"{whole:.0f}", f"{added:.1f}", f"{100 * added / whole:.2f}"


if __name__ == "__main__":
    main(__doc__, measure)
