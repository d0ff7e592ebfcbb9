"""The report's page: one HTML file that holds its pictures and their numbers, and needs no script.

A section is an entry of SECTIONS, where it stands in the table of contents and whether there is
anything to say in it, and a heading in one of the templates.
"""

import base64
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from lt_jax.evaluate.images import fidelity
from lt_jax.evaluate.metrics import PRIMARY
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.report import (
    audit_page,
    chart_pictures,
    detection_page,
    explained_figures,
    mixing,
    mixing_figures,
    nearness,
    picture,
    prediction_figures,
    sections,
    shown,
)
from lt_jax.evaluate.report.chart_pictures import GALLERIES, MAX_CLASSES
from lt_jax.evaluate.report.inputs import GROUPS, REASONS, ReportInputs
from lt_jax.evaluate.report.picture import Drawn, Numbers, Picture
from lt_jax.evaluate.statistics import ArmPredictions, ArmStatistics, tables
from lt_jax.evaluate.statistics.curves import RESAMPLES

SECTIONS = {
    "summary": "Summary",
    "data": "The data",
    "arms": "The arms",
    "paired": "Paired comparisons",
    "classes": "Class by class",
    "groups": "Group level",
    "tests": "Classical tests",
    "calibration": "Calibration",
    "curves": "ROC and PR curves",
    "confusion": "Confusion matrices",
    "pool": "The pool",
    "fidelity": "Fidelity",
    "copies": "Copies of train images",
    "audit": "Audit",
    "detection": "Lesion detection",
    "mixing": "Mixing policy",
    "maps": "Maps of features",
    "saliency": "Saliency",
    "strips": "Denoising strips",
    "costs": "Costs",
    "config": "Config and versions",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """All that the page is made of: what was given, what report.json says, and in between."""

    inputs: ReportInputs
    written: Mapping[str, Any]
    plain: Mapping[str, ArmStatistics]
    adjusted: Mapping[str, ArmStatistics]
    predictions: tuple[ArmPredictions, ...]
    truth: Truth

    @property
    def positive(self) -> int | None:
        """The positive class of two."""
        name = self.written["statistics"]["positive"]
        return None if name is None else self.inputs.dataset.classes.index(name)


def pictures(content: Content) -> Iterator[Picture]:
    """All of them, one at a time."""
    inputs, written, plain = content.inputs, content.written, content.plain
    return itertools.chain(
        chart_pictures.data(inputs),
        chart_pictures.arms(inputs, plain),
        prediction_figures.pictures(
            inputs, content.predictions, plain, content.truth, content.positive
        ),
        chart_pictures.fidelity(inputs.pool),
        nearness.pictures(inputs),
        audit_page.pictures(written["audit"], MAX_CLASSES),
        detection_page.pictures(written["detection"]),
        mixing_figures.pictures(inputs, MAX_CLASSES),
        explained_figures.pictures(inputs.pictures, inputs.dataset),
        chart_pictures.costs(inputs),
    )


def draw(content: Content, folder: pathlib.Path) -> dict[str, Drawn]:
    """Writes the pictures and their numbers; returns them by name."""
    return picture.save(pictures(content), folder)


def render(content: Content, drawn: Mapping[str, Drawn]) -> str:
    """The page as HTML; every text is escaped, every picture and its numbers are embedded."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _png
    environment.filters["csv"] = _csv
    environment.filters["breakable"] = lambda text: markupsafe.Markup(
        markupsafe.escape(text).replace("_", markupsafe.Markup("_<wbr>"))
    )
    environment.tests["in_group"] = lambda name, group: name.startswith(f"{group}_")
    told = {**_evidence(content), **_background(content)}
    titles = {name: title for name, title in SECTIONS.items() if _present(name, told, drawn)}
    return environment.get_template("report.html.jinja").render(
        **told, drawn=drawn, sections=titles, number=sections.number
    )


def _present(name: str, told: Mapping[str, Any], drawn: Mapping[str, Drawn]) -> bool:
    """Whether a section has anything to say."""
    if name in ("saliency", "strips"):
        return any(key.startswith(name) for key in drawn)
    if name in ("maps", "curves"):
        return any(key.startswith({"maps": "map_", "curves": "curves_"}[name]) for key in drawn)
    asked = {
        "groups": "by_group",
        "tests": "test_grids",
        "fidelity": "fidelity_grid",
        "copies": "copies",
        "audit": "audit",
        "detection": "detection",
    }
    return name not in asked or bool(told[asked[name]])


def _evidence(content: Content) -> dict[str, Any]:
    """What the sections on arms read."""
    inputs, written, plain = content.inputs, content.written, content.plain
    arms, data = written["arms"], inputs.dataset
    baseline = inputs.evaluate.baseline
    rival = next((a["paired_real"]["baseline"] for a in arms if "paired_real" in a), None)
    test_grids = {
        reference: grid
        for key, reference in (("paired_tests", baseline), ("paired_real_tests", rival))
        if reference and (grid := sections.tests(arms, key, reference, data))
    }
    against = {name: s.against_rival for name, s in plain.items()}
    return {
        "arms": sections.arms(plain, arms),
        "adjusted": sections.arms(content.adjusted, arms),
        "other_compute": any(map(sections.compute, arms)),
        "score_intervals": sections.score_intervals(arms),
        "paired": sections.paired({n: s.comparisons for n, s in plain.items()}, baseline),
        "paired_real": sections.paired(against, rival) if rival else None,
        "rival": rival,
        "by_class": sections.classes(arms, data),
        "positive": sections.positive(arms),
        "by_group": sections.by_group(arms),
        "test_grids": test_grids,
        "shown_arms": shown.arms(inputs),
        "shown_by_val": shown.by_val(inputs),
        "shown_classes": shown.CLASSES,
        "band_resamples": min(inputs.evaluate.resamples, RESAMPLES),
        "one_seed": any(s.summaries[PRIMARY].n == 1 for s in plain.values()),
        "one_seed_note": tables.ONE_SEED,
    }


def _background(content: Content) -> dict[str, Any]:
    """What the other sections read."""
    inputs, written, plain = content.inputs, content.written, content.plain
    arms, data, pool = written["arms"], inputs.dataset, written["pool"]
    return {
        "report": written,
        "evaluate": inputs.evaluate,
        "groups": GROUPS,
        "test_images": len(data.test_labels),
        "protocol": sections.protocol(data.protocol),
        "few_groups": sections.few_groups(written),
        "hidden_classes": max(0, len(data.classes) - MAX_CLASSES),
        "galleries": GALLERIES,
        "reasons": list(dict.fromkeys([*REASONS, *pool["rejected"]])),
        "class_columns": list(dict.fromkeys(k for row in pool["per_class"] for k in row)),
        "doses": mixing.doses(arms, data, MAX_CLASSES),
        "fidelity_grid": sections.fidelity_rows(pool["fidelity"]),
        "copies": nearness.table(pool["memorization"], data, MAX_CLASSES),
        "least": {"fd": fidelity.FD_LEAST, "nearest": fidelity.NEAREST_LEAST},
        "audit": audit_page.sections(written["audit"]),
        "detection": detection_page.section(written["detection"]),
        "mixing": mixing.section(inputs, plain, MAX_CLASSES),
        "explained": inputs.pictures,
        "ledger": sections.ledger(arms),
        "config": json.dumps(written["config"], indent=2, ensure_ascii=False),
    }


def _png(drawn: Drawn) -> str:
    return "data:image/png;base64," + base64.b64encode(drawn.path.read_bytes()).decode("ascii")


def _csv(numbers: Numbers) -> str:
    return "data:text/csv;base64," + base64.b64encode(numbers.csv().encode()).decode("ascii")
