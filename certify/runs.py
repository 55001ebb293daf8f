"""Certifying a run on disk again from its stored votes, without the model: other levels, bounds, patch sizes, top-k."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from certify import spec
from certify.confidence import Interval
from certify.logs import consistent
from certify.patch import PatchBound, PatchCertified, PatchSize, StructuredAblation
from certify.results import UNPROVEN_RADIUS
from certify.scheme import Bounds, Certified, SampledScheme, Scheme, TopKCertified
from certify.smooth import certified, predicted
from certify.sources import code_of
from certify.stored import StoredVotes, read_config, read_rows, read_votes, table_paths
from certify.threats import NOT_CERTIFIED
from certify.votes import Votes

_ROUNDING = 1e-9  # relative; other versions of numerical libraries may round differently


class StoredRun:
    """A result folder of :func:`~certify.evaluation.certify_dataset` or ``scripts.certify``.

    Example::

        run = StoredRun("runs/mine")
        run.rows["radius"], run.label              # as they were certified
        run.certify(alpha=0.001).radius            # from the same votes; settle on alpha before looking at them
        run.certify_top_k(3).radius_of(run.label)
        run.certify_patch((3, 7)).certified        # of a scheme against patches

    All results are ordered by the images' indices, as ``idx`` and ``label`` are.

    Args:
        folder: the folder of the run.
        scheme: that of the run, if you defined its class yourself: the text in the folder can name known classes only.
    """

    def __init__(self, folder: str | Path, *, scheme: Scheme | None = None) -> None:
        self.folder = Path(folder)
        self.config: dict[str, Any] = read_config(folder)
        if "attack" in self.config:
            raise ValueError(f"{folder}: holds an attack, not certificates; name it after --attack")
        if missing := [name for name in ("data", "scheme", "threat") if name not in self.config]:
            raise ValueError(f"{folder}: its config.json has no {missing[0]}, which every run has; restore it")
        self._own_scheme = scheme
        if scheme is not None:
            self._check(scheme)

    def _check(self, scheme: Scheme) -> None:
        """Raise unless the votes were made with this scheme, including what its fingerprint stands for."""
        got, expected = spec.to_text(scheme), self.config["scheme"]
        if got != expected:
            raise ValueError(
                f"{self.folder}: got the scheme {got}, expected {expected}, which the votes were made with"
            )
        mine, stored = scheme.fingerprint(), self.config.get("design")
        if mine != stored:
            raise ValueError(
                f"{self.folder}: was made with {expected} of the design {stored}, which is {mine} here; votes of other "
                "copies give no certificate, certify again into a new folder"
            )
        code, before = code_of([type(scheme)]), self.config.get("scheme_code")
        if before is not None and code != before:
            warnings.warn(
                f"{self.folder}: was made by another version of {type(scheme).__name__}; the votes are valid only if "
                "both make the same copies",
                UserWarning,
            )

    @cached_property
    def scheme(self) -> Scheme:
        """The scheme that made the copies."""
        if self._own_scheme is not None:
            return self._own_scheme
        try:
            scheme = spec.parse_scheme(self.config["scheme"])
        except ValueError as error:
            raise ValueError(
                f"{self.folder}: {error}; a scheme of your own has to be given, StoredRun(folder, scheme=...)"
            ) from error
        if type(scheme).__module__.split(".")[0] != __package__:
            self._check(scheme)
        # the radii of built-in schemes follow from their arguments alone: another design is just another classifier
        return scheme

    @property
    def threat(self) -> str:
        """The threat model of the rows, as text."""
        return self.config["threat"]

    @property
    def sampling(self) -> dict[str, Any] | None:
        """How copies were drawn; None for exact schemes."""
        return self.config["sampling"]

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The rows as they were written, one array per column, ordered by index; radii have the name ``radius`` even
        where they are not certified (:attr:`guaranteed`)."""
        rows = read_rows(self.folder)
        if (UNPROVEN_RADIUS in rows) == self.guaranteed:
            raise ValueError(
                f"{self.folder}: got the threat model {self.threat!r} and the column "
                f"{UNPROVEN_RADIUS if UNPROVEN_RADIUS in rows else 'radius'}; one of both was changed, certify again"
            )
        if UNPROVEN_RADIUS in rows:
            rows["radius"] = rows.pop(UNPROVEN_RADIUS)
        return consistent(rows, self.folder)

    @property
    def guaranteed(self) -> bool:
        """Whether the radii of the rows are certificates."""
        return NOT_CERTIFIED not in self.threat

    @cached_property
    def stored(self) -> StoredVotes:
        """Indices, labels and votes."""
        if "until" in (self.sampling or {}):
            raise ValueError(
                f"{self.folder}: was sampled until {(self.sampling or {})['until']} was settled; bounds for a fixed "
                "number of samples do not hold for such votes, certify again for new ones"
            )
        return read_votes(self.folder)

    @property
    def votes(self) -> Votes:
        """The votes of all images, with the scheme that they are for if it is known."""
        try:
            return replace(self.stored.votes, scheme=self.scheme)
        except ValueError:  # a scheme of one's own that was not given
            return self.stored.votes

    @property
    def idx(self) -> Tensor:
        """Indices of the images, int64 ``[N]``."""
        return self.stored.idx

    @property
    def label(self) -> Tensor:
        """Their true classes, int64 ``[N]``."""
        return self.stored.label

    def check_rows(self) -> None:
        """Raise if the rows claim another prediction or a larger radius than their votes certify.

        Rows of a scheme that is not known here, or without votes of a fixed number of copies, cannot be checked.
        """
        try:
            scheme = self.scheme
        except ValueError:
            return
        if str(scheme.threat) != self.threat:
            raise ValueError(
                f"{self.folder}: got the threat model {self.threat!r}, but {self.config['scheme']} certifies "
                f"{str(scheme.threat)!r}; its config.json was changed, restore it or certify again"
            )
        if "until" in (self.sampling or {}) or not table_paths(self.folder, "votes"):
            return
        idx, predict, claimed = (self.rows[name] for name in ("idx", "predict", "radius"))
        place, result = np.searchsorted(self.idx.numpy(), idx), self.certify()  # all rows have votes, or reading fails
        prediction, radius = result.prediction.numpy()[place], result.radius.numpy()[place]
        wrong = np.flatnonzero((predict != prediction) | (claimed > radius + _ROUNDING * np.abs(radius)))
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"{self.folder}: the row of image {idx[i]:g} has class {predict[i]:g} and radius {claimed[i]:g}, but "
                f"its votes certify class {prediction[i]} and radius {radius[i]:g}; so it is with {len(wrong)} of "
                f"{len(idx)} rows. Restore rows.tsv, or certify again, also if an earlier version wrote it"
            )

    def bound_names(self) -> list[str]:
        """The names that :meth:`certify` takes for ``bound``, of the certificates that these votes have; none where the
        scheme gives its only certificate no name."""
        if isinstance(self.scheme, StructuredAblation):
            return list(get_args(PatchBound))
        return list(self.scheme.certificates()) if isinstance(self.scheme, SampledScheme) else []

    def scheme_of(self, bound: str | None) -> Scheme:
        """The scheme with the radii of ``bound``; by default, and for patches, the scheme of the run."""
        if bound is None:
            return self.scheme
        text, known = self.config["scheme"], self.bound_names()
        if not known:
            raise ValueError(f"bound: got {bound}, but {text} has only one certificate; leave it out")
        if bound not in known:
            raise ValueError(f"bound: got {bound}, expected one of those of {text}: {', '.join(known)}")
        return self.scheme.certificates()[bound] if isinstance(self.scheme, SampledScheme) else self.scheme

    def predict(self, *, alpha: float | None = None) -> Tensor:
        """The classes that the smoothed classifier returns, int64 ``[N]``; -1 where it abstains."""
        self._check_exact(alpha)
        return predicted(self.scheme, self.votes, self._level(alpha))

    def certify(
        self,
        *,
        alpha: float | None = None,
        bounds: Bounds | None = None,
        interval: Interval | None = None,
        bound: str | None = None,
    ) -> Certified:
        """Certificates of the prediction from the stored votes; arguments that are None are as in the run.

        Args:
            alpha, bounds, interval: for sampled schemes, see :class:`~certify.smooth.Smoothed`. They must be chosen
                before the votes are inspected: alpha does not cover the best of several choices.
            bound: one of :meth:`bound_names`.
        """
        self._check_exact(alpha, bounds, interval)
        scheme, sampling = self.scheme_of(bound), self.sampling or {}
        if isinstance(scheme, StructuredAblation):
            chosen: PatchBound = "published" if bound == "published" else "location"
            return scheme.certify_copies(self.by_position()[1], shape=self.votes.shape, bound=chosen)
        return certified(
            scheme,
            self.votes,
            self._level(alpha),
            bounds=bounds or sampling.get("bounds", "one-sided"),
            interval=interval or sampling.get("interval", "clopper-pearson"),
            seed=sampling.get("seed", 0),
        )

    def certify_top_k(self, k: int, *, alpha: float | None = None) -> TopKCertified:
        """How far an image may change before a label can leave the ``k`` most probable ones, for every label.

        For randomized ablation and Gaussian noise, see :mod:`certify.topk` and :mod:`certify.topk_l2`.

        Args:
            alpha: failure probability; by default that of the run.
        """
        if not isinstance(self.scheme, SampledScheme):
            raise ValueError(
                f"{self.folder}: got {self.config['scheme']}, top-k certificates are for RandomizedAblation and "
                "Gaussian noise"
            )
        votes = self.votes
        return self.scheme.certify_top_k(votes.counts, k, self._level(alpha), n=votes.n, shape=votes.shape)

    def certify_patch(self, patch_size: PatchSize, *, bound: PatchBound = "location") -> PatchCertified:
        """Which predictions no patch of one size can change; for patch defences with votes copy by copy.

        Args:
            patch_size: m for m x m pixels, or (height, width).
        """
        scheme, votes = self.by_position()
        return scheme.certify_votes(votes, patch_size, shape=self.votes.shape, bound=bound)

    def by_position(self) -> tuple[StructuredAblation, Tensor]:
        """The scheme and the votes of a run against patches, copy by copy: bool ``[N, positions, C]``."""
        if not isinstance(self.scheme, StructuredAblation):
            raise ValueError(
                f"{self.folder}: got {self.config['scheme']}, expected votes of a scheme against patches such as "
                "BandAblation(width=4)"
            )
        if self.votes.by_copy is None:
            raise ValueError(
                f"{self.folder}: got votes that are not stored copy by copy, as certificates against patches need; "
                "certify again"
            )
        return self.scheme, self.votes.by_copy

    def _level(self, alpha: float | None) -> float:
        """The failure probability, by default that of the run; it does not matter for exact schemes."""
        return (self.sampling or {}).get("alpha", 0.0) if alpha is None else alpha

    def _check_exact(self, *settings: object) -> None:
        """Raise if settings of sampled schemes are given for an exact one."""
        if self.sampling is None and any(setting is not None for setting in settings):
            raise ValueError(
                f"{self.folder}: {self.config['scheme']} is exact; alpha, bounds and interval are for sampled schemes"
            )
