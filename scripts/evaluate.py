"""Compare learning curves: a table, a plot and a summary, from the evaluations logged during training.

    python -m scripts.evaluate runs/ddpg runs/reengage --baseline runs/ddpg

Each folder is one method, with one subfolder per seed: seed-0/evaluations.npz, as written by the EvalCallback of
Stable-Baselines3, and next to it config.json. All methods are compared at the steps at which every run was evaluated,
so training may still be in progress.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from certify.files import check_writable, write_atomically
from rl import evaluation
from rl.evaluation import Estimate
from rl.logs import Method, common_timesteps, read_method
from scripts.parts import cli, figures

AGGREGATES = {"iqm": evaluation.interquartile_mean, "mean": evaluation.mean}


@dataclass
class Args:
    """Learning curves of one or more methods over their seeds: prints a table, writes curves.png and summary.json."""

    runs: list[Path] = cli.arg("folders of methods, each with seed-0/evaluations.npz, ...", positional=True)
    metric: Literal["success", "return"] = cli.arg("quantity to compare", "success")
    baseline: Path | None = cli.arg(
        "the run to compare the others with, paired by seed if the seeds are the same", None
    )
    interval: float = cli.arg("confidence level of all intervals", 0.95)
    line: Literal["iqm", "mean"] = cli.arg("aggregate over seeds that the plot shows", "iqm")
    out: Path | None = cli.arg("file of the plot, by default curves.png in the first run", None)
    json: Path | None = cli.arg("file of the summary, by default summary.json in the first run", None)
    resamples: int = cli.arg("number of bootstrap resamples", 2_000)
    seed: int = cli.arg("seed of the bootstrap", 0)


def read_methods(args: Args) -> list[Method]:
    """All runs, cut to the steps they share; folders of one name are told apart by their paths."""
    if args.baseline is not None and args.baseline not in args.runs:
        raise ValueError(f"baseline: got {args.baseline}, expected one of {', '.join(map(str, args.runs))}")
    if len(set(args.runs)) < len(args.runs):
        raise ValueError("runs: got one of them twice")
    methods = [read_method(path, args.metric) for path in args.runs]
    environments = {
        " ".join(str(method.config[key]) for key in ("env", "env_arguments") if method.config.get(key))
        for method in methods
        if "env" in method.config
    }
    if len(environments) > 1:
        raise ValueError(f"runs: got {' and '.join(sorted(environments))}, expected runs of one environment")
    steps = common_timesteps([method.timesteps for method in methods], "runs")
    names = [method.name for method in methods]
    return [
        replace(
            method,
            name=method.name if names.count(method.name) == 1 else str(path),
            timesteps=steps,
            scores=method.at(steps),
        )
        for method, path in zip(methods, args.runs, strict=True)
    ]


def remarks(methods: list[Method]) -> list[str]:
    """What of the logs is left out, as lines."""
    used, lines = len(methods[0].timesteps), []
    for method in methods:
        if set(method.logged) != {used}:
            counts = ", ".join(f"seed-{s}: {n}" for s, n in zip(method.seeds, method.logged, strict=True))
            lines.append(f"{method.name}: {used} evaluations at common steps are used, logged are {counts}")
    return lines


def _bootstrap(statistic: evaluation.Statistic, *samples: NDArray[Any], args: Args, paired: bool = False) -> Estimate:
    """With the same random numbers each time, so that a method's numbers do not depend on the others'."""
    generator = np.random.default_rng(args.seed)
    return evaluation.bootstrap(
        statistic, *samples, generator=generator, level=args.interval, resamples=args.resamples, paired=paired
    )


def _plain(estimate: Estimate, single: bool) -> dict[str, float | None]:
    """For JSON; a single run has no interval."""
    return {name: None if single and name != "value" else float(value) for name, value in asdict(estimate).items()}


def summarize(method: Method, args: Args) -> dict[str, Any]:
    """What is known about one method alone."""
    area = evaluation.area_under_curve(method.scores, method.timesteps)
    single = len(area) == 1
    summary: dict[str, Any] = {
        "name": method.name,
        "seeds": list(method.seeds),
        "logged": list(method.logged),
        "config": method.config,
        "final": float(method.scores[:, -1].mean()),
        "auc": area.tolist(),
    }
    for name, aggregate in AGGREGATES.items():
        estimate = _bootstrap(evaluation.stratified(aggregate), area, args=args)
        summary[f"auc_{name}"] = _plain(estimate, single)
    student = Estimate(area.mean(), None, None) if single else evaluation.student_interval(area, level=args.interval)
    summary["auc_mean_student"] = asdict(student)
    return summary


def compare(summary: dict[str, Any], baseline: dict[str, Any], args: Args) -> dict[str, Any]:
    """A method against the baseline, by the areas under their curves."""
    a, b = np.asarray(summary["auc"]), np.asarray(baseline["auc"])
    paired, single = summary["seeds"] == baseline["seeds"], min(len(a), len(b)) == 1
    gap = _bootstrap(evaluation.difference(), a, b, args=args, paired=paired)
    student = Estimate(float(gap.value), None, None)
    if not single:
        student = evaluation.student_difference(a, b, level=args.interval, paired=paired)
    return {
        "paired": paired,
        "difference": _plain(gap, single),
        "difference_student": asdict(student),
        "probability_of_improvement": _plain(
            _bootstrap(evaluation.probability_of_improvement, a, b, args=args), single
        ),
    }


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _range(estimate: dict[str, Any]) -> str:
    return "-" if estimate["low"] is None else f"[{_number(estimate['low'])}, {_number(estimate['high'])}]"


def _aligned(head: Sequence[str], rows: list[list[str]]) -> list[str]:
    """Columns of text: names to the left, everything else to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]


def table(summaries: list[dict[str, Any]], args: Args) -> str:
    """Plain text: areas under the curves, and the differences to the baseline."""
    rows = [
        [
            s["name"],
            str(len(s["seeds"])),
            *map(_number, (s["final"], s["auc_iqm"]["value"])),
            _range(s["auc_iqm"]),
            _number(s["auc_mean"]["value"]),
            _range(s["auc_mean"]),
            _range(s["auc_mean_student"]),
        ]
        for s in summaries
    ]
    text = _aligned(["method", "seeds", "final", "IQM", "bootstrap", "mean", "bootstrap", "Student t"], rows)
    compared = [
        [
            s["name"],
            _number(s["comparison"]["difference"]["value"]),
            _range(s["comparison"]["difference"]),
            _range(s["comparison"]["difference_student"]),
            "by seed" if s["comparison"]["paired"] else "no",
            f"{s['comparison']['probability_of_improvement']['value']:.2f}",
            _range(s["comparison"]["probability_of_improvement"]),
        ]
        for s in summaries
        if "comparison" in s
    ]
    if compared:
        baseline = next(s["comparison"]["baseline"] for s in summaries if "comparison" in s)
        head = [f"minus {baseline}", "mean", "bootstrap", "Student t", "paired", "P(better)", "bootstrap"]
        text += ["", *_aligned(head, compared)]
    return "\n".join(text)


def _spread_labels(ends: list[float], gap: float) -> list[float]:
    """Heights close to ``ends`` that are at least ``gap`` apart."""
    order = np.argsort(ends, kind="stable")
    # isotonic positions: shift rank i down by i * gap, pool neighbors that would cross, shift back
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([ends[i] - rank * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    shifted = [float(np.mean(block)) for block in blocks for _ in block]
    heights = [0.0] * len(ends)
    for rank, i in enumerate(order):
        heights[i] = shifted[rank] + rank * gap
    return heights


def plot(methods: list[Method], path: Path, args: Args) -> None:
    """Learning curves: the aggregate over seeds with its bootstrap band, each labeled at its end."""
    figure = figures.new_figure(6.4, 3.8)
    axis = figure.subplots()
    ends, colors = [], []
    for i, method in enumerate(methods):
        color, style = figures.color(i), figures.style(i)
        curve = _bootstrap(evaluation.stratified(AGGREGATES[args.line]), method.scores, args=args)
        marker = "o" if len(method.timesteps) == 1 else None
        axis.plot(method.timesteps, curve.value, color=color, linestyle=style, linewidth=2, marker=marker)
        if len(method.seeds) > 1:
            axis.fill_between(method.timesteps, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
        ends.append(float(curve.value[-1]))
        colors.append(color)
    if args.metric == "success":
        axis.set_ylim(-0.02, 1.02)
    low, high = axis.get_ylim()
    for method, end, height, color in zip(
        methods, ends, _spread_labels(ends, 0.065 * (high - low)), colors, strict=True
    ):
        axis.annotate(
            f"{method.name}, n={len(method.seeds)}",
            xy=(methods[0].timesteps[-1], end),
            xytext=(1.02, (height - low) / (high - low)),
            textcoords=axis.transAxes,
            color=color,
            va="center",
            annotation_clip=False,
        )
    environment = methods[0].config.get("env")
    band = f"{'IQM' if args.line == 'iqm' else 'mean'} of n seeds, {100 * args.interval:g} % bootstrap band"
    axis.set_title(f"{environment}: {band}" if environment else band, fontsize=10, loc="left")
    axis.set(xlabel="environment steps", ylabel="success rate" if args.metric == "success" else "return")
    axis.locator_params("x", nbins=4)  # numbers of steps are wide
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(0, methods[0].timesteps[-1])
    axis.grid(alpha=0.3)
    figures.save(figure, path)


def main(args: Args) -> None:
    methods = read_methods(args)
    summary_path, plot_path = args.json or args.runs[0] / "summary.json", args.out or args.runs[0] / "curves.png"
    for path in (summary_path, plot_path):
        if path.is_dir():
            raise ValueError(f"{path}: is a folder, expected the name of a file to write")
        check_writable(path.parent)
    summaries = [summarize(method, args) for method in methods]
    if args.baseline is not None:
        chosen = args.runs.index(args.baseline)
        for i, summary in enumerate(summaries):
            if i != chosen:
                summary["comparison"] = compare(summary, summaries[chosen], args) | {"baseline": methods[chosen].name}
    steps = methods[0].timesteps
    environment = methods[0].config.get("env")
    head = f"{args.metric}, mean height of the learning curve to step {steps[-1]:,} ({len(steps)} evaluations)"
    print(f"{environment}: {head}" if environment else head)
    print(
        f"intervals: {100 * args.interval:g} %; those of the bootstrap never leave the range of the seeds, so with few "
        "seeds read Student's"
    )
    print("\n".join(["", table(summaries, args), "", *remarks(methods)]))
    document = {
        "command": cli.command_line("scripts.evaluate", args),
        "commit": cli.commit(),
        "metric": args.metric,
        "interval": args.interval,
        "timesteps": steps.tolist(),
        "methods": summaries,
    }
    write_atomically(summary_path, json.dumps(document, indent=2).encode() + b"\n")
    plot(methods, plot_path, args)
    print(f"wrote {summary_path} and {plot_path}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.evaluate")
