"""Published per-image logs of certificates: the six columns of Cohen, Rosenfeld and Kolter (2019).

``idx label predict radius correct time``, separated by tabs, as written by their code and most of its successors. The
header may be missing, and a file may end in the middle of a line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from certify.stored import LOG_COLUMNS as COLUMNS
from certify.stored import read_rows


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """The complete rows of a log, ordered by index, as one float64 array per column; of several rows of an image, the
    last counts.

    Abstentions (``predict`` -1) get radius -1, whatever the log says (usually 0), since nothing is certified there.
    Raises if the log contradicts itself. ``time`` is in seconds.
    """
    return consistent(read_rows(path), path)


def consistent(rows: dict[str, np.ndarray], path: str | Path) -> dict[str, np.ndarray]:
    """The rows of a log or a result folder, with radius -1 where they abstain; raises where they contradict themselves,
    since they must have been edited."""
    if not set(COLUMNS[:5]) <= set(rows):
        raise ValueError(
            f"{path}: got columns {', '.join(rows)}, expected {', '.join(COLUMNS)}; this is not such a log"
        )
    idx, label, predict, radius, correct = (rows[name] for name in COLUMNS[:5])
    for name, values, low in (("label", label, 0), ("predict", predict, -1)):
        _refuse(path, idx, (values < low) | (values % 1 != 0), name, values, "a class" + " or -1" * (low < 0))
    bad = ~(((radius >= 0) & (radius < np.inf)) | (radius == -1) | (predict < 0))
    _refuse(path, idx, bad, "radius", radius, "at least 0, or -1 where nothing is certified")
    wrong = (correct != (predict == label)).nonzero()[0]
    if len(wrong):
        i = wrong[0]
        raise ValueError(
            f"{path}: correct is {correct[i]:g} for image {idx[i]:g}, but class {predict[i]:g} is predicted for label "
            f"{label[i]:g}"
        )
    return rows | {"radius": np.where(predict < 0, -1.0, radius)}


def _refuse(path: str | Path, idx: np.ndarray, bad: np.ndarray, name: str, values: np.ndarray, expected: str) -> None:
    where = bad.nonzero()[0]
    if len(where):
        raise ValueError(f"{path}: {name} of image {idx[where[0]]:g} is {values[where[0]]:g}, expected {expected}")
