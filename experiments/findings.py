"""What a section of an experiment found: words, tables, checks and charts, printed and as HTML."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxvision.report import Section
from jaxvision.report import html as page
from jaxvision.report.embed import to_svg

if TYPE_CHECKING:
    import matplotlib.figure


class CheckError(Exception):
    """A claim of an experiment was computed and found false."""


class Table(NamedTuple):
    """A caption, the names of the columns, and the rows' cells as text."""

    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        # Numbers stand on the right; what a column is, its first row says.
        first = self.rows[0] if self.rows else self.header
        right = [cell.lstrip("-+")[:1].isdigit() for cell in first]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if on_right else cell.ljust(width)
                for cell, width, on_right in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in [self.header, tuple("-" * width for width in widths), *self.rows]
        )


@dataclass
class Finding:
    """One section: `words` are paragraphs; what is checked fails the run where it does not hold."""

    title: str
    words: tuple[str, ...] = ()
    tables: list[Table] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    charts: list[tuple["matplotlib.figure.Figure", str]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    """Plain values, for results.json and tests."""

    def check(self, claim: str, holds: Any) -> None:
        if not holds:
            raise CheckError(f"expected to hold, and does not: {claim}")
        self.checks.append(claim)

    def table(self, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        cells = [tuple(str(cell) for cell in row) for row in rows]
        self.tables.append(Table(caption, tuple(header), cells))

    def print(self) -> None:
        print(f"{self.title}\n{'=' * len(self.title)}")
        for words in self.words:
            print(textwrap.fill(words, 100))
        for table in self.tables:
            print(f"\n{textwrap.fill(table.caption, 100)}\n{table}")
        if self.checks:
            print()
        for claim in self.checks:
            print(f"[ok] {claim}")
        print(flush=True)

    def section(self) -> Section:
        """Returns the same for a report's page, with the charts."""
        body = [page.paragraph(words) for words in self.words]
        for table in self.tables:
            body += [page.paragraph(table.caption), page.table(table.header, table.rows)]
        if self.charts:
            plots = [page.plot(to_svg(figure, words), words) for figure, words in self.charts]
            body.append(page.side_by_side(plots))
        body += [page.paragraph(f"✓ checked: {claim}") for claim in self.checks]
        return Section(self.title, "".join(body))


def numbers(values: Any, digits: int = 4) -> str:
    """Returns an array's values as text, in its order.

    >>> numbers([1, -2.5], digits=1)
    '1.0, -2.5'
    """
    return ", ".join(f"{value:.{digits}f}" for value in np.asarray(values).reshape(-1))
