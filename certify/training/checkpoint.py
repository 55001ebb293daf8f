"""Checkpoints: tensors in safetensors, everything else as JSON in its header. Loading never runs code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from certify.files import write_atomically
from certify.inference import exact_inference
from certify.models import DenoisedSpec, ModelSpec, own_models, read_spec
from certify.scheme import Scheme
from certify.sources import code_of
from certify.training.copies import parse_training_scheme, scheme_text

FORMAT = 1
_SEAL = "sha256"  # of tensors and header, in the header


def tensor_bytes(tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """The contents of a safetensors file with tensors, a JSON header, and a checksum of both."""
    seen: set[int] = set()
    contiguous: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        contiguous[name] = own.clone() if place in seen else own  # the format does not support tied parameters
        seen.add(place)
    # in the header, since the format writes several entries in an order that changes from one file to the next
    sealed = header | {_SEAL: _checksum(contiguous, header)}
    return save(contiguous, metadata={"json": json.dumps(sealed)})


def _checksum(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.as_strided((tensor.numel(),), (1,))  # a contiguous tensor of one value may have any stride
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header to one file, atomically."""
    write_atomically(path, tensor_bytes(tensors, header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and the JSON header of a file; raises ``ValueError`` if it is damaged."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint; train one with 'python -m scripts.train'")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["json"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: truncated, or not a checkpoint of scripts.train ({error}); restore or retrain it. To make a "
            "checkpoint from a network of your own, use 'python -m scripts.adopt' (docs/own_classifier.md)"
        ) from error
    seal = header.pop(_SEAL, None)  # files of earlier versions have none
    if seal not in (None, _checksum(tensors, header)):
        raise ValueError(f"{path}: is damaged, its checksum is not the one it was written with; restore or retrain it")
    return tensors, header


def seal_of(path: Path) -> str | None:
    """The checksum that a file was written with, without reading its tensors; None if it cannot be read, or if an
    earlier version wrote it without one."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["json"]).get(_SEAL)
    except (SafetensorError, KeyError, ValueError, OSError):
        return None


@dataclass(frozen=True)
class Checkpoint:
    """A trained base classifier and what it was trained for.

    Attributes:
        model: architecture; a :class:`~certify.models.DenoisedSpec` if a denoiser is part of it.
        scheme: the scheme whose copies it was trained on; None if it was trained on clean images.
        dataset: name of the data set.
        training: the training configuration and its results, as JSON values.
    """

    model: ModelSpec | DenoisedSpec
    scheme: Scheme | None
    dataset: str
    training: dict[str, Any]


def model_code(name: str, module: nn.Module) -> str | None:
    """A checksum of the code of a user's architecture (:func:`~certify.models.register_model`); None for architectures
    of this package, which the package version identifies."""
    return code_of([own_models.get(name), *(type(part) for part in module.modules())])


def check_determined(model: ModelSpec | DenoisedSpec, module: nn.Module) -> None:
    """Raise unless a state dictionary determines a user's architecture: a checkpoint would stand for several networks.

    Random numbers in a plain attribute, for example, are others whenever the network is built.

    Args:
        module: a network of this architecture.
    """
    if model_code(model.name, module) is None:
        return
    try:
        again = model.build()
        again.load_state_dict(module.state_dict())
        copies = torch.rand((4, model.in_channels, *model.size), generator=torch.Generator().manual_seed(0))
        with exact_inference(module), exact_inference(again):
            scores = [each(copies.clone()).nan_to_num() for each in (module, again)]
    except Exception:  # it takes nothing but copies, or only later has all of its parameters
        return
    if not torch.equal(*scores):
        raise ValueError(
            f"model: got {model.name}, which is another network each time it is built, even with the same state "
            "dictionary: a checkpoint would not determine its predictions; keep random or computed tensors as buffers "
            "(self.register_buffer), and draw no random numbers in evaluation mode"
        )


def save_checkpoint(path: str | Path, module: nn.Module, checkpoint: Checkpoint) -> None:
    """Write the parameters and their description to a safetensors file, atomically."""
    header = {
        "format": FORMAT,
        "model": asdict(checkpoint.model),
        "scheme": scheme_text(checkpoint.scheme),
        **design_entries(checkpoint.scheme),
        "dataset": checkpoint.dataset,
        "training": checkpoint.training,
    }
    write_tensors(Path(path), module.state_dict(), header)


def load_checkpoint(path: str | Path) -> tuple[nn.Module, Checkpoint]:
    """The base classifier, in evaluation mode on the CPU, and its description."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path}: got checkpoint format {header.get('format')}, expected {FORMAT}; it is not a base classifier of "
            "this project, or was saved by another version"
        )
    try:
        model = read_spec(header["model"])
        checkpoint = Checkpoint(model, parse_training_scheme(header["scheme"]), header["dataset"], header["training"])
        module = model.build()
        module.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: not a base classifier of this project ({error})") from error
    try:
        check_determined(model, module)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if checkpoint.scheme is not None:
        checkpoint = replace(checkpoint, scheme=as_trained(checkpoint.scheme, header, path))
    return module.eval(), checkpoint


def design_entries(scheme: Scheme | None) -> dict[str, Any]:
    """What a header says about the design of a scheme, for :func:`as_trained`."""
    if scheme is None:
        return {"design": None, "stored_design": None}
    return {"design": scheme.fingerprint(), "stored_design": scheme.stored_design()}


def as_trained(scheme: Scheme, header: dict[str, Any], path: Path) -> Scheme:
    """The scheme with the design that the file was made with, which may not be the one found here."""
    trained_with, stored = header.get("design"), header.get("stored_design")
    if trained_with in (None, scheme.fingerprint()):
        return scheme
    if stored is not None:
        try:
            scheme = scheme.with_design(stored)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; restore or retrain it") from error
    if scheme.fingerprint() != trained_with:
        raise ValueError(
            f"{path}: was trained with another design of {header['scheme']} (fingerprint {trained_with}) than the one "
            f"here ({scheme.fingerprint()}), and does not contain it; retrain it, or certify where it was trained"
        )
    return scheme
