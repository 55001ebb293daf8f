"""Where the tasks of a job run: in this process, in other processes of this machine, or on a Ray cluster.

A task is a function of data shared by all tasks and of its own, and returns the contents of a file. All three executors
return the same bytes: they differ in who computes, never in the result. If a worker dies, only the tasks it was running
are lost, and others repeat them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import multiprocessing
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from certify.checks import check_integer
from certify.models import MODELS, is_typed, own_models
from certify.processes import begin_worker

_DONE = "Finished work is on disk; use --resume to continue"
Work = Callable[[Any, Any], bytes]  # function of the shared data and of a task; must be importable by name


class Executor(ABC):
    """Runs tasks. Subclasses are frozen dataclasses."""

    @abstractmethod
    def run(self, work: Work, shared: Any, tasks: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
        """Yields ``(number, work(shared, task))`` for every task, in order of completion.

        Tasks are taken from the iterable only shortly before they start. Exceptions of a task are raised here.
        """


@dataclass(frozen=True)
class Sequential(Executor):
    """In this process, one after the other: the reference."""

    def run(self, work: Work, shared: Any, tasks: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
        for number, task in enumerate(tasks):
            yield number, work(shared, task)


@dataclass(frozen=True)
class Processes(Executor):
    """Processes on this machine.

    Attributes:
        count: number of processes.
        retries: how often a process may die in a row, without a task finished in between.
    """

    count: int
    retries: int = 3

    def __post_init__(self) -> None:
        check_integer("count (workers)", self.count, 1, 1 << 16)
        check_integer("retries", self.retries, 0)

    def run(self, work: Work, shared: Any, tasks: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
        # Tensors in plain pickles, which stay in memory: torch's default needs shared memory and many open files.
        common = _common(work, shared)
        waiting = ((number, pickle.dumps(task)) for number, task in enumerate(tasks))
        running: dict[Future[bytes], tuple[int, bytes]] = {}
        deaths = 0
        pool = self._pool(common)
        try:
            while True:
                started = itertools.islice(waiting, 2 * self.count - len(running))
                running |= {pool.submit(_of_shared, task): (number, task) for number, task in started}
                if not running:
                    return
                alive = True
                # successes come first: they are kept whatever the others raise
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    try:
                        content = future.result()
                    except BrokenProcessPool:
                        alive = False
                        continue
                    number, _ = running.pop(future)
                    deaths = 0
                    yield number, content
                if not alive:
                    deaths += 1
                    pool.shutdown(wait=False, cancel_futures=True)
                    if deaths > self.retries:
                        raise ChildProcessError(
                            f"workers: died {deaths} times in a row, possibly for lack of memory; use fewer workers or "
                            f"smaller groups of models. {_DONE}"
                        )
                    lost, running = list(running.values()), {}
                    waiting, pool = itertools.chain(lost, waiting), self._pool(common)
        except BaseException:  # nobody takes the results of the tasks in progress
            for worker in list((pool._processes or {}).values()):
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pool(self, common: bytes) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
        return ProcessPoolExecutor(self.count, mp_context=spawn, initializer=_begin, initargs=(common,))


def _common(work: Work, shared: Any) -> bytes:
    """The data shared by all tasks, and the user's own models, which a new process does not know."""
    # a new process cannot import what is defined in a notebook or on standard input
    found = {name: build for name, build in own_models.items() if not is_typed(build)}
    try:
        own = pickle.dumps(found)
    except (pickle.PicklingError, AttributeError) as error:
        raise ValueError(
            f"workers: cannot send models of your own to workers ({error}); define them at the top level of a module"
        ) from error
    return pickle.dumps((own, pickle.dumps((work, shared))))


def _of_common(common: bytes) -> tuple[Work, Any]:
    own, work_and_shared = pickle.loads(common)
    for name, build in pickle.loads(own).items():
        own_models[name] = MODELS[name] = build  # checked on registration
    return pickle.loads(work_and_shared)


_shared: dict[str, Any] = {}  # in a worker: the work function and the data shared by its tasks


def _begin(common: bytes) -> None:
    """Prepare a worker."""
    begin_worker()
    _shared["work"], _shared["of"] = _of_common(common)


def _of_shared(task: bytes) -> bytes:
    return _shared["work"](_shared["of"], pickle.loads(task))


@dataclass(frozen=True)
class RayCluster(Executor):
    """A Ray cluster; this project must be installed on its machines (extra ``ray``).

    Attributes:
        address: of the cluster, or ``"auto"``; None starts a local cluster, which is shut down after the work.
        count: number of processors of a local cluster; None for all.
        retries: how often a task is restarted after its worker died.
        gpus: share of a GPU that a task needs.
    """

    address: str | None = None
    count: int | None = None
    retries: int = 3
    gpus: float = 0

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ImportError("ray: not installed; install the extra 'ray' (pip install -e '.[ray]')")

    def run(self, work: Work, shared: Any, tasks: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
        ray: Any = importlib.import_module("ray")
        with self._cluster(ray):
            remote = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=self.retries)(_anywhere)
            common = ray.put(_common(work, shared))
            waiting = enumerate(tasks)
            running: dict[Any, int] = {}
            while True:
                free = 2 * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(running)
                started = itertools.islice(waiting, max(0, free))
                running |= {remote.remote(common, pickle.dumps(task)): number for number, task in started}
                if not running:
                    return
                for done in ray.wait(list(running), num_returns=1)[0]:
                    try:
                        content = ray.get(done)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from error
                    except ray.exceptions.RayError as error:
                        reason = str(error).splitlines()[0]
                        message = f"workers: a task failed {1 + self.retries} times ({reason}); {_DONE}"
                        raise ChildProcessError(message) from error
                    yield running.pop(done), content

    @contextlib.contextmanager
    def _cluster(self, ray: Any) -> Iterator[None]:
        """Connected to the cluster, unless the caller already was."""
        if ray.is_initialized():
            yield
            return
        local = {"num_cpus": self.count, "include_dashboard": False} if self.address is None else {}
        ray.init(address=self.address or "local", log_to_driver=False, **local)
        try:
            yield
        finally:
            ray.shutdown()


def _anywhere(common: bytes, task: bytes) -> bytes:
    work, shared = _of_common(common)
    return work(shared, pickle.loads(task))
