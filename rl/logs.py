"""Reading the evaluations that Stable-Baselines3's ``EvalCallback`` logs during training.

The folder of a method holds one folder per seed::

    runs/NAME/seed-0/evaluations.npz    timesteps [E], results, ep_lengths and, where known, successes [E, episodes]
    runs/NAME/seed-0/config.json        what was trained: free-form, with keys such as "env", "algorithm", "arguments"
    runs/NAME/seed-1/...
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

Metric = Literal["success", "return"]
_PER_RUN = ("seed", "command", "commit", "versions", "plan.steps")  # settings that may differ between a method's seeds


@dataclass(frozen=True)
class Evaluations:
    """The log of one run: the timesteps of its evaluations, and the outcome of each evaluation episode.

    Args:
        timesteps: int64 ``[E]``, increasing: training timesteps before each evaluation.
        results: float64 ``[E, episodes]``: returns.
        ep_lengths: int64 ``[E, episodes]``.
        successes: float64 ``[E, episodes]`` of 0 and 1, or None if the environment does not report success.
    """

    timesteps: NDArray[np.int64]
    results: NDArray[np.float64]
    ep_lengths: NDArray[np.int64]
    successes: NDArray[np.float64] | None

    def scores(self, metric: Metric) -> NDArray[np.float64]:
        """Success rate or mean return of each evaluation, ``[E]``."""
        episodes = self.results if metric == "return" else self.successes
        if episodes is None:
            raise ValueError('metric: got "success", but the log holds none; use "return"')
        return episodes.mean(1)


@dataclass(frozen=True)
class Method:
    """The learning curves of one method.

    Args:
        seeds: one per run.
        timesteps: int64 ``[E]``: the timesteps at which all runs were evaluated.
        scores: float64 ``[runs, E]``.
        logged: number of evaluations in each run's log; more than E if another run lags behind.
        config: configuration of the first seed; empty if it has none.
    """

    name: str
    seeds: tuple[int, ...]
    timesteps: NDArray[np.int64]
    scores: NDArray[np.float64]
    logged: tuple[int, ...]
    config: dict[str, Any]

    def at(self, timesteps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores ``[runs, len(timesteps)]`` at some of the timesteps."""
        return self.scores[:, np.searchsorted(self.timesteps, timesteps)]


def read_evaluations(path: Path) -> Evaluations:
    """Read and check one ``evaluations.npz``, without executing anything in it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated, or its arrays are missing, empty or inconsistent.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; EvalCallback writes it at the first evaluation (log_path=...)")
    try:
        with path.open("rb") as handle:
            file = np.load(handle, allow_pickle=False)
            arrays = {name: file[name] for name in file.files} if isinstance(file, NpzFile) else {}
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: is cut off ({error}); if it is being written right now, try again") from error
    except ValueError as error:  # object arrays, such as rows of unequal length, are refused rather than unpickled
        raise ValueError(f"{path}: got more than numbers, expected equally many per evaluation ({error})") from error
    missing = [name for name in ("timesteps", "results", "ep_lengths") if name not in arrays]
    if missing:
        raise ValueError(f"{path}: got {', '.join(arrays) or 'nothing'}; {', '.join(missing)} missing")
    _check(path, arrays)
    successes = arrays.get("successes")
    return Evaluations(
        arrays["timesteps"].astype(np.int64),
        arrays["results"].astype(np.float64),
        arrays["ep_lengths"].astype(np.int64),
        None if successes is None else successes.astype(np.float64),
    )


def _check(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    steps, results = arrays["timesteps"], arrays["results"]
    if steps.ndim != 1 or results.ndim != 2 or len(steps) != len(results) or results.size == 0:
        raise ValueError(
            f"{path}: got timesteps {steps.shape} and results {results.shape}, expected [E] and [E, episodes], E >= 1"
        )
    for name in ("results", "ep_lengths", "successes"):
        values = arrays.get(name, results)
        if values.shape != results.shape:
            raise ValueError(f"{path}: got {name} {values.shape}, expected {results.shape} as for the results")
        if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            raise ValueError(f"{path}: got {name} that are not finite numbers")
    if steps.dtype.kind not in "iu" or not (np.diff(steps) > 0).all():
        raise ValueError(f"{path}: got timesteps that do not increase; is it the log of two training runs?")


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of one run's ``config.json``; empty if there is none."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # includes text that is not UTF-8
        raise ValueError(f"{path}: is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: got {type(config).__name__}, expected a JSON object")
    return config


def read_method(folder: Path, metric: Metric) -> Method:
    """The runs of all seeds in ``folder``, at the timesteps at which all of them were evaluated.

    A run still in progress shortens the curves of the others: ``logged`` has the number of evaluations of each.

    Raises:
        FileNotFoundError: there are no seeds, or one has not been evaluated yet.
        ValueError: a log is damaged, or the runs belong to different methods.
    """
    matches = {path: re.fullmatch(r"seed-(\d+)", path.name) for path in folder.glob("seed-*")}
    folders = dict(sorted((int(match[1]), path) for path, match in matches.items() if match))
    if not folders:
        raise FileNotFoundError(f"{folder}: got no seed folders in it, expected seed-0, seed-1, ...")
    logs = [read_evaluations(path / "evaluations.npz") for path in folders.values()]
    configs = [read_config(path) for path in folders.values()]
    settings = [_settings(config) for config in configs]
    for name in sorted(set().union(*settings)):
        known = zip(settings, configs, strict=True)  # some logs have no configuration, or an older one
        values = {str(own.get(name)) for own, config in known if name.split(".")[0] in config}
        if len(values) > 1:
            raise ValueError(f"{folder}: got seeds with {name} {' and '.join(sorted(values))}, expected one method")
    timesteps = common_timesteps([log.timesteps for log in logs], str(folder))
    scores = []
    for path, log in zip(folders.values(), logs, strict=True):
        try:
            scores.append(log.scores(metric)[np.searchsorted(log.timesteps, timesteps)])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    logged = tuple(len(log.timesteps) for log in logs)
    return Method(folder.name, tuple(folders), timesteps, np.stack(scores), logged, configs[0])


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that all runs of a method share, with groups flattened: ``arguments.learning_rate``."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        parts = {f"{name}.{part}": each for part, each in value.items()} if isinstance(value, dict) else {name: value}
        if name not in _PER_RUN:
            found |= {part: each for part, each in parts.items() if part not in _PER_RUN}
    return found


def common_timesteps(timesteps: list[NDArray[np.int64]], name: str) -> NDArray[np.int64]:
    """The timesteps contained in all of the lists; raises ``ValueError`` if there are none."""
    common = reduce(np.intersect1d, timesteps)
    if common.size == 0:
        raise ValueError(
            f"{name}: got runs without a common evaluation step; evaluate all at the same steps (eval_freq)"
        )
    return common
