"""The whole state of a training run in one file that loads without executing code.

Stable-Baselines3's own ``save`` and ``load`` work too; they keep neither the random state nor the buffer, and load by
unpickling. A checkpoint holds parameters, optimizers, replay buffer and counters, but no random state and no
environment: at a checkpoint the run itself starts afresh, with new seeds derived from its own seed and the number of
steps (:func:`start_afresh`). A run that was killed and resumed is therefore identical to one that was not, whatever the
environment.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import attrgetter
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from rl.files import replacing
from rl.goals import GoalStatistics
from rl.her import HerReplayBuffer, end_open_episodes

VERSION = 1
_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate", "_total_timesteps")
_BUFFER_ARRAYS = ("actions", "rewards", "dones", "timeouts", "ep_start", "ep_length")
_OBSERVATION_ARRAYS = ("observations", "next_observations")


# Settings of the algorithm, and of its replay buffer: to resume with other ones would be another experiment.
_SETTINGS = (
    *("gamma", "tau", "goal_gradient_coef", "goal_gradient", "target_range", "learning_rate", "batch_size"),
    *("gradient_steps", "train_freq", "learning_starts", "policy_delay", "target_policy_noise", "target_noise_clip"),
    *("action_noise", "random_action", "action_l2", "target_update_interval", "ent_coef", "target_entropy"),
    *(
        "exploration_initial_eps",
        "exploration_final_eps",
        "exploration_fraction",
        "max_grad_norm",
        "temperature",
        "soft_target",
    ),
)
_BUFFER_SETTINGS = ("n_sampled_goal", "goal_selection_strategy", "relabel_terminations", "n_envs", "n_steps")


def settings_of(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """The settings that must not change when a run is resumed, as JSON values."""
    found = {name: getattr(model, name) for name in _SETTINGS if hasattr(model, name)}
    found["action_noise"] = getattr(model.action_noise, "base_noise", model.action_noise)  # learn() may wrap it
    found |= {
        f"replay_buffer.{name}": getattr(model.replay_buffer, name)
        for name in _BUFFER_SETTINGS
        if hasattr(model.replay_buffer, name)
    }
    return {name: _json_value(value) for name, value in found.items()}


def _json_value(value: Any) -> Any:
    """A setting as a JSON value, the same in every process: numbers and strings as such, other things by name."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_json_value(each) for each in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Tensor):
        return _json_value(value.tolist())
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    kind = type(value).__qualname__
    if is_dataclass(value):
        return {"kind": kind} | {each.name: _json_value(getattr(value, each.name)) for each in fields(value)}
    text = repr(value)
    return kind if " at 0x" in text else text


def start_afresh(model: OffPolicyAlgorithm) -> None:
    """Seed all randomness from the run's seed and its number of steps, and begin new episodes.

    Unfinished episodes count as truncated by a time limit; there are none if checkpoints are at multiples of the length
    of an episode.
    """
    assert model.env is not None
    assert model.seed is not None
    buffer = model.replay_buffer
    if not end_open_episodes(buffer) and buffer is not None:  # n-step returns have to end here, too
        if buffer.handle_timeout_termination:
            buffer.timeouts[buffer.pos - 1, buffer.dones[buffer.pos - 1] == 0] = 1
        buffer.dones[buffer.pos - 1] = 1
    if hasattr(model, "update_statistics"):  # a checkpoint does not hold which episodes they lack
        model.update_statistics()  # type: ignore[attr-defined]
    entropy = np.random.SeedSequence([model.seed, model.num_timesteps])
    model.set_random_seed(int(entropy.generate_state(1)[0] >> 1))
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones((model.env.num_envs,), dtype=bool)
    if model.action_noise is not None:
        model.action_noise.reset()
    if model.use_sde:
        model.actor.reset_noise(model.env.num_envs)  # type: ignore[operator]


def check_supported(model: OffPolicyAlgorithm) -> None:
    """Raise unless a checkpoint can hold all of the state of ``model``."""
    if model.get_vec_normalize_env() is not None:
        raise ValueError(
            "env: got a VecNormalize, whose statistics are not part of a checkpoint; save it separately and use learn()"
        )
    if getattr(model.replay_buffer, "copy_info_dict", False):
        raise ValueError(
            "copy_info_dict: got True, but infos are not part of a checkpoint; leave it False or use learn()"
        )
    if getattr(model.replay_buffer, "optimize_memory_usage", False):
        raise ValueError(
            "optimize_memory_usage: got True, but the episode after a checkpoint would overwrite the last observation "
            "of the one before; leave it False or use learn()"
        )


def save_checkpoint(model: OffPolicyAlgorithm, path: str | Path, *, settings: Mapping[str, Any] | None = None) -> None:
    """Replace ``path`` by the state of ``model`` atomically: it never holds a partial checkpoint.

    Args:
        settings: further settings that must not change when the run is resumed, as JSON values.

    Raises:
        ValueError: if the model has state that checkpoints do not hold, or parameters that are no longer finite; if
            ``path`` is a folder, a device or a pipe.
        OSError: if the file could not be written.
    """
    check_supported(model)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, value in model.policy.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"{path}: not written, since {name} is no longer finite after {model.num_timesteps} steps: training "
                f"diverged{_earlier(path)}. Try a smaller learning rate or goal_gradient_coef"
            )
    _replace(path, _tensors_of(model), _state_of(model, settings or {}))


def _state_of(model: OffPolicyAlgorithm, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that is not a tensor, as JSON values: counters, where the buffer is filled up to, settings."""
    buffer = _replay_buffer_of(model)
    state: dict[str, Any] = {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)}
    state |= {"version": VERSION, "algorithm": type(model).__name__, "pos": buffer.pos, "full": buffer.full}
    state["settings"] = settings_of(model) | dict(settings)
    statistics: GoalStatistics | None = getattr(model, "goal_statistics", None)
    if statistics is not None and statistics.count > 0:
        state["goals"] = list(statistics.state().values())
    return state


def _tensors_of(model: OffPolicyAlgorithm) -> dict[str, Tensor]:
    """Parameters, optimizers, further variables and the replay buffer, by name."""
    # copies, since networks may share parameters, which the format does not allow
    tensors = {f"policy.{name}": value.clone() for name, value in model.policy.state_dict().items()}
    for name, optimizer in _optimizers(model).items():
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
    for name in model._get_torch_save_params()[1]:
        tensors[f"variable.{name}"] = attrgetter(name)(model)
    return tensors | {
        f"buffer.{name}": torch.from_numpy(array) for name, array in _filled_arrays(_replay_buffer_of(model)).items()
    }


def _replace(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write all of it to ``path``, or nothing."""
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(packed, temporary, metadata={"state": json.dumps(state)})
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written ({error}){_earlier(path)}") from error


def _earlier(path: Path) -> str:
    return ", the checkpoint before it is kept" if path.exists() else ""


def load_checkpoint(model: OffPolicyAlgorithm, path: str | Path, *, buffer: bool = True) -> None:
    """Put a saved state into a model that was made with the same arguments.

    Args:
        buffer: False leaves the replay buffer empty, which suffices for an agent that is not trained further.

    Raises:
        ValueError: if the file is damaged, or belongs to another algorithm or architecture.
    """
    path = Path(path)
    state, tensors = _read(path, type(model).__name__, buffer=buffer)
    _check_fit(model, state, tensors, buffer, path)
    if buffer and (what := _differing_settings(state, settings_of(model))):
        warnings.warn(f"{path}: was trained with {what}", stacklevel=2)
    _restore(model, state, tensors)
    if buffer:
        _fill_buffer(_replay_buffer_of(model), _with_prefix(tensors, "buffer"), state["pos"], state["full"])


def _read(path: Path, algorithm: str, *, buffer: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and tensors of a checkpoint of ``algorithm``, those of the replay buffer only with ``buffer``."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint; train first")
    if is_zipfile(path):
        raise ValueError(
            f"{path}: got a model saved by Stable-Baselines3 (a zip file), expected a checkpoint of "
            f"rl.save_checkpoint or rl.run; load it with {algorithm}.load(path, env=env)"
        )
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            wanted = [name for name in file.keys() if buffer or not name.startswith("buffer.")]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: truncated or not a checkpoint of a training run ({error}); train again") from error
    if state.get("version") != VERSION or state["algorithm"] != algorithm:
        raise ValueError(
            f"{path}: got a checkpoint of {state.get('algorithm')}, version {state.get('version')}; expected "
            f"{algorithm}, version {VERSION}"
        )
    return state, tensors


def _restore(model: OffPolicyAlgorithm, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put everything but the replay buffer into the model."""
    model.policy.load_state_dict(_with_prefix(tensors, "policy"))
    with torch.no_grad():
        for name, value in _with_prefix(tensors, "variable").items():
            attrgetter(name)(model).copy_(value)
    for name, optimizer in _optimizers(model).items():
        _load_optimizer(optimizer, _with_prefix(tensors, f"optimizer/{name}", "/"))
    for name in _COUNTERS:
        if name in state:
            setattr(model, name, state[name])
    if "goals" in state:
        goals = dict(zip(("count", "mean", "squares"), state["goals"], strict=True))
        model.goal_statistics = GoalStatistics.of(goals)  # type: ignore[attr-defined]


def check_settings(model: OffPolicyAlgorithm, path: str | Path, *, settings: Mapping[str, Any] | None = None) -> None:
    """Raise ``ValueError`` if a checkpoint has other settings, including those given to :func:`save_checkpoint`."""
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return  # loading it will say so
    if what := _differing_settings(state, settings_of(model) | dict(settings or {})):
        raise ValueError(
            f"{path}: was trained with {what}; use the settings it was trained with, or choose another folder"
        )


def _differing_settings(state: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """How the settings of a checkpoint differ from the model's, among those that both have."""
    stored, own = state.get("settings", {}), json.loads(json.dumps(own))
    other = [name for name in stored if name in own and not _json_equal(stored[name], own[name])]
    return ", ".join(f"{name} = {stored[name]}, not {own[name]}" for name in other)


def _json_equal(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(_json_equal(*pair) for pair in zip(first, second, strict=True))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_json_equal(value, second[name]) for name, value in first.items())
    return first == second or (first != first and second != second)


def _check_fit(
    model: OffPolicyAlgorithm, state: dict[str, Any], tensors: dict[str, Tensor], buffer: bool, path: Path
) -> None:
    """Raise, before anything is changed, unless a checkpoint is complete and has the model's shapes."""
    shapes = {name: value.shape for name, value in model.policy.state_dict().items()}
    names = model._get_torch_save_params()[1]
    parts = {
        "networks": shapes == {name: value.shape for name, value in _with_prefix(tensors, "policy").items()},
        "variables": set(names) == _with_prefix(tensors, "variable").keys(),
        "optimizers": state["_n_updates"] == 0
        or any(_with_prefix(tensors, f"optimizer/{n}", "/") for n in _optimizers(model)),
    }
    if buffer:
        arrays, own = _buffer_arrays(_replay_buffer_of(model)), _with_prefix(tensors, "buffer")
        used = _replay_buffer_of(model).buffer_size if state["full"] else state["pos"]
        parts["replay buffer"] = arrays.keys() == own.keys() and all(
            len(own[name]) == used <= len(array) and own[name].shape[1:] == array.shape[1:]
            for name, array in arrays.items()
        )
    if misfits := [name for name, fits in parts.items() if not fits]:
        raise ValueError(f"{path}: {', '.join(misfits)} do not fit the model; make it with the arguments of that run")


def _with_prefix(tensors: dict[str, Tensor], name: str, separator: str = ".") -> dict[str, Tensor]:
    """The tensors whose names begin with ``name``, without that prefix."""
    prefix = name + separator
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _optimizers(model: OffPolicyAlgorithm) -> dict[str, torch.optim.Optimizer]:
    return {name: attrgetter(name)(model) for name in model._get_torch_save_params()[0] if name.endswith("optimizer")}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        i, key = name.split(".", 1)
        states.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _replay_buffer_of(model: OffPolicyAlgorithm) -> ReplayBuffer:
    assert model.replay_buffer is not None
    return model.replay_buffer


def _buffer_arrays(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """All arrays that a buffer consists of, by name."""
    arrays = {name: getattr(buffer, name) for name in _BUFFER_ARRAYS if hasattr(buffer, name)}
    for name in _OBSERVATION_ARRAYS:
        own = getattr(buffer, name, None)
        if isinstance(buffer, DictReplayBuffer) and own is not None:
            # an array that serves as both, as in GoalSetReplayBuffer, is there already
            known = {id(array) for array in arrays.values()}
            arrays |= {f"{name}.{key}": array for key, array in own.items() if id(array) not in known}
        elif own is not None:
            arrays[name] = own
    return arrays


def _filled_arrays(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    used = buffer.buffer_size if buffer.full else buffer.pos
    return {name: array[:used] for name, array in _buffer_arrays(buffer).items()}


def _fill_buffer(buffer: ReplayBuffer, tensors: dict[str, Tensor], pos: int, full: bool) -> None:
    for name, array in _buffer_arrays(buffer).items():
        array[: len(tensors[name])] = tensors[name].numpy()
    buffer.pos, buffer.full = pos, full
    if hasattr(buffer, "ep_length"):  # anything beyond is no longer an episode
        buffer.ep_length[len(tensors["ep_length"]) :] = 0  # type: ignore[attr-defined]
    if hasattr(buffer, "_current_ep_start"):  # no episode is open in a checkpoint
        buffer._current_ep_start[:] = pos  # type: ignore[attr-defined]
    if isinstance(buffer, HerReplayBuffer):
        buffer._drawable.forget()
    if hasattr(buffer, "_fresh"):
        buffer._fresh.clear()  # type: ignore[attr-defined]
