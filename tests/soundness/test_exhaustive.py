"""Every certificate of every scheme against every perturbation of a toy domain."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
import torch

from certify import EnumeratedScheme, SampledScheme, Smoothed, SplittingNoise, WassersteinNoise
from certify.testing import RandomTable, attack, check_scheme, copy_key
from tests.soundness.table import Toy, enumerated, sampled


@pytest.mark.parametrize("toy", enumerated(), ids=lambda toy: toy.name)
def test_exact_certificates_hold_everywhere(toy: Toy):
    assert attack(toy.scheme, toy.images(), distance=toy.distance) > 0, "no certificate was worth attacking"


@pytest.mark.parametrize("toy", sampled(), ids=lambda toy: toy.name)
def test_sampled_certificates_hold_everywhere_at_exact_probabilities(toy: Toy):
    found = attack(toy.scheme, toy.images(), outcomes=toy.outcomes, distance=toy.distance)
    assert found > 0, "no certificate was worth attacking"


@pytest.mark.parametrize("toy", [*enumerated(), *sampled()], ids=lambda toy: toy.name)
def test_contract(toy: Toy):
    """Copies that depend on their image and number alone, zeros without a sign, radii that grow with what is known."""
    check_scheme(toy.scheme, toy.images()[:7])


OTHERS = {
    "flows": (WassersteinNoise(0.1), (1, 2, 3)),
    "flows, uniform": (WassersteinNoise(0.1, noise="uniform"), (1, 2, 3)),
    "pixels": (WassersteinNoise(0.1, on="pixels"), (2, 1, 3)),
    "splitting noise without a grid": (SplittingNoise(0.8, q=None), (1, 2, 2)),
}
ALL = [pytest.param(toy.scheme, toy.shape, id=toy.name) for toy in (*enumerated(), *sampled())]


@pytest.mark.parametrize(("scheme", "shape"), ALL + [pytest.param(*found, id=name) for name, found in OTHERS.items()])
def test_the_default_dtype_changes_nothing(scheme, shape):
    step = scheme.threat.q if getattr(scheme.threat, "q", None) is not None else 1
    x = torch.randint(0, step + 1, (3, *shape), generator=torch.Generator().manual_seed(0)).float() / step
    x[:, 0, 0, 0] = 1  # not all of them black
    features = scheme.channels(shape[0]) * shape[1] * shape[2]
    weights = torch.randn(features, 3, generator=torch.Generator().manual_seed(1))
    options = {"n": 40, "n0": 10} if isinstance(scheme, SampledScheme) else {}

    def certified() -> tuple[torch.Tensor, torch.Tensor]:
        model = lambda copies: copies.flatten(1) @ weights[: copies[0].numel()]  # noqa: E731
        result = Smoothed(model, scheme, num_classes=3, **options).certify(x)
        return result.prediction, result.radius

    expected, dtype = certified(), torch.get_default_dtype()
    for other in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(other)
        try:
            found = certified()
        finally:
            torch.set_default_dtype(dtype)
        assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("toy", sampled(), ids=lambda toy: toy.name)
def test_samples_follow_the_exact_probabilities(toy: Toy):
    """Frequencies of all distinct copies, over 20,000 samples, within 5 standard deviations."""
    image, n = toy.images()[-2], 20_000
    assert toy.outcomes is not None
    expected: dict[bytes, Fraction] = {}
    for probability, copy in toy.outcomes(image[None]):
        expected[copy_key(copy)] = expected.get(copy_key(copy), Fraction(0)) + probability
    order = {k: c for c, k in enumerate(expected)}
    base = lambda copies: torch.nn.functional.one_hot(  # noqa: E731
        torch.tensor([order[copy_key(copy)] for copy in copies]), max(2, len(order))
    ).float()
    smoothed = Smoothed(base, toy.scheme, max(2, len(order)), n0=1, n=n)
    smoothed.engine.base_classifier = base  # of whole copies, also where the scheme would classify parts of them
    smoothed.engine.batch_size = 500
    counts = smoothed.votes(image[None]).counts[0]
    # copies that hardly ever come up are counted together
    shares = {c: expected[k] for k, c in order.items()}
    rare = [c for c, p in shares.items() if n * p < 5]
    groups = [[c] for c in shares if n * shares[c] >= 5] + ([rare] if rare else [])
    for group in groups:
        p = float(sum(shares[c] for c in group))
        assert abs(int(counts[group].sum()) - n * p) <= 5 * (n * p * (1 - p)) ** 0.5 + 1e-9


def _votes_for_1(own: list[bytes], forced: dict[bytes, int], wanted: int) -> dict[bytes, int] | None:
    """A table in which exactly ``wanted`` of the copies ``own`` vote for class 1, respecting ``forced`` entries."""
    multiplicity = Counter(own)
    reachable: dict[int, list[bytes]] = {sum(n for k, n in multiplicity.items() if forced.get(k) == 1): []}
    for k, n in multiplicity.items():
        if k not in forced:
            for votes, ones in list(reachable.items()):
                reachable.setdefault(votes + n, [*ones, k])
    if wanted not in reachable:
        return None
    return {k: forced.get(k, int(k in reachable[wanted])) for k in [*multiplicity, *forced]}


@pytest.mark.parametrize("toy", [t for t in enumerated() if t.tight], ids=lambda toy: toy.name)
def test_exact_certificates_are_tight(toy: Toy):
    """A base classifier and a perturbation one step outside the certified radius that does change the prediction."""
    scheme, images = toy.scheme, toy.images()
    assert isinstance(scheme, EnumeratedScheme)
    total = scheme.num_copies(toy.shape)
    index = torch.arange(total)[None]
    x, found = images[:1], 0
    own = [copy_key(copy) for copy in scheme.copies(x, index)[0]]
    for y in images[1:]:
        other = [copy_key(copy) for copy in scheme.copies(y[None], index)[0]]
        touched = [t for t in range(total) if own[t] != other[t]]
        before, after = {own[t] for t in touched}, {other[t] for t in touched}
        distance = float(toy.distance(x, y[None])[0])
        if len(touched) != round(distance / toy.step) or before & after:
            continue  # the theorem's worst case is that every step touches a vote of its own
        # Class 1 leads by 2 touched (or one less, whichever is possible) and loses the touched votes to class 0, which
        # then is level, and wins as the lower class.
        lead = 2 * len(touched) - (total % 2)
        table = _votes_for_1(own, dict.fromkeys(before, 1) | dict.fromkeys(after, 0), (total + lead) // 2)
        if table is None:
            continue
        base = RandomTable(2, 0)
        base.table |= table
        result = Smoothed(base, scheme, 2).certify(torch.cat((x, y[None])))
        assert result.prediction.tolist() == [1, 0]
        assert result.radius[0] == pytest.approx(distance - toy.step, abs=1e-12)
        found += 1
    assert found > 0, "no perturbation of the toy domain is a worst case"


@pytest.mark.parametrize("toy", [t for t in sampled() if t.tight], ids=lambda toy: toy.name)
def test_sampled_certificates_are_tight(toy: Toy):
    """For every input pair there is a classifier whose probability moves by exactly what the certificate allows for.

    The classifier says 1 on the copies of x that no copy of y equals, and 0 elsewhere: its probability falls from the
    touched share to 0. For an l0 or l1 step that touches one feature this share is the theorem's.
    """
    assert toy.outcomes is not None
    images, scheme = toy.images(), toy.scheme
    x, y = images[:1], images[1:2]
    theirs = {copy_key(copy) for _, copy in toy.outcomes(y)}
    moved = sum(probability for probability, copy in toy.outcomes(x) if copy_key(copy) not in theirs)
    assert isinstance(scheme, SampledScheme)
    # a classifier with this lead over one half loses its majority at y, one with more keeps it
    edge = torch.tensor([0.5 + float(moved)], dtype=torch.float64)
    assert scheme.radius(edge, 1 - edge, shape=toy.shape)[0] < toy.step
    above = edge + 1e-6
    if above[0] < 1:
        assert scheme.radius(above, 1 - above, shape=toy.shape)[0] >= toy.step
