"""Every loss against its formula in NumPy and against the identities that it is known for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.classify import losses
from lt_jax.config import ArmConfig

COUNTS = np.array([400.0, 90.0, 12.5, 3.0])
LABELS = np.array([0, 1, 2, 3, 3, 0])
LOGITS = np.random.default_rng(0).normal(size=(6, 4)) * 3
START, END = 0.0, 1.0


def run(loss, logits=LOGITS, counts=COUNTS, progress=START, labels=LABELS, **options):
    return np.asarray(
        loss(
            jnp.asarray(logits, jnp.float32),
            jnp.asarray(labels),
            jnp.asarray(counts, jnp.float32),
            progress,
            **options,
        )
    )


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def ce(z):
    return -np.log(softmax(z)[np.arange(len(z)), LABELS])


def effective(beta=0.9999, counts=COUNTS):
    w = (1 - beta) / (1 - beta**counts)
    return w * len(w) / w.sum()


def by_hand(name):
    rows = np.arange(len(LABELS))
    if name == "cross_entropy":
        return ce(LOGITS)
    if name == "inverse_weighted":
        return (len(COUNTS) / COUNTS / (1 / COUNTS).sum())[LABELS] * ce(LOGITS)
    if name == "effective_number":
        return effective()[LABELS] * ce(LOGITS)
    if name == "focal":
        return (1 - softmax(LOGITS)[rows, LABELS]) ** 2 * ce(LOGITS)
    if name == "ldam_drw":  # equation 11: the margin in the true class's exponential alone
        margin = 15 * (3.0 / COUNTS[LABELS]) ** 0.25
        others = np.exp(LOGITS).sum(1) - np.exp(LOGITS[rows, LABELS])
        true = np.exp(LOGITS[rows, LABELS] - margin)
        return -np.log(true / (true + others))
    if name in ("balanced_softmax", "lade"):
        weighted = COUNTS * np.exp(LOGITS)
        balanced = -np.log(weighted[rows, LABELS] / weighted.sum(1))
        return balanced if name == "balanced_softmax" else balanced + 0.1 * bounds().sum()
    prior = COUNTS / COUNTS.sum()  # logit_adjusted, as Menon et al. write equation 10: pairwise
    ratio = prior[None, :] / prior[LABELS][:, None]
    difference = LOGITS - LOGITS[rows, LABELS][:, None]
    return np.log((ratio * np.exp(difference)).sum(1))


def bounds(logits=LOGITS, labels=LABELS, counts=COUNTS, mean=np.mean):
    """Hong et al. 2021, equations 7 and 8, class by class: pi_c times its regularised bound."""
    prior, k = counts / counts.sum(), len(counts)
    found = []
    for c in range(k):
        weighted = [np.exp(z[c]) / (k * prior[y]) for z, y in zip(logits, labels, strict=True)]
        second = np.mean(weighted)
        first = mean([z[c] for z, y in zip(logits, labels, strict=True) if y == c])
        found.append(prior[c] * (-first + np.log(second) + 0.1 * np.log(second) ** 2))
    return np.array(found)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_loss_is_its_formula(name):
    np.testing.assert_allclose(run(losses.make(name)), by_hand(name), rtol=2e-5)


def test_every_loss_of_the_config_can_be_made_and_no_other():
    field = ArmConfig.__dataclass_fields__["loss"]
    assert set(field.metadata["choices"]) == set(losses.LOSSES)
    with pytest.raises(ValueError, match="no loss 'hinge'; takes one of cross_entropy"):
        losses.make("hinge")


def test_balanced_softmax_is_logit_adjustment_with_tau_one():
    balanced = run(losses.make("balanced_softmax"))
    np.testing.assert_allclose(run(losses.make("logit_adjusted", tau=1.0)), balanced, rtol=1e-5)
    half = run(losses.make("logit_adjusted", tau=0.5))
    np.testing.assert_allclose(half, ce(LOGITS + 0.5 * np.log(COUNTS)), rtol=1e-5)
    assert np.abs(half - balanced).max() > 0.1


@pytest.mark.parametrize(
    "loss",
    [
        lambda *args: losses.focal(*args, gamma=0.0),
        lambda *args: losses.logit_adjusted(*args, tau=0.0),
        lambda *args: losses.class_balanced(*args, beta=0.0),
        lambda *args: losses.ldam(*args, max_margin=0.0),
    ],
    ids=["focal", "logit_adjusted", "class_balanced", "ldam"],
)
def test_neutral_setting_is_cross_entropy(loss):
    np.testing.assert_allclose(run(loss), ce(LOGITS), rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["inverse_weighted", "effective_number", "balanced_softmax", "logit_adjusted"]
)
@pytest.mark.parametrize("progress", [START, END])
def test_equal_counts_are_cross_entropy(name, progress):
    equal = run(losses.make(name), counts=np.full(4, 37.0), progress=progress)
    np.testing.assert_allclose(equal, ce(LOGITS), rtol=1e-5)


def test_effective_number_runs_from_equal_to_inverse_weights():
    counts = jnp.asarray(COUNTS, jnp.float32)
    near_one = losses.effective_number_weights(counts, 1 - 1e-9)
    inverse = len(COUNTS) / COUNTS / (1 / COUNTS).sum()
    np.testing.assert_allclose(near_one, inverse, rtol=1e-5)
    np.testing.assert_array_equal(losses.effective_number_weights(counts, 0.0), np.ones(4))
    spread = [
        float(jnp.ptp(losses.effective_number_weights(counts, beta)))
        for beta in (0.0, 0.9, 0.99, 0.999, 0.9999)
    ]
    assert spread == sorted(spread)
    with pytest.raises(ValueError, match=r"beta = 1; takes a number in \[0, 1\)"):
        losses.effective_number_weights(counts, 1)


@pytest.mark.parametrize("name", ["inverse_weighted", "effective_number"])
def test_weights_have_mean_one(name):
    weighted = run(losses.make(name), np.zeros((4, 4)), labels=np.arange(4))
    np.testing.assert_allclose(weighted.mean(), np.log(4), rtol=1e-5)
    assert np.all(np.diff(weighted) > 0)  # the rarer the class, the heavier


def test_deferred_reweighting_starts_at_its_progress():
    loss = losses.make("ldam_drw")
    before, at, after = (run(loss, progress=p) for p in (0.79, 0.8, 1.0))
    np.testing.assert_array_equal(before, run(loss))
    np.testing.assert_array_equal(at, after)
    np.testing.assert_allclose(at / before, effective()[LABELS], rtol=1e-4)


def test_ldam_margins_grow_with_rarity_to_the_largest():
    def margin(label):  # the shift of the true logit that undoes the margin
        z = np.zeros((1, 4))
        low, high = 0.0, 60.0
        target = np.log(4)
        for _ in range(60):
            middle = (low + high) / 2
            z[0, label] = middle
            above = run(losses.ldam, z, labels=np.array([label]))[0] > target
            low, high = (middle, high) if above else (low, middle)
        return middle

    margins = np.array([margin(label) for label in range(4)])
    np.testing.assert_allclose(margins[3], 15.0, rtol=1e-3)
    np.testing.assert_allclose(margins / margins[3], (3 / COUNTS) ** 0.25, rtol=1e-3)


def test_gradients_are_those_of_the_adjusted_softmax():
    def gradient(name):
        total = lambda z: losses.make(name)(
            z, jnp.asarray(LABELS), jnp.asarray(COUNTS, jnp.float32), 0.0
        ).sum()
        return np.asarray(jax.grad(total)(jnp.asarray(LOGITS, jnp.float32)))

    onehot = np.eye(4)[LABELS]
    np.testing.assert_allclose(gradient("cross_entropy"), softmax(LOGITS) - onehot, atol=1e-5)
    adjusted = softmax(LOGITS + np.log(COUNTS)) - onehot
    np.testing.assert_allclose(gradient("balanced_softmax"), adjusted, atol=1e-5)
    # Focal, Lin et al. 2017, appendix B, for the softmax.
    p = softmax(LOGITS)[np.arange(6), LABELS][:, None]
    factor = (1 - p) ** 2 - 2 * p * (1 - p) * np.log(p)
    np.testing.assert_allclose(
        gradient("focal"), factor * (softmax(LOGITS) - onehot), rtol=1e-3, atol=1e-5
    )


CLOSED_FORM = {
    "cross_entropy": losses.cross_entropy,
    "inverse_weighted": losses.inverse_weighted,
    "effective_number": losses.class_balanced,
    "balanced_softmax": losses.balanced_softmax,
    "logit_adjusted": functools.partial(losses.logit_adjusted, tau=0.3),
    "ldam_drw": functools.partial(losses.ldam, max_margin=0.0),  # its weights alone
}


@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_what_remains_beside_the_residual_is_the_likelihood(name, scale):
    """Over a known p(x, y), the population's risk is stationary at log p(x | y) + residual."""
    rng = np.random.default_rng(1)
    counts = COUNTS * scale  # weights of (3) near 1 / n, then far from it
    likelihood = rng.dirichlet(np.ones(5), size=4).T  # [x, y]: p(x | y)
    joint = jnp.asarray((likelihood * (counts / counts.sum())[None, :]).ravel(), jnp.float32)
    labels = jnp.tile(jnp.arange(4), 5)

    def risk(z):
        rows = jnp.repeat(z, 4, axis=0)
        values = CLOSED_FORM[name](rows, labels, jnp.asarray(counts, jnp.float32), END)
        return jnp.sum(joint * values)

    def slope(residual):
        z = np.log(likelihood) + residual[None, :]
        return float(jnp.abs(jax.grad(risk)(jnp.asarray(z, jnp.float32))).max())

    residual = losses.residual_log_prior(name, counts, tau=0.3)
    assert slope(residual) < 1e-6
    bent = residual + np.array([0.0, 0.0, 0.1, 0.0])
    assert slope(bent) > 10 * slope(residual)


def test_residual_of_effective_number_runs_from_nothing_to_the_log_prior():
    few, many = np.array([200.0, 40.0, 7.0]), np.array([4e6, 9e5, 2e5])
    assert np.ptp(losses.residual_log_prior("effective_number", few)) < 0.02
    np.testing.assert_array_equal(
        losses.residual_log_prior("ldam_drw", few),
        losses.residual_log_prior("effective_number", few),
    )
    np.testing.assert_allclose(
        losses.residual_log_prior("effective_number", many),
        losses.residual_log_prior("cross_entropy", many),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", losses.LOSSES)
def test_residual_is_finite_for_a_class_without_images(name):
    assert np.isfinite(losses.residual_log_prior(name, np.array([400.0, 0.0, 3.0]))).all()


def test_residual_is_none_where_the_loss_corrects_and_unknown_losses_are_refused():
    for name in ("balanced_softmax", "inverse_weighted", "logit_adjusted", "lade"):
        np.testing.assert_array_equal(losses.residual_log_prior(name, COUNTS), 0.0)
    with pytest.raises(ValueError, match="no loss 'hinge'"):
        losses.residual_log_prior("hinge", COUNTS)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("progress", [START, END])
def test_class_without_images_and_extreme_logits_stay_finite(name, progress):
    counts = jnp.array([400.0, 90.0, 0.0, 3.0])
    labels = jnp.array([0, 1, 3, 3])

    def total(z):
        return losses.make(name)(z, labels, counts, progress).sum()

    for scale in (0.0, 1.0, 80.0):
        z = scale * jnp.eye(4)
        value, gradient = jax.value_and_grad(total)(z)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.isfinite(losses.make(name)(z, jnp.full(4, 2), counts, progress)).all()


def test_lade_is_minimal_at_the_log_likelihood_ratio():
    """A batch that is the population: the risk is stationary at log p(x | y) / p(x), balanced."""
    # [x, y] counts, so that p(x | y) is exact; of 12, 6, 6 and 5 images.
    joint = np.array([[6, 1, 1, 1], [3, 3, 1, 2], [2, 1, 1, 1], [1, 1, 3, 1]])
    counts = joint.sum(axis=0).astype(np.float32)
    likelihood = joint / joint.sum(axis=0)
    labels = np.repeat(np.tile(np.arange(4), 4), joint.ravel())
    rows = np.repeat(np.repeat(np.arange(4), 4), joint.ravel())

    def slope(z):
        risk = lambda z: losses.lade(z[rows], jnp.asarray(labels), jnp.asarray(counts), END).mean()
        return float(jnp.abs(jax.grad(risk)(jnp.asarray(z, jnp.float32))).max())

    ratio = np.log(likelihood / likelihood.mean(axis=1, keepdims=True))
    assert slope(ratio) < 1e-5
    # Balanced softmax is as well off with a constant added to a row; the bounds are not.
    assert slope(ratio + 0.5) > 1e-3


def test_lade_leaves_out_classes_that_the_batch_lacks():
    labels = np.array([0, 1, 0, 3, 3, 0])
    known = np.nansum(bounds(labels=labels, mean=lambda x: np.mean(x) if x else np.nan))
    expected = 0.1 * known + run(losses.balanced_softmax, labels=labels)
    np.testing.assert_allclose(run(losses.lade, labels=labels), expected, rtol=2e-5)


@pytest.mark.parametrize("name", sorted(set(losses.LOSSES) - {"lade"}))
def test_example_is_its_own_whatever_the_batch(name):
    loss = losses.make(name)
    whole = run(loss, progress=END)
    parts = [run(loss, LOGITS[i : i + 1], progress=END, labels=LABELS[i : i + 1]) for i in range(6)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)


@pytest.mark.parametrize("name", ["inverse_weighted", "effective_number", "ldam_drw"])
def test_class_without_images_moves_no_other_weight(name):
    """Weights divided by the empty class's huge one would leave the others near zero."""
    counts, logits = np.append(COUNTS, 0.0), np.pad(LOGITS, ((0, 0), (0, 1)), constant_values=-1e4)
    loss = losses.make(name)
    without = run(loss, progress=END)
    np.testing.assert_allclose(run(loss, logits, counts, progress=END), without, rtol=1e-5)
