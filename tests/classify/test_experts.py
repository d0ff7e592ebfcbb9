"""Losses of ensembles: formulas in NumPy, what their minimum leaves, neutral cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.classify import experts, losses

COUNTS = np.array([400.0, 90.0, 12.0, 3.0, 50.0, 7.0, 20.0])
LABELS = np.array([0, 3, 2, 6, 5])
LOGITS = np.random.default_rng(0).normal(size=(5, 3, 7)) * 2


def run(loss, logits=LOGITS, labels=LABELS, counts=COUNTS):
    return np.asarray(
        loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.asarray(counts, "f4"), 1.0)
    )


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_own_is_the_mean_of_the_arm_s_loss():
    for name in ("balanced_softmax", "ldam_drw"):
        loss = losses.make(name)
        each = [run(loss, LOGITS[:, e]) for e in range(3)]
        np.testing.assert_allclose(run(experts.make("own", loss)), np.mean(each, 0), rtol=1e-5)


def test_balpoe_is_logit_adjustment_of_strengths_zero_one_and_two():
    expected = [
        run(functools.partial(losses.logit_adjusted, tau=tau), LOGITS[:, e])
        for e, tau in enumerate((0.0, 1.0, 2.0))
    ]
    found = run(experts.make("balpoe", losses.cross_entropy))
    np.testing.assert_allclose(found, np.mean(expected, 0), rtol=1e-5)
    for number in (2, 3, 5):
        assert experts.strengths(number).mean() == 1


def test_balpoe_s_mean_is_balanced_where_its_experts_are_at_their_best():
    """Over a known p(x, y): expert e is best at log p(x | y) + (1 - tau_e) log pi."""
    rng = np.random.default_rng(1)
    prior = COUNTS / COUNTS.sum()
    likelihood = rng.dirichlet(np.ones(4), size=7).T  # [x, y]
    joint = jnp.asarray((likelihood * prior).ravel(), jnp.float32)
    labels = jnp.tile(jnp.arange(7), 4)
    tau = experts.strengths(3)
    best = np.log(likelihood)[:, None] + ((1 - tau)[:, None] * np.log(prior)[None])[None]

    def slope(z):
        def risk(z):
            values = experts.balpoe(
                jnp.repeat(z, 7, axis=0), labels, jnp.asarray(COUNTS, "f4"), 1.0
            )
            return jnp.sum(joint * values)

        return float(jnp.abs(jax.grad(risk)(jnp.asarray(z, jnp.float32))).max())

    assert slope(best) < 1e-6
    assert slope(best + np.arange(7)[None, None] / 10) > 1e-4
    np.testing.assert_allclose(best.mean(axis=1), np.log(likelihood), atol=1e-12)


def by_hand(logits, labels, counts, hard_share=0.3):
    """Equations (3) and (4), pair by pair and class by class."""
    number = max(2, int(np.ceil(hard_share * len(counts))))
    total = []
    for z, y in zip(logits, labels, strict=True):
        balanced = z + np.log(counts)
        mean = z.mean(axis=0).copy()
        mean[y] = np.inf
        hard = np.sort(np.argsort(-mean)[:number])
        value = 0.0
        for among in (np.arange(len(counts)), hard):
            log_p = log_softmax(balanced[:, among])
            value -= log_p[:, among.tolist().index(y)].mean()
            for e in range(3):
                for f in range(3):
                    kl = (np.exp(log_p[f]) * (log_p[f] - log_p[e])).sum()
                    value += 0.6 * kl / 6
        total.append(value)
    return np.array(total)


def test_ncl_is_its_formula():
    found = run(experts.make("ncl", losses.cross_entropy))
    np.testing.assert_allclose(found, by_hand(LOGITS, LABELS, COUNTS), rtol=2e-5)


def test_ncl_of_experts_that_agree_is_nested_balanced_softmax():
    alike = np.repeat(LOGITS[:, :1], 3, axis=1)
    hard = np.asarray(experts.hard_classes(jnp.asarray(alike[:, 0], "f4"), jnp.asarray(LABELS)))
    masked = np.where(hard, alike[:, 0], -1e9)
    expected = run(losses.balanced_softmax, alike[:, 0]) + run(losses.balanced_softmax, masked)
    np.testing.assert_allclose(run(experts.ncl, alike), expected, rtol=1e-5)


def test_hard_classes_are_the_label_and_the_likeliest_others():
    logits = jnp.asarray([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0]])
    for label, expected in ((0, {0, 1, 2}), (6, {0, 1, 6})):
        hard = np.flatnonzero(np.asarray(experts.hard_classes(logits, jnp.array([label])))[0])
        assert set(hard.tolist()) == expected
    two = experts.hard_classes(jnp.asarray([[1.0, 0.0]]), jnp.array([1]))
    assert np.asarray(two).all()  # of two classes, both


@pytest.mark.parametrize("name", ["own", "balpoe", "ncl"])
def test_extreme_logits_and_absent_classes_stay_finite(name):
    loss = experts.make(name, losses.cross_entropy)
    counts = jnp.asarray(np.where(COUNTS == 3, 0.0, COUNTS), jnp.float32)
    for scale in (0.0, 1.0, 80.0):
        z = jnp.asarray(scale * LOGITS, jnp.float32)
        total = lambda z: loss(z, jnp.asarray(LABELS), counts, 1.0).sum()
        value, gradient = jax.value_and_grad(total)(z)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_ncl_draws_experts_together():
    def disagreement(z):
        p = jax.nn.softmax(z + jnp.log(jnp.asarray(COUNTS, "f4"))[None, None])
        return float(jnp.var(p, axis=1).sum())

    z = jnp.asarray(LOGITS, jnp.float32)
    apart = jax.jit(
        jax.grad(
            lambda z: (
                experts.ncl(z, jnp.asarray(LABELS), jnp.asarray(COUNTS, "f4"), 1.0)
                - experts.mean_of(
                    losses.balanced_softmax, z, jnp.asarray(LABELS), jnp.asarray(COUNTS, "f4"), 1.0
                )
            ).sum()
        )
    )
    moved = z
    for _ in range(30):
        moved = moved - 0.5 * apart(moved)
    assert disagreement(moved) < 0.5 * disagreement(z)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="no expert loss 'sade'; takes one of own, balpoe, ncl"):
        experts.make("sade", losses.cross_entropy)
