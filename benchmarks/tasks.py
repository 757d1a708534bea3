"""Rate at which one worker drains a queue of no-op tasks, and delay of a task on an idle queue."""

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median, quantiles

from common import Parts, Stack, add_bench, main, report, stack
from tables import Table

SIDES = {"shipped": "as shipped", "defaults": "Celery's defaults"}


def measure(quick: bool) -> Parts:
    """Return the table of both sides, measured in turns, with their ratio."""
    tasks, sends, rounds = (1000, 20, 1) if quick else (10_000, 200, 3)
    with stack("tasks", add_bench) as project:
        report("building and starting")
        project.build()
        project.up()
        workers = {
            "shipped": project.containers()["worker-default"],
            "defaults": reference(project),
        }
        for worker in workers.values():
            worker.stop(timeout=30)
        drained, filled, delays, turns, starts = ({side: [] for side in SIDES} for _ in range(5))
        for number in range(rounds):
            for side, worker in workers.items():
                report(f"round {number + 1} of {rounds}, {SIDES[side]}: {tasks} tasks")
                filled[side].append(project.python("bench.measure", "fill", side, tasks)["rate"])
                found = drain(project, side, worker, tasks)
                drained[side].append(tasks / found["seconds"])
                turns[side].append(found["turns"] / tasks)
                starts[side].append(found["start"])
                report(f"round {number + 1} of {rounds}, {SIDES[side]}: {sends} single tasks")
                found = project.python("bench.measure", "delay", side, sends)["delays"]
                delays[side] += [1000 * seconds for seconds in found]
                worker.stop(timeout=30)

    def row(name: str, digits: int, values: dict[str, float]) -> tuple[str, ...]:
        ratio = f"{values['shipped'] / values['defaults']:.2f}"
        return name, *(f"{values[side]:.{digits}f}" for side in SIDES), ratio

    rows = [
        row(f"drain of {tasks} tasks, tasks/s, median", 0, each(median, drained)),
        row("slowest round, tasks/s", 0, each(min, drained)),
        row("fastest round, tasks/s", 0, each(max, drained)),
        row("disk writes of Redis per task, at most", 2, each(median, turns)),
        row("sending, tasks/s, median", 0, each(median, filled)),
        row("start of the container until it takes a task, s, median", 2, each(median, starts)),
        row("start delay on an idle queue, ms, p50", 1, each(median, delays)),
        row("start delay on an idle queue, ms, p99", 1, each(p99, delays)),
    ]
    counts = ", ".join(f"{len(delays[side])} of {rounds * sends}" for side in SIDES)
    return [
        Table(("one worker", *SIDES.values(), "ratio"), rows),
        f"{rounds} round(s) in turns. Single tasks that started: {counts}.",
    ]


def each(function, values: dict[str, list[float]]) -> dict[str, float]:
    """Apply `function` to the values of each side."""
    return {side: function(found) for side, found in values.items()}


def p99(values: list[float]) -> float:
    """Return the 99th percentile."""
    return quantiles(values, n=100, method="inclusive")[98]


def reference(project: Stack):
    """Start a worker with Celery's defaults, from the same image and under the same limits."""
    name = f"{project.slug}-reference"
    command = ("celery", "--app=bench.defaults", "worker")
    # Celery's command line reads the queue from the environment; the transport is kombu's own.
    env = ("--env", "CELERY_WORKER_QUEUES=celery", "--env", "REDIS_TRANSPORT=kombu")
    project.compose(
        "run", "--detach", "--no-deps", "--name", name, *env, "worker-default", *command
    )
    return project.engine.containers.get(name)


def drain(project: Stack, side: str, worker, tasks: int) -> dict:
    """Start a stopped worker on its full queue; give what is measured from the first task taken on."""
    # Not in a "with": when something fails, the end of the container ends the thread.
    watching = ThreadPoolExecutor(1).submit(project.python, "bench.measure", "drain", side, tasks)
    time.sleep(2)  # until it watches
    started = time.time()
    worker.start()
    found = watching.result()
    return found | {"start": found["first"] - started}


if __name__ == "__main__":
    main(__doc__, measure)
