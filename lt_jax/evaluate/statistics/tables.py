"""One table writer for terminal, Markdown, LaTeX and JSON: no mean without spread and n.

Cells are text, integers, `Summary`, `Comparison`, `Proportion`, `Share`, `McNemar`, `DeLong` or
`FoldTest`.
A bare float, or text that is one, is refused: a mean comes with its spread over seeds and their
number, a share with its numerator and denominator, a p-value with the estimate that it is of, and a
single seed is marked as such.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lt_jax.evaluate.statistics.hypothesis import DeLong, FoldTest, McNemar
from lt_jax.evaluate.statistics.intervals import Proportion
from lt_jax.evaluate.statistics.results import Comparison, Share, Summary

Estimate = Summary | Comparison | Proportion | Share | McNemar | DeLong | FoldTest
Cell = str | int | Estimate
T = TypeVar("T", Summary, Comparison, McNemar, DeLong, FoldTest)

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
    "brier": "Brier (lower is better)",
    "log_loss": "Log loss (lower is better)",
    "sensitivity_at_specificity": "Sens. at fixed spec.",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity": "Sensitivity",
    "f1": "F1",
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
                        "Summary (mean with std and n), a Comparison, a Proportion or a test, "
                        "never a bare number"
                    )

    def has_single_seed(self) -> bool:
        """Whether any cell rests on one seed."""
        cells = [cell for row in self.rows for cell in row]
        return any(cell.n == 1 for cell in cells if isinstance(cell, Summary | Comparison))


def _is_fraction(cell: Cell) -> bool:
    """Whether it is text that a number with a fraction is printed as; `244e230242` is a name."""
    if not isinstance(cell, str):
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return any(mark in cell.lower() for mark in (".", "e+", "e-", "nan", "inf"))


def format_cell(cell: Cell, digits: int = 3) -> str:
    """One cell as text: `0.732 ± 0.006 (n=3)`, `0.732 (n=1*)`, `45/50 = 0.900 [0.786, 0.957]`, or
    an estimate with its interval, p-values and n."""
    match cell:
        case Summary(mean=None):
            return UNDEFINED
        case Summary(std=None):
            return f"{cell.mean:.{digits}f} (n=1*)"
        case Summary():
            return f"{cell.mean:.{digits}f} ± {cell.std:.{digits}f} (n={cell.n})"
        case Comparison():
            more = "" if cell.effect is None else f"g_z={cell.effect:+.2f}"
            parts = (*comparison_parts(cell, digits), _bh(cell), more)
            return ", ".join(part for part in parts if part)
        case Proportion(n=0):
            return f"{UNDEFINED} (n=0)"
        case Proportion() | Share():
            share = f"{cell.share:.{digits}f} {format_interval(cell.ci95, digits)}"
            return f"{cell.successes}/{cell.n} = {share}"
        case McNemar() | DeLong() | FoldTest():
            return _format_test(cell, digits)
    return str(cell)


def _bh(cell: Comparison | McNemar | DeLong | FoldTest) -> str:
    return "" if cell.p_bh is None else f"BH {format_p(cell.p_bh)}"


def _format_test(cell: McNemar | DeLong | FoldTest, digits: int) -> str:
    """`b : c alone right, odds ratio 2.4 [1.1, 5.3], p=0.03 (n=200)`, or a difference as above."""
    if isinstance(cell, McNemar):
        odds = UNDEFINED if cell.odds_ratio is None else f"{cell.odds_ratio:.2g}"
        if cell.odds_ci95 is not None:
            low, high = cell.odds_ci95
            odds += f" [{low:.2g}, {'inf' if high is None else format(high, '.2g')}]"
        estimate = f"{cell.first_only} : {cell.second_only} alone right, odds ratio {odds}"
        n = f"n={cell.n}" if cell.groups == cell.n else f"n={cell.n} in {cell.groups} groups"
    else:
        estimate = f"{cell.difference:+.{digits}f} {format_interval(cell.ci95, digits)}"
        n = f"n={cell.n} folds" if isinstance(cell, FoldTest) else ""
    if isinstance(cell, DeLong):
        n = f"n={cell.positives}+{cell.negatives}"
    holm = "" if cell.p_holm is None else f"Holm {format_p(cell.p_holm)}"
    p = ", ".join(part for part in (format_p(cell.p), holm, _bh(cell)) if part)
    return f"{estimate}, {p} ({n})"


def comparison_parts(cell: Comparison, digits: int = 3) -> tuple[str, str]:
    """A comparison in two parts: `+0.021 [0.003, 0.040]` and `p=0.03, Holm p=0.06 (n=3)`."""
    if cell.difference is None:
        return UNDEFINED, ""
    estimate = f"{cell.difference:+.{digits}f} {format_interval(cell.ci95, digits)}"
    mark = "*" if cell.n == 1 else ""
    return estimate, f"{format_corrected(cell.p, cell.p_holm)} (n={cell.n}{mark})"


def format_corrected(p: float | None, p_holm: float | None) -> str:
    """`p=0.03, Holm p=0.06`, or `p=0.03, uncorrected`."""
    holm = "uncorrected" if p_holm is None else f"Holm {format_p(p_holm)}"
    return format_p(None) if p is None else f"{format_p(p)}, {holm}"


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
    lines = [[_markdown(column) for column in table.columns], ["---"] * len(table.columns)]
    lines += [[_markdown(format_cell(cell, table.digits)) for cell in row] for row in table.rows]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*_caption(table), *body, *_note(table, "\\")])


def _markdown(text: str) -> str:
    text = re.sub(r"([\\|*`<])", r"\\\1", text.replace("\n", " "))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it means nothing


# Every character that TeX reads as something else, or that its first font encoding lacks.
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}"}
    | {"±": "$\\pm$", "\n": " "}
)


def to_latex(table: Table) -> str:
    """For a paper: a booktabs tabular, single seeds noted below it; a float if it has a caption."""
    width = len(table.columns)
    head = " & ".join(column.translate(_LATEX) for column in table.columns)
    rows = [" & ".join(_latex_cell(cell, table.digits) for cell in row) for row in table.rows]
    lines = [f"\\begin{{tabular}}{{{'l' * width}}}", "\\toprule", f"{head} \\\\"]
    lines += ["\\midrule", *(f"{row} \\\\" for row in rows), "\\bottomrule"]
    if table.has_single_seed():
        lines += [f"\\multicolumn{{{width}}}{{l}}{{\\footnotesize * {ONE_SEED}}} \\\\"]
    lines.append("\\end{tabular}")
    if table.caption:
        caption = f"\\caption{{{table.caption.translate(_LATEX)}}}"
        lines = ["\\begin{table}", "\\centering", caption, *lines, "\\end{table}"]
    return "\n".join(lines)


def _latex_cell(cell: Cell, digits: int) -> str:
    text = format_cell(cell, digits).translate(_LATEX)
    if isinstance(cell, str):
        # A row's first cell could else be read as the length that \\ takes: \\ [b].
        return f"{{{text}}}" if text.startswith(("[", "*")) else text
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)


def to_json(table: Table) -> list[dict[str, Any]]:
    """One object a row; summaries and comparisons keep their numbers."""
    return [
        {name: cell_to_json(cell) for name, cell in zip(table.columns, row, strict=True)}
        for row in table.rows
    ]


def cell_to_json(cell: Cell) -> Any:
    """A cell as plain JSON values; intervals become lists."""
    if isinstance(cell, Estimate):
        fields = dataclasses.asdict(cell)
        if isinstance(cell, Proportion | Share):
            fields |= {"share": cell.share, "ci95": cell.ci95}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    return cell


def cell_from_json(kind: type[T], value: Mapping[str, Any]) -> T:
    """What `cell_to_json` made of a cell of that kind."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return kind(**fields)


def metrics_table(
    arms: Mapping[str, Mapping[str, Summary]], metrics: Sequence[str], caption: str = ""
) -> Table:
    """Arms by metrics, from each arm's summaries by metric name."""
    rows = tuple((name, *(values[m] for m in metrics)) for name, values in arms.items())
    return Table(("Arm", *(TITLES.get(m, m) for m in metrics)), rows, caption)
