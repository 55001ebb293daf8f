"""The gradient of a smoothed classifier, through the soft-max of its copies.

Votes have no gradient. The surrogate is N(x), the mean soft-max of all copies, and the objective ``-log N_y(x)`` for
the true class y (dissertation, Section 6.3.1 and Appendix E.7). Its gradient is a positive multiple of that of minus
the sum of ``p_y`` over the copies: signed steps need this sum alone. It falls apart into copies, so that they are
classified in batches of any size, and those that no change can reach are left out. The random copies of Wasserstein
smoothing are an image plus noise: of them a few, with fixed noise, give the gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from certify.draws import ATTACK, Draws
from certify.engine import PassLayout, copy_bytes
from certify.inference import exact_gradients
from certify.scheme import EnumeratedScheme, Scheme
from certify.smooth import Smoothed
from certify.wasserstein import WassersteinNoise

NO_GRADIENT = (
    "base classifier: got scores without a gradient; pass a torch module, or a function of torch operations that does "
    "not switch gradients off"
)


def check_differentiable(smoothed: Smoothed, x: Tensor) -> None:
    """Raise unless the scores of copies have a gradient with respect to the image.

    Args:
        x: float32 ``[B, C, H, W]``, legal for the scheme, of which the first image is tried.
    """
    scheme, base_classifier = smoothed.scheme, smoothed.engine.base_classifier
    if not isinstance(scheme, EnumeratedScheme):
        raise ValueError(
            f"scheme: got {scheme}, whose copies are random; gradient attacks need one with a fixed list of copies"
        )
    smoothed.engine.prepare(x[:1])
    with exact_gradients(base_classifier):
        leaf = x[:1].clone().requires_grad_()
        copies = scheme.copies(leaf, torch.zeros((1, 1), dtype=torch.int64, device=x.device))
        if not copies.requires_grad:
            raise ValueError(
                f"scheme: got {scheme}, whose copies are made from quantized values and have no gradient; gradient "
                "attacks need another one"
            )
        if not base_classifier(copies.flatten(0, 1)).requires_grad:
            raise ValueError(NO_GRADIENT)


def votes_and_gradient(
    smoothed: Smoothed, x: Tensor, labels: Tensor, index: Tensor, *, gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """What some copies of each image vote, and how the soft-max of the true class, summed over them, changes.

    Forward passes have one fixed shape, as those of the vote engine: results for an image do not depend on the others.
    The classifier's mode and its parameters' gradients stay as they are.

    Args:
        smoothed: of an enumerated, differentiable scheme, prepared (:func:`check_differentiable`).
        x: float32 ``[J, C, H, W]``, on the device of the classifier.
        labels: int64 ``[J]``, the true classes.
        index: int64 ``[J, K]``, numbers of copies of each image.
        gradient: if not set, it is left zero, which is cheaper.

    Returns:
        votes, bool ``[J, K, classes]``; gradient, float32 like ``x``. To raise ``-log N_y``, go against it.
    """
    scheme = smoothed.scheme
    assert isinstance(scheme, EnumeratedScheme)

    def copies(leaf: Tensor, group: Tensor, columns: Tensor) -> Tensor:
        return scheme.copies(leaf, index[group][:, columns])

    return _over_copies(smoothed, x, labels, index.shape[1], copies, gradient=gradient)


def check_samples_differentiable(smoothed: Smoothed, x: Tensor) -> None:
    """Raise unless the scores of Wasserstein smoothing's copies have a gradient; see :func:`check_differentiable`."""
    smoothed.engine.prepare(x[:1])
    draws = Draws.of(0, ATTACK, torch.zeros(1, dtype=torch.int64, device=x.device), range(1))
    with exact_gradients(smoothed.engine.base_classifier):
        copies = _noised(smoothed.scheme, x[:1].clone().requires_grad_(), draws)
        if not smoothed.engine.base_classifier(copies.flatten(0, 1)).requires_grad:
            raise ValueError(NO_GRADIENT)


def gradient_of_samples(
    smoothed: Smoothed, x: Tensor, labels: Tensor, items: Tensor, *, samples: int, seed: int
) -> Tensor:
    """How the soft-max of the true class, summed over random copies, changes with the image: float32 like ``x``.

    Args:
        smoothed: of Wasserstein smoothing, prepared (:func:`check_samples_differentiable`).
        x, labels: as for :func:`votes_and_gradient`.
        items: int64 ``[J]``, indices of the images in their data set: always the same noise for each.
        samples: number of copies.
        seed: of the noise, which votes never use.
    """

    def copies(leaf: Tensor, group: Tensor, columns: Tensor) -> Tensor:
        return _noised(smoothed.scheme, leaf, Draws(seed, ATTACK, items[group][:, None], columns[None]))

    return _over_copies(smoothed, x, labels, samples, copies, gradient=True)[1]


def _noised(scheme: Scheme, leaf: Tensor, draws: Draws) -> Tensor:
    """Copies as the scheme samples them, with the gradient of what the noise is added to."""
    assert isinstance(scheme, WassersteinNoise)
    expected = scheme.expected(leaf)[:, None].float()
    return scheme.sample(leaf.detach(), draws) + (expected - expected.detach())


def _over_copies(
    smoothed: Smoothed,
    x: Tensor,
    labels: Tensor,
    count: int,
    copies: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Votes and gradient of ``count`` copies of each image, in passes of one fixed shape.

    Args:
        copies: makes some, from images, the rows of ``x`` that they are, and numbers of copies in 0..count - 1.
    """
    engine = smoothed.engine
    assert engine.batch_size is not None
    plan = PassLayout.of(
        count, engine.batch_size, copy_bytes(smoothed.scheme, tuple(x.shape[1:])), x.device, engine.shared_rows
    )
    with exact_gradients(engine.base_classifier):
        votes = torch.zeros((len(x), count, engine.num_classes), dtype=torch.bool, device=x.device)
        total = torch.zeros_like(x)
        for begin in range(0, len(x), plan.images):
            # filled up with the last image and the last copy, so that every pass has the same shape
            group = torch.arange(begin, begin + plan.images, device=x.device).clamp(max=len(x) - 1)
            part = slice(begin, min(begin + plan.images, len(x)))
            real = part.stop - begin
            for first in range(0, count, plan.rows):
                left = min(plan.rows, count - first)
                columns = torch.arange(first, first + plan.rows, device=x.device).clamp(max=count - 1)
                leaf = x[group].requires_grad_(gradient)
                scores = engine.base_classifier(copies(leaf, group, columns).flatten(0, 1))
                found = engine.one_hot(scores.detach()).view(plan.images, plan.rows, -1)
                votes[part, first : first + left] = found[:real, :left]
                if gradient:
                    # in float64, where a copy that is very sure of itself still has a slope
                    shares = scores.double().softmax(1).view(plan.images, plan.rows, -1)
                    own = shares[:, :left].gather(2, labels[group][:, None, None].expand(-1, left, 1))
                    total[part] += torch.autograd.grad(own.sum(), leaf)[0][:real]
    return votes, total
