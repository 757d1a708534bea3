"""
Draw the charts of benchmarks/README.md and README.md from the data in results/.

Each is one SVG for light and dark pages. The same data give the same bytes.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO

from tables import HERE, Table, load

try:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError:
    sys.exit("charts.py needs matplotlib: script/bootstrap --benchmarks installs it")

WIDTH = 8.4  # inches, about as wide as a README
ROW = 0.27  # inches
# Okabe and Ito's colours, which people with any colour vision can tell apart; light, then dark.
COLOURS = {
    "ours": ("#0072b2", "#56b4e9"),
    "other": ("#e69f00", "#e69f00"),
    "limit": ("#d55e00", "#ff8c42"),
    "ink": ("#1f2328", "#f0f6fc"),
    "muted": ("#59636e", "#9198a1"),
    "grid": ("#d1d9e0", "#3d444d"),
    "paper": ("#ffffff", "#0d1117"),
}
OURS, OTHER, LIMIT, INK, MUTED, GRID, PAPER = (light for light, _ in COLOURS.values())
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "django-celery-compose",
    "font.family": "DejaVu Sans",  # wider than what most pages show: labels keep their place
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": PAPER,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "savefig.facecolor": PAPER,
    "xtick.color": MUTED,
    "ytick.color": INK,
}


@dataclass
class Bar:
    """A bar with the text at its end; one without a name belongs to the bar above it."""

    name: str
    value: float
    text: str
    colour: str = OURS
    limit: float = 0  # the text is behind it


def number(cell: str) -> float:
    """Return the first number of a cell."""
    return float(re.search(r"[\d.]+", cell.replace(",", ""))[0])


def plain(text: str) -> str:
    """Return a text without the marks of Markdown."""
    return text.replace("`", "")


def table_of(name: str) -> Table:
    """Return the first table of a result."""
    return next(part for part in load(name).parts if isinstance(part, Table))


def sheet(
    title: str, rows: float, columns: int = 1, **options: object
) -> tuple[Figure, list[Axes]]:
    """Return a figure of that many rows of text in height, and its axes side by side."""
    size = (WIDTH, ROW * rows + 1.05)
    figure, axes = pyplot.subplots(
        1, columns, figsize=size, squeeze=False, layout="constrained", **options
    )
    figure.suptitle(title, x=0.012, ha="left")
    return figure, list(axes[0])


def bars(
    axes: Axes,
    found: Sequence[Bar],
    unit: str,
    room: float = 1.2,
    least: float = 0,
    texts_at: float | None = None,
) -> None:
    """
    Draw bars from above, in groups.

    `room` is the width for the longest bar and its text, relative to the bar; `least` the begin of the
    axis; the texts are at the end of each bar, or all at `texts_at`.
    """
    places, place = [], 0.0
    for bar in found:
        place += 1.45 if bar.name and places else 1.0
        places.append(place)
    axes.barh(places, [bar.value for bar in found], height=0.8, color=[bar.colour for bar in found])
    for place, bar in zip(places, found, strict=True):
        at = texts_at or max(bar.value, bar.limit, least)
        axes.annotate(bar.text, (at, place), (4, 0), textcoords="offset points", va="center")
    named = [(place, bar.name) for place, bar in zip(places, found, strict=True) if bar.name]
    axes.set_yticks([place for place, _ in named], [name for _, name in named])
    axes.set_ylim(places[-1] + 0.7, places[0] - 0.7)
    axes.set_xlim(least, (max(bar.value for bar in found) or 1) * room)
    axes.tick_params(length=0)
    axes.grid(axis="x")
    axes.set_xlabel(unit, loc="left")
    axes.spines["bottom"].set_visible(False)


def line_at(axes: Axes, value: float, text: str, colour: str = LIMIT) -> None:
    """Draw a limit, with its name above it."""
    axes.axvline(value, color=colour, linewidth=1.4, linestyle=(0, (5, 3)))
    axes.annotate(
        text, (value, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="center", va="bottom", fontsize=9,
    )  # fmt: skip


def logarithmic(axes: Axes, begin: float, end: float, ticks: dict[float, str]) -> None:
    """Make the axis of values logarithmic, with these ticks."""
    axes.set_xscale("log")
    axes.set_xlim(begin, end)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.minorticks_off()


def footprint() -> Figure:
    """Draw what has an aim, as a share of it."""
    rows = [row for row in table_of("footprint").rows if row[2]]
    found = [
        Bar(plain(name), 100 * number(value) / number(aim), f"{value}, limit {aim[2:]}")
        for name, value, aim, _ in rows
    ]
    figure, (axes,) = sheet("Size, start and idle cost, each beside its limit", len(found))
    end = max(100, *(bar.value for bar in found))
    bars(axes, found, "% of the limit", texts_at=1.02 * end)
    axes.set_xlim(0, 1.45 * end)
    axes.set_xticks(range(0, int(end) + 1, 20))
    line_at(axes, 100, "limit")
    return figure


def web() -> Figure:
    """Draw the rate of each kind of page as a share of what serves it alone, and a peer's."""
    peer = {row[0]: row[1] for row in table_of("web-peer").rows}
    found, ours = [], ""
    for row in table_of("web").rows:
        what, _, side = row[0].partition(", ")
        if side == "through the proxy":
            ours = row[1]
            continue
        share = number(ours) / number(row[1])
        text = f"{share:.2f}: {ours} of {row[1]} requests/s of {side}"
        found.append(Bar(what, share, text))
        if what in peer:
            share = number(peer[what]) / number(row[1])
            text = f"{share:.2f}: {peer[what]} requests/s of a large template"
            found.append(Bar("", share, text, OTHER))
    title = "Requests per second through the proxy, relative to the server behind it alone"
    figure, (axes,) = sheet(title, len(found) + 1.5)
    bars(axes, found, "of the server alone", texts_at=max(1, *(bar.value for bar in found)) + 0.02)
    axes.set_xlim(0, 1.8)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    line_at(axes, 1, "the server alone")
    return figure


def tasks() -> Figure:
    """Draw one worker as shipped beside one with Celery's defaults."""
    rows = table_of("tasks").rows
    title = "One worker as shipped, and with Celery's defaults"
    figure, both = sheet(title, 4.5, 2)
    for axes, unit, wanted in (
        (both[0], "tasks per second", {"drain": "drain", "sending": "send"}),
        (both[1], "ms until a task starts", {"p50": "p50", "p99": "p99"}),
    ):
        found = []
        for row in rows:
            for word, name in wanted.items():
                if word in row[0] and ("median" in row[0] or "delay" in row[0]):
                    found.append(Bar(name, number(row[1]), f"{row[1]} as shipped"))
                    found.append(Bar("", number(row[2]), f"{row[2]} Celery's defaults", OTHER))
        bars(axes, found, unit, 1.75)
    return figure


def metrics() -> Figure:
    """Draw the share of /metrics in a page and in a task."""
    found = [
        Bar(row[0], number(row[3]), f"{row[3]} %: {row[2]} of {row[1]} µs")
        for row in table_of("metrics").rows
    ]
    figure, (axes,) = sheet("What /metrics adds to a page and to a task", len(found))
    bars(axes, found, "% of its CPU time", 1.5)
    return figure


def isolation() -> Figure:
    """Draw what a flood does to the p99 of short tasks and pages, in each case."""
    rows = [row for row in table_of("isolation").rows if row[3] and row[0] != "idle"]
    title = "A flood in one queue: the slowest percent of the others, relative to idle"
    figure, (axes,) = sheet(title, len(rows) + 1)
    for place, row in enumerate(rows):
        values = [number(row[3]), number(row[6])]
        axes.plot(values, [place] * 2, color=GRID, linewidth=2, zorder=1)
        axes.scatter(values[:1], [place], 46, OURS, marker="o", zorder=2)
        axes.scatter(values[1:], [place], 40, OTHER, marker="s", zorder=2)
        text = f"● {values[0]:.2f} short task   ■ {values[1]:.2f} page"
        axes.annotate(text, (1, place), (-4, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", va="center", ha="right")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    logarithmic(axes, 0.9, 6e5, {1: "1", 2: "2", 10: "10", 100: "100", 1000: "1000"})
    axes.tick_params(length=0)
    axes.grid(axis="x")
    aim = re.search(r"at most ([\d.]+) times", str(load("isolation").parts[1]))[1]
    line_at(axes, float(aim), "limit")
    axes.set_xlabel("p99 relative to idle, logarithmic; ● short task, ■ page", loc="left")
    return figure


def deploy() -> Figure:
    """Draw the seconds of each step in the life of a VM."""
    found = []
    for name, value, limit in table_of("deploy").rows:
        if re.fullmatch(r"[\d.]+ s( \(.*\))?", value):
            text = f"{number(value):.1f} s" + (f", limit {limit[2:]}" if limit else "")
            found.append(Bar(name, number(value), text, limit=number(limit) if limit else 0))
    rows = {row[0]: row[1] for row in table_of("deploy").rows}
    asked, failed = rows["requests meanwhile, failed"].split(", ")
    title = f"Deploys to one VM: {failed} of {asked} requests failed"
    if "tasks meanwhile, lost" in rows:
        sent, lost = rows["tasks meanwhile, lost"].split(", ")
        title += f", {lost} of {sent} tasks were lost"
    figure, (axes,) = sheet(title, len(found) * 1.3)
    bars(axes, found, "seconds", 1.3)
    for place, bar in zip(axes.get_yticks(), found, strict=True):
        if bar.limit:
            axes.plot([bar.limit] * 2, [place - 0.55, place + 0.55], color=LIMIT, linewidth=2)
    return figure


def faults() -> Figure:
    """Draw the share of accepted tasks that a fault lost, with the template's settings and Celery's."""
    rows = table_of("faults").rows
    lossy = [name for name in dict.fromkeys(row[0] for row in rows)
             if any(row[0] == name and row[4] != "0" for row in rows)]  # fmt: skip
    title = (
        f"Tasks lost by a fault: {len(lossy)} of {len({row[0] for row in rows})} faults lost any"
    )
    figure, both = sheet(title, len(lossy) * 2.4, 2, sharey=True)
    for axes, broker in zip(both, ("redis", "rabbitmq"), strict=True):
        found = []
        for name in lossy:
            label = name
            for settings, colour, words in (
                ("template", OURS, "as shipped"),
                ("defaults", OTHER, "with Celery's defaults"),
            ):
                for row in rows:
                    if row[:3] == [name, broker, settings]:
                        share = 100 * number(row[4]) / number(row[3])
                        found.append(Bar(label, share, f"{row[4]} {words}", colour))
                        label = ""
        bars(axes, found, "% of the accepted tasks lost", 1.5)
        axes.set_xlim(0, 48)
        axes.set_title({"redis": "Redis", "rabbitmq": "RabbitMQ"}[broker], loc="left")
    return figure


def kills() -> Figure:
    """Draw what was done twice after SIGKILLs."""
    table = table_of("kills-compared")
    doubled = table.head.index("doubled")
    found = [
        Bar(
            row[0],
            number(row[doubled]),
            f"{row[doubled]}, of these {row[doubled + 1]} had returned",
        )
        for row in table.rows
    ]
    figure, (axes,) = sheet("Tasks done twice after SIGKILLs of the worker", len(found))
    bars(axes, found, "tasks done twice", 1.6)
    return figure


def attacks() -> Figure:
    """Draw how long others wait for a page during each attack."""
    found = [
        Bar(row[0], number(row[4]), f"{row[4]} ms", MUTED if row[0] == "none" else OURS)
        for row in table_of("attacks").rows
    ]
    title = "Pages of others during an attack from one address: none failed"
    if any(number(row[2].split(", ")[0]) for row in table_of("attacks").rows):
        title = "Pages of others during an attack from one address"
    figure, (axes,) = sheet(title, len(found) * 1.3)
    bars(axes, found, "p99 of a page, ms", least=1)
    logarithmic(axes, 1, 30000, {1: "1", 10: "10", 100: "100", 1000: "1000", 10000: "10 000"})
    return figure


def flood() -> Figure:
    """Draw, for a newcomer, what a flood does to a short task and to a page."""
    rows = {row[0]: row for row in table_of("isolation").rows}
    cases = {
        "nothing else to do": (rows["idle"], MUTED),
        "a queue and a worker each (this template)": (rows["flood, as shipped"], OURS),
        "one queue for all, one worker": (rows["one queue, one worker"], OTHER),
    }
    found = []
    for what, column in (("a short task", 2), ("a page", 5)):
        label = what
        for name, (row, colour) in cases.items():
            value = number(row[column])
            text = f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.0f} s"
            found.append(Bar(label, value, f"{text}: {name}", colour))
            label = ""
    ours, shared = (bar.text.partition(":")[0] for bar in found[1:3])
    title = f"A short task beside 2,000 others: {ours} with a queue of its own, {shared} without"
    figure, (axes,) = sheet(title, len(found) + 1)
    bars(axes, found, "99 % took no longer; the scale is logarithmic", least=1)
    ticks = {1: "1 ms", 10: "10 ms", 100: "100 ms", 1000: "1 s", 10000: "10 s"}
    logarithmic(axes, 1, 6e7, ticks)
    return figure


def redeploy() -> Figure:
    """Draw, for a newcomer, how many requests fail while the web instances are replaced."""
    rows = table_of("replacing").rows
    found = [Bar(plain(name), number(count), count, OTHER) for name, count in rows]
    found[-1].colour = OURS
    title = "Requests that failed while ten clients asked for pages and the web was replaced"
    figure, (axes,) = sheet(title, len(found) * 1.3)
    bars(axes, found, "failed requests", 1.15)
    return figure


def scale(name: str, title: str, columns: dict[int, str]) -> Figure:
    """Draw some columns of how cost grows, each on a scale of its own."""
    table = table_of(name)
    figure, panels = sheet(title, len(table.rows) * 1.4 + 1, len(columns), sharey=True)
    for axes, (column, what) in zip(panels, columns.items(), strict=True):
        found = [Bar(row[0], number(row[column]), row[column]) for row in table.rows]
        bars(axes, found, "", 1.4)
        axes.set_title(what, loc="left")
        axes.set_xticks([])
    panels[0].set_ylabel(table.head[0])
    return figure


def scale_queues() -> Figure:
    """Draw what more queues cost."""
    columns = {
        1: "idle memory, MiB",
        2: "up until healthy, s",
        3: "idle CPU, s/min",
        4: "ops/roll, s",
    }
    return scale("scale-queues", "What more queues, with a worker each, cost", columns)


def scale_replicas() -> Figure:
    """Draw what replicas of a worker bring."""
    columns = {1: "tasks/s that do nothing", 2: "tasks/s that wait 50 ms"}
    return scale("scale-replicas", "What replicas of one worker bring on this machine", columns)


def scale_waiting() -> Figure:
    """Draw what waiting tasks cost."""
    columns = {1: "sending, tasks/s", 2: "draining, tasks/s", 4: "/status/, ms", 6: "broker, MiB"}
    columns |= {7: "its restart, s"}
    return scale("scale-waiting", "What waiting tasks cost", columns)


def scale_failed() -> Figure:
    """Draw what failed tasks cost."""
    columns = {1: "failed, s", 2: "/status/failed/, ms", 4: "broker, MiB", 5: "its restart, s"}
    return scale("scale-failed", "What failed tasks cost", columns)


def peer() -> Figure:
    """Draw what a flood and a redeploy do here and to a peer."""
    table = table_of("peer")
    rows = {row[0]: row[1:] for row in table.rows}
    panels = {
        "short task beside a flood, p99, ms": "short task, flood, ms",
        "page beside a flood, p99, ms": "page, flood, ms",
        "requests meanwhile, failed": "failed requests",
        "tasks meanwhile, lost": "lost tasks",
    }
    title = "A flood, and a redeploy under load"
    figure, both = sheet(title, 4, len(panels), sharey=True)
    for axes, (row, what) in zip(both, panels.items(), strict=True):
        cells = [cell.partition(" (")[0].split(", ")[-1] for cell in rows[row]]
        sides = zip(table.head[1:], cells, (OURS, OTHER), strict=True)
        bars(axes, [Bar(name, number(cell), cell, colour) for name, cell, colour in sides], "", 1.5)
        axes.set_title(what, loc="left")
        axes.set_xticks([])
    return figure


CHARTS: dict[str, tuple[Callable[[], Figure], list[str]]] = {
    "footprint": (footprint, ["footprint"]),
    "web": (web, ["web", "web-peer"]),
    "tasks": (tasks, ["tasks"]),
    "metrics": (metrics, ["metrics"]),
    "isolation": (isolation, ["isolation"]),
    "deploy": (deploy, ["deploy"]),
    "faults": (faults, ["faults"]),
    "kills": (kills, ["kills-compared"]),
    "attacks": (attacks, ["attacks"]),
    "scale-queues": (scale_queues, ["scale-queues"]),
    "scale-replicas": (scale_replicas, ["scale-replicas"]),
    "scale-waiting": (scale_waiting, ["scale-waiting"]),
    "scale-failed": (scale_failed, ["scale-failed"]),
    "peer": (peer, ["peer"]),
    "flood": (flood, ["isolation"]),
    "redeploy": (redeploy, ["replacing"]),
}


def svg(figure: Figure, sources: Sequence[str]) -> str:
    """Return a figure as SVG whose colours follow the page's scheme, with the digest of its data."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for name, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{name})")
    text = re.sub(r"'DejaVu Sans'", FONT, text)
    schemes = [
        ";".join(f"--{name}:{scheme[dark]}" for name, scheme in COLOURS.items()) for dark in (0, 1)
    ]
    style = f":root{{{schemes[0]}}}@media(prefers-color-scheme:dark){{:root{{{schemes[1]}}}}}"
    data = b"".join((HERE / f"results/{name}.json").read_bytes() for name in sources)
    drawn = f"<!-- of {' '.join(sources)}, {hashlib.sha256(data).hexdigest()} -->"
    return re.sub(r"(<svg[^>]*>)", rf"{drawn}\n\1\n<style>{style}</style>", text, count=1)


def main() -> None:
    """Draw all that have data."""
    pyplot.rcParams.update(STYLE)
    for name, (draw, sources) in CHARTS.items():
        if not all((HERE / f"results/{source}.json").exists() for source in sources):
            continue
        figure = draw()
        path = HERE / "results" / f"{name}.svg"
        path.write_text(svg(figure, sources), "utf-8")
        pyplot.close(figure)
        print(path.relative_to(HERE.parent), f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
