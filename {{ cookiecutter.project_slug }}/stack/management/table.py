from collections.abc import Callable, Iterable, Iterator, Sequence


def lines(
    rows: Iterable[Sequence[str]], justify: Callable[[str, int], str] = str.ljust
) -> Iterator[str]:
    """Set rows in columns, each as wide as it must be; the first one always begins on the left."""
    # What a task says may hold line breaks, or what a terminal takes for a command.
    shown = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for first, *others in shown:
        cells = [justify(cell, width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
