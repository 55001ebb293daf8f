"""Which transitions of a replay buffer may be sampled, tracked without scanning the whole buffer."""

from __future__ import annotations

import numpy as np

_MAX_TOUCHES = 1_000  # touches remembered between two looks; beyond these, a full scan is as cheap


class Drawable:
    """The indices that may be drawn, those of transitions of finished episodes, stored as all indices but a few gaps.

    Gaps are the indices whose episode is unfinished or partly overwritten. Between two looks, only indices reported to
    :meth:`touch` can become gaps.

    Attributes:
        count: number of indices that may be drawn, as of the last :meth:`look`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.forget()

    def forget(self) -> None:
        """Scan the whole buffer at the next look."""
        self._gaps: np.ndarray | None = None  # sorted
        self._before = np.zeros(0, dtype=np.int64)  # for each gap, how many indices before it may be drawn
        self._touched: list[np.ndarray] = []
        self._changed = True

    def touch(self, places: np.ndarray) -> None:
        """Report flat indices ``[N]`` that were written to, or whose episode has been partly overwritten."""
        if self._gaps is None:
            return
        self._touched.append(places)
        if len(self._touched) > _MAX_TOUCHES:  # nothing is being sampled for now
            self.forget()

    def change(self) -> None:
        """Report that an episode finished or was partly overwritten, so that the next look must not reuse the last."""
        self._changed = True

    def look(self, lengths: np.ndarray) -> int:
        """Bring the gaps up to date, and return how many indices may be drawn.

        Args:
            lengths: length of the finished episode at each flat index in use, int64 ``[N]``; 0 where there is none.
        """
        if not self._changed:
            return self.count
        if self._gaps is None:
            self._gaps = np.flatnonzero(lengths == 0)
        else:
            candidates = np.concatenate([self._gaps, *self._touched])
            candidates.sort(kind="stable")  # fast here: this sort exploits runs that are already sorted
            new = np.concatenate([[True], candidates[1:] != candidates[:-1]])[: len(candidates)]
            candidates = candidates[new]
            self._gaps = candidates[lengths[candidates] == 0]
        self._before = self._gaps - np.arange(len(self._gaps))
        self._touched.clear()
        self._changed = False
        self.count = len(lengths) - len(self._gaps)
        return self.count

    def at(self, which: np.ndarray) -> np.ndarray:
        """The flat indices, int64 ``[N]``, at positions ``which`` of the sorted indices that may be drawn."""
        return which + np.searchsorted(self._before, which, side="right")
