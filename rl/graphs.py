"""Updates as CUDA graphs: the device work of an update is captured once, then replayed without Python in between.

With small networks, a GPU waits for Python, which launches some hundred kernels per update; a CUDA graph launches them
all at once. A replay repeats only the device work, on the memory it was captured on: minibatches are copied into that
memory, results are copied out of it, and every decision Python made during the capture is frozen. There is therefore
one recording per *kind* of update, and all recordings are dropped when an option or the address of a tensor changes.
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

WARM_UP = 3  # unrecorded updates of each kind, in which libraries select kernels and optimizers create their state


class Graph(Protocol):
    """Device work that can be replayed."""

    def record(self, work: Callable[[], Results]) -> Results:
        """Record ``work`` and return its results, which hold no values before the first :meth:`replay`."""
        ...

    def replay(self) -> None:
        """Carry out the recorded work, on the same memory."""
        ...


class CudaGraph:
    """A :class:`Graph` backed by a :class:`torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Results]) -> Results:
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            return work()

    def replay(self) -> None:
        self._graph.replay()


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run on ``stream``, ordered after the work already queued outside and before the work queued there afterwards."""
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
    """Carries out work, recording and replaying what recurs.

    Args:
        graph: creates an empty graph.
        stream: context manager of the stream that a :meth:`session` runs on.
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
        """A recorder for a GPU, with a stream of its own: nothing can be recorded on the default stream."""
        stream = torch.cuda.Stream(device)
        return cls(CudaGraph, lambda: on_stream(stream))

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return Recorder(self._graph, self._stream)  # the copy has new tensors, for which nothing is recorded

    @contextmanager
    def session(self, surroundings: Hashable) -> Iterator[None]:
        """A series of calls to :meth:`run` during which nothing that Python reads changes.

        Args:
            surroundings: everything Python reads; if it differs from the last session's, all recordings are dropped.
        """
        if surroundings != self._surroundings:
            self._surroundings = surroundings
            self._seen.clear()
            self._recorded.clear()
        with self._stream():
            yield

    def run(self, kind: Hashable, batch: T, work: Callable[[T], Results]) -> Results:
        """The results of ``work(batch)``, replayed if work of this kind has been recorded.

        Args:
            kind: whatever else determines the decisions Python makes in ``work``.
            batch: tensors, possibly nested in dictionaries and (named) tuples.
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
                    f"cuda_graphs: got an update that cannot be recorded, because it waits for the device or creates "
                    f"tensors from Python numbers ({error}); use cuda_graphs=False, or change the reward function if "
                    "it does so"
                ) from error
            recorded = self._recorded[key] = _Recorded(graph, _tensors(inputs), results)
        else:
            torch._foreach_copy_(recorded.inputs, tensors)  # pyright: ignore[reportPrivateImportUsage]
        recorded.graph.replay()
        # the next replay overwrites the results
        return {name: value.clone() for name, value in recorded.results.items()}


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a nested structure, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple) else []


def _copy(value: Any) -> Any:
    """A nested structure with copies of its tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(own) for key, own in value.items()}
    if isinstance(value, tuple):
        copies = [_copy(own) for own in value]
        return type(value)(*copies) if hasattr(value, "_fields") else tuple(copies)
    return value
