"""Which transitions of a replay buffer may be drawn, known without a look at all of them."""

from __future__ import annotations

import numpy as np

_MEMORY = 1_000  # steps between two looks, beyond which looking at everything is as good


class Drawable:
    """The places of transitions of finished episodes, in order, as all places but a few.

    Places whose episode is not finished, or has been overwritten in part, are the few. From one look to the next, only
    those that were touched in between can become such a place: :meth:`touch` has to be told of them.

    Attributes:
        count: how many places may be drawn, as of the last :meth:`look`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.forget()

    def forget(self) -> None:
        """Look at everything next time."""
        self._gaps: np.ndarray | None = None  # the few places, sorted
        self._before = np.zeros(0, dtype=np.int64)  # for each of them, how many places before it may be drawn
        self._touched: list[np.ndarray] = []
        self._changed = True

    def touch(self, places: np.ndarray) -> None:
        """Flat places ``[N]`` that were written to, or whose episode is no longer whole."""
        if self._gaps is None:
            return
        self._touched.append(places)
        if len(self._touched) > _MEMORY:  # nobody draws, for now
            self.forget()

    def change(self) -> None:
        """An episode was finished, or is no longer whole: the next look is not to give what the last one gave."""
        self._changed = True

    def look(self, lengths: np.ndarray) -> int:
        """How many places may be drawn.

        Args:
            lengths: of the finished episode at each flat place that is in use, int64 ``[N]``; 0 where there is none.
        """
        if not self._changed:
            return self.count
        if self._gaps is None:
            self._gaps = np.flatnonzero(lengths == 0)
        else:
            candidates = np.concatenate([self._gaps, *self._touched])
            candidates.sort(kind="stable")  # series that are sorted already, which this sort is fast with
            new = np.concatenate([[True], candidates[1:] != candidates[:-1]])[: len(candidates)]
            candidates = candidates[new]
            self._gaps = candidates[lengths[candidates] == 0]
        self._before = self._gaps - np.arange(len(self._gaps))
        self._touched.clear()
        self._changed = False
        self.count = len(lengths) - len(self._gaps)
        return self.count

    def at(self, which: np.ndarray) -> np.ndarray:
        """Of the places that may be drawn, in order, those of these numbers, int64 ``[N]``."""
        return which + np.searchsorted(self._before, which, side="right")
