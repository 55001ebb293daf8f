"""Neural networks as base learners: one after the other, or many partitions at once with stacked parameters.

Which samples a model sees, and in which order, depends only on its own partition, its seed and the configuration: every
step takes ``batch_size`` samples from the partition's own endless sequence of permutations. A partition of any size
thus takes the same number of steps of the same shape, without padding and without a fixed capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd

from certify.checks import check_integer
from certify.images import to_float
from certify.inference import deterministic, exact_gradients, exact_inference
from certify.models import MODELS, own_models
from certify.poisoning.learner import Learner, Part, State, seeded
from certify.poisoning.neighbors import fixed_batches
from certify.training import SCHEDULES
from certify.training.augment import crop_and_flip
from certify.training.schedules import check_sgd
from certify.training.trainer import generator_for

Forward = Callable[[State, State, State, Tensor], Tensor]  # parameters, buffers, constants, inputs -> scores
_ROWS = 64  # test samples per forward pass, always this many
_ORDER, _AUGMENTATION = 2, 3  # substreams of the random numbers


@dataclass(frozen=True)
class Network(Learner):
    """Stochastic gradient descent on the cross-entropy, with normalization constants from the partition alone.

    Attributes:
        model: one of :data:`certify.models.MODELS`; ``"linear"`` is logistic regression. Arrays ``[N, F]`` are treated
            as images of one pixel with F channels.
        steps: number of updates, on ``batch_size`` samples each.
        lr, momentum, weight_decay: of SGD (with Nesterov momentum, if there is momentum).
        schedule: one of :data:`certify.training.SCHEDULES`.
        crop: random translations by up to this many pixels.
        flip: random horizontal flips.
    """

    model: str = "small_cnn"
    steps: int = 200
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one_cycle"
    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch_size", 1), ("crop", 0)):
            check_integer(name, getattr(self, name), low)
        if self.model not in MODELS:
            raise ValueError(f"model: got {self.model!r}, expected one of {', '.join(MODELS)}")
        check_sgd(self.schedule, self.lr, self.momentum, self.weight_decay)

    def check(self, shape: tuple[int, ...], num_classes: int) -> None:
        images = as_images(torch.empty((self.batch_size, *shape), device="meta"))
        skeleton = self._skeleton(images, num_classes, training=True)
        try:
            skeleton(images)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"learner: {self.model} cannot be trained on {self.batch_size} inputs of shape {tuple(shape)} at once "
                f"({str(error).splitlines()[0]}); choose another model or batch_size"
            ) from error
        if self.model in own_models:
            self._check_repeats(shape, num_classes)

    def fit(self, part: Part, *, num_classes: int, device: torch.device) -> State:
        batches = _Batches.of([part], self, device)[0]
        state = self._initial(part, num_classes, device)
        self._train(state, batches, num_classes, self._forward(batches.images, num_classes, training=True))
        return state

    def fit_many(self, parts: Sequence[Part], *, num_classes: int, device: torch.device) -> list[State]:
        """All parts at once, with parameters ``[models, ...]``; each slice sees its own data only."""
        batches = _Batches.of(parts, self, device)
        state = _stack([self._initial(part, num_classes, device) for part in parts])
        self._train(state, batches, num_classes, vmap(self._forward(batches.images, num_classes, training=True)))
        return [{name: tensor[i].clone() for name, tensor in state.items()} for i in range(len(parts))]

    def scores(self, states: Sequence[State], x: Tensor, *, num_classes: int) -> Tensor:
        device = next(iter(states[0].values())).device
        state = _stack(states)
        images = as_images(x)
        forward = vmap(self._forward(images, num_classes, training=False), in_dims=(0, 0, 0, None))
        scores = torch.empty((len(states), len(x), num_classes), device=device)
        with exact_inference(), deterministic(device):
            for rows, of in fixed_batches(images, _ROWS):
                out = forward(*_split(state), to_float(rows.to(device)))
                scores[:, of] = out[:, : of.stop - of.start].float()
        return scores

    def _build(self, images: Tensor, num_classes: int, device: str = "cpu") -> nn.Module:
        channels, height, width = images.shape[1:]
        if self.model not in MODELS:
            raise ValueError(
                f"model: got {self.model}, which this process does not know; define it in a module, not in a notebook"
            )
        with torch.device(device):
            return MODELS[self.model](channels, num_classes, (height, width))

    def _seeded_build(self, images: Tensor, num_classes: int, seed: int) -> nn.Module:
        """The untrained architecture, a function of the seed."""
        with seeded(seed):
            return self._build(images, num_classes)

    def _check_repeats(self, shape: tuple[int, ...], num_classes: int) -> None:
        """Raise if training draws random numbers that do not follow from the seed, or if votes are random."""
        images = as_images(torch.rand((self.batch_size, *shape), generator=torch.Generator().manual_seed(0)))
        runs, votes, state = [], [], {}
        for _ in range(2):
            module = self._seeded_build(images, num_classes, 1).train()
            with seeded(1), exact_gradients():
                scores = module(images)
            runs.append([scores.detach(), *module.parameters(), *module.buffers()])
            state = module.state_dict()
        if not all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(*runs, strict=True)):
            raise ValueError(
                f"model: got {self.model}, which differs from one time to the next with the same seed, so that a model "
                "would depend on more than its part; draw from torch's, NumPy's or Python's global generator, which "
                "are seeded while it is built and trained"
            )
        for seed in range(8):  # an attribute may have few values
            module = self._seeded_build(images, num_classes, seed).eval()
            module.load_state_dict(state)
            with seeded(seed), exact_inference():
                votes.append(module(images).nan_to_num())
        if not all(torch.equal(votes[0], other) for other in votes):
            raise ValueError(
                f"model: got {self.model}, whose scores in evaluation mode do not follow from its parameters and "
                "buffers; keep random or computed tensors as buffers (self.register_buffer), and draw no random "
                "numbers in evaluation mode"
            )

    def _skeleton(self, images: Tensor, num_classes: int, *, training: bool) -> nn.Module:
        """The architecture, without memory allocated for its parameters."""
        skeleton = self._build(images, num_classes, "meta").train(training)
        if any(isinstance(module, _DropoutNd) and module.p > 0 for module in skeleton.modules()):
            # dropout would draw from a generator that all models share
            raise ValueError(f"model: got {self.model}, which has dropout, expected one that trains deterministically")
        return skeleton

    def _forward(self, images: Tensor, num_classes: int, *, training: bool) -> Forward:
        """The architecture as a function of its parameters."""
        skeleton = self._skeleton(images, num_classes, training=training)

        def forward(parameters: State, buffers: State, constants: State, x: Tensor) -> Tensor:
            return functional_call(skeleton, (parameters, buffers), ((x - constants["mean"]) / constants["std"],))

        return forward

    def _initial(self, part: Part, num_classes: int, device: torch.device) -> State:
        """The untrained model of a part."""
        images = as_images(part.samples)
        module = self._seeded_build(images, num_classes, part.seed)
        mean, std = normalization(images)
        state = {"constant.mean": mean, "constant.std": std}
        state |= {f"parameter.{name}": tensor.detach() for name, tensor in module.named_parameters()}
        state |= {f"buffer.{name}": tensor for name, tensor in module.named_buffers()}
        return {name: tensor.to(device).contiguous() for name, tensor in state.items()}

    def _train(self, state: State, batches: _Batches, num_classes: int, forward: Forward) -> None:
        """Train in place; the tensors of ``state`` have a leading dimension for models if ``batches`` has one."""
        parameters, buffers, constants = _split(state)
        leaves = [tensor.requires_grad_() for tensor in parameters.values()]
        optimizer = torch.optim.SGD(
            leaves, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
        )
        with exact_gradients(), deterministic(leaves[0].device):
            for step in range(self.steps):
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * SCHEDULES[self.schedule](step / self.steps)
                x, labels = batches.step(step)
                chosen = nn.functional.one_hot(labels, num_classes).bool()
                logits = forward(parameters, buffers, constants, x)
                loss = -torch.where(chosen, logits.log_softmax(-1), 0).sum(-1).mean(-1)
                # The gradient of the sum reaches each model through its own loss only, even if another loss is NaN.
                optimizer.zero_grad(set_to_none=True)
                torch.where(batches.empty, 0, loss).sum().backward()
                optimizer.step()
        for tensor in leaves:
            tensor.requires_grad_(False)


@dataclass(frozen=True)
class _Batches:
    """The training batches of one model, or of many with a leading dimension.

    Attributes:
        images: ``[N, C, H, W]``, those of all parts, concatenated.
        labels: int64 ``[N]``.
        order: int64 ``[models, steps, batch_size]``, indices into both.
        empty: bool ``[models]``, models with an empty part: they see a blank image, and have no loss.
        moves, flips: int64 ``[models, 2, steps, batch_size]`` and bool ``[models, steps, batch_size]``, augmentation.
        crop: see :class:`Network`.
    """

    images: Tensor
    labels: Tensor
    order: Tensor
    empty: Tensor
    moves: Tensor | None
    flips: Tensor | None
    crop: int

    @classmethod
    def of(cls, parts: Sequence[Part], config: Network, device: torch.device) -> _Batches:
        images, labels, orders, begin = [], [], [], 0
        for part in parts:
            own = as_images(part.samples)
            own, own_labels = (
                (own, part.labels) if len(own) else (own.new_zeros((1, *own.shape[1:])), torch.tensor([0]))
            )
            orders.append(begin + sample_order(len(own), config.steps, config.batch_size, part.seed))
            images.append(own)
            labels.append(own_labels)
            begin += len(own)
        moves = flips = None
        if config.crop or config.flip:
            drawn = [_augmentation(config, part.seed) for part in parts]
            moves, flips = (torch.stack(tensors).to(device) for tensors in zip(*drawn, strict=True))
        return cls(
            torch.cat(images).to(device),
            torch.cat(labels).to(device),
            torch.stack(orders).to(device),
            torch.tensor([len(part.samples) == 0 for part in parts], device=device),
            moves,
            flips,
            config.crop,
        )

    def __getitem__(self, i: int) -> _Batches:
        """The batches of model ``i``, without the leading dimension."""
        moves, flips = (None if tensor is None else tensor[i] for tensor in (self.moves, self.flips))
        return replace(self, order=self.order[i], empty=self.empty[i], moves=moves, flips=flips)

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs, float32 ``[..., batch_size, C, H, W]``, and labels ``[..., batch_size]`` of one update."""
        index = self.order[..., step, :]
        x = to_float(self.images[index])
        if self.moves is not None and self.flips is not None:
            moves = self.moves[..., step, :].movedim(-2, 0).flatten(1)
            moved = crop_and_flip(x.flatten(0, -4), moves, self.flips[..., step, :].flatten(), self.crop)
            x = moved.view(x.shape)
        return x, self.labels[index]


def as_images(samples: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` unchanged; arrays ``[N, F]`` as ``[N, F, 1, 1]``."""
    if samples.ndim not in (2, 4):
        raise ValueError(f"samples: got shape {tuple(samples.shape)}, expected [N, C, H, W] or [N, features]")
    return samples if samples.ndim == 4 else samples[:, :, None, None]


def normalization(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float32 ``[C, 1, 1]``, from these images alone; 0 and 1 if there are
    none, and 1 for a channel that does not vary."""
    values = to_float(images).to(torch.float64)
    if len(values) == 0:
        zeros = torch.zeros((images.shape[1], 1, 1))
        return zeros, zeros + 1
    mean = values.mean((0, 2, 3))
    std = ((values - mean[:, None, None]) ** 2).mean((0, 2, 3)).sqrt()
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, 1)
    return mean.float()[:, None, None], std.float()[:, None, None]


def sample_order(count: int, steps: int, batch_size: int, seed: int) -> Tensor:
    """Which of ``count`` samples each step takes, from consecutive permutations: int64 ``[steps, batch_size]``."""
    generator = generator_for(seed, 0, _ORDER)
    passes = -(-steps * batch_size // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return order[: steps * batch_size].view(steps, batch_size)


def _augmentation(config: Network, seed: int) -> tuple[Tensor, Tensor]:
    generator = generator_for(seed, 0, _AUGMENTATION)
    size = (config.steps, config.batch_size)
    moves = torch.randint(0, 2 * config.crop + 1, (2, *size), generator=generator)
    flips = torch.rand(size, generator=generator) < 0.5
    return moves, flips & config.flip


def _stack(states: Sequence[State]) -> State:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _split(state: State) -> tuple[State, State, State]:
    """Parameters, buffers and constants of a state, under the names that the module gives them."""

    def part(kind: str) -> State:
        return {name.removeprefix(f"{kind}."): tensor for name, tensor in state.items() if name.startswith(f"{kind}.")}

    return part("parameter"), part("buffer"), part("constant")
