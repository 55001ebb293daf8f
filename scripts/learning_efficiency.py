"""How many transitions it takes to learn the dynamics, with and without the goal gradient in the critic loss.

    python -m scripts.learning_efficiency runs/efficiency

Propositions 8.1 and 8.2 (Sec. 8.6.2) as an experiment: in the dense and the sparse linear environment, the critic loss
is minimized exactly over the hypothesis class, to find, for several d, the smallest number of transitions from which
the unknown rotation of d-dimensional actions is learned. It grows as d^2 with the standard loss, and as d with
ReenGAGE.

Over all matrices, that is d^2 and d transitions (twice as many in the sparse environment, where every other one is
uninformative), over rotations about d (d - 1) / 2 and d - 1.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import linregress

from certify.files import check_writable, write_atomically
from rl.linear import (
    LinearDense,
    LinearSparse,
    learn_matrix,
    learn_rotation,
    random_rotation,
    random_transitions,
    transitions_needed,
)
from scripts.parts import cli, figures

TASKS = {"dense": LinearDense, "sparse": LinearSparse}
LEARNERS = {"matrix": learn_matrix, "rotation": learn_rotation}
COLORS = {"standard": figures.color(0), "ReenGAGE": figures.color(1)}
MARKERS = {"standard": "o", "ReenGAGE": "s"}


@dataclass
class Args:
    """Transitions needed as a function of the dimension: a table, the exponents, efficiency.json and efficiency.png."""

    out: Path = cli.arg("folder for the results", positional=True)
    dims: list[int] = cli.arg("dimensions d of goals and actions", [4, 8, 16, 32])
    seeds: int = cli.arg("random rotations and replay buffers for each d", 5)
    learner: Literal["matrix", "rotation"] = cli.arg(
        "hypothesis class: all matrices, or rotations only (half as many transitions; minutes for d = 32)", "matrix"
    )
    coef: float = cli.arg("alpha, the coefficient of the goal gradient in the ReenGAGE loss", 1.0)
    gamma: float = cli.arg("discount", 0.9)
    tolerance: float = cli.arg("relative error in the Frobenius norm at which the rotation counts as learned", 1e-2)


@dataclass(frozen=True)
class Curve:
    """Transitions needed in one environment with one loss, ``needed[i][j]`` for ``dims[i]`` and seed j."""

    environment: str
    loss: str
    dims: tuple[int, ...]
    needed: tuple[tuple[int, ...], ...]

    def fit(self) -> tuple[float, float, float]:
        """Exponent, its standard error, and factor of ``N = factor * d^exponent``: least squares of logarithms."""
        points = np.log(np.array([(d, n) for d, row in zip(self.dims, self.needed, strict=True) for n in row]))
        result: Any = linregress(points[:, 0], points[:, 1])
        return float(result.slope), float(result.stderr), math.exp(result.intercept)


def check(args: Args) -> None:
    if len(set(args.dims)) < max(2, len(args.dims)) or min(args.dims) < 2:
        raise ValueError(f"dims: got {args.dims}, expected at least two different dimensions, each at least 2")
    if args.seeds < 1:
        raise ValueError(f"seeds: got {args.seeds}, expected at least 1")
    for name, value in (("coef", args.coef), ("tolerance", args.tolerance)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a number above 0")
    if args.tolerance >= 1:
        raise ValueError(f"tolerance: got {args.tolerance}, expected less than 1, the error of knowing nothing")
    for task_class in TASKS.values():
        task_class(args.gamma)


def measure(args: Args) -> list[Curve]:
    """Both losses in both environments; the same rotations and buffers for both losses."""
    curves: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    with cli.progress() as progress:
        bar = progress.add_task("buffers", total=len(TASKS) * len(args.dims) * args.seeds)
        for environment, task_class in TASKS.items():
            task = task_class(args.gamma)
            for d in args.dims:
                needed: dict[str, list[int]] = {"standard": [], "ReenGAGE": []}
                for seed in range(args.seeds):
                    generator = torch.Generator().manual_seed(seed)
                    rotation = random_rotation(d, generator)
                    pool = random_transitions(task, rotation, 4 * d * d + 64, generator)
                    for loss, coef in (("standard", 0.0), ("ReenGAGE", args.coef)):
                        n = transitions_needed(
                            task,
                            rotation,
                            pool,
                            LEARNERS[args.learner],
                            goal_gradient_coef=coef,
                            tolerance=args.tolerance,
                        )
                        needed[loss].append(n)
                    progress.advance(bar)
                for loss, row in needed.items():
                    curves.setdefault((environment, loss), []).append(tuple(row))
    dims = tuple(args.dims)
    return [Curve(environment, loss, dims, tuple(rows)) for (environment, loss), rows in curves.items()]


def table(curves: list[Curve]) -> str:
    """Plain text: the mean number of transitions for each d, and the exponent with its standard error."""
    head = ["environment", "loss", *(f"d={d}" for d in curves[0].dims), "exponent"]
    rows = []
    for curve in curves:
        exponent, error, _ = curve.fit()
        means = [f"{sum(row) / len(row):.1f}" for row in curve.needed]
        rows.append([curve.environment, curve.loss, *means, f"{exponent:.3f} ± {error:.3f}"])
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in (head, *rows)
    ]
    return "\n".join("  ".join(line) for line in lines)


def plot(curves: list[Curve], path: Path) -> None:
    """Log-log, a panel for each environment: every seed as a point, and the fitted power of d as a line."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = figures.new_figure(8.4, 3.6)
    axes = figure.subplots(1, len(TASKS), sharey=True, squeeze=False)
    panels = dict(zip(TASKS, axes[0], strict=True))
    for curve in curves:
        axis, color = panels[curve.environment], COLORS[curve.loss]
        exponent, error, factor = curve.fit()
        ends = (min(curve.dims), max(curve.dims))
        axis.plot(ends, [factor * d**exponent for d in ends], color=color, linewidth=1.5)
        for d, row in zip(curve.dims, curve.needed, strict=True):
            axis.plot([d] * len(row), row, MARKERS[curve.loss], color=color, alpha=0.55, markersize=5)
        middle = math.sqrt(ends[0] * ends[1])
        axis.annotate(
            f"{curve.loss}: $d^{{\\,{exponent:.2f}\\,±\\,{error:.2f}}}$",
            xy=(middle, factor * middle**exponent),
            xytext=(-8, 10) if curve.loss == "standard" else (8, -14),
            textcoords="offset points",
            ha="right" if curve.loss == "standard" else "left",
            color=color,
        )
    for environment, axis in panels.items():
        axis.set(xscale="log", yscale="log", xlabel="dimension d of goal and action", title=f"{environment} reward")
        axis.set_xticks(curves[0].dims)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("transitions until U is learned")
    figures.save(figure, path)


def summary(curve: Curve) -> dict[str, Any]:
    exponent, error, factor = curve.fit()
    return {
        "environment": curve.environment,
        "loss": curve.loss,
        "needed": {str(d): list(row) for d, row in zip(curve.dims, curve.needed, strict=True)},
        "exponent": exponent,
        "exponent_standard_error": error,
        "factor": factor,
    }


def main(args: Args) -> None:
    check(args)
    check_writable(args.out)
    curves = measure(args)
    hypotheses = {"matrix": "all matrices", "rotation": "rotations"}[args.learner]
    print(f"transitions until U is learned (relative error {args.tolerance:g}), among {hypotheses}; mean of seeds")
    print(table(curves))
    document = {
        "command": cli.command_line("scripts.learning_efficiency", args),
        "commit": cli.commit(),
        "curves": [summary(curve) for curve in curves],
    }
    write_atomically(args.out / "efficiency.json", json.dumps(document, indent=2).encode() + b"\n")
    plot(curves, args.out / "efficiency.png")
    print(f"wrote {args.out / 'efficiency.json'} and {args.out / 'efficiency.png'}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.learning_efficiency")
