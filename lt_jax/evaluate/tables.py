"""One table writer for terminal, Markdown, LaTeX and JSON: no mean without spread and n.

Cells are text, integers, `Summary` or `Comparison`. A bare float, or text that is one, is refused:
a mean comes with its spread over seeds and their number, and a single seed is marked as such.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lt_jax.evaluate.statistics import Comparison, Summary

Cell = str | int | Summary | Comparison

ONE_SEED = "one seed: no spread over seeds, and the interval says nothing of training noise"
UNDEFINED = "n/a"

TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced acc.",
    "macro_f1": "Macro-F1",
    "auroc_macro": "AUROC",
    "auprc_macro": "AUPRC",
    "ece": "ECE (lower is better)",
    "recall_head": "Recall head",
    "recall_medium": "Recall medium",
    "recall_tail": "Recall tail",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A titled grid of cells.

    Raises:
      TypeError: a cell that is a bare number with a fraction; the message names row and column.
      ValueError: a row of another length than the columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""
    digits: int = 3

    def __post_init__(self) -> None:
        """Checks every cell."""
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {i}: {len(row)} cells for {len(self.columns)} columns")
            for column, cell in zip(self.columns, row, strict=True):
                if not isinstance(cell, Cell) or isinstance(cell, bool) or _is_fraction(cell):
                    raise TypeError(
                        f"row {i}, column {column!r}: got {cell!r}; a cell is text, an integer, a "
                        "Summary (mean with std and n) or a Comparison, never a bare number"
                    )

    def has_single_seed(self) -> bool:
        """Whether any cell rests on one seed."""
        return any(getattr(cell, "n", 0) == 1 for row in self.rows for cell in row)


def _is_fraction(cell: Cell) -> bool:
    if not isinstance(cell, str):
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return not cell.strip().lstrip("+-").isdigit()


def format_cell(cell: Cell, digits: int = 3) -> str:
    """One cell as text: `0.732 ± 0.006 (n=3)`, `0.732 (n=1*)`, or `comparison_parts`."""
    if isinstance(cell, Summary):
        if cell.mean is None:
            return UNDEFINED
        if cell.std is None:
            return f"{cell.mean:.{digits}f} (n=1*)"
        return f"{cell.mean:.{digits}f} ± {cell.std:.{digits}f} (n={cell.n})"
    if isinstance(cell, Comparison):
        return ", ".join(part for part in comparison_parts(cell, digits) if part)
    return str(cell)


def comparison_parts(cell: Comparison, digits: int = 3) -> tuple[str, str]:
    """A comparison in two parts: `+0.021 [0.003, 0.040]` and `p=0.03, Holm p=0.06 (n=3)`."""
    if cell.difference is None:
        return UNDEFINED, ""
    estimate = f"{cell.difference:+.{digits}f} {format_interval(cell.ci95, digits)}"
    mark = "*" if cell.n == 1 else ""
    return estimate, f"{format_p(cell.p)}, Holm {format_p(cell.p_holm)} (n={cell.n}{mark})"


def format_interval(interval: tuple[float, float] | None, digits: int = 3) -> str:
    """A 95% interval, or a statement that there is none."""
    if interval is None:
        return "[no interval]"
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def format_p(p: float | None) -> str:
    """A p-value to two significant digits, as `p=0.031`."""
    if p is None:
        return "no p"
    return "p<0.001" if p < 0.001 else f"p={p:.2g}"


def to_text(table: Table) -> str:
    """For a terminal: aligned columns."""
    body = [[format_cell(cell, table.digits) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *body, strict=True)]
    lines = [_aligned(table.columns, widths), _aligned(["-" * w for w in widths], widths)]
    lines += [_aligned(row, widths) for row in body]
    return "\n".join([*_caption(table), *lines, *_note(table, "")])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip()


def _caption(table: Table) -> list[str]:
    return [table.caption, ""] if table.caption else []


def _note(table: Table, escape: str) -> list[str]:
    return ["", f"{escape}* {ONE_SEED}"] if table.has_single_seed() else []


def to_markdown(table: Table) -> str:
    """For a README."""
    escape: Callable[[str], str] = lambda text: text.replace("|", "\\|").replace("*", "\\*")
    lines = [table.columns, ["---"] * len(table.columns)]
    lines += [[escape(format_cell(cell, table.digits)) for cell in row] for row in table.rows]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*_caption(table), *body, *_note(table, "\\")])


def to_latex(table: Table) -> str:
    """For a paper: a booktabs tabular."""
    special = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})
    head = " & ".join(column.translate(special) for column in table.columns)
    special[ord("±")] = "$\\pm$"
    rows = [
        " & ".join(format_cell(cell, table.digits).translate(special) for cell in row)
        for row in table.rows
    ]
    lines = [f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}", "\\toprule", f"{head} \\\\"]
    lines += ["\\midrule", *(f"{row} \\\\" for row in rows), "\\bottomrule", "\\end{tabular}"]
    return "\n".join(lines + [f"% * {ONE_SEED}"] * table.has_single_seed())


def to_json(table: Table) -> list[dict[str, Any]]:
    """One object a row; summaries and comparisons keep their numbers."""
    return [
        {name: cell_to_json(cell) for name, cell in zip(table.columns, row, strict=True)}
        for row in table.rows
    ]


def cell_to_json(cell: Cell) -> Any:
    """A cell as plain JSON values; intervals become lists."""
    if isinstance(cell, Summary | Comparison):
        fields = dataclasses.asdict(cell)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    return cell


def metrics_table(
    arms: Mapping[str, Mapping[str, Summary]], metrics: Sequence[str], caption: str = ""
) -> Table:
    """Arms by metrics, from each arm's summaries by metric name."""
    rows = tuple((name, *(values[m] for m in metrics)) for name, values in arms.items())
    return Table(("Arm", *(TITLES.get(m, m) for m in metrics)), rows, caption)
