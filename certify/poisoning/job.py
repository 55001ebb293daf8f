"""Training and voting as one job of many small tasks on disk: resumable after any stop, shared by processes.

A folder holds ``ensemble.json``, what is trained, on which data and how; ``models-00000.safetensors`` and so on, a
group of models each; and for every set of inputs a folder with their votes, in files of the same groups. A group is
finished when its file is there, whole, and the same whoever makes it: kills, retries and several processes change
nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certify import spec
from certify.poisoning.ensemble import Ensemble
from certify.poisoning.learner import Part, State
from certify.poisoning.neighbors import NearestNeighbors
from certify.poisoning.network import Network
from certify.poisoning.partition import PARTITIONERS
from certify.results import claim_config
from certify.scheme import check_integer
from certify.training.checkpoint import read_tensors, write_tensors

LEARNERS: dict[str, type] = {kind.__name__: kind for kind in (Network, NearestNeighbors)}
OnGroup = Callable[[int], None]  # called with the number of models after every group


def ensemble_config(ensemble: Ensemble) -> dict[str, Any]:
    """An ensemble as JSON values."""
    return {
        "partition": spec.to_text(ensemble.partitioner),
        "learner": spec.to_text(ensemble.learner),
        "num_classes": ensemble.num_classes,
        "spread": ensemble.spread,
        "seeds": ensemble.seeds,
    }


def read_ensemble(config: dict[str, Any]) -> Ensemble:
    """The inverse of :func:`ensemble_config`."""
    return Ensemble(
        spec.parse(config["partition"], PARTITIONERS, example="PixelSum(50)"),
        spec.parse(config["learner"], LEARNERS, example='Network(model="small_cnn")'),
        config["num_classes"],
        spread=config["spread"],
        seeds=config["seeds"],
    )


def environment_of(device: str) -> dict[str, Any]:
    """What may change the last bits of a computation on ``device``, here."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    return {"torch": torch.__version__, "device": device, "hardware": name, "threads": torch.get_num_threads()}


@dataclass(frozen=True)
class Job:
    """An ensemble that is trained into a folder.

    Attributes:
        folder: where.
        ensemble: what.
        data: identity of the training set and of anything else that the models depend on, as JSON values.
        at_once: models in a group, which are trained together and share a file.
        mode: ``"stacked"`` trains a group at once, ``"sequential"`` one model after the other.
        environment: see :func:`environment_of`; what may change the last bits of a model.
    """

    folder: Path
    ensemble: Ensemble
    data: dict[str, Any]
    at_once: int = 32
    mode: str = "stacked"
    environment: dict[str, Any] = field(default_factory=lambda: environment_of("cpu"))

    def __post_init__(self) -> None:
        check_integer("at_once", self.at_once, 1)
        if self.mode not in ("stacked", "sequential"):
            raise ValueError(f"mode: got {self.mode!r}, expected 'stacked' or 'sequential'")

    @property
    def groups(self) -> list[range]:
        """The models of each group: it depends on the configuration alone."""
        size = self.ensemble.size
        return [range(i, min(i + self.at_once, size)) for i in range(0, size, self.at_once)]

    @property
    def config(self) -> dict[str, Any]:
        """All that a model depends on but its part, as JSON values."""
        how = {"at_once": self.at_once, "mode": self.mode, "environment": self.environment}
        return ensemble_config(self.ensemble) | {"data": self.data} | how

    @property
    def identity(self) -> str:
        """SHA-256 of the configuration, which every file of the job carries."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def start(self, *, resume: bool, provenance: dict[str, Any] | None = None) -> None:
        """Claim the folder for this job; raises if it holds another one, or this one without ``resume``."""
        path = self.folder / "ensemble.json"
        if path.exists() and not resume:
            raise ValueError(f"{self.folder}: holds an ensemble; add --resume to continue it, or choose another folder")
        claim_config(path, self.config | {"provenance": provenance or {}})

    def train(self, parts: list[Part], *, shard: tuple[int, int] = (0, 1), on_group: OnGroup | None = None) -> None:
        """Train the groups of this shard that have no file yet.

        Args:
            parts: of all models, see :meth:`~certify.poisoning.Ensemble.parts`.
            shard: ``(i, n)``: every n-th group from number i on; the others are left to other processes.
        """
        if len(parts) != self.ensemble.size:
            raise ValueError(f"parts: got {len(parts)}, expected {self.ensemble.size}, one for each model")
        for group in self.groups[shard[0] :: shard[1]]:
            path = self._models(group)
            if path.exists():
                self._read(path)
            else:
                chosen = [parts[i] for i in group]
                at_once = len(chosen) if self.mode == "stacked" else 1
                states = self.ensemble.fit(chosen, at_once=at_once, device=self.environment["device"])
                named = {f"{i}/{name}": own[name] for i, own in zip(group, states, strict=True) for name in own}
                write_tensors(path, named, {"identity": self.identity})
            if on_group is not None:
                on_group(len(group))

    def states(self, group: range, device: str = "cpu") -> list[State]:
        """The trained models of a group."""
        states: dict[int, State] = {i: {} for i in group}
        for name, tensor in self._read(self._models(group)).items():
            i, _, own = name.partition("/")
            states[int(i)][own] = tensor.to(device)
        return [states[i] for i in group]

    def vote(
        self,
        name: str,
        x: Tensor,
        inputs: dict[str, Any],
        *,
        device: str = "cpu",
        shard: tuple[int, int] = (0, 1),
        on_group: OnGroup | None = None,
    ) -> None:
        """Let the models of this shard rank the classes of ``x [B, ...]``, those without a file of votes.

        Args:
            name: of the folder for the votes.
            inputs: identity of ``x``, as JSON values; every file of votes carries it.
        """
        inputs = json.loads(json.dumps(inputs))
        claim_config(self.folder / name / "votes.json", {"inputs": inputs, "environment": environment_of(device)})
        for group in self.groups[shard[0] :: shard[1]]:
            path = self._votes(name, group)
            if path.exists():
                self._read_votes(path, inputs)
            else:
                rankings = self.ensemble.rankings(self.states(group, device), x)
                write_tensors(path, {"rankings": rankings}, {"identity": self.identity, "inputs": inputs})
            if on_group is not None:
                on_group(len(group))

    def rankings(self, name: str) -> Tensor:
        """The stored rankings of all models, ``[size, B, C]``."""
        inputs = self.voted(name)
        return torch.cat([self._read_votes(self._votes(name, group), inputs) for group in self.groups])

    def voted(self, name: str) -> dict[str, Any]:
        """What the votes in folder ``name`` are about: the ``inputs`` of :meth:`vote`."""
        path = self.folder / name / "votes.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no votes yet; let the models vote with 'python -m scripts.poisoning vote'"
            )
        return json.loads(path.read_text())["inputs"]

    def _models(self, group: range) -> Path:
        return self.folder / f"models-{group.start:05d}.safetensors"

    def _votes(self, name: str, group: range) -> Path:
        return self.folder / name / f"votes-{group.start:05d}.safetensors"

    def _read_votes(self, path: Path, inputs: dict[str, Any]) -> Tensor:
        return self._read(path, inputs)["rankings"]

    def _read(self, path: Path, inputs: dict[str, Any] | None = None) -> State:
        if not path.exists():
            raise FileNotFoundError(f"{path}: not there yet; resume the training and voting of this ensemble first")
        tensors, header = read_tensors(path)
        if header.get("identity") != self.identity:
            raise ValueError(f"{path}: belongs to another ensemble than {self.folder / 'ensemble.json'}; remove it")
        if header.get("inputs", inputs) != inputs:
            raise ValueError(f"{path}: holds votes on {header['inputs']}, not on {inputs}; remove it")
        return tensors


def read_job(folder: Path) -> Job:
    """The job in a folder, as it was started."""
    path = folder / "ensemble.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such ensemble; train one with 'python -m scripts.poisoning train'")
    config = json.loads(path.read_text())
    return Job(
        folder,
        read_ensemble(config),
        config["data"],
        at_once=config["at_once"],
        mode=config["mode"],
        environment=config["environment"],
    )
