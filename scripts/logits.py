"""Histograms of the base classifier's scores on noisy copies, for some images of a certified run.

    python -m scripts.logits runs/mnist-gauss/test --checkpoint runs/mnist-gauss --images 0 20 40

For each image, the soft-max values of the two leading classes over the run's own copies, and the margin between them
(Smooth-Reduce, Appendix D.1): logits.png, with the counts in logits.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from certify import SampledScheme, spec
from certify.checks import check_integer
from certify.draws import ESTIMATION
from certify.files import write_atomically
from certify.logits import TopTwo, histogram, scores_of_copies, top_two
from certify.results import read_config, read_rows
from scripts import certify
from scripts.parts import cli, figures


@dataclass
class Args:
    """Histograms of the scores of the two leading classes over noisy copies: RUN/logits.png and RUN/logits.json."""

    run: Path = cli.arg("folder of a run of scripts.certify with a sampled scheme", positional=True)
    checkpoint: Path = cli.arg("model.safetensors of the run's base classifier, or its folder")
    images: list[int] | None = cli.arg("indices of images, by default the first four of the run", None)
    n: int = cli.arg("copies of each image, the first of those that the run counted", 1_000)
    of: Literal["softmax", "scores"] = cli.arg("quantity to show", "softmax")
    bins: int = cli.arg("bins per histogram", 40)
    out: Path | None = cli.arg("folder for the results, by default the run's", None)
    device: str = cli.arg("cpu, cuda, ...", "cpu")
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)


def of_run(args: Args) -> dict[int, TopTwo]:
    """The two leading classes of each image, by index."""
    config = read_config(args.run)
    path = args.checkpoint / "model.safetensors" if args.checkpoint.is_dir() else args.checkpoint
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint; give the one the run was certified with")
    if hashlib.sha256(path.read_bytes()).hexdigest() != config.get("checkpoint_sha256"):
        raise ValueError(f"{path}: is not the base classifier of {args.run}; give the checkpoint it was certified with")
    if not isinstance(spec.parse_scheme(config["scheme"]), SampledScheme):
        raise ValueError(f"{args.run}: got {config['scheme']}, which samples nothing, expected a sampled scheme")
    sampling = config["sampling"]
    known = sorted(read_rows(args.run)["idx"].astype(int).tolist())
    chosen = known[:4] if args.images is None else args.images
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"images: got {chosen}, expected some of the run's, such as {known[:4]}")
    smoothed, _, data = certify.build(
        certify.Args(
            out=args.run,
            checkpoint=args.checkpoint,
            scheme=config["scheme"],
            data=config["data"],
            split=config["split"],
            seed=sampling["seed"],
            vote=config["vote"],
            batch_size=config["batch_size"],
            device=args.device,
            data_root=args.data_root,
        )
    )
    found = {}
    for i in chosen:
        image = data.batch([i])[0]
        scores = scores_of_copies(smoothed, image, n=args.n, stream=ESTIMATION, index=i)
        found[i] = top_two(scores, softmax=args.of == "softmax")
    return found


def edges_of(found: dict[int, TopTwo], args: Args) -> dict[str, torch.Tensor]:
    """Bin edges shared by all images, for the values and for the margins."""
    if args.of == "softmax":
        ends = {"values": (0.0, 1.0), "margin": (-1.0, 1.0)}
    else:
        values = torch.cat([v for top in found.values() for v in (top.of_first, top.of_second)])
        margins = torch.cat([top.margin for top in found.values()])
        ends = {name: (float(v.min()), float(v.max())) for name, v in (("values", values), ("margin", margins))}
    return {
        name: torch.linspace(low, max(high, low + 1e-6), args.bins + 1, dtype=torch.float64)
        for name, (low, high) in ends.items()
    }


def summaries(found: dict[int, TopTwo], edges: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """The numbers that the plot shows."""
    return [
        {
            "idx": i,
            "first": top.first,
            "second": top.second,
            "share_of_first": top.share,
            "margin_mean": float(top.margin.mean()),
            "margin_std": float(top.margin.std(correction=0)),
            "of_first": histogram(top.of_first, edges["values"]).tolist(),
            "of_second": histogram(top.of_second, edges["values"]).tolist(),
            "margin": histogram(top.margin, edges["margin"]).tolist(),
        }
        for i, top in found.items()
    ]


def plot(lines: list[dict[str, Any]], edges: dict[str, torch.Tensor], path: Path, args: Args) -> None:
    """Two panels per image: both classes, and the margin."""
    figure = figures.new_figure(8, 2.5 * len(lines))
    axes = figure.subplots(len(lines), 2, squeeze=False)
    for (both, margin), line in zip(axes, lines, strict=True):
        first, second = f"class {line['first']}", f"class {line['second']}"
        for i, (key, label) in enumerate((("of_first", f"{first}, the leader"), ("of_second", second))):
            both.stairs(line[key], edges["values"].numpy(), fill=True, alpha=0.6, color=figures.color(i), label=label)
        both.set(xlabel=f"{args.of} of the class", ylabel="copies")
        both.set_title(f"image {line['idx']}", fontsize=10)
        both.legend(fontsize=8)
        margin.stairs(line["margin"], edges["margin"].numpy(), fill=True, alpha=0.6, color=figures.color(0))
        margin.axvline(0, color="black", linewidth=0.8)
        margin.set(xlabel=f"margin of {first} over {second} ({args.of})", ylabel="copies")
        margin.set_title(f"{line['share_of_first']:.1%} of the copies vote for {first}", fontsize=10)
    figures.save(figure, path)


def main(args: Args) -> None:
    check_integer("n", args.n, 1)
    check_integer("bins", args.bins, 2)
    found = of_run(args)
    edges = edges_of(found, args)
    lines = summaries(found, edges)
    for line in lines:
        print(
            f"image {line['idx']}: class {line['first']} leads on {line['share_of_first']:.1%} of {args.n} copies, "
            f"mean margin over class {line['second']} {line['margin_mean']:.3f} (standard deviation "
            f"{line['margin_std']:.3f})"
        )
    out = args.out or args.run
    document = {"of": args.of, "n": args.n, "edges": {k: v.tolist() for k, v in edges.items()}, "images": lines}
    write_atomically(out / "logits.json", json.dumps(document, indent=2).encode() + b"\n")
    plot(lines, edges, out / "logits.png", args)
    print(f"wrote {out / 'logits.json'} and {out / 'logits.png'}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.logits")
