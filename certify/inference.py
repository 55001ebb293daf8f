"""Reproducible inference: the same copy always gets the same scores from the base classifier."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from certify.modules import referred_modules

BaseClassifier = Callable[[Tensor], Tensor]  # copies [N, C', H, W] -> scores [N, num_classes]
_PROBES = 4  # random images on which kernels are tested


class _MatrixProducts:
    """The older one of torch's two settings for the precision of matrix products.

    Both change together if a program uses the older one, but only one if it uses the newer one. Where they contradict
    each other, torch raises an error when the older one is read, and some of its kernels obey the older one.
    """

    @property
    def reduced(self) -> bool:
        """Whether this setting is in use, with less than full precision."""
        if torch.backends.cuda.matmul.fp32_precision != "tf32":  # type: ignore[attr-defined]
            return False
        try:
            return self.precision != "highest"
        except RuntimeError:  # the newer one is in use
            return False

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _exact_settings() -> list[tuple[Any, str, Any]]:
    """Global torch settings, with the values that give full float32 precision without autotuning.

    They are to be set, and restored, in this order.
    """
    backends: Any = torch.backends
    settings: list[tuple[Any, str, Any]] = [
        (backends.cudnn, "benchmark", False),
        (backends.cudnn, "deterministic", True),
    ]
    products = _MatrixProducts()
    if hasattr(backends, "fp32_precision"):
        if products.reduced:
            settings.append((products, "precision", "highest"))
        owners = (backends.cuda, backends.cudnn, backends.mkldnn)
        kernels = [getattr(owner, name, None) for owner in owners for name in ("matmul", "conv", "rnn")]
        return settings + [
            (kernel, "fp32_precision", "ieee") for kernel in kernels if hasattr(kernel, "fp32_precision")
        ]
    # cuda.matmul.allow_tf32 is a view of the second that cannot tell "medium" from "high"
    return [*settings, (backends.cudnn, "allow_tf32", False), (products, "precision", "highest")]


class _Exact:
    """The global settings and module modes as they were before the first of several threads changed them.

    They are shared by the whole process, so the last thread to need them restores them, not the first to finish.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users = 0
        self._before: list[tuple[Any, str, Any]] = []
        self._modules: dict[nn.Module, tuple[int, bool]] = {}  # number of users, and whether it was in training mode

    def take(self, base_classifier: BaseClassifier | None) -> list[nn.Module]:
        """Change the settings and modes; returns the modules to pass to :meth:`give_back`."""
        modules = list(referred_modules(base_classifier))
        with self._lock:
            if self._users == 0:
                self._before = [(owner, name, getattr(owner, name)) for owner, name, _ in _exact_settings()]
                for owner, name, value in _exact_settings():
                    setattr(owner, name, value)
            self._users += 1
            # a frozen module is permanently in evaluation mode and has no such attribute
            parts = list({part: None for module in modules for part in module.modules() if hasattr(part, "training")})
            for part in parts:
                users, training = self._modules.get(part, (0, False))
                self._modules[part] = users + 1, training or part.training
            if any(part.training for part in parts):
                try:
                    for module in modules:
                        _evaluate(module, given=module is base_classifier)
                except BaseException:
                    self.give_back(parts)
                    raise
                for part in parts:  # where eval() is overridden, or failed in a program of torch.export beside it
                    if part.training:
                        part.training = False
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


def _evaluate(module: nn.Module, *, given: bool) -> None:
    try:
        module.eval()
    except NotImplementedError as error:  # programs of torch.export, whose mode a function around them may know
        if given:
            raise ValueError(
                f"base_classifier: got a {type(module).__name__}, which cannot be put in evaluation mode "
                f"({error}); export the model in evaluation mode, and give a function around the program: "
                "lambda copies: program(copies)"
            ) from error


_EXACT = _Exact()


@contextmanager
def exact_settings(base_classifier: BaseClassifier | None = None) -> Iterator[None]:
    """The same copy always gets the same scores: evaluation mode, no autocast, TF32 or autotuning.

    Evaluation mode is that of a module, and of those that a function refers to. Several threads may be inside at once,
    even with the same module.
    """
    parts = _EXACT.take(base_classifier)
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _EXACT.give_back(parts)


@contextmanager
def exact_inference(base_classifier: BaseClassifier | None = None) -> Iterator[None]:
    """Inference under :func:`exact_settings`, without gradients.

    Does not use torch's inference mode, since tensors that a model caches in it, such as a table of positions, could
    not be used in training later.
    """
    with exact_settings(base_classifier), torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def exact_gradients(base_classifier: BaseClassifier | None = None) -> Iterator[None]:
    """Gradients under :func:`exact_settings`, even where the caller has disabled them."""
    with exact_settings(base_classifier), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Allows only bitwise deterministic algorithms; anything else raises."""
    if device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        raise ValueError(
            "device: got cuda without CUBLAS_WORKSPACE_CONFIG, so training would not be reproducible; set it to "
            ":4096:8 in the environment before Python starts"
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory  # a slow debugging aid
    try:
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


def device_of(base_classifier: BaseClassifier, default: torch.device) -> torch.device:
    """Device of a classifier's parameters, or of the modules that a function uses; ``default`` if there are none or the
    modules of a function are on several devices."""
    if isinstance(base_classifier, nn.Module):
        for tensor in [*base_classifier.parameters(), *base_classifier.buffers()]:
            return tensor.device
        return default
    modules = list(referred_modules(base_classifier))
    found = {tensor.device for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return found.pop() if len(found) == 1 else default  # with several, only the function knows which to use


def _modules(base_classifier: BaseClassifier) -> Iterator[nn.Module]:
    """All submodules of a module, or of the modules that a callable refers to."""
    return (part for module in referred_modules(base_classifier) for part in module.modules())


def good_batch_size(base_classifier: BaseClassifier, copy: Tensor, inputs: int = 1) -> int:
    """A batch size near the throughput optimum, from the activation size of one copy; no timing, so reproducible.

    A CPU is fastest when the activations of a batch stay in its caches; a GPU needs large batches that fit its memory.
    The size is a power of two between 8 and 256 (CPU) or 64 and 4,096 (CUDA); with several inputs per copy, these
    limits are divided by their number.

    Args:
        copy: one copy, ``[1, C', H, W]``.
        inputs: number of model inputs that make up a copy; with more of them, a batch has fewer copies.
    """
    largest = [copy.numel()]

    def record(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            largest.append(output.numel())

    modules = base_classifier.modules() if isinstance(base_classifier, nn.Module) else []
    # TorchScript modules take no hooks, so their activations remain unknown
    hooks = [m.register_forward_hook(record) for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    try:
        base_classifier(copy)
    finally:
        for hook in hooks:
            hook.remove()
    cuda = copy.device.type == "cuda"
    # bytes of a batch's largest activation; on a CPU this gives 256 for the MNIST network, 32 for a CIFAR ResNet-18
    budget = (1 << 29) if cuda else 13 * (1 << 20)
    low, high = (64, 4096) if cuda else (8, 256)
    fitting = budget // (4 * max(largest))
    return max(1, low // inputs, min(high // inputs, 1 << max(0, fitting.bit_length() - 1)))


def _lists_by_mask(base_classifier: BaseClassifier) -> bool:
    """Whether a classifier has a network for each set of hidden values, and accepts these sets only."""
    return any(getattr(part, "lists_by_mask", False) for part in _modules(base_classifier))


def _hidden_alike(kept: Tensor, others: Tensor) -> Tensor:
    """``others``, with the values hidden that are hidden in ``kept``, and no more: 0 marks a hidden value."""
    return torch.where(kept == 0, 0.0, torch.where(others == 0, 0.5, others))


def check_independence(base_classifier: BaseClassifier, copies: Tensor, rows: int) -> None:
    """Raise if scores are random, or if those of a copy depend, even in a single bit, on the rest of its batch.

    They do if batch statistics are left in training mode or activations are quantized by the range of a batch: a
    perturbation can then change votes of copies that it does not touch. Batches of ``rows`` are scored repeatedly with
    half of their rows fixed and the others replaced: by copies, noise, black and white, and out-of-range values. Copies
    alone would not be enough, since those of a blank image may all be equal; but a classifier that accepts nothing else
    is tested with copies only. Then other halves are fixed, until each row has been fixed while each other one changes.

    Args:
        copies: a few distinct copies, ``[N, C', H, W]``, that the classifier accepts.
        rows: batch size that will be used.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((rows, *copies.shape[1:]), generator=generator).to(copies)
    own = copies[torch.arange(rows, device=copies.device) % len(copies)]

    by_mask = _lists_by_mask(base_classifier)
    number = torch.arange(rows, device=copies.device)
    odd, *further = _halves(number) if rows > 1 else [number < 0]

    def scores(kept: Tensor, others: Tensor, replaced: Tensor) -> Tensor | None:
        if by_mask:
            others = _hidden_alike(kept, others)
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
                    "base classifier: got different scores for the same batch, so they are random (dropout or noise in "
                    "a function?); call .eval() on the model, pass the module itself, or fix the seed"
                )
            raise ValueError(DEPENDENT)


def others_matter(base_classifier: BaseClassifier, rows: Tensor, others: Tensor) -> Tensor:
    """Whether the scores of the even rows change, even in a single bit, if the odd ones are replaced: bool ``[]``.

    The short form of :func:`check_independence` for batches of later images: what depends on the batch may show only
    for some of them, for example where a model stops early if all rows are confident. Noise is put in the places of
    the odd rows, and copies in every second of them; only copies if the classifier does not accept anything else.

    Args:
        rows: a batch of copies, ``[N, C', H, W]``.
        others: a few other copies, ``[M, C', H, W]``.
    """
    number = torch.arange(len(rows), device=rows.device)
    copies = others[number // 4 % len(others)]
    noise = torch.rand(rows.shape[1:], generator=torch.Generator().manual_seed(0)).to(rows)
    mixed = torch.where(_like(number % 4 == 1, rows), noise, copies)
    odd = _like(number % 2 == 1, rows)
    for replaced in (mixed, copies):
        if _lists_by_mask(base_classifier):
            replaced = _hidden_alike(rows, replaced)
        try:
            # both in memory of their own, since kernels may round differently where a tensor begins elsewhere; and the
            # classifier may write its scores into the same tensor each time
            expected = base_classifier(rows.clone()).clone()
            got = base_classifier(torch.where(odd, replaced, rows))
        except torch.OutOfMemoryError:
            raise
        except Exception:
            continue
        return (got[::2].nan_to_num() != expected[::2].nan_to_num()).any()
    return torch.zeros((), dtype=torch.bool)


def _like(chosen: Tensor, rows: Tensor) -> Tensor:
    """Which rows are chosen, bool ``[N]``, with as many dimensions as the rows."""
    return chosen.view(-1, *[1] * (rows.ndim - 1))


DEPENDENT = (
    "base classifier: the scores of a copy depend on the other copies in its batch (training mode inside a wrapping "
    "function, values quantized by the range of the batch, or a shortcut that depends on all rows?); call .eval() on "
    "the model, pass the module itself, or use batch_size=1, which scores each copy alone"
)


def check_rows(rule: Callable[[Tensor], Tensor], num_classes: int) -> None:
    """Raise if the result of a rule for one row of scores depends on the other rows, or is random.

    Args:
        rule: maps scores ``[N, num_classes]`` to ``[N, ...]``.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((64, num_classes), generator=generator)
    for scale in (0.01, 1.0, 20.0):
        for rows in (8, 64):
            check_independence(rule, scale * scores, rows)


def _halves(number: Tensor) -> list[Tensor]:
    """Halves of a batch, bool ``[rows]`` each: the odd rows, the even rows, and enough others that for any two rows,
    some half contains the first but not the second."""
    bits = range(max(1, (len(number) - 1).bit_length()))
    return [(number >> bit & 1) == value for bit in bits for value in (1, 0)]


def position_matters(base_classifier: BaseClassifier, copies: Tensor, rows: int) -> bool:
    """Whether the scores of a copy depend, even in a single bit, on its position in a batch of ``rows``.

    Matrix kernels sum some rows of small batches in a different order than the others. Each probe fills a whole batch:
    copies, and random images of their shape, whose sums have more nonzero terms in which to differ.

    Args:
        copies: a few distinct copies, ``[N, C', H, W]``.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((_PROBES, *copies.shape[1:]), generator=generator).to(copies)
    for probe in (*copies[:2], *noise):
        try:
            scores = base_classifier(probe[None].expand(rows, *probe.shape).contiguous()).nan_to_num()
        except Exception:  # the classifier accepts only copies, so this cannot be determined
            return True
        if not torch.equal(scores, scores[:1].expand_as(scores)):
            return True
    return False
