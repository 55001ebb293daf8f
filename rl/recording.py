"""Whether the updates of an algorithm can be recorded as CUDA graphs, and when recordings are out of date."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from rl.updates import can_be_recorded

if TYPE_CHECKING:
    from rl.reengage import GoalConditioned

# Attributes that change with every step and that recorded updates do not read.
_NOT_READ = frozenset(
    {
        *("num_timesteps", "_num_timesteps_at_start", "_total_timesteps", "_current_progress_remaining", "start_time"),
        *("_n_updates", "_n_calls", "_episode_num", "exploration_rate", "_reward_watch"),
        *("_entropy_coef", "_actions", "_log_prob"),
    }
)


def check_recordable(model: GoalConditioned) -> None:
    """Raise unless the updates of ``model`` can be recorded."""
    if callable(model.learning_rate):
        raise ValueError("cuda_graphs: got a learning rate that follows a schedule, expected a number")
    if model.use_sde:
        raise ValueError("cuda_graphs: got use_sde=True, whose noise cannot be recorded; use only one of the two")
    for optimizer in model.optimizers():
        if not can_be_recorded(optimizer):
            name = type(optimizer).__name__
            raise ValueError(f"cuda_graphs: got {name}, which counts its steps in Python; use torch.optim.Adam")
    if not model.updates_are_alike():
        raise ValueError(
            f"cuda_graphs: got {type(model.policy).__name__}, whose updates do not all do the same work; leave it False"
        )


def surroundings(model: GoalConditioned) -> Hashable:
    """All that Python reads in an update, except for the minibatch: options, the rule, and addresses of tensors."""
    options = [(name, _comparable(value)) for name, value in vars(model).items() if name not in _NOT_READ]
    options += [(name, _comparable(value)) for name, value in vars(model.goal_statistics).items()]
    tensors = [*model.policy.parameters(), *model.policy.buffers()]
    for optimizer in model.optimizers():
        for group in optimizer.param_groups:
            options += [(name, _comparable(value)) for name, value in group.items()]
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return model.goal_gradient, tuple(options), _comparable(tensors)


def _comparable(value: Any) -> Hashable:
    """An option in a form to compare later: numbers and strings as such, tensors by address, nothing else."""
    if isinstance(value, bool | int | float | str | np.number | None):
        return value
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else None
    return tuple(_comparable(own) for own in value) if isinstance(value, list | tuple) else None
