"""Pictures that take networks, for the report: maps of features, saliency, denoising strips.

Made of finished artifacts, and of train and val images alone: nothing here asks for a row of test,
and which arms and images are shown is decided by val (`evaluate.shown`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lt_jax import preflight
from lt_jax.classify import saliency
from lt_jax.config.evaluate import PICTURES
from lt_jax.context import Context
from lt_jax.data.pool import PoolReader
from lt_jax.diffusion import program, requests, strips, trained
from lt_jax.evaluate import metrics
from lt_jax.evaluate.images import maps
from lt_jax.evaluate.images.explained import Answer, Example, Pictures, Saliency, Strip, Strips
from lt_jax.evaluate.images.maps import Maps
from lt_jax.evaluate.report import shown
from lt_jax.evaluate.report.inputs import Arm, ReportInputs, Run, sorted_runs
from lt_jax.runtime import keys
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.progress import say
from lt_jax.shapes import Int, Params

STRIPS = 8  # classes


def before_test(context: Context) -> Pictures:
    """Maps and strips, which take a pool and nothing of the classifiers: what fails here fails
    before the test split is opened."""
    return _made(
        context,
        {
            "maps": lambda costs: _maps(context, costs),
            "strips": lambda costs: _strips(context, costs),
        },
    )


def compute(context: Context, inputs: ReportInputs, before: Pictures | None = None) -> Pictures:
    """The parts that `config.evaluate.pictures` names, as far as the run has what they take.

    Saliency takes a val split. `before`: what `before_test` has made; made here if None.
    """
    before = before_test(context) if before is None else before
    rest = _made(context, {"saliency": lambda costs: _saliency(context, inputs, costs)})
    costs = {**before.costs, **rest.costs}
    costs = {name: costs[name] for name in PICTURES if name in costs}
    return dataclasses.replace(before, saliency=rest.saliency, costs=costs)


def _made(context: Context, parts: Mapping[str, Callable[[Ledger], Any]]) -> Pictures:
    made: dict[str, Any] = {}
    costs: dict[str, Ledger] = {}
    for name, make in parts.items():
        if name not in context.config.evaluate.pictures:
            continue
        spent = Ledger()
        clock = Clock(spent)
        made[name] = make(spent)
        clock.read()
        if made[name] is not None:
            costs[name] = spent
            say(f"pictures, {name}: {spent.images:,} images in {spent.seconds:.1f} s")
    return Pictures(**made, costs=costs)


def _pool(context: Context) -> PoolReader | None:
    if "synthesize" not in context.specs:
        return None
    return PoolReader(context.folder("synthesize"), context.data[0].sha256)


def _maps(context: Context, costs: Ledger) -> Maps | None:
    """Of real train and val images and of accepted synthetic ones, by the extractor's features."""
    pool = _pool(context)
    if pool is None:
        return None
    manifest, _ = context.data
    accepted = np.flatnonzero(pool.columns["verdict"] == "accepted")
    real = {split: context.evidence(split) for split in ("train", "val")}
    held = [
        (kind, found.labels, found.features, [manifest.ids[row] for row in manifest.rows(kind)])
        for kind, found in real.items()
        if found is not None
    ]
    names = [f"pool {index}" for index in pool.columns["index"][accepted].tolist()]
    held.append(("synthetic", pool.columns["label"][accepted], None, names))
    kinds = np.concatenate([np.full(len(h[1]), maps.KINDS.index(h[0])) for h in held])
    labels = np.concatenate([h[1] for h in held])
    seed = context.config.evaluate.seed
    chosen = maps.subset(labels, kinds, seed)
    synthetic = chosen[kinds[chosen] == maps.KINDS.index("synthetic")]
    behind = len(labels) - len(accepted)  # images of the pool stand last
    extractor = context.classifier_params("extractor", context.config.extractor.model)
    features = [h[2] for h in held if h[2] is not None]
    some = np.concatenate(features)[chosen[chosen < behind]]
    if len(synthetic):
        of_pool = context.features(extractor, pool, accepted[synthetic - behind])
        some = np.concatenate([some, of_pool])
    costs.images += len(synthetic)
    every = [name for h in held for name in h[3]]
    return maps.compute(
        some,
        labels[chosen],
        kinds[chosen],
        tuple(every[i] for i in chosen.tolist()),
        {h[0]: len(h[1]) for h in held},
        seed,
    )


def _saliency(context: Context, inputs: ReportInputs, costs: Ledger) -> Saliency | None:
    """Of val images that the baseline has right and wrong, by it and by the arm best on val."""
    by_name = {arm.name: arm for arm in inputs.arms}
    arms = [by_name[name] for name in shown.best(inputs)]
    runs = [sorted_runs(arm)[0] for arm in arms]
    labels = inputs.dataset.val_labels
    logits = [run.val_logits for run in runs]
    if labels is None or any(own is None for own in logits):
        return None
    probabilities = [metrics.softmax(own, "val") for own in logits if own is not None]
    counts = inputs.dataset.train_counts
    rows = examples(probabilities[0].argmax(axis=1), labels, shown.classes(counts))
    if not len(rows):
        return None
    answers = [
        _answers(context, arm, run, found, rows, costs)
        for arm, run, found in zip(arms, runs, probabilities, strict=True)
    ]
    manifest, images = context.data
    val = manifest.rows("val")[rows]
    pictures = images[val]
    return Saliency(
        arms=tuple((arm.name, run.seed) for arm, run in zip(arms, runs, strict=True)),
        examples=tuple(
            Example(manifest.ids[row], int(manifest.labels[row]), pictures[i], tuple(own))
            for i, (row, own) in enumerate(zip(val, zip(*answers, strict=True), strict=True))
        ),
        steps=saliency.STEPS,
    )


def examples(
    predicted: Int[np.ndarray, "v"], labels: Int[np.ndarray, "v"], classes: Int[np.ndarray, "c"]
) -> Int[np.ndarray, "n"]:
    """Of each class the first image that is predicted right and the first that is not."""
    chosen = []
    for c in classes:
        own = labels == c
        for which in (own & (predicted == labels), own & (predicted != labels)):
            chosen += np.flatnonzero(which)[:1].tolist()
    return np.array(chosen, int)


def _answers(
    context: Context,
    arm: Arm,
    run: Run,
    probabilities: np.ndarray,
    rows: Int[np.ndarray, "n"],
    costs: Ledger,
) -> list[Answer]:
    """What a run says of those images of val."""
    config, (manifest, images) = context.config.classify, context.data
    model = preflight.classifier_of(config.model, config.arms[arm.name])
    params = context.classifier_params(f"classify/{arm.name}/seed{run.seed}", model)
    k = len(manifest.classes)
    pictures = images[manifest.rows("val")[rows]]
    rolled = saliency.rollout(model, k, params, pictures)
    costs.images += (rolled is not None) * len(rows) + saliency.passes() * len(rows)
    answers = []
    for i, own in enumerate(probabilities[rows]):
        predicted = int(own.argmax())
        found = saliency.integrated_gradients(model, k, params, pictures[i : i + 1], predicted)
        rollout = None if rolled is None else rolled[i]
        answers.append(Answer(predicted, float(own[predicted]), *found, rollout))
    return answers


def _strips(context: Context, costs: Ledger) -> Strips | None:
    """Of the first accepted image of each of the rarest classes that have one."""
    pool = _pool(context)
    if pool is None:
        return None
    config, (manifest, images) = context.config.synthesize, context.data
    order = shown.classes(manifest.counts("train"), len(manifest.classes)).tolist()
    classes = [k for k in order if len(pool.rows(k))][:STRIPS]
    if not classes:
        return None
    first = np.array([pool.rows(k)[0] for k in classes])
    indices = np.asarray(pool.columns["index"][first], np.int32)
    asked = requests.Requests(config, context.generator, context.annotations, manifest, images)
    networks = program.Networks(context.generator, context.config.extractor.model, asked.present)
    params: Params = trained.load(context.folder("generator"), context.generator, config.ema_length)
    key = keys.stream(keys.root(config.seed), "synthesize")
    request, _ = asked(indices)
    made, log_snr = strips.make_program(config, networks)(
        params, key, jnp.asarray(indices), request
    )
    costs.images += len(classes) * strips.passes(config, networks)
    estimates, kept = np.asarray(made), pool[first]
    return Strips(
        log_snr=np.asarray(log_snr, float),
        steps=config.steps,
        pool=requests.describe(config),
        strips=tuple(
            Strip(k, int(indices[i]), estimates[:, i], kept[i]) for i, k in enumerate(classes)
        ),
    )
