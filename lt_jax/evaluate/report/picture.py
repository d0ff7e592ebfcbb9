"""A picture of the report: a figure that cannot be without its numbers and its description.

Whatever is drawn is a `Picture`, so that the page can put what it shows one click below it: as a
table, and as a CSV file that is also beside the PNG in figures/.
"""

import csv
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lt_jax.evaluate.report import figures
from lt_jax.runtime import faults, files

Value = str | int | float | None
SHOWN = 40  # rows of a table on the page; its file has all
WIDE = 60  # characters of a cell there


class PictureError(ValueError):
    """A picture without numbers or words, or two of one name."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What a figure shows, as a table: one row a mark, bar or tile, None where there is no number.

    Raises:
      PictureError: no column, no row, or a row of another length than the columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def __post_init__(self) -> None:
        """Refuses a table of nothing."""
        if not self.columns or not self.rows:
            raise PictureError("numbers of a figure: no columns or no rows; takes one of both")
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise PictureError(f"row {i}: {len(row)} values for {len(self.columns)} columns")

    def csv(self) -> str:
        """As a file: a head, then a line a row; what is undefined is empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[_written(value) for value in row] for row in self.rows])
        return stream.getvalue()

    def shown(self, most: int = SHOWN) -> list[list[str]]:
        """The first rows as text."""
        return [[_text(value) for value in row] for row in self.rows[:most]]


def numbers(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Numbers:
    """`Numbers` of rows that may hold NumPy's numbers; NaN is None."""
    plain = tuple(tuple(_plain(value) for value in row) for row in rows)
    return Numbers(tuple(columns), plain)


def _plain(value: Any) -> Value:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _written(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _text(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    value = "" if value is None else value
    return value if len(value) <= WIDE else f"{value[: WIDE - 1]}…"


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A figure, what it is called in figures/ and on the page, what it shows, and its numbers.

    name: of letters, digits and "_". alt: in words, for those who do not see it.
    """

    name: str
    alt: str
    figure: figures.Figure
    numbers: Numbers

    def __post_init__(self) -> None:
        """Refuses a name that is no file name, and a picture without words."""
        if not re.fullmatch(r"[A-Za-z0-9_]+", self.name) or not self.alt.strip():
            raise PictureError(
                f"picture {self.name!r}, described as {self.alt!r}; takes a name of letters, "
                "digits and '_', and a description"
            )


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture on disk: `path` is the PNG's, beside which its numbers lie as CSV.

    size: width and height in pixels.
    """

    name: str
    alt: str
    path: pathlib.Path
    size: tuple[int, int]
    numbers: Numbers


def save(pictures: Iterable[Picture], folder: pathlib.Path) -> dict[str, Drawn]:
    """Writes a PNG and a CSV of each as it comes, and frees its figure; returns them by name.

    Raises PictureError where two have one name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Drawn] = {}
    for picture in pictures:
        faults.check("the report")
        if picture.name in drawn:
            raise PictureError(f"two pictures are called {picture.name!r}; takes distinct names")
        path = folder / f"{picture.name}.png"
        width, height = picture.figure.canvas.get_width_height()
        figures.save(picture.figure, path)
        files.write_atomically(
            path.with_suffix(".csv"), picture.numbers.csv(), "a figure's numbers"
        )
        drawn[picture.name] = Drawn(
            picture.name, picture.alt, path, (width, height), picture.numbers
        )
    return drawn
