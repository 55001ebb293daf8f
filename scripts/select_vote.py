"""Choose the vote rule against patches, and the checkpoint, on validation images.

    python -m scripts.select_vote runs/mnist-s2 runs/mnist-s3 --patch 5 --votes top1 theta=0.2 theta=0.3 theta=0.4

Every second image (``--shard 0/2``) is used for validation. The other half is reserved for the reported numbers: the
command printed at the end certifies ``--shard 1/2`` with the chosen settings. Each checkpoint classifies the copies of
an image once, for all vote rules.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from certify import Smoothed, spec
from certify.engine import VoteEngine
from certify.patch import StructuredAblation
from certify.training import load_checkpoint
from certify.votes import VoteRule
from scripts.parts import classifier_runs, cli, patches


@dataclass
class Args:
    """Certified accuracy on validation images for several vote rules, and the best of them."""

    checkpoints: list[Path] = cli.arg(
        "base classifiers trained against patches, such as one per band width", positional=True
    )
    votes: list[str] = cli.arg("top1, or theta=... for a threshold", ["top1", "theta=0.2", "theta=0.3", "theta=0.4"])
    patch: str = cli.arg("size of the patch, such as 5 or 3x7", "5")
    bound: Literal["location", "published"] = cli.arg("certificate to use", "location")
    skip: int = cli.arg("take every N-th image", 1)
    max: int | None = cli.arg("stop after this many images", None)
    shard: str = cli.arg("i/n: validate on part i (from 0) of n of the test images; report on others", "0/2")
    batch_size: int | None = cli.arg("copies per forward pass, by default chosen by the model's size", None)
    device: str = cli.arg("cpu, cuda, ...", "cpu")
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)


class Repeated(nn.Module):
    """The scores of a classifier, once for each of several vote rules: ``[N, rules * classes]``."""

    def __init__(self, base_classifier: nn.Module, rules: int) -> None:
        super().__init__()
        self.base_classifier, self.rules = base_classifier, rules

    def forward(self, copies: Tensor) -> Tensor:
        return self.base_classifier(copies).repeat(1, self.rules)


@dataclass(frozen=True)
class SideBySide:
    """Several vote rules, each applied to its own part of the scores: bool ``[N, rules * classes]``."""

    rules: tuple[VoteRule, ...]

    def __call__(self, scores: Tensor) -> Tensor:
        parts = []
        for rule, own in zip(self.rules, scores.chunk(len(self.rules), dim=1), strict=True):
            votes = rule(own)
            parts.append(votes if votes.dtype == torch.bool else nn.functional.one_hot(votes, own.shape[1]).bool())
        return torch.cat(parts, dim=1)


def rule_text(text: str) -> str:
    """``top1`` or ``theta=0.3`` as a text for ``--vote``; any other text is returned unchanged."""
    if text == "top1":
        return "argmax"
    return f"ThresholdVote({text})" if text.startswith("theta=") else text


def votes_of_all(smoothed: Smoothed, rules: tuple[VoteRule, ...], x: Tensor) -> list[Tensor]:
    """For each rule, the votes copy by copy, bool ``[B, copies, classes]``, from one pass over the copies."""
    engine = smoothed.engine
    assert isinstance(engine.base_classifier, nn.Module)
    joint = VoteEngine(
        Repeated(engine.base_classifier, len(rules)),
        smoothed.scheme,
        engine.num_classes * len(rules),
        vote=SideBySide(rules),
        batch_size=engine.batch_size,
    )
    return list(joint.enumerated_by_copy(x).chunk(len(rules), dim=2))


def lines_of(checkpoint: Path, args: Args) -> list[patches.PatchAccuracy]:
    """What one checkpoint certifies on the validation images, one entry per vote rule."""
    texts = [rule_text(text) for text in args.votes]
    rules, size = tuple(map(spec.parse_vote, texts)), patches.parse_size(args.patch)
    shared = ("skip", "max", "shard", "batch_size", "device", "data_root")
    build = classifier_runs.Args(out=Path(), checkpoint=checkpoint, **{name: getattr(args, name) for name in shared})
    smoothed, _, data = classifier_runs.build(build)
    scheme = smoothed.scheme
    if not isinstance(scheme, StructuredAblation):
        raise ValueError(f"{checkpoint}: was trained with {scheme}, expected band or block ablation")
    indices = classifier_runs.select(len(data), build)
    step = max(1, 4096 // scheme.num_copies(data.shape))
    right, held = torch.zeros(len(rules)), torch.zeros(len(rules))
    for begin in range(0, len(indices), step):
        images, labels = data.batch(indices[begin : begin + step])
        for i, votes in enumerate(votes_of_all(smoothed, rules, images)):
            result = scheme.certify_votes(votes, size, shape=data.shape, bound=args.bound)
            correct = result.prediction == labels
            right[i] += correct.sum()
            held[i] += (correct & result.certified).sum()
    n = len(indices)
    return [
        patches.PatchAccuracy(
            f"{checkpoint}: {spec.to_text(scheme)}, {text}",
            args.bound,
            n,
            float(right[i]) / n,
            (f"{size[0]}x{size[1]}",),
            (float(held[i]) / n,),
        )
        for i, text in enumerate(texts)
    ]


def reporting(args: Args, checkpoint: Path, text: str) -> str:
    """The command that certifies the next part of the test images, which is disjoint from that of ``args``."""
    part, parts = classifier_runs.parse_shard(args.shard)
    words = ["python", "-m", "scripts.certify", "OUT", "--checkpoint", str(checkpoint), "--vote", text]
    words += [] if args.skip == 1 else ["--skip", str(args.skip)]
    return shlex.join([*words, "--shard", f"{(part + 1) % parts}/{parts}"])


def check(args: Args) -> None:
    """Raise unless the options are legal and the checkpoints can be compared."""
    if classifier_runs.parse_shard(args.shard)[1] == 1:
        raise ValueError(f"shard: got {args.shard}, which leaves no test images to report on; use a part, such as 0/2")
    if len(set(args.votes)) < len(args.votes) or not args.votes:
        raise ValueError(f"votes: got {args.votes}, expected one or more distinct vote rules")
    for text in args.votes:
        spec.parse_vote(rule_text(text))
    patches.parse_size(args.patch)
    names = {load_checkpoint(path)[1].dataset for path in args.checkpoints}
    if len(names) > 1:
        raise ValueError(f"checkpoints: got models trained on {' and on '.join(sorted(names))}, expected one data set")


def main(args: Args) -> None:
    check(args)
    settings = [(path, text) for path in args.checkpoints for text in map(rule_text, args.votes)]
    lines = [line for path in args.checkpoints for line in lines_of(path, args)]
    print(patches.table(lines), end="\n\n")
    path, text = settings[lines.index(patches.best(lines, 0))]
    part, parts = classifier_runs.parse_shard(args.shard)
    print(
        f"chosen on {lines[0].images} validation images (part {part} of {parts} of the test images); to report on "
        "others, run"
    )
    print(f"  {reporting(args, path, text)}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.select_vote")
