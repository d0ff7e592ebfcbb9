"""CSV tables that sources read, with errors that name file, line and column."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lt_jax.data.sources import Attribute, SourceError

Row = Mapping[str, str]


def read_csv(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a comma-separated UTF-8 file with a header line, values stripped of blanks.

    Raises:
      SourceError: no such file, not readable as CSV, a required column missing, no rows, or a row
        with more or fewer fields than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, line) for line in reader if line]
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; check config.data.root") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as comma-separated UTF-8: {error}") from error
    if missing := [name for name in required if name not in header]:
        raise SourceError(
            f"{path}: no column {missing[0]!r}; the header has {', '.join(header) or 'nothing'}"
        )
    for number, line in lines:
        if len(line) != len(header):
            raise SourceError(
                f"{path}, line {number}: {len(line)} fields where the header has {len(header)}"
            )
    if not lines:
        raise SourceError(f"{path}: a header and no rows")
    return [dict(zip(header, map(str.strip, line), strict=True)) for _, line in lines]


def attributes(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, Attribute]]:
    """The given columns of each row: numbers where a whole column is numbers, None where empty."""
    typed = {name: _column([row[name] for row in rows]) for name in columns}
    return [{name: typed[name][i] for name in columns} for i in range(len(rows))]


def one_hot_label(row: Row, classes: Sequence[str], where: str) -> int:
    """The index of the one class column that holds 1.

    Raises:
      SourceError: a value that is no number, or no class or several marked.
    """
    marks = [_number(row[name]) for name in classes]
    if sorted(marks, key=lambda mark: -1.0 if mark is None else mark) != (
        [0.0] * (len(classes) - 1) + [1.0]
    ):
        raise SourceError(
            f"{where}: takes a 1 for one of {', '.join(classes)} and 0 for the others; "
            f"got {', '.join(row[name] or 'nothing' for name in classes)}"
        )
    return marks.index(1.0)


def _column(values: Sequence[str]) -> list[Attribute]:
    numbers = [_number(value) for value in values]
    if all(number is not None or not value for number, value in zip(numbers, values, strict=True)):
        return list(numbers)
    return [value or None for value in values]


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
