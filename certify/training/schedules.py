"""Learning-rate schedules, as factors of the peak rate depending on progress 0 <= t < 1; and a noise schedule."""

from __future__ import annotations

import math
from collections.abc import Callable


def constant(t: float) -> float:
    return 1.0


def cosine(t: float) -> float:
    """Cosine annealing to zero (l1 and lp experiments)."""
    return 0.5 * (1 + math.cos(math.pi * t))


def half_steps(t: float) -> float:
    """A tenth of the rate after half the epochs (randomized ablation on MNIST and CIFAR-10, Tables A.2 and A.3)."""
    return 1.0 if t < 0.5 else 0.1


def imagenet_steps(t: float) -> float:
    """A tenth after 21/36 and a hundredth after 31/36 of the epochs (randomized ablation on ImageNet, Table A.4)."""
    return 1.0 if t < 21 / 36 else 0.1 if t < 31 / 36 else 0.01


def third_steps(t: float) -> float:
    """A tenth of the rate after a third, a hundredth after two thirds of the epochs (Cohen et al., 2019)."""
    return 0.1 ** int(3 * t)


def rotnet_steps(t: float) -> float:
    """The rate is divided by 5 after 30 %, 60 % and 80 % of the epochs (Gidaris et al., 2018)."""
    return 0.2 ** sum(t >= step for step in (0.3, 0.6, 0.8))


def one_cycle(t: float) -> float:
    """Linear warm-up over the first fifth from 1/25 of the peak, then cosine annealing to zero."""
    warm_up = 0.2
    if t < warm_up:
        return 0.04 + 0.96 * t / warm_up
    return cosine((t - warm_up) / (1 - warm_up))


SCHEDULES: dict[str, Callable[[float], float]] = {
    schedule.__name__: schedule
    for schedule in (constant, cosine, half_steps, imagenet_steps, third_steps, rotnet_steps, one_cycle)
}


def check_sgd(schedule: str, lr: float, momentum: float, weight_decay: float) -> None:
    """Raise unless these are legal settings of stochastic gradient descent."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: got {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if not (0 < lr < float("inf") and 0 <= momentum < 1 and 0 <= weight_decay < float("inf")):
        raise ValueError(
            f"lr, momentum, weight_decay: got {lr}, {momentum}, {weight_decay}, expected lr > 0, momentum in [0, 1) "
            "and weight_decay >= 0, all finite"
        )


def noise_level(epoch: int, *, ramp: int, stage: int = 1) -> float:
    """The share of a scheme's noise in an epoch (counted from 0): it increases from 0 every ``stage`` epochs, and is 1
    from epoch ``ramp`` on.

    A network that fails to learn from full noise at once may learn from increasing noise. The video classifiers of
    Smooth-Reduce (Appendix C) are trained with stages of 20 epochs.
    """
    return 1.0 if epoch >= ramp else epoch // stage * stage / ramp
