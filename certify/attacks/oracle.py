"""A classifier as a black-box attack sees it: an image goes in, a class or an abstention comes out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from certify.confidence import predict_or_abstain
from certify.draws import VERIFICATION
from certify.images import check_images, to_float
from certify.inference import BaseClassifier, device_of, exact_inference
from certify.scheme import SampledScheme
from certify.smooth import Smoothed

_ROWS = 256  # images per forward pass of a classifier without smoothing


class Oracle:
    """Answers the queries of an attack on a batch of images, and counts them.

    A sampled classifier is attacked as :meth:`Smoothed.predict <certify.smooth.Smoothed.predict>` with its own seed:
    every candidate for image i gets the same ``n`` noise samples, those that ``predict`` and the certificate of image i
    use. During an attack it is therefore a deterministic function, and every reported adversarial example can be
    reproduced. :meth:`fresh` answers the same query with independent samples.

    Args:
        classifier: a :class:`~certify.smooth.Smoothed`, or any callable from floats in [0, 1] ``[N, C, H, W]`` to
            scores ``[N, classes]``.
        images: ``[B, C, H, W]``, uint8 or floats in [0, 1].
        labels: int64 ``[B]``.
        index: int64 ``[B]``, each image's index in its data set; by default 0..B-1.
        on_queries: called with the number of classifications just answered.
    """

    def __init__(
        self,
        classifier: Smoothed | BaseClassifier,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor | None = None,
        on_queries: Callable[[int], None] | None = None,
    ) -> None:
        self.classifier, self.images = classifier, images
        self.check(images)
        index = torch.arange(len(images)) if index is None else index
        for name, value in (("labels", labels), ("index", index)):
            if value.shape != (len(images),) or value.dtype != torch.int64:
                raise ValueError(f"{name}: got {value.dtype} {tuple(value.shape)}, expected int64 ({len(images)},)")
        classes = classifier.engine.num_classes if isinstance(classifier, Smoothed) else 1 << 31
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"labels: got {labels.min().item()} to {labels.max().item()}, expected 0..{classes - 1}")
        self.labels, self.index = labels.to(images.device), index.to(images.device)
        self.queries = torch.zeros_like(self.labels)
        self._on_queries = on_queries or (lambda count: None)

    def check(self, images: Tensor) -> None:
        """Raise unless the classifier accepts these images."""
        if isinstance(self.classifier, Smoothed):
            self.classifier.scheme.check(images)
        else:
            check_images(images)

    @property
    def sampled(self) -> bool:
        """Whether other noise samples may change the answer."""
        return isinstance(self.classifier, Smoothed) and isinstance(self.classifier.scheme, SampledScheme)

    def classes(self, candidates: Tensor, which: Tensor) -> Tensor:
        """The classifier's predictions: int64 ``[N]``, -1 where it abstains.

        Args:
            candidates: ``[N, C, H, W]``.
            which: int64 ``[N]``, the index in the batch of the image that each candidate was made from.
        """
        if isinstance(self.classifier, Smoothed):
            answer = self.classifier.predict(candidates, index=self.index[which])
        else:
            answer = _plain_classes(self.classifier, candidates)
        self.count(which)
        return answer

    def fresh(self, candidates: Tensor, which: Tensor) -> Tensor:
        """Like :meth:`classes`, with independent noise samples; identical to it for classifiers without sampling."""
        if not self.sampled:
            return self.classes(candidates, which)
        smoothed = self.classifier
        assert isinstance(smoothed, Smoothed)
        counts = smoothed.engine.sampled(
            candidates, smoothed.n, index=self.index[which], seed=smoothed.seed, stream=VERIFICATION
        )
        self.count(which)
        return predict_or_abstain(counts, smoothed.alpha)

    def count(self, which: Tensor) -> None:
        """Count one classified candidate for each of the images ``which``."""
        self.queries += torch.bincount(which, minlength=len(self.queries))
        self._on_queries(len(which))


def _plain_classes(classifier: BaseClassifier, candidates: Tensor) -> Tensor:
    device, answers = device_of(classifier, candidates.device), []
    with exact_inference(classifier):
        for part in candidates.split(_ROWS):
            scores = classifier(to_float(part.to(device)))
            if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(part):
                got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(f"classifier: got {got}, expected scores of shape ({len(part)}, classes)")
            if torch.isnan(scores).any():
                raise ValueError("classifier: got NaN scores; check the model and its inputs")
            answers.append(scores.argmax(1))
    return torch.cat(answers).to(candidates.device)
