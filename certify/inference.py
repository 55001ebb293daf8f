"""Running a base classifier so that the same copy always gets the same scores."""

from __future__ import annotations

import inspect
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

BaseClassifier = Callable[[Tensor], Tensor]  # copies [N, C', H, W] -> scores [N, num_classes]
_PROBES = 4  # random images with which kernels are tried
_MOST_VALUES = 1_000  # among which modules are looked for


def _exact_settings() -> list[tuple[Any, str, Any]]:
    """Global switches of torch and their values for full float32 precision without autotuning."""
    backends: Any = torch.backends
    settings: list[tuple[Any, str, Any]] = [
        (backends.cudnn, "benchmark", False),
        (backends.cudnn, "deterministic", True),
    ]
    if hasattr(backends, "fp32_precision"):
        owners = (backends.cuda, backends.cudnn, backends.mkldnn)
        kernels = [getattr(owner, name, None) for owner in owners for name in ("matmul", "conv", "rnn")]
        return settings + [
            (kernel, "fp32_precision", "ieee") for kernel in kernels if hasattr(kernel, "fp32_precision")
        ]
    return [*settings, (backends.cudnn, "allow_tf32", False), (backends.cuda.matmul, "allow_tf32", False)]


class _Exact:
    """What the switches and the modes of modules were before the first of several threads changed them.

    They belong to the whole process: the last thread that needs them puts them back, not the first that is done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users = 0
        self._before: list[tuple[Any, str, Any]] = []
        self._modules: dict[nn.Module, tuple[int, bool]] = {}  # how many use it, and whether it was in training mode

    def take(self, module: nn.Module | None) -> list[nn.Module]:
        """Change them; the modules to be given back."""
        with self._lock:
            if self._users == 0:
                self._before = [(owner, name, getattr(owner, name)) for owner, name, _ in _exact_settings()]
                for owner, name, value in _exact_settings():
                    setattr(owner, name, value)
            self._users += 1
            # a frozen module is in evaluation mode for good, and does not say so
            parts = [] if module is None else [part for part in module.modules() if hasattr(part, "training")]
            for part in parts:
                users, training = self._modules.get(part, (0, False))
                self._modules[part] = users + 1, training or part.training
            if any(part.training for part in parts):
                assert module is not None
                try:
                    module.eval()
                except BaseException:
                    self.give_back(parts)
                    raise
            return parts

    def give_back(self, parts: list[nn.Module]) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for owner, name, before in self._before:
                    setattr(owner, name, before)
            for part in parts:
                users, training = self._modules.pop(part)
                if users > 1:
                    self._modules[part] = users - 1, training
                elif training:
                    part.training = True


_EXACT = _Exact()


@contextmanager
def exact_settings(base_classifier: BaseClassifier | None = None) -> Iterator[None]:
    """The same copy always gets the same scores: evaluation mode (if given a module), no autocast, TF32, autotuning.

    Several threads may be inside at a time, with the same module, too.
    """
    parts = _EXACT.take(base_classifier if isinstance(base_classifier, nn.Module) else None)
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _EXACT.give_back(parts)


@contextmanager
def exact_inference(base_classifier: BaseClassifier | None = None) -> Iterator[None]:
    """Inference under :func:`exact_settings`, without gradients.

    Not in torch's inference mode: what a model keeps for later, a table of positions, say, could not be trained with.
    """
    with exact_settings(base_classifier), torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def exact_gradients(base_classifier: BaseClassifier | None = None) -> Iterator[None]:
    """Gradients under :func:`exact_settings`, also where the caller has switched them off."""
    with exact_settings(base_classifier), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Only algorithms that give the same bits every time; anything else raises."""
    if device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        raise ValueError(
            "device: got cuda without CUBLAS_WORKSPACE_CONFIG, so training would not be reproducible; set it to "
            ":4096:8 in the environment before Python starts"
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory  # for debugging, and slow
    try:
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


def device_of(base_classifier: BaseClassifier, default: torch.device) -> torch.device:
    """Where a classifier's parameters are, of a function those of the modules in it; ``default`` if there are none."""
    if isinstance(base_classifier, nn.Module):
        for tensor in [*base_classifier.parameters(), *base_classifier.buffers()]:
            return tensor.device
        return default
    modules = list(_referred(base_classifier))
    found = {tensor.device for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return found.pop() if len(found) == 1 else default  # of several, the function knows which


def modes(base_classifier: BaseClassifier) -> tuple[bool, ...]:
    """Which of the modules that a callable refers to are in training mode; empty for a module, which is set to
    evaluation mode anyway. What was tried in one mode may be another classifier in the other."""
    return () if isinstance(base_classifier, nn.Module) else tuple(part.training for part in _modules(base_classifier))


def _modules(base_classifier: BaseClassifier) -> Iterator[nn.Module]:
    """All modules in it, or in those that a callable refers to."""
    return (part for module in _referred(base_classifier) for part in module.modules())


def _referred(callable_: object) -> Iterator[nn.Module]:
    """The modules that a callable refers to, directly or by way of other values, nearest first."""
    values, seen = deque([callable_]), set[int]()
    while values and len(seen) < _MOST_VALUES:
        value = values.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield value
        else:
            values.extend(_held(value))


def _held(value: object) -> Iterable[object]:
    """What a value refers to: in its closure, globals and attributes, or as items."""
    if isinstance(value, (type, ModuleType, str, bytes, Tensor)):
        return ()
    if isinstance(value, (list, tuple)):
        return value[:_MOST_VALUES]
    if isinstance(value, dict):
        return islice(value.values(), _MOST_VALUES)
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if inspect.ismethod(value):
        return (value.__self__,)
    if inspect.isfunction(value):
        with suppress(ValueError):  # a name that has no value yet
            found = inspect.getclosurevars(value)
            return (*found.nonlocals.values(), *found.globals.values())
    return vars(value).values() if hasattr(value, "__dict__") else ()


def good_batch_size(base_classifier: BaseClassifier, copy: Tensor, inputs: int = 1) -> int:
    """A batch size near the throughput optimum, from what one copy costs in activations; no timing, so reproducible.

    A processor is fastest when the activations of a batch stay in its caches; a GPU wants large batches that fit its
    memory. Powers of two between 8 and 256 (CPU) or 64 and 4,096 (CUDA).

    Args:
        copy: one copy, ``[1, C', H, W]``.
        inputs: how many inputs of a model it is; fewer copies make a batch then.
    """
    largest = [copy.numel()]

    def record(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            largest.append(output.numel())

    modules = base_classifier.modules() if isinstance(base_classifier, nn.Module) else []
    # compiled ones take no hooks: what is in them is not known then
    hooks = [m.register_forward_hook(record) for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    try:
        base_classifier(copy)
    finally:
        for hook in hooks:
            hook.remove()
    cuda = copy.device.type == "cuda"
    # bytes of the largest activation of a batch; on a CPU, 256 for the MNIST network and 32 for a CIFAR ResNet-18
    budget = (1 << 29) if cuda else 13 * (1 << 20)
    low, high = (64, 4096) if cuda else (8, 256)
    fitting = budget // (4 * max(largest))
    return max(1, low // inputs, min(high // inputs, 1 << max(0, fitting.bit_length() - 1)))


def check_independence(base_classifier: BaseClassifier, copies: Tensor, rows: int) -> None:
    """Raise if scores are random, or if those of a copy change, if only in a bit, with what else is in its batch.

    They do with batch statistics left in training mode, or with activations that are quantized by the range of a batch:
    a perturbation then moves votes of copies that it does not touch. Batches of ``rows`` are scored, half of their rows
    again and again, beside other ones: copies, noise, black and white, and numbers out of range. Copies alone are not
    enough, those of a blank image may all be equal. A classifier that takes nothing but copies is tried with these.
    Then others stay, until each row has stayed beside each other one that changes.

    Args:
        copies: a few different ones, ``[N, C', H, W]``, that the classifier takes.
        rows: of the batches to come.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((rows, *copies.shape[1:]), generator=generator).to(copies)
    own = copies[torch.arange(rows, device=copies.device) % len(copies)]

    by_mask = any(getattr(part, "lists_by_mask", False) for part in _modules(base_classifier))
    number = torch.arange(rows, device=copies.device)
    odd, *further = _halves(number) if rows > 1 else [number < 0]

    def scores(kept: Tensor, others: Tensor, replaced: Tensor) -> Tensor | None:
        if by_mask:  # 0 is a hidden value: hidden ones stay, and no others are hidden
            others = torch.where(kept == 0, 0.0, torch.where(others == 0, 0.5, others))
        batch = torch.where(replaced.view(-1, *[1] * (kept.ndim - 1)), others, kept)
        try:
            return base_classifier(batch).nan_to_num()
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None

    far = (lambda: own.flip(0), lambda: 0 * noise, lambda: 255 * noise, lambda: -255 * noise)
    near = (lambda: own, lambda: torch.ones_like(noise))
    other_rows = [(half, lambda: 255 * noise * (own < 0.5)) for half in further]  # dark where copies are bright
    probes = (
        (own, [(odd, make) for make in (lambda: own, *far)] + other_rows),
        (noise / 2, [(odd, make) for make in near]),
    )
    for kept, others in probes:
        expected = scores(kept, kept, odd)
        for replaced, make in others:  # one at a time, since batches may be large
            other = make()
            got = scores(kept, other, replaced)
            if expected is None or got is None or torch.equal(got[~replaced], expected[~replaced]):
                continue
            if other is kept:
                raise ValueError(
                    "base classifier: got other scores for the same batch, so they are random (dropout or noise in a "
                    "wrapping function?); call .eval() on the model, pass the module itself, or seed what is random"
                )
            raise ValueError(
                "base classifier: the scores of a copy depend on the other copies in its batch (training mode inside a "
                "wrapping function, or numbers rounded by the range of the batch?); call .eval() on the model, or pass "
                "the module itself; with batch_size=1 each copy is scored alone"
            )


def check_rows(rule: Callable[[Tensor], Tensor], num_classes: int) -> None:
    """Raise if what a rule makes of a row of scores changes with the other rows, or with chance.

    Args:
        rule: maps scores ``[N, num_classes]`` to ``[N, ...]``.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((64, num_classes), generator=generator)
    for scale in (0.01, 1.0, 20.0):
        for rows in (8, 64):
            check_independence(rule, scale * scores, rows)


def _halves(number: Tensor) -> list[Tensor]:
    """Halves of a batch, bool ``[rows]`` each: the odd rows, the even ones, and so many that for any two rows there is
    one with the first and without the second."""
    bits = range(max(1, (len(number) - 1).bit_length()))
    return [(number >> bit & 1) == value for bit in bits for value in (1, 0)]


def position_matters(base_classifier: BaseClassifier, copies: Tensor, rows: int) -> bool:
    """Whether the scores of a copy differ, if only in a bit, with where it stands in a batch of ``rows``.

    Kernels for matrices treat some rows of small batches in another order of summation than the others. Each probe
    fills a batch: copies, and random images of their shape, whose sums have more terms to differ in.

    Args:
        copies: a few different ones, ``[N, C', H, W]``.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((_PROBES, *copies.shape[1:]), generator=generator).to(copies)
    for probe in (*copies[:2], *noise):
        try:
            scores = base_classifier(probe[None].expand(rows, *probe.shape).contiguous()).nan_to_num()
        except Exception:  # it takes nothing but copies, so this cannot be found out
            return True
        if not torch.equal(scores, scores[:1].expand_as(scores)):
            return True
    return False
