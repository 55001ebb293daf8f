"""Steps of optimizers and target networks, without work whose result nobody reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, *, max_norm: float | None = None) -> None:
    """One step on ``loss``; gradients are computed for the optimizer's own parameters only.

    Args:
        max_norm: clips the gradient's norm.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    if max_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


@torch.no_grad()
def follow(network: nn.Module, target: nn.Module, tau: float) -> None:
    """``target <- (1 - tau) target + tau network`` for parameters; running statistics are copied."""
    sources, targets = list(network.parameters()), list(target.parameters())
    torch._foreach_mul_(targets, 1 - tau)
    torch._foreach_add_(targets, sources, alpha=tau)
    for source, copy in zip(network.buffers(), target.buffers(), strict=True):
        copy.copy_(source)


def make_faster(optimizer: torch.optim.Optimizer, *, exact: bool) -> None:
    """Let Adam and its kin work on all parameters at once, also on a CPU.

    Args:
        exact: the same numbers as one parameter after another, bit for bit. Otherwise the fused kernels are used, which
            are faster and differ in the last bit.
    """
    for group in optimizer.param_groups:
        if group.get("foreach", ...) is None and not group.get("fused"):
            group.update({"foreach": True} if exact or "fused" not in group else {"foreach": False, "fused": True})
