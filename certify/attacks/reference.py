"""Foolbox's implementation of the Pointwise attack, for comparison.

``foolbox.attacks.PointwiseAttack`` comes with foolbox 3.3.2 and later. It only sees whether an image is adversarial, so
abstention can count as success. But it resets features, not pixels; queries every image of a batch until the last one
is finished; takes its order from NumPy's global generator; and fails an assertion if a starting point is not
adversarial. It is therefore given one image at a time, an adversarial starting point, and a freshly seeded generator.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certify.attacks.jobs import Jobs
from certify.images import to_float


def import_foolbox() -> Any:
    """The foolbox module; raises ImportError, saying how to install it, if it cannot be used."""
    try:
        with warnings.catch_warnings():
            # foolbox 3.3.4 imports a SciPy name that is deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            foolbox = importlib.import_module("foolbox")
            return foolbox if hasattr(foolbox.attacks, "PointwiseAttack") else _missing("it has no PointwiseAttack")
    except ImportError as error:  # also where foolbox's own imports fail, such as that of git
        return _missing(str(error).strip().partition("\n")[0], error)


def _missing(reason: str, cause: BaseException | None = None) -> Any:
    raise ImportError(
        f"foolbox cannot be used here ({reason}); install the extra with pip install 'scalable-robust-ml[attacks]', "
        "or use implementation='own'"
    ) from cause


def reset_with_foolbox(jobs: Jobs, starts: Tensor, found: Tensor, seed: int) -> Tensor:
    """Reset changed features with foolbox: the end points ``[J, C, H, W]``, or the images where not ``found``."""
    foolbox = import_foolbox()
    ends = jobs.original.clone()
    state = np.random.get_state()  # noqa: NPY002 - foolbox uses no other generator
    try:
        for row in found.nonzero():
            item, restart = int(jobs.oracle.index[jobs.which[row]]), int(jobs.restart[row])
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32, item, restart])  # noqa: NPY002
            changed = _reset_one(foolbox, jobs, row, to_float(starts[row]))
            ends[row] = torch.where(changed, starts[row], jobs.original[row])
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return ends


def _reset_one(foolbox: Any, jobs: Jobs, row: Tensor, start: Tensor) -> Tensor:
    """The features that remain changed: bool ``[1, C, H, W]``."""

    class Decision(foolbox.models.base.Model):
        """Class 1 for "adversarial", class 0 for everything else."""

        bounds = foolbox.types.Bounds(0, 1)

        def __call__(self, inputs: Any) -> Any:
            scores = torch.nn.functional.one_hot(jobs.adversarial(row, inputs.raw).long(), 2)
            return type(inputs)(scores)

    original = to_float(jobs.original[row])
    attack = foolbox.attacks.PointwiseAttack(l2_binary_search=False)
    criterion = foolbox.criteria.Misclassification(torch.zeros_like(row))
    return attack.run(Decision(), original, criterion, starting_points=start) != original
