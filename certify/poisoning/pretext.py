"""Pretext tasks: training on images without labels, to learn features that are useful for other tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.checks import check_integer
from certify.images import to_float
from certify.inference import exact_gradients
from certify.models import MODELS, Normalize
from certify.models.convolution import he_conv
from certify.models.network_in_network import network_in_network
from certify.models.small import small_cnn
from certify.poisoning.feature_method import FeatureMethod
from certify.poisoning.network import normalization
from certify.poisoning.views import random_view
from certify.training import SCHEDULES
from certify.training.augment import crop_and_flip
from certify.training.schedules import check_sgd
from certify.training.trainer import generator_for

Networks = tuple[nn.Module, nn.Module]  # images -> features, and features -> outputs of the task
_PURPOSE = 4  # substream of the random numbers


class Pretext(FeatureMethod):
    """A task on images alone, and how a network is trained for it. Subclasses are frozen dataclasses.

    Attributes:
        model: the network.
        epochs: passes over the images.
        batch_size: images per update; an incomplete batch at the end of an epoch is dropped.
        lr, momentum, weight_decay: of SGD.
        schedule: one of :data:`certify.training.SCHEDULES`.
        seed: of everything random.
    """

    model: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    seed: int

    @property
    @abstractmethod
    def nesterov(self) -> bool:
        """Whether to use Nesterov momentum."""

    @abstractmethod
    def build(self, channels: int, size: tuple[int, int]) -> Networks:
        """Freshly initialized networks for images ``[B, channels, *size]``; raises if the task cannot use them."""

    @abstractmethod
    def loss(self, networks: Networks, images: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss on uint8 or float images ``[B, C, H, W]``."""

    def begin(self, images: Tensor, device: torch.device) -> PretextLearning:
        return PretextLearning(self, images, device)

    def module(self, shape: tuple[int, ...]) -> nn.Module:
        return _networks(self, torch.zeros((1, *shape)))[0]

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 2), ("seed", 0)):
            check_integer(name, getattr(self, name), low)
        check_sgd(self.schedule, self.lr, self.momentum, self.weight_decay)


@dataclass(frozen=True)
class RotNet(Pretext):
    """Predict by which multiple of 90 degrees an image was rotated. Features are those before the last convolutions.

    The features and the classifier on top of them together form the network that would otherwise be trained with
    labels: ``"network_in_network"`` and ``Network("nin_block")``, or ``"small_cnn"`` and ``Network("linear")``. Source:
    Gidaris, Singh and Komodakis (ICLR 2018), with their settings, but without flips, as on MNIST in Section 7.3 of the
    dissertation.

    Attributes:
        model: ``"network_in_network"`` or ``"small_cnn"``.
        crop: random translations by up to this many pixels.
        pool: average the features to this many rows and columns; 0 leaves them unchanged.
    """

    model: str = "network_in_network"
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "rotnet_steps"
    crop: int = 4
    pool: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop", "pool"):
            check_integer(name, getattr(self, name), 0)
        if self.model not in ("network_in_network", "small_cnn"):
            raise ValueError(f"model: got {self.model!r}, expected network_in_network or small_cnn")

    @property
    def nesterov(self) -> bool:
        return True

    def build(self, channels: int, size: tuple[int, int]) -> Networks:
        if size[0] != size[1]:
            raise ValueError(f"images: got {size[0]}x{size[1]} pixels, expected square images, as RotNet rotates them")
        if self.model == "small_cnn":
            features = small_cnn(channels, 4, size)[:6]
            rest = nn.Sequential(he_conv(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
            head = nn.Sequential(*rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
        else:
            network = network_in_network(channels, 4, size, blocks=4)
            after = 1 + next(i for i, layer in enumerate(network) if isinstance(layer, nn.AvgPool2d))
            features, head = network[:after], network[after:]
        return features, head

    def loss(self, networks: Networks, images: Tensor, generator: torch.Generator) -> Tensor:
        moves = torch.randint(0, 2 * self.crop + 1, (2, len(images)), generator=generator).to(images.device)
        x = crop_and_flip(to_float(images), moves, torch.zeros_like(moves[0], dtype=torch.bool), self.crop)
        turned = torch.cat([x.rot90(turns, (2, 3)) for turns in range(4)])
        turns = torch.arange(4, device=x.device).repeat_interleave(len(x))
        return functional.cross_entropy(networks[1](networks[0](turned)), turns)

    def output(self, features: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(features, self.pool) if self.pool else features


@dataclass(frozen=True)
class SimCLR(Pretext):
    """Identify which two views show the same image. The features are those below a projection head of two layers.

    Source: Chen et al. (2020); settings of the dissertation, Appendix F.9, for CIFAR-10 (GTSRB: ``batch_size=256``,
    ``flip=False``).

    Attributes:
        model: one of :data:`certify.models.MODELS` whose last layer is linear, such as ``"resnet18"``.
        temperature: of the similarities.
        projection: dimension of the space in which views are compared.
        flip: whether mirror images are views.
    """

    model: str = "resnet18"
    epochs: int = 1000
    batch_size: int = 512
    lr: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    temperature: float = 0.5
    projection: int = 128
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("projection", self.projection, 1)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: got {self.temperature}, expected a number above 0")
        if self.model not in MODELS:
            raise ValueError(f"model: got {self.model!r}, expected one of {', '.join(MODELS)}")

    @property
    def nesterov(self) -> bool:
        return False

    def build(self, channels: int, size: tuple[int, int]) -> Networks:
        network = MODELS[self.model](channels, 1, size)
        last = network[-1] if isinstance(network, nn.Sequential) and len(network) > 2 else None
        if not (isinstance(network, nn.Sequential) and isinstance(last, nn.Linear)):
            raise ValueError(f"model: got {self.model!r}, expected one that ends with a linear layer, such as resnet18")
        width = last.in_features
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, self.projection))
        return network[:-1], head

    def loss(self, networks: Networks, images: Tensor, generator: torch.Generator) -> Tensor:
        x = to_float(images)
        views = torch.cat([random_view(x, generator, flip=self.flip) for _ in range(2)])
        return contrastive_loss(networks[1](networks[0](views)), self.temperature)


def contrastive_loss(z: Tensor, temperature: float) -> Tensor:
    """The NT-Xent loss: the cross entropy of identifying, for each view, the other view of its image among all others.

    Args:
        z: ``[2B, D]``; rows i and B + i are of the same image.
    """
    z = functional.normalize(z, dim=1)
    scores = z @ z.T / temperature
    scores = scores.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    other = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return functional.cross_entropy(scores, other)


class PretextLearning:
    """Networks that are trained for a pretext task by SGD, see :class:`~certify.poisoning.feature_method.Learning`."""

    def __init__(self, method: Pretext, images: Tensor, device: torch.device) -> None:
        self.method, self.images, self.device = method, images, device
        self.networks = _networks(method, images).to(device)
        self.optimizer = torch.optim.SGD(
            self.networks.parameters(),
            method.lr,
            method.momentum,
            weight_decay=method.weight_decay,
            nesterov=method.nesterov and method.momentum > 0,
        )

    @property
    def module(self) -> nn.Module:
        return self.networks[0]

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.images) // self.method.batch_size)

    def epoch(self, number: int, on_step: Callable[[], None]) -> float:
        method = self.method
        generator = generator_for(method.seed, number, _PURPOSE)
        order = torch.randperm(len(self.images), generator=generator)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.networks.train()
        with exact_gradients():
            for step in range(self.steps_per_epoch):
                t = (number * self.steps_per_epoch + step) / (method.epochs * self.steps_per_epoch)
                for group in self.optimizer.param_groups:
                    group["lr"] = method.lr * SCHEDULES[method.schedule](t)
                batch = self.images[order[step * method.batch_size : (step + 1) * method.batch_size]]
                self.optimizer.zero_grad(set_to_none=True)
                loss = method.loss((self.networks[0], self.networks[1]), batch.to(self.device), generator)
                loss.backward()
                self.optimizer.step()
                total += loss.detach()
                on_step()
        return total.item() / self.steps_per_epoch

    def converged(self, losses: list[float]) -> bool:
        return False

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"networks.{name}": tensor for name, tensor in self.networks.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            if state.get("momentum_buffer") is not None:
                tensors[f"momentum.{i}"] = state["momentum_buffer"]
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        prefix = "networks."
        self.networks.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        momenta = {int(k.split(".")[1]): {"momentum_buffer": v} for k, v in tensors.items() if k.startswith("momentum")}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": momenta, "param_groups": groups})


class _Scaled(nn.Module):
    """8-bit images as floats."""

    def forward(self, x: Tensor) -> Tensor:
        return to_float(x)


def _networks(method: Pretext, images: Tensor) -> nn.ModuleList:
    """Features and head, freshly initialized, with normalization constants from ``images``."""
    channels, height, width = images.shape[1:]
    mean, std = normalization(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(method.seed)
        features, head = method.build(channels, (height, width))
    normalize = Normalize(tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()), channels)
    return nn.ModuleList([nn.Sequential(_Scaled(), normalize, features), head])
