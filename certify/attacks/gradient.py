"""The gradient of a smoothed classifier, through the soft-max of its copies.

Votes have no gradient. The surrogate is N(x), the mean soft-max over all copies, and the objective is ``-log N_y(x)``
for the true class y (dissertation, Section 6.3.1 and Appendix E.7). Its gradient is a positive multiple of the gradient
of minus the sum of ``p_y`` over the copies, so signed steps need only this sum. The sum separates over copies: they can
be classified in batches of any size, and those that the perturbation cannot reach are skipped. The random copies of
Wasserstein smoothing are the image plus noise; a few of them, with fixed noise, give the gradient.
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
    "base classifier: got scores without a gradient; pass a torch module, or a function of differentiable torch "
    "operations that does not disable gradients"
)


def check_differentiable(smoothed: Smoothed, x: Tensor) -> None:
    """Raise unless the scores of copies have a gradient with respect to the image.

    Args:
        x: float32 ``[B, C, H, W]``, legal for the scheme; only the first image is tried.
    """
    scheme, base_classifier = smoothed.scheme, smoothed.engine.base_classifier
    if not isinstance(scheme, EnumeratedScheme):
        raise ValueError(
            f"scheme: got {scheme}, whose copies are random; gradient attacks need a scheme with a fixed list of copies"
        )
    smoothed.engine.prepare(x[:1])
    with exact_gradients(base_classifier):
        leaf = x[:1].clone().requires_grad_()
        copies = scheme.copies(leaf, torch.zeros((1, 1), dtype=torch.int64, device=x.device))
        if not copies.requires_grad:
            raise ValueError(
                f"scheme: got {scheme}, whose copies are quantized and therefore have no gradient; gradient attacks "
                "need a scheme with differentiable copies"
            )
        if not base_classifier(copies.flatten(0, 1)).requires_grad:
            raise ValueError(NO_GRADIENT)


def votes_and_gradient(
    smoothed: Smoothed, x: Tensor, labels: Tensor, index: Tensor, *, gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """The votes of some copies of each image, and the gradient of the true class's soft-max summed over these copies.

    All forward passes have the same shape, as in the vote engine, so results for an image do not depend on the others.
    The classifier's mode and its parameters' gradients are left unchanged.

    Args:
        smoothed: with an enumerated, differentiable scheme, prepared by :func:`check_differentiable`.
        x: float32 ``[J, C, H, W]``, on the device of the classifier.
        labels: int64 ``[J]``, the true classes.
        index: int64 ``[J, K]``, indices of the copies of each image.
        gradient: whether to compute the gradient; if not, it is zero, which is cheaper.

    Returns:
        votes, bool ``[J, K, classes]``; gradient, float32 like ``x``. A step against it increases ``-log N_y``.
    """
    scheme = smoothed.scheme
    assert isinstance(scheme, EnumeratedScheme)

    def copies(leaf: Tensor, group: Tensor, columns: Tensor) -> Tensor:
        return scheme.copies(leaf, index[group][:, columns])

    return _over_copies(smoothed, x, labels, index.shape[1], copies, gradient=gradient)


def check_samples_differentiable(smoothed: Smoothed, x: Tensor) -> None:
    """:func:`check_differentiable` for Wasserstein smoothing, whose copies are random."""
    smoothed.engine.prepare(x[:1])
    draws = Draws.of(0, ATTACK, torch.zeros(1, dtype=torch.int64, device=x.device), range(1))
    with exact_gradients(smoothed.engine.base_classifier):
        copies = _noised(smoothed.scheme, x[:1].clone().requires_grad_(), draws)
        if not smoothed.engine.base_classifier(copies.flatten(0, 1)).requires_grad:
            raise ValueError(NO_GRADIENT)


def gradient_of_samples(
    smoothed: Smoothed, x: Tensor, labels: Tensor, items: Tensor, *, samples: int, seed: int
) -> Tensor:
    """The gradient of the true class's soft-max, summed over random copies of each image: float32 like ``x``.

    Args:
        smoothed: with Wasserstein smoothing, prepared by :func:`check_samples_differentiable`.
        x, labels: as for :func:`votes_and_gradient`.
        items: int64 ``[J]``, each image's index in its data set; it determines the image's noise.
        samples: number of copies.
        seed: of the noise, which votes never use.
    """

    def copies(leaf: Tensor, group: Tensor, columns: Tensor) -> Tensor:
        return _noised(smoothed.scheme, leaf, Draws(seed, ATTACK, items[group][:, None], columns[None]))

    return _over_copies(smoothed, x, labels, samples, copies, gradient=True)[1]


def _noised(scheme: Scheme, leaf: Tensor, draws: Draws) -> Tensor:
    """Copies as the scheme samples them, with the gradient of the values that the noise is added to."""
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
        copies: makes copies from images, the rows of ``x`` they came from, and copy indices in 0..count - 1.
    """
    engine = smoothed.engine
    assert engine.batch_size is not None
    layout = PassLayout.of(
        count, engine.batch_size, copy_bytes(smoothed.scheme, tuple(x.shape[1:])), x.device, engine.shared_rows
    )
    with exact_gradients(engine.base_classifier):
        votes = torch.zeros((len(x), count, engine.num_classes), dtype=torch.bool, device=x.device)
        total = torch.zeros_like(x)
        for begin in range(0, len(x), layout.images):
            # padded with the last image and the last copy, so that every pass has the same shape
            group = torch.arange(begin, begin + layout.images, device=x.device).clamp(max=len(x) - 1)
            part = slice(begin, min(begin + layout.images, len(x)))
            real = part.stop - begin
            for first in range(0, count, layout.rows):
                left = min(layout.rows, count - first)
                columns = torch.arange(first, first + layout.rows, device=x.device).clamp(max=count - 1)
                leaf = x[group].requires_grad_(gradient)
                scores = engine.base_classifier(copies(leaf, group, columns).flatten(0, 1))
                found = engine.one_hot(scores.detach()).view(layout.images, layout.rows, -1)
                votes[part, first : first + left] = found[:real, :left]
                if gradient:
                    # in float64, where the gradient of a very confident copy does not vanish
                    shares = scores.double().softmax(1).view(layout.images, layout.rows, -1)
                    own = shares[:, :left].gather(2, labels[group][:, None, None].expand(-1, left, 1))
                    total[part] += torch.autograd.grad(own.sum(), leaf)[0][:real]
    return votes, total
