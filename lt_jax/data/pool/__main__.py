"""Command line of a finished pool: look at it, export it, check it.

python -m lt_jax.data.pool inspect runs/demo/synthesize --out pictures
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from lt_jax.data.pool import export, pictures, summary, verify
from lt_jax.data.pool.reader import open_pool
from lt_jax.data.pool.schema import VERDICTS
from lt_jax.errors import in_one_line
from lt_jax.runtime.progress import Progress

_WIDEST = 10_000  # characters of a line


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; exits 1 with one line where it cannot, or where a pool is not intact."""
    given = _parser().parse_args(argv)
    with in_one_line():
        given.run(given)


def _inspect(given: argparse.Namespace) -> None:
    pool = open_pool(given.folder)
    for sheet in summary.of(pool):
        show(sheet)
    for line in summary.unmet(pool):
        print(line)
    if given.out is not None:
        with Progress("inspect", 2 * len(pool.info.classes), "picture") as bar:
            written = pictures.write(pool, given.out, bar.update)
        print(f"{len(written)} pictures: {given.out}")


def _export(given: argparse.Namespace) -> None:
    pool = open_pool(given.folder)
    with Progress("export", len(pool), "image") as bar:
        records, images = export.export(pool, given.folder, given.out, given.verdict, bar.update)
    print(f"{records} records, {images} images: {given.out}")


def _verify(given: argparse.Namespace) -> None:
    pool, wrong = open_pool(given.folder), 0
    with Progress("verify", len(pool), "record") as bar:
        for problem in verify.problems(pool, given.folder, bar.update):
            print(problem)
            wrong += 1
    if wrong:
        sys.exit(f"lt_jax: {given.folder}: {wrong} problems among {len(pool)} records")
    print(f"{len(pool)} records, all intact")


def show(sheet: summary.Sheet) -> None:
    """Prints a table, as wide as its cells: a terminal wraps it, and a file keeps it whole."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headed = any(sheet.columns)
    table = Table(
        title=Text(sheet.title), title_justify="left", box=SIMPLE_HEAD, show_header=headed
    )
    for number, name in enumerate(sheet.columns):
        right = "right" if number and headed else "left"
        table.add_column(Text(name), justify=right, no_wrap=True)
    for row in sheet.rows:
        table.add_row(*map(Text, row))  # Text: a class may be called [b]
    Console(highlight=False, width=_WIDEST).print(table)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m lt_jax.data.pool", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="inspect|export|verify")

    def command(name: str, run: object, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.add_argument("folder", metavar="DIR", type=pathlib.Path, help="<workdir>/synthesize")
        added.set_defaults(run=run)
        return added

    inspect = command("inspect", _inspect, "counts, rates and quantiles a class; pictures")
    inspect.add_argument("--out", metavar="FOLDER", type=pathlib.Path, help="for PNG pictures")
    to = command("export", _export, "PNG files in a folder a class, and a CSV table")
    to.add_argument("out", metavar="OUT", type=pathlib.Path, help="an empty or a new folder")
    to.add_argument("--verdict", choices=(*VERDICTS, export.ALL), default=VERDICTS[0])
    command(
        "verify", _verify, "every hash, shard, table and verdict; exits 1 where something is wrong"
    )
    return parser


if __name__ == "__main__":
    main()
