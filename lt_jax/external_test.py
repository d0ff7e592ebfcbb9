r"""A second data set as a test set alone: a run's finished classifiers on images from elsewhere.

    python -m lt_jax.external_test --config=configs/ham10000.py --workdir=runs/ham10000 \
        --config.data.root=HAM --source=isic2019 --root=ISIC --out=runs/ham10000_on_isic2019

`--config`, `--workdir` and `--cache` are those of the run. Nothing is trained, calibrated or
chosen: the classifiers are used as they are. Of the other source those images are taken that the
run's classes name (`--classes` and `--label` as in config.data where they are named otherwise
there), all but those that the run has had and their near-duplicates, found over the square images
at the run's size by its own `data.duplicate_distance` (`near_duplicates=off`: exact copies alone).
A generator that was adapted has more behind it than the run: exact copies of what its base was
trained on are left out, too; near-duplicates of these cannot be, since no more than their hashes
is known. The protocol in the report counts all three. Other photographs of the same lesion are not
known as such. The report in `--out` is like the run's, its groups and labels those of the other
source.
"""

import dataclasses
import json
import pathlib

import numpy as np
from absl import flags

from lt_jax import command, preflight, reporting
from lt_jax import config as config_lib
from lt_jax.classify import predict
from lt_jax.context import Context
from lt_jax.data import draws, duplicates, prepare
from lt_jax.data.images import Images
from lt_jax.data.manifest import SplitManifest
from lt_jax.evaluate import report as report_lib
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import distributed, faults
from lt_jax.runtime.progress import Progress


def run(
    pipeline: Pipeline, data: config_lib.DataConfig, out: pathlib.Path
) -> report_lib.ReportInputs:
    """Prepares the other source in `out`, asks every classifier about it, and writes the report.

    Args:
      pipeline: whose stages `classify` are finished.
      data: of the other source; size and channels are the run's, and so are the classes where none
        are given.
      out: a folder; the opening of its labels is logged there.

    Raises:
      ConfigError: the run is not finished, or the classes are others.
    """
    context = pipeline.finished("classify")
    own, _ = context.data
    data = dataclasses.replace(
        data,
        near_duplicates=context.config.data.near_duplicates,
        duplicate_distance=context.config.data.duplicate_distance,
        image_size=context.config.data.image_size,
        channels=context.config.data.channels,
        classes=data.classes or own.classes,
    )
    folder = out / "prepare"
    folder.mkdir(parents=True, exist_ok=True)
    with faults.lock(out), Progress("external", 0, "image") as bar:
        prepare.prepare(data, folder, bar.of, known=_known(context, data))
        manifest, images = prepare.load(folder, data)
        if manifest.classes != own.classes:
            raise config_lib.ConfigError(
                f"--classes: got {', '.join(manifest.classes)}; takes the run's, in their order: "
                f"{', '.join(own.classes)}"
            )
        inputs = _inputs(context, manifest, images, out)
        report_lib.write(inputs, out)
    return inputs


def _known(context: Context, data: config_lib.DataConfig) -> draws.Known:
    """What the run has had; for near-duplicates as its squares, which may be all that is left."""
    own, images = context.data
    rows = range(len(own)) if data.near_duplicates != "off" else ()
    thumbnails = np.zeros((len(rows), duplicates.THUMBNAIL, duplicates.THUMBNAIL), np.float32)
    if len(rows):
        with Progress("external, the run's own images", len(rows), "image") as bar:
            for row in rows:
                faults.check("the search for near-duplicates")
                thumbnails[row] = duplicates.thumbnail(images[np.array([row])][0])
                bar.update(row + 1)
    seen = frozenset(_seen_by_generator(context))
    return draws.Known(frozenset(own.image_sha256), thumbnails, seen)


def _seen_by_generator(context: Context) -> list[str]:
    """sha256 of every image that the run's generator, or a base of it, was trained on, if any."""
    if (spec := context.specs.get("generator")) is None or not context.store.done(spec):
        return []
    return json.loads((context.folder("generator") / "generator.json").read_text())["seen"]


def _inputs(
    context: Context, manifest: SplitManifest, images: Images, out: pathlib.Path
) -> report_lib.ReportInputs:
    own, _ = context.data
    logits = {
        (name, seed): _logits(context, name, seed, images)
        for name in context.config.classify.arms
        for seed in context.config.classify.seeds
    }
    own_ids = tuple(own.ids[row] for row in own.rows("test"))
    log = out / "test_openings.jsonl"
    _, labels = manifest.open_test(log, f"external test: {context.command}")
    config = context.config
    dataset = reporting.dataset_of(config, own, labels, len(log.read_text().splitlines()))
    return report_lib.ReportInputs(
        command=context.command,
        config=config_lib.to_dict(config),
        environment=reporting.environment(),
        dataset=dataclasses.replace(
            dataset,
            name=f"{manifest.protocol['source']} (trained on {dataset.name})",
            manifest_sha256=manifest.sha256,
            protocol=json.dumps(dict(manifest.protocol), default=str),
            test_groups=list(manifest.groups),
        ),
        arms=tuple(
            _arm(reporting.arm_of(name, context, own, own_ids), logits)
            for name in config.classify.arms
        ),
        evaluate=config.evaluate,
        tau=config.classify.logit_adjustment,
        skipped=[str(entry) for entry in manifest.protocol["skipped"]],
    )


def _logits(context: Context, arm: str, seed: int, images: Images) -> np.ndarray:
    """What a finished classifier says of all images [n k]."""
    config, own = context.config.classify, context.data[0]
    model = preflight.classifier_of(config.model, config.arms[arm])
    params = context.classifier_params(f"classify/{arm}/seed{seed}", model)
    forward = predict.make_forward(model, len(own.classes), context.mesh)
    return predict.predict(forward, params, images, np.arange(len(images)), config.batch_size)[0]


def _arm(arm: report_lib.Arm, logits: dict[tuple[str, int], np.ndarray]) -> report_lib.Arm:
    runs = [dataclasses.replace(run, test_logits=logits[arm.name, run.seed]) for run in arm.runs]
    return dataclasses.replace(arm, runs=tuple(runs))


def main(_: list[str]) -> None:
    """Asks every classifier of a run about another source."""
    out = pathlib.Path(flags.FLAGS.out)
    with command.ending():
        line = command.line("lt_jax.external_test")
        pipeline = Pipeline(command.config(), command.workdir(), command.cache(), line)
        command.use_devices(pipeline.config.runtime, command.cache() or command.workdir())
        data = config_lib.DataConfig(
            source=flags.FLAGS.source,
            root=flags.FLAGS.root,
            csv=flags.FLAGS.csv,
            label=flags.FLAGS.label,
            classes=tuple(flags.FLAGS.classes),
            on_bad_image=pipeline.config.data.on_bad_image,
            decode_once_mib=pipeline.config.data.decode_once_mib,
            follow_links=pipeline.config.data.follow_links,
        )
        if distributed.on_first(lambda: run(pipeline, data, out)) is not None:
            print(report_lib.text_table(report_lib.read(out / "report.json")))
            print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "another source; as config.data.source", required=True)
    flags.DEFINE_string("root", "", "where its images lie")
    flags.DEFINE_string("csv", "", "its table, of the source `folder`")
    flags.DEFINE_string("label", "label", "its column that is classified")
    flags.DEFINE_multi_string("classes", [], "a class each, in the run's order; see config")
    flags.DEFINE_string("out", None, "folder of the report", required=True)
    command.start(main)
