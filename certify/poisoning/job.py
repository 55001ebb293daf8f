"""Training and voting as one job of many small tasks on disk: resumable after any interruption, shared by processes.

A folder holds ``ensemble.json``, which describes what is trained, on which data and how; ``models-00000.safetensors``
and so on, with one group of models each; and for every set of inputs a folder of votes, in files of the same groups. A
group is finished once its file exists. Files are written atomically and do not depend on who makes them, so kills,
retries and concurrent processes change nothing. A task is given all it needs and returns the contents of its file, so
it can run anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certify import spec
from certify.checks import check_integer
from certify.files import write_atomically
from certify.models import own_models
from certify.poisoning.clusters import ClusterLabels
from certify.poisoning.ensemble import Ensemble
from certify.poisoning.executors import Executor, Sequential, Work
from certify.poisoning.learner import Learner, Part, State
from certify.poisoning.neighbors import NearestNeighbors
from certify.poisoning.network import Network
from certify.poisoning.partition import PARTITIONERS, Partitioner
from certify.results import claim_config
from certify.sources import code_of
from certify.training.checkpoint import read_tensors, seal_of, tensor_bytes

LEARNERS: dict[str, type] = {kind.__name__: kind for kind in (Network, NearestNeighbors, ClusterLabels)}
OnGroup = Callable[[int], None]  # called with the number of models after every group
PathOf = Callable[[range], Path]  # the file of a group


def ensemble_config(ensemble: Ensemble) -> dict[str, Any]:
    """An ensemble as JSON values, with a checksum of any user code in it."""
    learner = ensemble.learner
    code = code_of((type(ensemble.partitioner), type(learner), own_models.get(getattr(learner, "model", ""))))
    return (
        ({} if code is None else {"code": code})
        | {
            "partition": _text(ensemble.partitioner, PARTITIONERS),
            "learner": _text(ensemble.learner, LEARNERS),
            "num_classes": ensemble.num_classes,
            "spread": ensemble.spread,
            "seeds": ensemble.seeds,
        }
        | ({"learned": True} if ensemble.learned else {})
    )


def _text(value: Partitioner | Learner, names: dict[str, type]) -> str:
    kind = type(value)
    if value.own.ambiguous(kind.__name__) or names.get(kind.__name__, kind) is not kind:
        raise ValueError(f"got a {kind.__name__} of {kind.__module__}, but another class has that name; rename it")
    return spec.to_text(value)


def read_ensemble(config: dict[str, Any]) -> Ensemble:
    """The inverse of :func:`ensemble_config`."""
    return Ensemble(
        spec.parse(config["partition"], Partitioner.own.unique() | PARTITIONERS, example="PixelSum(50)"),
        spec.parse(config["learner"], Learner.own.unique() | LEARNERS, example='Network(model="small_cnn")'),
        config["num_classes"],
        spread=config["spread"],
        seeds=config["seeds"],
        learned=config.get("learned", False),
    )


def environment_of(device: str) -> dict[str, Any]:
    """Everything on this machine that may change the last bits of a computation on ``device``."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else f"{kind}, {_processor()}"
    return {"torch": torch.__version__, "device": device, "hardware": name, "threads": torch.get_num_threads()}


@lru_cache(maxsize=1)
def _processor() -> str:
    """The CPU's name and the instruction set that torch uses; both determine the kernels."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


@contextlib.contextmanager
def same_environment(expected: dict[str, Any]) -> Iterator[None]:
    """Set the number of threads of an :func:`environment_of`; raises unless everything else matches it, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(expected["threads"])  # a worker starts with a number of its own
    try:
        here = environment_of(expected["device"])
        if here != expected:
            raise ValueError(
                f"environment: got {here} on the worker, expected {expected}; use identical machines with the same "
                "software"
            )
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Job:
    """An ensemble that is trained into a folder.

    Attributes:
        folder: where models and votes are stored.
        ensemble: what is trained.
        data: identity of the training set and of anything else that the models depend on, as JSON values. Files of
            models also carry a checksum of the samples and labels.
        at_once: models in a group, which are trained together and share a file.
        mode: ``"stacked"`` trains a group at once, ``"sequential"`` one model after the other.
        environment: what may change the last bits of a model, see :func:`environment_of`.
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
        """The indices of the models in each group; they depend on the configuration alone."""
        size = self.ensemble.size
        return [range(i, min(i + self.at_once, size)) for i in range(0, size, self.at_once)]

    @property
    def config(self) -> dict[str, Any]:
        """Everything that a model depends on, except its part, as JSON values."""
        how = {"at_once": self.at_once, "mode": self.mode, "environment": self.environment}
        return ensemble_config(self.ensemble) | {"data": self.data} | how

    @property
    def identity(self) -> str:
        """SHA-256 of the configuration, which every file of the job carries."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def start(self, *, resume: bool, shard: tuple[int, int] = (0, 1), provenance: dict[str, Any] | None = None) -> None:
        """Claim the folder for this job.

        Args:
            resume: whether the folder may hold the job already.
            shard: see :meth:`train`. Shards share the folder: without ``resume``, it may hold models of others.

        Raises:
            ValueError: if the folder holds another job; or, without ``resume``, this one, or with shards, finished
                models of this shard.
        """
        path, (number, shards) = self.folder / "ensemble.json", shard
        begun = (
            path.exists() if shards == 1 else any(self._models(each).exists() for each in self.groups[number::shards])
        )
        if begun and not resume:
            what = "an ensemble" if shards == 1 else f"models of shard {number}/{shards}"
            raise ValueError(
                f"{self.folder}: already holds {what}; add --resume to continue it, or choose another folder"
            )
        claim_config(path, self.config | {"provenance": provenance or {}})

    def train(
        self,
        parts: list[Part],
        *,
        shard: tuple[int, int] = (0, 1),
        executor: Executor | None = None,
        on_group: OnGroup | None = None,
    ) -> None:
        """Train the groups of this shard that have no file yet.

        Args:
            parts: of all models, see :meth:`~certify.poisoning.Ensemble.parts`.
            shard: ``(i, n)``: every n-th group from number i on; the others are left to other processes.
            executor: where to run; by default in this process, one group after the other.
        """
        if len(parts) != self.ensemble.size:
            raise ValueError(f"parts: got {len(parts)}, expected {self.ensemble.size}, one for each model")
        groups = self._unfinished(shard, self._models, on_group, parts=parts)
        tasks = ((group, [parts[i] for i in group]) for group in groups)
        self._run(executor, _trained, self, tasks, groups, self._models, on_group)

    def _unfinished(
        self,
        shard: tuple[int, int],
        path: PathOf,
        on_group: OnGroup | None,
        *,
        inputs: dict[str, Any] | None = None,
        parts: list[Part] | None = None,
    ) -> list[range]:
        """The groups of this shard that have no file yet; the files of the others are checked."""
        unfinished = []
        for group in self.groups[shard[0] :: shard[1]]:
            if not path(group).exists():
                unfinished.append(group)
                continue
            self._read(path(group), group, inputs, None if parts is None else [parts[i] for i in group])
            if on_group is not None:
                on_group(len(group))
        return unfinished

    def _run(
        self,
        executor: Executor | None,
        work: Work,
        shared: Any,
        tasks: Iterable[Any],
        groups: list[range],
        path: PathOf,
        on_group: OnGroup | None,
    ) -> None:
        """Write the result of each task to the file of its group."""
        for number, content in (executor or Sequential()).run(work, shared, tasks):
            write_atomically(path(groups[number]), content)
            if on_group is not None:
                on_group(len(groups[number]))

    def states(self, group: range) -> list[State]:
        """The trained models of a group."""
        states: dict[int, State] = {i: {} for i in group}
        for name, tensor in self._read(self._models(group), group).items():
            i, _, own = name.partition("/")
            states[int(i)][own] = tensor
        return [states[i] for i in group]

    def vote(
        self,
        name: str,
        x: Tensor,
        inputs: dict[str, Any],
        *,
        device: str = "cpu",
        shard: tuple[int, int] = (0, 1),
        executor: Executor | None = None,
        on_group: OnGroup | None = None,
    ) -> None:
        """Let those models of this shard that have no file of votes yet rank the classes of ``x [B, ...]``.

        Args:
            name: name of the folder for the votes.
            inputs: identity of ``x``, as JSON values; every file of votes carries it, and a checksum of ``x``.
            executor: see :meth:`train`.
        """
        inputs = json.loads(json.dumps(inputs | {"x_sha256": images_checksum(x)}))
        environment = environment_of(device)
        claim_config(self.folder / name / "votes.json", {"inputs": inputs, "environment": environment})
        path = partial(self._votes, name)
        groups = self._unfinished(shard, path, on_group, inputs=inputs)
        tasks = ((self._models_checksum(group), self.states(group)) for group in groups)
        header = {"identity": self.identity, "inputs": inputs}
        self._run(executor, _voted, (self.ensemble, x, header, environment), tasks, groups, path, on_group)

    def rankings(self, name: str) -> Tensor:
        """The stored rankings of all models, ``[size, B, C]``."""
        inputs = self.voted(name)
        return torch.cat([self._read(self._votes(name, group), group, inputs)["rankings"] for group in self.groups])

    def voted(self, name: str) -> dict[str, Any]:
        """The ``inputs`` of :meth:`vote` for the votes in folder ``name``."""
        path = self.folder / name / "votes.json"
        if not path.exists():
            raise FileNotFoundError(f"{path}: no votes yet; run 'python -m scripts.poisoning vote'")
        return json.loads(path.read_text())["inputs"]

    def _models(self, group: range) -> Path:
        return self.folder / f"models-{group.start:05d}.safetensors"

    def _votes(self, name: str, group: range) -> Path:
        return self.folder / name / f"votes-{group.start:05d}.safetensors"

    def _models_checksum(self, group: range) -> str | None:
        """The checksum of a group's models; None if they are not on disk."""
        path = self._models(group)
        return seal_of(path) if path.exists() else None

    def _read(
        self, path: Path, group: range, inputs: dict[str, Any] | None = None, parts: list[Part] | None = None
    ) -> State:
        """The tensors in the file of a group, which is checked."""
        if not path.exists():
            raise FileNotFoundError(f"{path}: does not exist yet; resume training and voting of this ensemble first")
        tensors, header = read_tensors(path)
        if header.get("identity") != self.identity:
            raise ValueError(f"{path}: does not belong to the ensemble of {self.folder / 'ensemble.json'}; remove it")
        if header.get("inputs", inputs) != inputs:
            raise ValueError(f"{path}: holds votes on {header['inputs']}, not on {inputs}; remove it")
        voters, models = header.get("models"), self._models_checksum(group)  # earlier versions stored none
        if None not in (voters, models) and voters != models:
            raise ValueError(f"{path}: holds votes of other models than {self._models(group)}; remove it to vote again")
        if parts is not None and "parts" not in header:
            raise ValueError(f"{path}: was made by an earlier version, without a checksum of its samples; retrain it")
        if parts is not None and header["parts"] != _parts_checksum(parts):
            raise ValueError(
                f"{path}: its models were trained on other samples or labels, under the same name {self.data}; give "
                "data sets distinct names, and train into another folder"
            )
        return tensors


def _trained(job: Job, task: tuple[range, list[Part]]) -> bytes:
    """The file of a group of models: a task of :meth:`Job.train`."""
    group, parts = task
    at_once = len(parts) if job.mode == "stacked" else 1
    with same_environment(job.environment):
        states = job.ensemble.fit(parts, at_once=at_once, device=job.environment["device"])
    named = {f"{i}/{name}": own[name] for i, own in zip(group, states, strict=True) for name in own}
    return tensor_bytes(named, {"identity": job.identity, "parts": _parts_checksum(parts)})


def _parts_checksum(parts: list[Part]) -> str:
    """SHA-256 of what models are trained on."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.seed} {images_checksum(part.samples)} {images_checksum(part.labels)} ".encode())
    return digest.hexdigest()


def _voted(
    shared: tuple[Ensemble, Tensor, dict[str, Any], dict[str, Any]], task: tuple[str | None, list[State]]
) -> bytes:
    """The file of the votes of a group: a task of :meth:`Job.vote`."""
    ensemble, x, header, environment = shared
    models, states = task
    device = environment["device"]
    with same_environment(environment):
        moved = [{name: tensor.to(device) for name, tensor in state.items()} for state in states]
        rankings = ensemble.rankings(moved, x)
    return tensor_bytes({"rankings": rankings}, header | {"models": models})


def images_checksum(images: Tensor) -> str:
    """SHA-256 of images, or of any tensor, in the given order."""
    digest = hashlib.sha256(f"{images.dtype} {tuple(images.shape)}".encode())
    digest.update(images.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
