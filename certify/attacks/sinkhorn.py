"""Projection onto a Wasserstein ball, by projected Sinkhorn iterations with local transport plans.

Source: Wong, Schmidt and Kolter, "Wasserstein Adversarial Examples via Projected Sinkhorn Iterations" (ICML 2019).

Among all plans P that transport an image x (of sum 1) to some image z at a cost of at most eps, by moves of a few
pixels, find the one that minimizes ``lam / 2 |w - z|^2 + sum P log P``. At the optimum
``P_ij = exp(a_i + b_j - psi C_ij)`` with ``b = lam (w - z)`` and psi >= 0, where psi > 0 only if the cost is eps. The
iterations solve for a, b and psi in turn:

* a in closed form, so that row i adds up to x_i;
* b from ``t + log t = log(lam s_j) + lam w_j`` for ``t = lam z_j``, where ``s_j`` is the sum of column j without b;
* psi by Newton steps. The cost is convex and decreasing in psi, so a step from the left never overshoots the root.

The iterations only approximate the optimum. The plan returned is scaled into the ball: the distance from x to the image
it produces is at most its cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from certify.threats import GroundMetric

_TINY = 1e-300
_LARGEST = 600.0  # of exponents
_NEWTON = 3  # steps for psi in each iteration
_RETURNS = 10  # rounds of sending back mass that does not fit into its target pixel


@dataclass(frozen=True)
class Plan:
    """Local transport plans.

    Attributes:
        moved: float64 ``[J, C, K, H, W]``, the mass that each of the K = side^2 moves of the window takes from a pixel.
        costs: float64 ``[K]``, the length of each move; the one in the middle is to stay.
    """

    moved: Tensor
    costs: Tensor

    def arrived(self) -> Tensor:
        """The image after transport: float64 ``[J, C, H, W]``."""
        j, c, k, h, w = self.moved.shape
        side = round(k**0.5)
        # move number m of the window comes from the pixel that sees the target at m
        columns = self.moved.reshape(j * c, k, h * w)
        return F.fold(columns, (h, w), side, padding=side // 2).view(j, c, h, w)

    def cost(self) -> Tensor:
        """Transport cost of each plan: float64 ``[J]``."""
        return (self.moved.sum((1, 3, 4)) * self.costs).sum(1)

    def kept(self, share: Tensor) -> Plan:
        """The plan with only a share (in [0, 1], broadcast to ``[J, C, K, H, W]``) of each move; the rest stays."""
        middle = len(self.costs) // 2
        moved = self.moved * share
        moved[:, :, middle] = self.moved[:, :, middle]
        moved[:, :, middle] += self.moved.sum(2) - moved.sum(2)
        return Plan(moved, self.costs)


def window_costs(side: int, metric: GroundMetric, device: torch.device) -> Tensor:
    """Lengths of the moves within ``side`` by ``side`` pixels: float64 ``[side^2]``."""
    steps = torch.arange(side, device=device, dtype=torch.float64) - side // 2
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    lengths = rows.abs() + columns.abs() if metric == "l1" else (rows**2 + columns**2).sqrt()
    return lengths.flatten()


def project(
    x: Tensor,
    w: Tensor,
    eps: Tensor,
    metric: GroundMetric,
    *,
    limit: Tensor | None = None,
    regularization: float = 3000.0,
    iterations: int = 30,
    window: int = 5,
) -> Plan:
    """A plan from ``x`` to an image near ``w``: always within the ball, and close to the image in it nearest to ``w``.

    Args:
        x: float64 ``[J, C, H, W]``, nonnegative with sum 1.
        w: of the same shape, any numbers.
        eps: float64 ``[J]``, radii.
        limit: float64 ``[J]``, upper bound on the pixels of the result, provided that those of ``x`` satisfy it.
        regularization: lam, the weight of the distance relative to the entropy of the plan.
        window: side, in pixels, of the window of allowed moves.

    Returns:
        a plan whose cost is at most ``eps``, up to rounding. The result for an image does not depend on the others.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: got {window}, expected an odd number of pixels")
    costs = window_costs(window, metric, x.device)
    target, log_x = regularization * w, x.log()
    psi, b = torch.zeros_like(eps), torch.zeros_like(x)
    for _ in range(iterations):  # in the log domain throughout: b is of the order of lam
        a = log_x - _weights(b, psi, costs).logsumexp(2)
        columns = _weights(a, psi, costs).logsumexp(2)
        b = target - _wright_omega(columns + math.log(regularization) + target)
        psi = _newton(_plan(x, b, psi, costs).moved.sum((1, 3, 4)), psi, eps, costs)
    return _inside(_plan(x, b, psi, costs), x, eps, limit)


def _weights(potential: Tensor, psi: Tensor, costs: Tensor) -> Tensor:
    """``potential_j - psi C_ij`` for each move from or to a pixel i, minus infinity outside the image."""
    side = round(len(costs) ** 0.5)
    return _windows(potential, side, outside=-math.inf) - (psi[:, None] * costs)[:, None, :, None, None]


def _plan(x: Tensor, b: Tensor, psi: Tensor, costs: Tensor) -> Plan:
    """The plan with these potentials; its moves distribute all of x."""
    return Plan(_weights(b, psi, costs).softmax(2).mul_(x[:, :, None]), costs)


def _newton(carried: Tensor, psi: Tensor, eps: Tensor, costs: Tensor) -> Tensor:
    """The psi at which the cost is ``eps``, for fixed a and b.

    Args:
        carried: float64 ``[J, side^2]``, the mass of each move; it shrinks by ``exp(-C)`` for each unit of psi.
    """
    before = psi
    lowest = (before - _LARGEST / costs.amax().clamp(min=1)).clamp(min=0)  # against overflow
    for _ in range(_NEWTON):
        each = carried * torch.exp((before - psi)[:, None] * costs)
        slope = (each * costs**2).sum(1).clamp(min=_TINY)
        psi = torch.maximum(psi + ((each * costs).sum(1) - eps) / slope, lowest)
    return psi


def _inside(plan: Plan, x: Tensor, eps: Tensor, limit: Tensor | None) -> Plan:
    """The plan scaled so that its cost is at most ``eps``; mass that exceeds a pixel's limit is sent back."""
    share = (eps / plan.cost().clamp(min=_TINY)).clamp(max=1)
    plan = plan.kept(share.view(-1, 1, 1, 1, 1))
    if limit is None:
        return plan
    middle, side = len(plan.costs) // 2, round(len(plan.costs) ** 0.5)
    most = limit.view(-1, 1, 1, 1)
    for _ in range(_RETURNS):
        arrived, stays = plan.arrived(), plan.moved[:, :, middle]
        room = ((most - stays) / (arrived - stays).clamp(min=_TINY)).clamp(0, 1)
        room = torch.where(arrived > most, room, 1.0)
        plan = plan.kept(_windows(room, side))
    arrived = plan.arrived()
    share = ((most - x) / (arrived - x).clamp(min=_TINY)).masked_fill(arrived <= most, 1).clamp(0, 1)
    return plan.kept(share.amin((1, 2, 3)).view(-1, 1, 1, 1, 1))


def _windows(values: Tensor, side: int, outside: float = 0.0) -> Tensor:
    """For each pixel, the values at the targets of its moves: ``[J, C, side^2, H, W]``."""
    j, c, h, w = values.shape
    padded = F.pad(values.reshape(j * c, 1, h, w), [side // 2] * 4, value=outside)
    return F.unfold(padded, side).view(j, c, side * side, h, w)


def _wright_omega(y: Tensor) -> Tensor:
    """The t > 0 with ``t + log t = y``, by Newton's method in log t."""
    t = torch.where(y > 1, (y - y.clamp(min=1).log()).clamp(min=0.5), y.clamp(max=1).exp() / 1.5).clamp(min=_TINY)
    for _ in range(5):
        # Newton on u + exp(u) = y, u = log t: the function is convex, and quadratic convergence starts at once
        t = t * torch.exp(((y - t - t.log()) / (1 + t)).clamp(-5, 5))
    return t
