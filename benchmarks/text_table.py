"""Tables for a terminal: the first column is left-aligned, the others right-aligned."""

from collections.abc import Sequence


def render_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells under a header, each column as wide as its widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(_render_line(line, widths) for line in lines)


def _render_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "   ".join([first, *others]).rstrip()


def show_percent(share: float | None) -> str:
    """A fraction as a percentage, or a dash for None."""
    return "-" if share is None else f"{100 * share:.2f}"
