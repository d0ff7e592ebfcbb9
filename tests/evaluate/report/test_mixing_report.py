"""Mixing in the report: means, gaps and order as found; of test nothing but its accuracy."""

import dataclasses
import json
import types

import numpy as np
import pytest

from lt_jax import reporting
from lt_jax.config import ArmConfig
from lt_jax.data.manifest import ManifestError
from lt_jax.errors import UserError
from lt_jax.evaluate import metrics, report
from lt_jax.evaluate.report import compose, figures, inputs, mixing, mixing_figures
from lt_jax.evaluate.statistics import tables
from tests.evaluate.conftest import CLASSES, make_inputs, section

OBSERVATIONS = ("recall", "log_count", "progress")
RULES = ("policy", "random_search", "fixed 0", "fixed 0.4")
K = len(CLASSES)


def make_learning(seeds=(0, 1, 2), updates=40):
    rng = np.random.default_rng(len(seeds))
    s = len(seeds)
    curves = {name: rng.normal(size=(s, updates)) for name in (*mixing.CURVES, "return_std")}
    curves["explained_variance"][:, 0] = np.nan
    curves["trainings"] = np.tile(64.0 * np.arange(1, updates + 1), (s, 1))
    returns = {
        rule: [{"mean": 0.1 * r + 0.01 * i, "std": 0.02, "n": 32} for i in range(s)]
        for r, rule in enumerate(RULES)
    }
    importance = np.array([0.2, 0.5, 0.0]) + 0.01 * np.arange(s)[:, None]
    return report.Learning(seeds, OBSERVATIONS, curves, 64 * updates, 8, returns, importance)


def cut(html):
    return section(html, "mixing")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    cost = (report.StageCost("generator", 100.0, 5000, 1e12), report.StageCost("mixing", 7.0, 9))
    made = make_inputs(gallery=None)
    learned = dataclasses.replace(made.arms[2], name="learned", controller="policy")
    learned = dataclasses.replace(learned, uses_policy=True)
    changed = dataclasses.replace(
        made, arms=(*made.arms, learned), learning=make_learning(), costs=cost
    )
    return report.write(changed, out), out, changed


def test_shares_are_means_over_seeds_and_keep_every_seed(written):
    returned, _, made = written
    plain, _, pooled, _ = returned["arms"]
    assert plain["shares"] is None and plain["shares_by_seed"] is None
    by_seed = np.array(pooled["shares_by_seed"])
    assert by_seed.shape == (3, 2, K)
    np.testing.assert_allclose(pooled["shares"], by_seed.mean(axis=0))
    for seed, shares in enumerate(by_seed):  # ascending, though the runs are not
        (run,) = (run for run in made.arms[2].runs if run.seed == seed)
        np.testing.assert_array_equal(shares, run.shares)


def test_arms_whose_shares_are_all_alike_or_that_draw_from_no_pool_have_no_panel():
    arm = make_inputs().arms[2]
    alike = lambda value: tuple(
        dataclasses.replace(run, shares=np.full((2, K), value)) for run in arm.runs
    )
    flat = dataclasses.replace(arm, name="flat", runs=alike(0.4))
    by_round = np.repeat([[0.1], [0.2]], K, axis=1)
    runs = (dataclasses.replace(arm.runs[0], shares=by_round), *alike(0.4)[1:])
    moving = dataclasses.replace(arm, name="moving", runs=runs)
    repeats = dataclasses.replace(arm, name="repeats", uses_pool=False)
    assert list(mixing.varied((arm, flat, moving, repeats))) == ["synthetic", "moving"]


def test_classes_stand_by_count_and_only_the_rarest_of_many():
    assert mixing.by_count((400, 10, 100, 50), 9).tolist() == [0, 2, 3, 1]
    assert mixing.by_count((400, 10, 100, 50), 2).tolist() == [3, 1]
    assert mixing.by_count((5, 5, 7), 3).tolist() == [2, 0, 1]


def test_the_heat_map_holds_the_mean_shares_by_class_and_round(tmp_path):
    (made,) = mixing_figures.pictures(make_inputs(), 3)
    assert made.name == "mixing_shares"
    panel = made.figure.axes[0]
    expected = np.array([[0.1, 0.2, 0.5], [0.1, 0.2, 0.3]]).T + 0.01  # the three rarest of four
    np.testing.assert_allclose(panel.images[0].get_array(), expected)
    labels = [text.get_text() for text in panel.get_yticklabels()]
    assert labels == ["mel (100)", "bkl & <b> (50)", "df (10)"]
    assert panel.get_title(loc="left") == "synthetic (n=3)"
    figures.save(made.figure, tmp_path / "figure.png")


def test_many_arms_classes_and_rounds_are_drawn_on_one_scale(tmp_path):
    panels = {f"arm {a}": np.full((50, 30), 0.1 * (a + 1)) for a in range(5)}
    figure = mixing_figures.share_maps([f"class {c}" for c in range(30)], panels)
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(shown) == 5 and {image.get_clim() for image in shown} == {(0.0, 0.5)}
    figures.save(figure, tmp_path / "figure.png")


def test_the_gap_is_paired_over_seeds(written):
    returned, _, made = written
    for arm, source in zip(returned["arms"], made.arms, strict=True):
        values = []
        for run in sorted(source.runs, key=lambda run: run.seed):
            on = lambda logits, y: metrics.balanced_accuracy(metrics.softmax(logits), y)
            policy_val = on(run.policy_val_logits, made.dataset.policy_val_labels)
            values.append(policy_val - on(run.test_logits, made.dataset.test_labels))
        gap = arm["policy_val_minus_test"]
        np.testing.assert_allclose(gap["values"], values)
        np.testing.assert_allclose(
            [gap["mean"], gap["std"]], [np.mean(values), np.std(values, ddof=1)]
        )
        # The mean of the differences is the difference of the means, whose spreads are no help.
        means = [arm[name]["mean"] for name in ("policy_val_balanced_accuracy",)]
        np.testing.assert_allclose(
            gap["mean"], means[0] - arm["metrics"]["balanced_accuracy"]["mean"]
        )


def test_without_policy_val_there_is_no_gap_but_val_and_test_stand(tmp_path):
    made = make_inputs(seeds=(0, 1), gallery=None, pool=None)
    blind = tuple(
        dataclasses.replace(
            arm, runs=tuple(dataclasses.replace(r, policy_val_logits=None) for r in arm.runs)
        )
        for arm in made.arms
    )
    data = dataclasses.replace(made.dataset, policy_val_labels=None)
    returned = report.write(dataclasses.replace(made, arms=blind, dataset=data), tmp_path)
    arm = returned["arms"][0]
    assert arm["policy_val_balanced_accuracy"] is None and arm["policy_val_minus_test"] is None
    assert arm["val_balanced_accuracy"]["n"] == 2
    part = cut((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "policy_val is empty here" in part
    assert part.count(f"<td>{tables.UNDEFINED}</td>") == 2 * len(made.arms)
    assert "No policy was learned" in part and returned["mixing"] is None


def test_classes_without_a_policy_val_image_are_named(tmp_path):
    made = make_inputs()
    labels = made.dataset.policy_val_labels * 0
    data = dataclasses.replace(made.dataset, policy_val_labels=labels)
    plain = compose._analyse(made, tau=0.0, permutations=0)
    changed = dataclasses.replace(made, dataset=data)
    assert mixing.section(made, plain, 40)["absent"] == ["mel", "df"]
    assert mixing.section(changed, plain, 40)["absent"] == list(CLASSES[1:])


def test_of_test_labels_only_the_columns_of_test_depend(written):
    _, _, made = written
    rolled = dataclasses.replace(made.dataset, test_labels=np.roll(made.dataset.test_labels, 1))
    changed = dataclasses.replace(made, dataset=rolled)
    before, after = (
        mixing.section(i, compose._analyse(i, tau=0.0, permutations=0), 40) for i in (made, changed)
    )
    grids = [section.pop("overfitting") for section in (before, after)]
    assert before == after
    for one, other in zip(grids[0]["rows"], grids[1]["rows"], strict=True):
        assert one[:3] == other[:3] and one[3] != other[3] and one[4] != other[4]


def test_returns_are_summaries_over_seeds_and_differences_are_paired(written):
    kept = written[0]["mixing"]
    assert (kept["seeds"], kept["trainings"], kept["reference_runs"]) == ([0, 1, 2], 2560, 8)
    policy = kept["returns"]["policy"]
    np.testing.assert_allclose(policy["values"], [0.0, 0.01, 0.02])
    np.testing.assert_allclose([policy["mean"], policy["std"]], [0.01, 0.01])
    assert policy["n"] == 3 and policy["episodes"][1] == {"mean": 0.01, "std": 0.02, "n": 32}
    assert list(kept["minus_real_only"]) == ["policy", "random_search", "fixed 0.4"]
    gained = kept["minus_real_only"]["fixed 0.4"]
    np.testing.assert_allclose([gained["mean"], gained["std"]], [0.1, 0.0], atol=1e-12)


def test_importance_is_sorted_and_curves_keep_what_is_undefined_as_null(written):
    returned, out, _ = written
    kept = returned["mixing"]
    assert list(kept["importance"]) == ["log_count", "recall", "progress"]
    np.testing.assert_allclose(kept["importance"]["recall"]["values"], [0.2, 0.21, 0.22])
    curve = kept["curves"]["explained_variance"]
    assert curve["mean"][0] is None and curve["std"][0] is None and curve["values"][0][0] is None
    defined = np.array(curve["values"])[:, 1:].astype(float)
    np.testing.assert_allclose(curve["mean"][1:], defined.mean(axis=0))
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["mixing"] == kept


def test_the_page_has_the_section_with_every_figure_and_its_numbers(written):
    returned, out, _ = written
    html = (out / "report.html").read_text(encoding="utf-8")
    part = cut(html)
    assert part.count("<img") == 3 and part.count("<details>") == 4
    assert part.count("The numbers: ") == 3
    for name in ("shares", "curves", "importance"):
        assert (out / "figures" / f"mixing_{name}.png").exists()
    for text in (
        "<th>df</th><td>0.51 ± 0.01 (n=3)</td><td>0.31 ± 0.01 (n=3)</td>",
        "<th>policy, acting</th><td>0.0100 ± 0.0100 (n=3)</td><td>-0.2000 ± 0.0000 (n=3)</td>",
        "<td>0.0100 ± 0.0200 (32 episodes)</td>",
        "<th>log_<wbr>count</th><td>0.5100 ± 0.0100 (n=3)</td>",
        "<th>2560</th>",  # the last update
        "measured on policy_val, with which the policy was trained",
        "3 policies were learned, each from 2,560 trainings",
        "the mean over the n classifier seeds",
    ):
        assert text in part
    assert f"<td>{tables.UNDEFINED}</td>" in part  # of the first explained variance
    rows = part[part.index("Reward overfitting") :]
    for arm in returned["arms"]:
        gap = arm["policy_val_minus_test"]
        cell = f"<td>{gap['mean']:.3f} ± {gap['std']:.3f} (n=3)</td>"
        assert f"<th>{arm['name']}</th>".replace("_", "_<wbr>") in rows and cell in rows
    assert "http" not in html and "<script" not in html


def test_only_arms_of_a_policy_rely_on_its_stage_and_the_ledger_lists_it(written):
    returned, out, _ = written
    relied = {arm["name"]: arm["ledger"]["relies_on"] for arm in returned["arms"]}
    assert relied["ce"] is None
    assert relied["synthetic"]["stages"] == ["generator"]
    assert relied["synthetic"]["seconds"] == 100.0
    assert relied["learned"]["stages"] == ["generator", "mixing"]
    assert relied["learned"]["seconds"] == 107.0 and relied["learned"]["images"] == 5009
    assert [cost["name"] for cost in returned["costs"]] == ["generator", "mixing"]
    assert "<tr><th>mixing</th><td>7</td><td>9</td>" in (out / "report.html").read_text()


def test_a_control_of_a_policy_relies_on_the_stages_that_the_policy_took():
    arm = dataclasses.replace(make_inputs().arms[2], uses_pool=False, uses_policy=True)
    costs = (report.StageCost("synthesize", 1.0, 2), report.StageCost("mixing", 3.0, 4))
    assert inputs.ledger(arm, costs)["relies_on"]["stages"] == ["synthesize", "mixing"]


def test_one_seed_is_marked_and_has_no_band(tmp_path):
    learning = make_learning(seeds=(4,))
    made = dataclasses.replace(make_inputs(seeds=(0,), gallery=None), learning=learning)
    returned = report.write(made, tmp_path)
    kept = returned["mixing"]
    assert kept["returns"]["policy"]["std"] is None and kept["curves"]["kl"]["std"] is None
    assert returned["arms"][0]["policy_val_minus_test"]["std"] is None
    part = cut((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "±" not in part.replace("Mean ± standard", "").replace("± 0.0200 (32 episodes)", "")
    assert "1 policy was learned" in part
    assert part.count(tables.ONE_SEED) == 5  # all tables but that of episodes
    assert not mixing_figures.reward_curves(learning).axes[0].collections


def test_curves_are_means_over_trainings_with_a_band_of_one_deviation(tmp_path):
    learning = make_learning()
    figure = mixing_figures.reward_curves(learning)
    line, *others = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), learning.curves["trainings"][0])
    values = learning.curves["return_mean"]
    np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0))
    (band,) = figure.axes[0].collections
    top = band.get_paths()[0].vertices[:, 1].max()
    np.testing.assert_allclose(top, (values.mean(axis=0) + values.std(axis=0, ddof=1)).max())
    np.testing.assert_allclose([other.get_ydata()[0] for other in others], [0.11, 0.21])
    figures.save(figure, tmp_path / "figure.png")


def test_importance_bars_are_means_the_highest_first(tmp_path):
    learning = make_learning()
    figure = mixing_figures.importance_bars(learning.observations, learning.importance)
    axes = figure.axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0.51, 0.21, 0.01])
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["log_count", "recall", "progress"]
    figures.save(figure, tmp_path / "figure.png")


def test_undefined_importance_returns_and_rules_unknown_do_not_stop_the_report():
    learning = make_learning()
    importance = learning.importance.copy()
    importance[1, 1] = np.nan
    returns = {
        "policy": learning.returns["policy"],
        "new": [{"mean": None, "std": None, "n": 1}] * 3,
    }
    found = dataclasses.replace(learning, importance=importance, returns=returns)
    kept = report.strict(mixing.learning_summary(found))
    json.dumps(kept, allow_nan=False)
    assert list(kept["importance"]) == ["recall", "progress", "log_count"]
    assert kept["importance"]["log_count"]["mean"] is None
    assert kept["returns"]["new"]["mean"] is None and kept["minus_real_only"] == {}
    assert mixing.episodes_table(found).rows[1] == ("new", *[tables.UNDEFINED] * 3)
    assert mixing.returns_table(found).rows[0][2] == ""
    mixing_figures.importance_bars(found.observations, found.importance)
    mixing_figures.reward_curves(found)


def test_tables_of_many_rounds_and_updates_keep_first_and_last():
    shares = np.broadcast_to(np.linspace(0, 0.5, 40)[None, :, None], (2, 40, 1))
    table = mixing.shares_table(shares, ["a"])
    assert len(table.columns) == 1 + mixing.ROUNDS
    assert table.columns[1] == "Round 1" and table.columns[-1] == "Round 40"
    assert table.rows[0][-1].mean == 0.5
    updates = mixing.curves_table(make_learning(updates=100))
    spent = [row[0] for row in updates.rows]
    assert len(spent) == mixing.UPDATES and (spent[0], spent[-1]) == (64, 6400)
    assert len(mixing.curves_table(make_learning(updates=3)).rows) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: {"shares": np.zeros((3, K))}, "as many rounds of 4 classes"),
        (lambda run: {"shares": None}, "as many rounds of 4 classes"),
        (lambda run: {"policy_val_logits": np.zeros((3, K))}, r"policy_val logits \(3, 4\)"),
        (lambda run: {"log_prior": np.zeros(3)}, r"log_prior \(3,\); takes \(4,\)"),
    ],
)
def test_runs_that_do_not_fit_are_refused(change, message):
    made = make_inputs()
    arm = made.arms[2]
    run = dataclasses.replace(arm.runs[0])
    for name, value in change(run).items():  # past the types, which are checked in tests alone
        object.__setattr__(run, name, value)
    arms = (*made.arms[:2], dataclasses.replace(arm, runs=(run, *arm.runs[1:])))
    with pytest.raises(UserError, match=message):
        dataclasses.replace(made, arms=arms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"importance": np.zeros((3, 1))}, r"importance \(3, 1\); takes \(3, 3\)"),
        ({"curves": {"kl": np.zeros((2, 5))}}, "curve kl has 2 seeds; takes 3"),
        ({"returns": {"policy": []}}, "returns of policy has 0 seeds"),
    ],
)
def test_learning_that_does_not_fit_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(make_inputs(), learning=dataclasses.replace(make_learning(), **change))


def finished_run(folder, policy_val=("p0", "p1")):
    """A folder as of a finished `classify/arm/seed3`, its manifest and its context."""
    ids = {"train": ("a", "b", "c"), "val": ("v",), "policy_val": ("p0", "p1"), "test": ("t",)}
    arrays = {"val_ids": ids["val"], "val_logits": np.zeros((1, 2), np.float32)}
    arrays |= {"test_ids": ids["test"], "test_logits": np.ones((1, 2), np.float32)}
    if policy_val:
        logits = np.full((len(policy_val), 2), 2.0, np.float32)
        arrays |= {"policy_val_ids": policy_val, "policy_val_logits": logits}
    np.savez(folder / "predictions.npz", **arrays)
    mixture = {"class_weight": [0.5, 0.5], "in_use": [0, 1], "unmet": [0, 0]}
    rounds = [{**mixture, "share": share} for share in ([0.0, 0.5], [0.0, 0.25])]
    (folder / "mixture.json").write_text(json.dumps(rounds))
    (folder / "metrics.jsonl").write_text("")
    flat = [image for split in ids.values() for image in split]
    starts = np.cumsum([0, *map(len, ids.values())])
    rows = {split: np.arange(starts[i], starts[i + 1]) for i, split in enumerate(ids)}
    manifest = types.SimpleNamespace(
        ids=flat, rows=lambda split: rows[split], counts=lambda split: np.array([2, 1])
    )
    cost = types.SimpleNamespace(seconds=1.0, images=2, flops=3.0, data_wait=0.5)
    context = types.SimpleNamespace(
        folder=lambda stage: folder,
        specs={"classify/arm/seed3": None},
        store=types.SimpleNamespace(ledger=lambda spec: cost),
        config=types.SimpleNamespace(classify=types.SimpleNamespace(logit_adjustment=1.0, steps=4)),
    )
    return context, manifest


def read_run(context, manifest):
    # Undecorated: the stand-ins are none of the classes that its signature names.
    plain = getattr(reporting._run, "__wrapped__", reporting._run)
    return plain("classify/arm/seed3", ArmConfig(), context, manifest, ("t",))


def test_a_run_reads_its_shares_and_policy_val(tmp_path):
    run = read_run(*finished_run(tmp_path))
    np.testing.assert_array_equal(run.shares, [[0.0, 0.5], [0.0, 0.25]])
    np.testing.assert_array_equal(run.policy_val_logits, np.full((2, 2), 2.0))
    np.testing.assert_allclose(np.exp(run.log_prior), [0.5, 0.5])
    assert run.seed == 3


@pytest.mark.parametrize("held", [(), ("p1", "p0")])
def test_a_run_of_other_policy_val_images_is_refused(tmp_path, held):
    with pytest.raises(ManifestError, match="other policy_val images"):
        read_run(*finished_run(tmp_path, policy_val=held))


def test_the_stage_s_files_are_read_with_null_and_infinity_as_undefined(tmp_path):
    curves = {"return_mean": [[0.5, None]], "kl": [[float("inf"), 1.0]], "trainings": [[4, 8]]}
    proxy = {
        "seeds": [7],
        "classes": ["a"],
        "observations": ["recall", "share"],
        "trainings": 8,
        "reference_runs": 2,
        "returns": {"policy": [{"mean": 0.1, "std": 0.0, "n": 32}]},
        "importance": [[0.25, 0.5]],
    }
    (tmp_path / "curves.json").write_text(json.dumps({"seeds": [7], "curves": curves}))
    (tmp_path / "proxy.json").write_text(json.dumps(proxy))
    found = reporting._learning(tmp_path)
    np.testing.assert_array_equal(found.curves["return_mean"], [[0.5, np.nan]])
    np.testing.assert_array_equal(found.curves["kl"], [[np.nan, 1.0]])
    assert found.seeds == (7,) and found.observations == ("recall", "share")
    assert found.returns == proxy["returns"] and found.importance.tolist() == [[0.25, 0.5]]
    dataclasses.replace(make_inputs(), learning=found)
