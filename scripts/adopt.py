"""Turn a network that was trained elsewhere into a checkpoint for scripts.certify, scripts.attack and the others.

    python -m scripts.adopt runs/mine --state mine.pt --import my_nets --model my_net --data cifar10 \\
        --scheme "GaussianNoise(0.25)" --mean 0.4914 0.4822 0.4465 --std 0.247 0.2435 0.2616
    python -m scripts.certify runs/mine/test --checkpoint runs/mine --skip 20

``--model`` names a network of this project, or one of your own that a module of yours registers with
``certify.models.register_model`` (docs/own_classifier.md). Reading the parameters never executes code.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from certify.data import Dataset, load
from certify.files import check_writable
from certify.images import to_float
from certify.models import PARTITION_MLP, ModelSpec
from certify.scheme import Scheme
from certify.training import Checkpoint, base_accuracy, save_checkpoint
from certify.training.copies import input_shape, parse_training_scheme, training_copies
from scripts.parts import cli
from scripts.train import given_statistics

_IMAGES = 500  # maximum number of images on which accuracy is measured


@dataclass
class Args:
    """Make a checkpoint, OUT/model.safetensors, from existing parameters."""

    out: Path = cli.arg("folder for the checkpoint", positional=True)
    state: Path = cli.arg("state dictionary: a file saved by torch.save, or a safetensors file")
    model: str = cli.arg("architecture: one of scripts.train, or one of your own, see --import")
    data: str = cli.arg("data set that the network was trained for, as in scripts.train")
    scheme: str = cli.arg("smoothing scheme whose copies the network classifies; none: clean images", "none")
    mean: list[float] = cli.arg("mean of each channel, to be subtracted if the network does not normalize itself", [])
    std: list[float] = cli.arg("standard deviation of each channel, to divide by", [])
    seed: int = cli.arg("seed of the copies on which accuracy is measured", 0)
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)


def read_state(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers in a file, by name; no code in it is executed."""
    if not path.is_file():
        raise FileNotFoundError(f"state: no file {path}; expected a state dictionary")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_safetensors(path.read_bytes())
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"state: {path} holds more than tensors (the whole model, perhaps); expected the result of "
            "torch.save(model.state_dict(), path), or a safetensors file"
        ) from error
    for name in ("state_dict", "model_state_dict", "model"):  # keys under which training loops nest it
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found or not all(isinstance(each, Tensor) for each in found.values()):
        raise ValueError(
            f"state: {path} holds a {type(found).__name__}, expected model.state_dict(), a mapping of names to tensors"
        )
    return dict(found)


def fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load parameters into a network; raises ``ValueError`` unless names and shapes match."""
    expected = network.state_dict()
    for prefix in ("module.", "_orig_mod."):  # added by DataParallel and by torch.compile
        if state.keys() != expected.keys() and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    wrong = [f"no {name}" for name in expected.keys() - state.keys()]
    wrong += [f"{name}, which the network lacks" for name in state.keys() - expected.keys()]
    for name in expected.keys() & state.keys():
        if state[name].shape != expected[name].shape:
            wrong.append(f"{name} {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"state: {path} does not fit this network for these images and classes: "
            f"{'; '.join(sorted(wrong)[:3])}{more}; check --model and --data, and give the --scheme whose copies the "
            "network classifies, which decides the number of channels"
        )
    network.load_state_dict(state)


def tried(module: nn.Module, scheme: Scheme | None, data: Dataset, args: Args) -> tuple[float, int]:
    """Accuracy on some images, and their number; raises ``ValueError`` if the network does not accept them."""
    index = range(0, len(data), -(-len(data) // _IMAGES))
    images, labels = data.batch(index)
    few = images[:2]
    try:
        number = torch.arange(len(few))
        scores = module(to_float(few) if scheme is None else training_copies(scheme, few, number, epoch=0))
    except RuntimeError as error:
        raise ValueError(f"model: {args.model} does not accept these images ({str(error).splitlines()[0]})") from error
    expected = (len(few), data.num_classes)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"model: got scores {got} for {len(few)} images, expected a tensor {expected}")
    if not scores.isfinite().all():
        raise ValueError(f"state: got non-finite scores with {args.state}, expected finite ones; did training diverge?")
    return base_accuracy(module, scheme, replace(data, images=images, labels=labels), seed=args.seed), len(index)


def main(args: Args) -> None:
    scheme, data = parse_training_scheme(args.scheme), load(args.data, "test", args.data_root)
    target = args.out / "model.safetensors"
    if target.exists() or (args.out / "state.safetensors").exists():
        raise ValueError(f"{args.out}: already holds a checkpoint; choose another folder")
    channels, *size = input_shape(scheme, data.shape)
    follows = args.scheme if args.model == PARTITION_MLP else None
    mean, std = given_statistics(args.mean, args.std, data.shape[0])
    spec = ModelSpec(args.model, channels, data.num_classes, tuple(size), mean, std, follows)
    module = spec.build()
    state = read_state(args.state)
    fill(module[1] if mean is not None and isinstance(module, nn.Sequential) else module, state, args.state)
    accuracy, count = tried(module.eval(), scheme, data, args)
    check_writable(args.out)
    origin = {"adopted": args.state.name, "sha256": hashlib.sha256(args.state.read_bytes()).hexdigest()}
    save_checkpoint(target, module, Checkpoint(spec, scheme, data.name, origin))
    seen = "" if scheme is None else "one noised copy of each of "
    print(f"accuracy on {seen}{count} test images: {accuracy:.4f}")
    print(f"wrote {target}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.adopt")
