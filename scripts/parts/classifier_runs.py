"""Runs of a trained classifier over a data set: arguments, checks and configuration that these commands share."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from certify import EnumeratedScheme, Scheme, Smoothed, evaluation, spec
from certify.data import Dataset, load
from certify.training import Checkpoint, load_checkpoint, model_code
from certify.training.copies import parse_training_scheme, scheme_text
from scripts.parts import cli


@dataclass
class Args:
    """The classifier, the images, and where the results go."""

    out: Path = cli.arg("folder for the results", positional=True)
    checkpoint: Path = cli.arg("model.safetensors of the base classifier, or its folder")
    scheme: str | None = cli.arg("smoothing scheme, by default the one the model was trained with", None)
    data: str | None = cli.arg("data set, by default the one the model was trained on", None)
    split: Literal["test", "train"] = cli.arg("split of the data set", "test")
    n: int = cli.arg("samples per prediction (sampled schemes)", 10_000)
    alpha: float = cli.arg("failure probability of each result (sampled schemes)", 0.05)
    vote: str = cli.arg("how a copy votes: argmax, or e.g. 'ThresholdVote(theta=0.3)'", "argmax")
    skip: int = cli.arg("take every N-th image", 1)
    max: int | None = cli.arg("stop after this many images", None)
    shard: str = cli.arg("i/n: do part i (from 0) of n; the parts may run anywhere and share OUT", "0/1")
    batch_size: int | None = cli.arg("copies per forward pass, by default chosen by the model's size", None)
    images_per_step: int | None = cli.arg("images between two writes, by default about 4,096 copies", None)
    seed: int = cli.arg("seed of the samples", 0)
    device: str = cli.arg("cpu, cuda, ...", "cpu")
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)
    resume: bool = cli.arg("continue the results in OUT", False)


def parse_shard(text: str) -> tuple[int, int]:
    """``"i/n"`` as numbers, 0 <= i < n."""
    parts = text.split("/")
    if (
        len(parts) == 2
        and all(part.isascii() and part.isdigit() for part in parts)
        and 0 <= int(parts[0]) < int(parts[1])
    ):
        return int(parts[0]), int(parts[1])
    raise ValueError(f"shard: got {text!r}, expected i/n with 0 <= i < n, such as 0/4")


def chosen(count: int, skip: int, most: int | None) -> list[int]:
    """Indices of every ``skip``-th of ``count`` images, at most ``most``."""
    if skip < 1 or (most is not None and most < 1):
        raise ValueError(f"skip, max: got {skip}, {most}, expected at least 1")
    return list(range(0, count, skip)[:most])


def select(count: int, args: Args) -> list[int]:
    """Indices of the images of this process."""
    i, n = parse_shard(args.shard)
    return chosen(count, args.skip, args.max)[i::n]


def configuration(
    args: Args, prog: str, smoothed: Smoothed, checkpoint: Checkpoint, data: Dataset, how: dict[str, Any] | None
) -> dict[str, Any]:
    """The configuration that rows of one run must share; "provenance" is only informative.

    Args:
        how: how a sampled scheme samples; None for exact schemes.
    """
    path = args.checkpoint / "model.safetensors" if args.checkpoint.is_dir() else args.checkpoint
    assert isinstance(smoothed.base_classifier, torch.nn.Module)
    code = model_code(checkpoint.model.name, smoothed.base_classifier)
    own = {} if code is None else {"model_code": code}
    return (
        evaluation.configuration(smoothed, data, how)
        | own
        | {
            "trained_with": scheme_text(checkpoint.scheme),
            "model": checkpoint.model.name,
            "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "device": torch.device(args.device).type,
            "provenance": {
                "command": cli.command_line(prog, args),
                "commit": cli.commit(),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
            },
        }
    )


def check_exact(args: Args, scheme: EnumeratedScheme) -> None:
    """Raise for options that a scheme without sampling would ignore."""
    for field in fields(args):
        if field.name in ("n", "n0", "alpha", "bounds", "interval", "max_n"):
            value = getattr(args, field.name)
            if value != field.default:
                flag = "--" + field.name.replace("_", "-")
                raise ValueError(
                    f"{flag}: got {value}, but {type(scheme).__name__} is exact and samples nothing; leave it out"
                )


def _scheme(args: Args, checkpoint: Checkpoint) -> Scheme:
    """The scheme to certify with; that of the checkpoint keeps the design it was trained with."""
    scheme = checkpoint.scheme
    if args.scheme:
        given = spec.parse_scheme(args.scheme)
        scheme = scheme if given == parse_training_scheme(scheme_text(scheme)) else given
    if scheme is None:
        raise ValueError(f"scheme: got none, but {args.checkpoint} was trained on clean images; choose a --scheme")
    return scheme


def build(args: Args, **sampling: Any) -> tuple[Smoothed, Checkpoint, Dataset]:
    """The smoothed classifier and the data, checked against each other before any work starts.

    Args:
        sampling: further arguments of :class:`~certify.smooth.Smoothed`.
    """
    cli.check_device(args.device)
    if args.images_per_step is not None and args.images_per_step < 1:
        raise ValueError(f"images-per-step: got {args.images_per_step}, expected at least 1")
    base_classifier, checkpoint = load_checkpoint(args.checkpoint)
    data = load(args.data or checkpoint.dataset, args.split, args.data_root)
    scheme = _scheme(args, checkpoint)
    channels, *size = scheme.input_shape(data.shape)
    if channels != checkpoint.model.in_channels or data.num_classes != checkpoint.model.num_classes:
        raise ValueError(
            f"{args.checkpoint}: takes copies of {checkpoint.model.in_channels} channels and knows "
            f"{checkpoint.model.num_classes} classes, but {type(scheme).__name__} makes copies of {channels} channels, "
            f"and {data.name} has {data.num_classes} classes; use the scheme and data set it was trained with"
        )
    expected = checkpoint.model.size
    if tuple(size) != expected:
        took, got = ("x".join(map(str, each)) for each in (expected, size))
        raise ValueError(
            f"{args.checkpoint}: takes copies of {took} pixels, but {type(scheme).__name__} makes copies of {got} "
            f"pixels from {data.name}; use the scheme and data set it was trained with"
        )
    follows = getattr(checkpoint.model, "scheme", None)
    if follows is not None and spec.to_text(spec.parse_scheme(follows)) != spec.to_text(scheme):
        raise ValueError(
            f"{args.checkpoint}: has one network for each copy of {follows}, but got {spec.to_text(scheme)}; use the "
            "scheme it was trained with"
        )
    if isinstance(scheme, EnumeratedScheme):
        check_exact(args, scheme)
    smoothed = Smoothed(
        base_classifier.to(args.device),
        scheme,
        data.num_classes,
        n=args.n,
        alpha=args.alpha,
        seed=args.seed,
        vote=spec.parse_vote(args.vote),
        batch_size=args.batch_size,
        **sampling,
    )
    smoothed.engine.prepare(data.batch([0])[0])
    return smoothed, checkpoint, data
