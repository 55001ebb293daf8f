"""An accelerator that is not there: tensors on the device ``gpu:0``, whose values are computed on the CPU.

Programs meet what a GPU would confront them with: operations on tensors of different devices fail, as do conversions of
its tensors to NumPy arrays. What no emulation shows is how fast a GPU is, and how its kernels round.

``enable`` registers the device for the whole process, for good; these tests therefore have a process of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "gpu"
GPU = f"{NAME}:0"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

# these create a tensor and resize it, which a tensor that only refers to another does not notice
_FACTORIES = ("arange", "linspace", "logspace", "randperm", "eye", "tril_indices", "triu_indices")
_BETWEEN_DEVICES = {"_to_copy", "copy_", "_copy_from", "_copy_from_and_resize"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # indices may be on the CPU
# Python needs a result, or the number of results
_WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}


class _Reads:
    count = 0


class Remote(Tensor):
    """A tensor on the device; ``raw`` has its values."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Remote:
        own = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(GPU),
        )
        own.raw = raw
        return own

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Remote({self.raw})"

    def tolist(self) -> Any:
        _Reads.count += 1
        return self.raw.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=GPU, **options)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _check_devices(name: str, args: Any, kwargs: Any) -> None:
    """Raise where a GPU would: everything has to be on one device, except for numbers, and indices on the CPU."""
    if name in _BETWEEN_DEVICES:
        return
    if name in _INDEXING:
        if not isinstance(args[0], Remote) and any(isinstance(value, Remote) for value in tree_leaves(args[1])):
            raise RuntimeError(f"indices should be on the CPU, as the indexed tensor is ({name})")
        args = (args[0], *args[2:])
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    remote = [isinstance(value, Remote) for value in tensors]
    if any(remote) and any(value.dim() > 0 and not isinstance(value, Remote) for value in tensors):
        shapes = ", ".join(f"{tuple(value.shape)} on {value.device}" for value in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, got {shapes} ({name})")


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Carry out an operation that involves the device."""
    name = func.overloadpacket.__name__
    _check_devices(name, args, kwargs)
    masks = name in _INDEXING and any(getattr(value, "dtype", None) == torch.bool for value in tree_leaves(args[1]))
    _Reads.count += masks or name in _WAITING
    known = {id(value.raw): value for value in tree_leaves((args, kwargs)) if isinstance(value, Remote)}
    device = kwargs.get("device")
    stays = device is None or torch.device(device).type == NAME
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    _Reads.count += not stays and bool(known)
    local = lambda value: value.raw if isinstance(value, Remote) else value  # noqa: E731
    results = func(*tree_map(local, args), **tree_map(local, kwargs))
    if name == "copy_":
        _Reads.count += not isinstance(args[0], Remote)
        return args[0]

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor) or not stays:
            return value
        return known[id(value)] if id(value) in known else Remote(value)

    return tree_map(there, results)


def _on_device(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` and ``torch.as_tensor``, which create on the device without asking the dispatcher."""

    def created(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, Remote):
            return data.to(device or data.device, *args, **kwargs)
        made = create(data, *args, **kwargs)
        return made if device is None else made.to(device)

    return created


_libraries: list[torch.library.Library] = []  # what they register lasts as long as they do


def enable() -> None:
    """Register the device."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME)  # type: ignore[attr-defined]
    others, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((others, aten))
    others.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    for packet in (getattr(torch.ops.aten, name) for name in _FACTORIES):
        for overload in packet.overloads():
            if "out" not in overload:
                operation = getattr(packet, overload)
                aten.impl(
                    operation.name(),
                    lambda *args, _op=operation, **kwargs: _run(_op, args, {"device": GPU} | kwargs),
                    "PrivateUse1",
                )
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay those that optimizers know
    torch.tensor, torch.as_tensor = _on_device(torch.tensor), _on_device(torch.as_tensor)


@contextmanager
def reads() -> Iterator[Callable[[], int]]:
    """Counts how often Python waits for a result of the device; transfers to the device are not counted."""
    before = _Reads.count
    yield lambda: _Reads.count - before
