"""Quantiles of the standard normal distribution, rounded to the safe side."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

# Covers rounding in doubles, relative and absolute, where arguments and functions are accurate to a few 2^-53.
ROUNDING = 2.0**-40


def quantile_above(p: Tensor) -> Tensor:
    """``Phi^-1(p)``, rounded up, for probabilities that may themselves be off by up to 2^-50 of their size."""
    argument = np.clip(p.detach().cpu().numpy() * (1 + 2.0**-49), 0, 1)
    quantile = ndtri(argument)
    with np.errstate(invalid="ignore"):
        above = np.where(np.isinf(quantile), quantile, quantile + np.abs(quantile) * ROUNDING + ROUNDING)
    return torch.from_numpy(above).to(p.device)
