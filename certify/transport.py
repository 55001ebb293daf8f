"""Exact Wasserstein distances between small images, by linear programming.

Sources: Definition 5.1 and Lemma 5.1 of the dissertation; Ling and Okada (TPAMI 2007) for the form with flows.

Both forms use only the difference of two images, since in a metric it never pays to move shared mass.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, hstack, vstack
from torch import Tensor

GroundMetric = Literal["l1", "l2"]
Array = NDArray[np.float64]

_SAME_MASS = 1e-11  # tolerance, for normalized images in doubles


def check_metric(metric: str) -> None:
    """Raise unless ``metric`` is the name of a distance between pixels."""
    if metric not in get_args(GroundMetric):
        raise ValueError(f"metric: got {metric!r}, expected one of {', '.join(get_args(GroundMetric))}")


def edges(height: int, width: int) -> NDArray[np.int64]:
    """The edges of the pixel grid, ``[edges, 2]``: a pixel (numbered row by row) and its lower or right neighbour."""
    pixels = np.arange(height * width).reshape(height, width)
    down = np.stack((pixels[:-1], pixels[1:]), axis=-1).reshape(-1, 2)
    right = np.stack((pixels[:, :-1], pixels[:, 1:]), axis=-1).reshape(-1, 2)
    return np.concatenate((down, right))


def flow_distance(x: Array, y: Array) -> float:
    """Distance with l1 between pixels: the least l1 norm of a flow along edges of the grid (dissertation, Lemma 5.1,
    Eq. 5.7).

    Args:
        x, y: ``[C, H, W]``, nonnegative; normalized images for the usual meaning.

    Returns:
        the distance, rounded up to cover any mass that the solver left unmoved; infinity if the mass of any channel
        differs between ``x`` and ``y``.
    """
    if not _same_masses(x, y):
        return np.inf
    flow, divergence = shortest_flow(x, y), _divergence(*x.shape[1:])
    left = (y - x).reshape(len(x), -1) - (divergence @ flow.T).T
    # no mass has farther to go than from one corner to the opposite one
    return float(np.abs(flow).sum() + np.abs(left).sum() * sum(x.shape[1:]))


def shortest_flow(x: Array, y: Array) -> Array:
    """A flow of least l1 norm that turns ``x`` into ``y``: ``[C, edges]``, along :func:`edges`, negative for mass that
    moves the other way. Arguments as for :func:`flow_distance`; raises if the mass of a channel differs."""
    if not _same_masses(x, y):
        raise ValueError("images: got channels whose mass differs, expected equal masses: none flows between channels")
    divergence = _divergence(*x.shape[1:])
    both = hstack((divergence, -divergence))
    count = divergence.shape[1]
    plans = [_solve(np.ones(2 * count), both, (channel - channel.mean()).ravel()) for channel in y - x]
    return np.stack([plan[:count] - plan[count:] for plan in plans])


def _divergence(height: int, width: int) -> Any:
    """The change of each pixel due to a unit flow along each edge: sparse ``[pixels, edges]``."""
    ends = edges(height, width)
    number, ones = np.arange(len(ends)), np.ones(len(ends))
    shape = (height * width, len(ends))
    return coo_array((ones, (ends[:, 1], number)), shape) - coo_array((ones, (ends[:, 0], number)), shape)


def transport_distance(x: Array, y: Array, metric: GroundMetric) -> float:
    """Distance by a transport plan from the pixels that lose mass to those that gain it (Definition 5.1).

    Arguments and result are as for :func:`flow_distance`; slower, but supports either metric.
    """
    check_metric(metric)
    if not _same_masses(x, y):
        return np.inf
    return sum(_transport(channel, metric) for channel in y - x)


def path_distance(x: Tensor, y: Tensor) -> Tensor:
    """An upper bound on both distances, from flows along one path through all pixels; for nearly equal images.

    Args:
        x, y: float64 ``[B, C, H, W]``; differences in the totals of channels are ignored.

    Returns:
        float64 ``[B]``.
    """
    return there_and_back(y - x).flatten(2).cumsum(2).abs().sum((1, 2))


def there_and_back(images: Tensor) -> Tensor:
    """Images ``[..., H, W]`` with every second row reversed, so that reading row by row follows a path from neighbour
    to neighbour. Its own inverse."""
    turned = images.clone()
    turned[..., 1::2, :] = images[..., 1::2, :].flip(-1)
    return turned


def pixel_distances(first: NDArray[Any], second: NDArray[Any], metric: GroundMetric) -> Array:
    """Distances between pixel positions ``[..., 2]``."""
    offset = np.abs(first - second)
    return offset.sum(-1).astype(np.float64) if metric == "l1" else np.sqrt((offset**2).sum(-1))


def _transport(gain: Array, metric: GroundMetric) -> float:
    losing, gaining = np.argwhere(gain < 0), np.argwhere(gain > 0)
    if len(losing) == 0 or len(gaining) == 0:
        return 0.0
    costs = pixel_distances(losing[:, None], gaining[None], metric)
    a, b = (index.ravel() for index in np.indices(costs.shape))
    plan, ones = np.arange(costs.size), np.ones(costs.size)
    leaves = coo_array((ones, (a, plan)), (len(losing), costs.size))
    arrives = coo_array((ones, (b, plan)), (len(gaining), costs.size))
    sent, received = -gain[gain < 0], gain[gain > 0]
    received *= sent.sum() / received.sum()
    constraints, supply = vstack((leaves, arrives)), np.concatenate((sent, received))
    plan = _solve(costs.ravel(), constraints, supply)
    return float(costs.ravel() @ plan + np.abs(constraints @ plan - supply).sum() * costs.max())


def _same_masses(x: Array, y: Array) -> bool:
    if x.shape != y.shape or x.ndim != 3:
        raise ValueError(f"images to compare: got shapes {x.shape} and {y.shape}, expected the same [C, H, W]")
    return bool((np.abs((y - x).sum(axis=(1, 2))) <= _SAME_MASS).all())


def _solve(costs: Array, constraints: Any, supply: Array) -> Array:
    """A nonnegative solution of ``constraints @ plan = supply`` at least cost."""
    from scipy.optimize import linprog  # rarely needed, and takes a tenth as long to import as everything else

    scale = np.abs(supply).max(initial=0.0)
    if scale == 0:
        return np.zeros(len(costs))
    # scaled, because the tolerances of the solver are absolute
    for presolve in (True, False):  # presolving reports some problems with both large and tiny masses as infeasible
        # the tolerance is per pixel: at its default, many tiny masses next to a large one would be ignored
        options = {"presolve": presolve, "primal_feasibility_tolerance": 1e-10}
        result = linprog(
            costs, A_eq=constraints.tocsr(), b_eq=supply / scale, bounds=(0, None), method="highs", options=options
        )
        if result.success:
            break
    else:
        raise ArithmeticError(f"linear program: got no solution: {result.message}")
    return np.asarray(result.x) * scale
