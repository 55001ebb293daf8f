"""Updates as CUDA graphs: what the device does is recorded once, and then repeated without Python in between.

With small networks a GPU waits for Python, which launches some hundred kernels for one update. A CUDA graph launches
all of them at once. What is repeated is the work on the device alone, on the memory where it was recorded: minibatches
are copied there, results are copied from there, and whatever Python decided then is decided for good. So there is one
recording for each *kind* of update, and all are dropped where an option or the place of a tensor has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Results = dict[str, Tensor]

WARM_UP = 3  # updates of a kind that are not recorded: libraries choose their kernels and optimizers make their state


class Graph(Protocol):
    """Work on a device that can be repeated."""

    def record(self, work: Callable[[], Results]) -> Results:
        """What ``work`` returns; nothing of it is carried out before the first :meth:`replay`."""
        ...

    def replay(self) -> None:
        """Carry the work out, on the same memory."""
        ...


class CudaGraph:
    """A :class:`torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Results]) -> Results:
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            return work()

    def replay(self) -> None:
        self._graph.replay()


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on ``stream``, after what was begun outside, and before what follows there."""
    outer = torch.cuda.current_stream(stream.device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


@dataclass(frozen=True)
class _Recorded:
    graph: Graph
    inputs: list[Tensor]
    results: Results


class Recorder:
    """Carries out work, recording what comes up again.

    Args:
        graph: makes an empty graph.
        stream: where the work of a :meth:`session` goes.
    """

    def __init__(
        self, graph: Callable[[], Graph], stream: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        self._graph, self._stream = graph, stream
        self._surroundings: Hashable = None
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recorded] = {}

    @classmethod
    def on(cls, device: torch.device) -> Recorder:
        """The one for a GPU; nothing can be recorded on its default stream."""
        stream = torch.cuda.Stream(device)
        return cls(CudaGraph, lambda: on_stream(stream))

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return Recorder(self._graph, self._stream)  # the copy has other tensors, and nothing is recorded of those

    @contextmanager
    def session(self, surroundings: Hashable) -> Iterator[None]:
        """A series of pieces of work during which nothing changes that Python reads.

        Args:
            surroundings: all of that; if it is not what it was, recordings are dropped.
        """
        if surroundings != self._surroundings:
            self._surroundings = surroundings
            self._seen.clear()
            self._recorded.clear()
        with self._stream():
            yield

    def run(self, kind: Hashable, batch: T, work: Callable[[T], Results]) -> Results:
        """What ``work(batch)`` returns.

        Args:
            kind: whatever else Python decides in ``work``.
            batch: tensors, perhaps in dictionaries and (named) tuples.
        """
        tensors = _tensors(batch)
        key = (kind, tuple((tensor.shape, tensor.dtype) for tensor in tensors))
        recorded = self._recorded.get(key)
        if recorded is None:
            self._seen[key] += 1
            if self._seen[key] <= WARM_UP:
                return work(batch)
            inputs = _copy(batch)
            graph = self._graph()
            try:
                results = graph.record(lambda: work(inputs))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise RuntimeError(
                    f"cuda_graphs: an update cannot be recorded, since it waits for the device or makes tensors of "
                    f"numbers ({error}); start again with cuda_graphs=False, or change a reward function that does so"
                ) from error
            recorded = self._recorded[key] = _Recorded(graph, _tensors(inputs), results)
        else:
            torch._foreach_copy_(recorded.inputs, tensors)  # pyright: ignore[reportPrivateImportUsage]
        recorded.graph.replay()
        # the next replay writes to the same place
        return {name: value.clone() for name, value in recorded.results.items()}


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in it, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple) else []


def _copy(value: Any) -> Any:
    """The same with copies of the tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(own) for key, own in value.items()}
    if isinstance(value, tuple):
        copies = [_copy(own) for own in value]
        return type(value)(*copies) if hasattr(value, "_fields") else tuple(copies)
    return value
