"""Optimizer steps and target-network updates that skip work whose result is not used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, *, max_norm: float | None = None) -> None:
    """One optimizer step on ``loss``, with gradients computed only for the optimizer's trainable parameters.

    Args:
        max_norm: clip the gradient norm to this.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    loss.backward(inputs=parameters)
    if max_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


@contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Create distributions without validating their parameters, for which Python would wait for the device.

    Collecting rollouts is not covered, so a policy with NaN parameters still raises an error at its next action.
    """
    checked = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)


class Follower:
    """Polyak updates of a target network: ``target <- (1 - tau) target + tau network``.

    Running statistics of normalization layers are copied: whatever has ``running_`` in its name, as in
    Stable-Baselines3. The target network keeps other buffers of its own.
    """

    def __init__(self, network: nn.Module, target: nn.Module) -> None:
        # collected once: walking through the modules takes longer than the update itself
        self._sources: list[Tensor] = list(network.parameters())
        self._targets: list[Tensor] = list(target.parameters())
        self._statistics = list(zip(_running_statistics(network), _running_statistics(target), strict=True))

    @torch.no_grad()
    def update(self, tau: float) -> None:
        # the building blocks of torch's own optimizers, which have no public names
        torch._foreach_mul_(self._targets, 1 - tau)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(self._targets, self._sources, alpha=tau)  # pyright: ignore[reportPrivateImportUsage]
        for source, copy in self._statistics:
            copy.copy_(source)


def _running_statistics(network: nn.Module) -> list[Tensor]:
    return [tensor for name, tensor in network.state_dict().items() if "running_" in name]


def make_faster(optimizer: torch.optim.Optimizer, *, exact: bool, recorded: bool = False) -> None:
    """Let Adam and similar optimizers update all parameters at once, also on a CPU.

    Args:
        exact: whether results must be bit-identical to updating the parameters one by one. Otherwise, fused kernels are
            used, which are faster and differ in the last bit.
        recorded: whether steps become part of a CUDA graph (:mod:`rl.graphs`), which rules out any dependence on
            numbers that are not on the device.
    """
    for group in optimizer.param_groups:
        if group.get("foreach", ...) is None and not group.get("fused"):
            group.update({"foreach": True} if exact or "fused" not in group else {"foreach": False, "fused": True})
        if "capturable" in group:
            group["capturable"] = recorded  # overriding the value of a loaded state
        _move_step_counts(optimizer, group)
    if recorded:  # the first steps are deliberately not captured
        optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]


def can_be_recorded(optimizer: torch.optim.Optimizer) -> bool:
    """Whether everything that changes from step to step is kept on the device."""
    return isinstance(optimizer, torch.optim.SGD) or all("capturable" in group for group in optimizer.param_groups)


def _move_step_counts(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Move step counts to or from the device as this group's kernels expect, if loaded or created by other kernels."""
    on_device = group.get("fused") or group.get("capturable")
    for parameter in group["params"]:
        state = optimizer.state.get(parameter)
        if state and "step" in state:
            device = parameter.device if on_device else torch.device("cpu")
            step = torch.as_tensor(state["step"])
            state["step"] = step.to(device, torch.float32 if group.get("fused") else step.dtype)
