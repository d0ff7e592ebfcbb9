"""Command line of the visual Turing test: make a page for readers, score what they send back.

python -m lt_jax.evaluate.turing make --pool runs/demo --n 300
python -m lt_jax.evaluate.turing score results1.json results2.json --key turing.key.json
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

from lt_jax.data.splits import SPLITS
from lt_jax.errors import in_one_line
from lt_jax.evaluate.statistics import tables
from lt_jax.evaluate.turing import draw, page, study, summary
from lt_jax.evaluate.turing.score import score
from lt_jax.runtime import files
from lt_jax.runtime.progress import Progress


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; exits 1 with one line where it cannot."""
    given = _parser().parse_args(argv)
    with in_one_line():
        given.run(given)


def _make(given: argparse.Namespace) -> None:
    inputs = draw.open_inputs(given.pool, given.real)
    with Progress("turing", given.n, "image") as bar:
        drawn = draw.draw(inputs, given.n, given.seed, given.split, bar.update)
    name, text = page.render(drawn.images, given.confidence, given.scale)
    ids = page.image_ids(name, given.n)
    rows = zip(ids, drawn.synthetic, drawn.labels, drawn.sources, strict=True)
    key = study.Key(
        study=name,
        seed=given.seed,
        split=given.split,
        manifest_sha256=inputs.manifest.sha256,
        generator=inputs.pool.info.generator,
        pool_sha256=inputs.pool_sha256,
        classes=inputs.manifest.classes,
        items=tuple(study.Item(*row) for row in rows),
    )
    path = _key_path(given.out)
    if path.exists() and (held := study.load_key(path).study) != name:
        raise study.StudyError(
            f"{path} is the key of another study ({held}), whose results could not be scored "
            "without it; give another --out, or move it"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    key.save(path)  # first: a page without its key is worth nothing
    files.write_atomically(given.out, text, "the study's page")
    print(tables.to_text(_counts(drawn, given.split)))
    print(f"\nleft out: {', '.join(f'{n} {why}' for why, n in drawn.left_out.items())}")
    if given.split == "test":
        print(f"test labels opened; logged in {inputs.log}")
    print(f"page: {given.out}, {len(text) / 1024:,.0f} KiB (give this one file to each reader)")
    print(f"key:  {path} (keep it from the readers; `score` needs it)")


def _score(given: argparse.Namespace) -> None:
    key = study.load_key(given.key)
    results = [study.load_results(path, key) for path in given.results]
    found = score(key, results, given.resamples, given.seed)
    print(summary.to_text(found))
    if given.json is not None:
        text = json.dumps(summary.to_json(found), indent=1, allow_nan=False)
        files.write_atomically(given.json, text + "\n", "the score")


def _counts(drawn: draw.Drawn, split: str) -> tables.Table:
    """What is shown of each class; classes with less than an equal share are marked."""
    most = max(count.shown for count in drawn.counts)
    rows = tuple(
        (
            c.name,
            c.real,
            c.synthetic,
            c.shown,
            "fewer: no more at hand" if c.shown < most - 1 else "",
        )
        for c in drawn.counts
    )
    columns = ("Class", f"Real ({split})", "Synthetic (accepted)", "Shown of each", "")
    return tables.Table(columns, rows)


def _key_path(out: pathlib.Path) -> pathlib.Path:
    """turing.html -> turing.key.json"""
    return out.with_name(f"{out.stem}.key.json")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m lt_jax.evaluate.turing", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="make|score")
    what = "writes the page that readers get, and the key that they do not get"
    make = commands.add_parser("make", help=what, description=what)
    make.set_defaults(run=_make)
    folder = lambda name, **more: make.add_argument(name, metavar="DIR", type=pathlib.Path, **more)
    folder("--pool", required=True, help="<workdir>/synthesize, or the workdir")
    folder("--real", help="<workdir>/prepare, or the workdir; default: the pool's own")
    make.add_argument("--n", type=int, default=300, help="images, half of them real (300)")
    make.add_argument("--seed", type=_count(0), default=0, help="of the draw (0)")
    make.add_argument("--split", choices=SPLITS, default="val", help="of the real images (val)")
    make.add_argument("--confidence", action="store_true", help="also ask for confidence, 1 to 5")
    make.add_argument(
        "--scale", metavar="N", type=_count(1), default=0, help="CSS pixels a pixel (as fits)"
    )
    make.add_argument("--out", metavar="HTML", type=pathlib.Path, default="turing.html")
    what = "accuracy of each reader, agreement, and what all of them could tell"
    scored = commands.add_parser("score", help=what, description=what)
    scored.set_defaults(run=_score)
    scored.add_argument("results", nargs="+", metavar="JSON", type=pathlib.Path)
    scored.add_argument("--key", metavar="JSON", type=pathlib.Path, default="turing.key.json")
    scored.add_argument("--json", metavar="OUT", type=pathlib.Path, help="write the score there")
    scored.add_argument("--resamples", type=_count(100), default=10_000)
    scored.add_argument("--seed", type=_count(0), default=0)
    return parser


def _count(least: int):
    """A type of argument: a whole number of at least this."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"got {value}; takes {least} or more")
        return value

    number.__name__ = "whole number"
    return number


if __name__ == "__main__":
    main()
