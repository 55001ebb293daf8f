"""A smoothed classifier on a whole data set: one line per image on disk, from which everything else is computed.

:func:`certify_dataset` takes any model. ``python -m scripts.certify`` is its command line for the models of
``scripts.train``, and ``python -m scripts.report`` makes tables and plots of what either wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certify import spec
from certify.checks import check_integer
from certify.data import Dataset
from certify.draws import GENERATOR
from certify.identity import name_of, parameters_of
from certify.inference import device_of
from certify.results import ResultFolder, Row, result_of, row_columns
from certify.scheme import Certified, EnumeratedScheme, SampledScheme
from certify.sequential import Question
from certify.smooth import Smoothed
from certify.sources import code_of
from certify.threats import Unproven
from certify.votes import ThresholdVote, Votes, argmax_vote

_COPIES_PER_STEP = 4_096  # by default, before results are written


def sampling(smoothed: Smoothed, question: Question | None = None, max_n: int = 100_000) -> dict[str, Any] | None:
    """How the copies of a sampled scheme are drawn, as JSON values; None for exact schemes."""
    if isinstance(smoothed.scheme, EnumeratedScheme):
        return None
    shared = {"n0": smoothed.n0, "alpha": smoothed.alpha, "seed": smoothed.seed, "generator": GENERATOR}
    if question is not None:
        return shared | {"until": repr(question), "max_n": max_n}
    return shared | {"n": smoothed.n, "bounds": smoothed.bounds, "interval": smoothed.interval}


def configuration(smoothed: Smoothed, data: Dataset, how: dict[str, Any] | None) -> dict[str, Any]:
    """The settings that all rows of a run share, except for the base classifier; as JSON values.

    Args:
        how: result of :func:`sampling`.
    """
    scheme, vote = smoothed.scheme, smoothed.engine.vote
    if vote is not argmax_vote and type(vote) is not ThresholdVote:
        raise ValueError(
            f"vote: got {vote}, which cannot be stored as text; expected argmax_vote or ThresholdVote(theta)"
        )
    passes, code = scheme.inputs_per_copy(data.shape), code_of([type(scheme)])
    own = {} if code is None else {"scheme_code": code}
    return (
        ({} if passes == 1 else {"inputs_per_copy": passes})
        | own
        | {
            "scheme": spec.to_text(scheme),
            "threat": str(scheme.threat),
            "design": scheme.fingerprint(),
            "data": data.name,
            "data_sha256": data.checksum(),
            "split": data.split,
            "shape": list(data.shape),
            "num_classes": data.num_classes,
            "sampling": how,
            "vote": spec.to_text(vote) if isinstance(vote, ThresholdVote) else "argmax",
            "batch_size": smoothed.engine.batch_size,
            "shared_rows": smoothed.engine.shared_rows,
            "device": device_of(smoothed.base_classifier, torch.device("cpu")).type,
        }
    )


def certify_dataset(
    smoothed: Smoothed,
    data: Dataset,
    out: str | Path,
    *,
    index: Sequence[int] | None = None,
    model: str | None = None,
    resume: bool = False,
    shard: tuple[int, int] = (0, 1),
    question: Question | None = None,
    max_n: int = 100_000,
    images_per_step: int | None = None,
    config: dict[str, Any] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_image: Callable[[Row], None] | None = None,
    on_copies: Callable[[int], None] | None = None,
) -> Path:
    """Certify images of a data set; rows, votes and the configuration are written to a folder.

    A run that was interrupted, in whatever way, continues with ``resume=True`` to the identical rows. ``python -m
    scripts.report OUT`` makes the table and the plot; :func:`~certify.results.read_rows` and
    :func:`~certify.results.read_votes` read the results.

    Args:
        data: images and labels; ``Dataset("mine", "test", images, labels, num_classes=10)`` for your own.
        out: the folder.
        index: indices of the images to certify, by default of all; shards divide them among themselves.
        model: names the base classifier in the configuration. By default its class and a checksum of its parameters.
            Functions need a name, and so do modules whose attributes change when they run (caches, counters of calls).
            Rows of different models never go into one folder: of those with a name, the parameters and the statistics
            of batch normalization are compared, also those of the modules found in a function
            (:func:`certify.modules.referred_modules`). Give other code, other buffers or attributes, or what is not
            found, another name.
        resume: continue the results in ``out``; without it, a folder that holds results is refused.
        shard: ``(i, n)``: certify part i of n; the parts may run anywhere and share ``out``.
        question: sample only until it is settled for each image (:mod:`certify.sequential`), with at most ``max_n``
            estimation samples; sampled schemes only.
        images_per_step: images to certify before their rows are written, by default as many as have about 4,096 copies.
        config: replaces the configuration that follows from the other arguments, except for its ``"sampling"``.
        on_start: called with the number of images that are done already, to show progress.
        on_image: called with each row once it is written.
        on_copies: called more often, also within an image; see :meth:`~certify.engine.VoteEngine.reporting`.

    Returns:
        the path of the rows.
    """
    _check_arguments(smoothed, data, question, images_per_step)
    chosen = _chosen_images(data, index, shard)
    if config is None:
        own = {"model": model or name_of(smoothed.base_classifier)}  # first: running a classifier may change it
        smoothed.engine.prepare(data.batch([0])[0])
        if model is not None:
            own |= {"parameters": parameters_of(smoothed.base_classifier)}
        config = configuration(smoothed, data, sampling(smoothed, question, max_n)) | own
    # kept even in a given configuration: bounds for a fixed sample size do not hold for votes that decided when to stop
    config = config | {"sampling": sampling(smoothed, question, max_n)}
    work = _certify_fixed if question is None else partial(_certify_until, question=question, max_n=max_n)
    copies = smoothed.copies_per_image(data.shape) if question is None else smoothed.n0
    step = images_per_step or max(1, _COPIES_PER_STEP // copies)
    columns = row_columns(guaranteed=not isinstance(smoothed.scheme.threat, Unproven))
    by_copy = smoothed.scheme.positional
    with ResultFolder(out, shard, columns=columns, by_copy=by_copy) as folder:
        done = folder.start(config, resume=resume)
        left = [i for i in chosen if i not in done]
        if on_start is not None:
            on_start(len(chosen) - len(left))
        for start in range(0, len(left), step):
            part = left[start : start + step]
            try:
                with smoothed.engine.reporting(on_copies):
                    finished = work(smoothed, data, part)
            except ValueError as error:
                raise ValueError(f"images {part[0]} to {part[-1]} of {data.name}: {error}") from error
            for row, votes in finished:
                folder.append(row, votes)
                if on_image is not None:
                    on_image(row)
    return folder.rows_path


def _check_arguments(smoothed: Smoothed, data: Dataset, question: Question | None, images_per_step: int | None) -> None:
    """Raise unless the classifier, the data set and the options fit together."""
    if not isinstance(data, Dataset):
        raise TypeError(
            f"data: got {type(data).__name__}, expected a certify.data.Dataset; certify.data.from_torch makes one of a "
            "data set of PyTorch"
        )
    if smoothed.engine.num_classes != data.num_classes:
        raise ValueError(
            f"num_classes: got {smoothed.engine.num_classes} of the classifier and {data.num_classes} of {data.name}, "
            "expected the same; number the classes of the data set as the classifier's outputs are numbered"
        )
    if question is not None and not isinstance(smoothed.scheme, SampledScheme):
        raise ValueError(f"question: got one for {type(smoothed.scheme).__name__}, which is exact; leave it out")
    if images_per_step is not None:
        check_integer("images_per_step", images_per_step, 1, 10**9)


def _chosen_images(data: Dataset, index: Sequence[int] | None, shard: tuple[int, int]) -> list[int]:
    """The indices of the images of one shard, checked; by default of all images."""
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard: got {shard}, expected (i, n) with 0 <= i < n")
    chosen = list(range(len(data)) if index is None else index)[shard[0] :: shard[1]]
    if any(isinstance(i, bool | np.bool_) for i in chosen):
        raise ValueError("index: got a mask, expected indices of images, such as mask.nonzero()[0]")
    outside = [i for i in chosen if not 0 <= i < len(data)]
    if outside or len(set(chosen)) < len(chosen):
        wrong = outside[0] if outside else "an index twice"
        raise ValueError(f"index: got {wrong}, expected distinct indices from 0 to {len(data) - 1}")
    return chosen


def _results_of_each(
    index: list[int], labels: Tensor, result: Certified, clean: Tensor, votes: list[Votes], n0: int, seconds: float
) -> list[tuple[Row, str]]:
    """Rows and stored votes of a few images.

    Args:
        votes: one entry per image.
        seconds: for all images together.
    """
    each = seconds / len(index)
    return [
        result_of(idx, label, result, i, int(clean[i]), own, n0, each)
        for i, (idx, label, own) in enumerate(zip(index, labels.tolist(), votes, strict=True))
    ]


def _certify_fixed(smoothed: Smoothed, data: Dataset, index: list[int]) -> list[tuple[Row, str]]:
    """Certify a few images from a fixed number of copies."""
    images, labels = data.batch(index)
    started = time.perf_counter()
    votes = smoothed.votes(images, index=torch.tensor(index))
    result, clean = smoothed.certificate(votes), smoothed.prediction(votes)
    seconds = time.perf_counter() - started
    return _results_of_each(index, labels, result, clean, votes.each(), smoothed.n0, seconds)


def _certify_until(
    smoothed: Smoothed, data: Dataset, index: list[int], *, question: Question, max_n: int
) -> list[tuple[Row, str]]:
    """Certify a few images, sampling until the question is settled for each."""
    images, labels = data.batch(index)
    items = torch.tensor(index)
    started = time.perf_counter()
    result = smoothed.certify_until(images, question, max_n=max_n, index=items)
    seconds = time.perf_counter() - started
    votes = [result.votes_of(i, items, data.shape) for i in range(len(index))]
    return _results_of_each(index, labels, result, result.prediction, votes, smoothed.n0, seconds)
