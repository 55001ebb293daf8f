"""Clusters of images as features, and a learner that needs one label: SS-DPA at its simplest.

Source: dissertation, Appendix F.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.checks import check_integer
from certify.poisoning.feature_method import FeatureMethod
from certify.poisoning.learner import Learner, Part, State
from certify.training.trainer import generator_for

_PURPOSE = 5  # substream of the random numbers
_ADVICE = "use features of KMeans ('python -m scripts.train_features OUT --method \"KMeans(2)\"', then --features OUT)"


@dataclass(frozen=True)
class KMeans(FeatureMethod):
    """The cluster of an image, one-hot: that of the nearest centre in Euclidean distance.

    Centres are found by Lloyd's algorithm, from images drawn as in k-means++ (Arthur and Vassilvitskii, 2007).

    Attributes:
        clusters: number of clusters.
        epochs: largest number of iterations; they end earlier once nothing changes.
        seed: of the first centres.
    """

    clusters: int = 2
    epochs: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("clusters", 2), ("epochs", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), low)

    def begin(self, images: Tensor, device: torch.device) -> Lloyd:
        return Lloyd(self, images, device)

    def module(self, shape: tuple[int, ...]) -> NearestCentre:
        return NearestCentre(torch.zeros((self.clusters, torch.Size(shape).numel()), dtype=torch.float64))


class NearestCentre(nn.Module):
    """Maps ``x [B, ...]`` to the nearest of some centres ``[K, F]``, as one-hot float32 ``[B, K]``."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.register_buffer("centres", centres)

    def forward(self, x: Tensor) -> Tensor:
        centres: Tensor = self.get_buffer("centres")
        return functional.one_hot(_nearest(_flat(x), centres)[0], len(centres)).float()


class Lloyd:
    """Lloyd's algorithm, an iteration per epoch, see :class:`~certify.poisoning.feature_method.Learning`.

    The loss is the mean squared distance to the nearest centre before the iteration.
    """

    def __init__(self, method: KMeans, images: Tensor, device: torch.device) -> None:
        self.images = _flat(images.to(device))
        self.module = NearestCentre(_first_centres(self.images, method.clusters, method.seed))

    @property
    def steps_per_epoch(self) -> int:
        return 1

    def epoch(self, number: int, on_step: Callable[[], None]) -> float:
        centres = self.module.get_buffer("centres")
        nearest, squared = _nearest(self.images, centres)
        for i in range(len(centres)):
            members = self.images[nearest == i]
            if len(members):  # a centre without images stays where it is
                centres[i] = members.mean(0)
        on_step()
        return squared.mean().item()

    def converged(self, losses: list[float]) -> bool:
        return len(losses) > 1 and losses[-1] >= losses[-2]

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.module.load_state_dict(tensors)


def _flat(x: Tensor) -> Tensor:
    """Images as rows of float64 in [0, 255], in which sums of 8-bit values are exact."""
    return x.flatten(1).to(torch.float64) * (255 if x.is_floating_point() else 1)


def _nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of ``centres [K, F]`` to each of ``x [N, F]``, int64 ``[N]``, and the squared distance to it."""
    relative = (centres**2).sum(1) - 2 * x @ centres.T  # without the norm of x, which all centres have in common
    least = relative.min(1)
    return least.indices, (least.values + (x**2).sum(1)).clamp_min(0)


def _first_centres(x: Tensor, clusters: int, seed: int) -> Tensor:
    """Distinct rows of ``x``, each drawn with a probability proportional to its squared distance from the others."""
    generator = generator_for(seed, 0, _PURPOSE)
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    squared = torch.full((len(x),), torch.inf, dtype=torch.float64)  # distance to the nearest one so far
    while len(chosen) < clusters:
        squared = torch.minimum(squared, ((x - x[chosen[-1]]) ** 2).sum(1).cpu())
        if not squared.any():
            raise ValueError(f"clusters: got {clusters}, but only {len(chosen)} of the images are distinct; use fewer")
        share = squared.cumsum(0)
        place = torch.rand(1, dtype=torch.float64, generator=generator) * share[-1]
        chosen.append(int((share <= place).sum()))
    return x[torch.tensor(chosen)]


@dataclass(frozen=True)
class ClusterLabels(Learner):
    """A class counts its training samples in the image's cluster, minus those in other clusters.

    With two classes, two clusters and one training sample, this is the rule of Appendix F.2 of the dissertation: an
    image in the cluster of the sample has the sample's class, any other image has the other class. Samples are one-hot
    features such as those of :class:`KMeans`; without samples, all classes have a score of 0.
    """

    def check(self, shape: tuple[int, ...], num_classes: int) -> None:
        if len(shape) != 1:
            raise ValueError(f"learner: got samples of shape {shape}, expected clusters; {_ADVICE}")

    def check_samples(self, samples: Tensor) -> None:
        if not (((samples == 0) | (samples == 1)).all() and (samples.sum(1) == 1).all()):
            raise ValueError(f"learner: got samples that are no clusters, expected one-hot rows; {_ADVICE}")

    def fit(self, part: Part, *, num_classes: int, device: torch.device) -> State:
        self.check_samples(part.samples)
        labels = functional.one_hot(part.labels, num_classes)
        return {"counts": (part.samples.T.to(torch.int64) @ labels).to(device)}

    def scores(self, states: Sequence[State], x: Tensor, *, num_classes: int) -> Tensor:
        counts = torch.stack([state["counts"] for state in states]).to(torch.float64)  # [models, K, C]
        self.check_samples(x)
        if x.shape[1] != counts.shape[1]:
            raise ValueError(f"x: got {x.shape[1]} clusters, expected {counts.shape[1]}, as in training")
        signs = 2 * x.to(counts) - 1  # 1 for the image's cluster, -1 for the others
        return (signs @ counts).float()
