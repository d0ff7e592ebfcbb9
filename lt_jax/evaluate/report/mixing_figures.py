"""Charts of the section on mixing: heat maps of shares, reward curves, what the policy reads."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate.report import figures, mixing
from lt_jax.evaluate.report.inputs import Learning, ReportInputs
from lt_jax.evaluate.report.picture import Numbers, Picture, numbers

COLUMNS = 2  # heat maps side by side
TITLE = 26  # characters of a line above one
BESIDE = ("random_search", mixing.REAL_ONLY)  # rules whose return stands beside the curve


def pictures(inputs: ReportInputs, most: int) -> Iterator[Picture]:
    """Heat maps are of the `most` rarest classes."""
    data, found = inputs.dataset, inputs.learning
    order = mixing.by_count(data.train_counts, most)
    varied = mixing.varied(inputs.arms)
    if varied:
        panels = {
            f"{name} (n={len(shares)})": shares.mean(axis=0)[:, order]
            for name, shares in varied.items()
        }
        names = [f"{data.classes[c]} ({data.train_counts[c]:,})" for c in order]
        yield Picture(
            "mixing_shares",
            "Synthetic share of every class's draws by round, a panel an arm",
            share_maps(names, panels),
            numbers(
                ("arm", "class", "round", "share", "std", "seeds"),
                [
                    (name, data.classes[c], r + 1, *_spread(shares[:, r, c]))
                    for name, shares in varied.items()
                    for c in order
                    for r in range(shares.shape[1])
                ],
            ),
        )
    if found is not None:
        yield Picture(
            "mixing_curves",
            "Return and other curves of learning by classifier trainings spent",
            reward_curves(found),
            _curve_numbers(found),
        )
        yield Picture(
            "mixing_importance",
            "Permutation importance of each observation",
            importance_bars(found.observations, found.importance),
            numbers(
                ("observation", "importance, nats an agent", "std", "policies"),
                [
                    (name, *_spread(found.importance[:, o]))
                    for o, name in enumerate(found.observations)
                ],
            ),
        )


def _spread(values: Float[np.ndarray, "s"]) -> tuple[float, float, int]:
    several = len(values) > 1
    return float(values.mean()), float(values.std(ddof=1)) if several else np.nan, len(values)


def _curve_numbers(found: Learning) -> Numbers:
    """A row a curve and update, and of a rule beside it one."""
    spent = found.curves["trainings"].mean(axis=0)
    rows: list[tuple[str, float | None, float, float, int]] = [
        (title, spent[u], *_spread(found.curves[name][:, u]))
        for name, title in mixing.CURVES.items()
        if name in found.curves
        for u in range(len(spent))
    ]
    for rule in BESIDE:
        if rule in found.returns:
            means = np.array([entry["mean"] for entry in found.returns[rule]], float)
            rows.append((f"Return of {mixing.RULES[rule]}", None, *_spread(means)))
    return numbers(("curve", "trainings", "mean", "std", "policies"), rows)


def share_maps(
    classes: Sequence[str], panels: Mapping[str, Float[np.ndarray, "r c"]]
) -> figures.Figure:
    """One small panel an arm: shares of the classes (rows) in the rounds (columns), on one scale.

    Args:
      classes: names, from top to bottom.
      panels: arm -> shares in [0, 1).
    """
    from matplotlib.ticker import MaxNLocator

    lines = -(-len(panels) // COLUMNS)
    pitch = 0.2 if len(classes) <= 12 else 0.15
    figure = figures.new_figure(0.9 + lines * (0.55 + pitch * len(classes)))
    grid = figure.subplots(lines, COLUMNS, squeeze=False, sharey=True)
    highest = max(shares.max() for shares in panels.values())
    for axes, (arm, shares) in zip(grid.ravel(), panels.items(), strict=False):
        rounds = (0.5, len(shares) + 0.5)
        image = axes.imshow(
            shares.T,
            cmap="viridis",
            vmin=0.0,
            vmax=highest,
            aspect="auto",
            interpolation="nearest",
            extent=(*rounds, len(classes) - 0.5, -0.5),
        )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("round", fontsize=8)
        figures.clean(axes)
        axes.set_title(textwrap.fill(arm, TITLE), fontsize=8.5, loc="left")
        axes.tick_params(labelsize=8)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    grid[0, 0].set_yticks(range(len(classes)), list(classes))
    label = "share of the class's draws that are synthetic"
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=40, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def reward_curves(found: Learning) -> figures.Figure:
    """The return, and what else tells how learning went, by classifier trainings spent.

    Mean over seeds with a band of one standard deviation, which one seed does not have. Dashed
    lines are mean returns of other rules.
    """
    spent = found.curves["trainings"].mean(axis=0)
    shown = {
        title: found.curves[name]
        for name, title in mixing.CURVES.items()
        if name in found.curves and np.isfinite(found.curves[name]).any()
    }
    figure = figures.new_figure(0.9 + 1.5 * (len(shown) + 1))
    heights = [2.0] + [1.0] * (len(shown) - 1)
    grid = figure.subplots(len(heights), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (title, values) in zip(grid, shown.items(), strict=False):
        mean = values.mean(axis=0)
        label = f"mean of the policies (n={len(values)})"
        axes.plot(spent, mean, color=figures.PALETTE[0], linewidth=1.6, label=label)
        if len(values) > 1:
            ends = mean - values.std(axis=0, ddof=1), mean + values.std(axis=0, ddof=1)
            axes.fill_between(spent, *ends, color=figures.PALETTE[0], alpha=0.2, linewidth=0)
        axes.grid(alpha=0.25)
        figures.clean(axes, title)
        if title == mixing.CURVES["explained_variance"]:  # how far below is of no interest
            axes.set_ylim(max(axes.get_ylim()[0], -1.0), 1.05)
    for i, rule in enumerate(rule for rule in BESIDE if rule in found.returns):
        mean = np.mean(np.array([entry["mean"] for entry in found.returns[rule]], float))
        dash = figures.DASHES[1 + i]
        color = figures.PALETTE[1 + i]
        grid[0].axhline(mean, color=color, linestyle=dash, linewidth=1.4, label=mixing.RULES[rule])
    grid[-1].set_xlabel("classifier trainings spent, of each policy", fontsize=9)
    figures.legend_below(figure, grid[0])
    return figure


def importance_bars(
    observations: Sequence[str], importance: Float[np.ndarray, "s o"]
) -> figures.Figure:
    """Mean importance of each observation over seeds, the highest first, and its spread."""
    mean = importance.mean(axis=0)
    order = np.argsort(-mean, kind="stable")
    figure = figures.new_figure(0.8 + 0.25 * len(observations))
    axes = figure.add_subplot()
    spread = importance.std(axis=0, ddof=1)[order] if len(importance) > 1 else None
    rows = np.arange(len(order))
    look = {"ecolor": figures.PALETTE[6], "capsize": 2.5}
    axes.barh(rows, mean[order], xerr=spread, color=figures.PALETTE[0], error_kw=look)
    axes.set_yticks(rows, [str(observations[o]) for o in order.tolist()])
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.grid(axis="x", alpha=0.25)
    label = f"KL of the policy when shuffled, nats an agent (n={len(importance)})"
    axes.set_xlabel(label, fontsize=9)
    figures.clean(axes)
    return figure
