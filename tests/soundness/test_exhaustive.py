"""Every certificate of every scheme against every perturbation of a toy domain."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
import torch

from certify import EnumeratedScheme, SampledScheme, Smoothed
from certify.coverage import doubles_above
from certify.draws import ESTIMATION, Draws
from tests.soundness.classifiers import Lookup, key
from tests.soundness.table import Toy, enumerated, sampled

CLASSIFIERS = [(2, 0, 0.0), (3, 1, 0.0), (3, 2, 0.5), (2, 3, 0.7), (3, 4, 0.8)]


def _attack(toy: Toy, prediction: torch.Tensor, radius: torch.Tensor) -> int:
    """Number of (image, perturbation) pairs inside certified radii; fails if one changes the prediction."""
    images, attacked = toy.images(), 0
    for i in range(len(images)):
        if radius[i] < 0:
            continue
        distance = toy.distance(images[i].expand_as(images), images)
        inside = distance <= radius[i]
        attacked += int(inside.sum()) - 1
        broken = inside & (prediction != prediction[i])
        assert not broken.any(), f"{toy.name}: image {i} is certified to {radius[i]}, broken at {distance[broken]}"
    return attacked


@pytest.mark.parametrize("toy", enumerated(), ids=lambda toy: toy.name)
def test_exact_certificates_hold_everywhere(toy: Toy):
    attacked = 0
    for num_classes, seed, bias in CLASSIFIERS:
        result = Smoothed(Lookup(num_classes, seed, bias), toy.scheme, num_classes).certify(toy.images())
        attacked += _attack(toy, result.prediction, result.radius)
    assert attacked > 0, "no certificate was worth attacking"


def _exact_probabilities(toy: Toy, base: Lookup, image: torch.Tensor) -> list[Fraction]:
    assert toy.outcomes is not None
    shares = [Fraction(0)] * base.num_classes
    for probability, copy in toy.outcomes(image[None]):
        shares[base.classify(copy)] += probability
    assert sum(shares) == 1
    return shares


def _below(share: Fraction) -> float:
    """The largest double not above an exact probability."""
    return -doubles_above([-share])[0] if float(share) > share else float(share)


def _certify_exactly(toy: Toy, base: Lookup) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and radii from exact probabilities, with both kinds of bounds; the larger radius is attacked."""
    scheme = toy.scheme
    assert isinstance(scheme, SampledScheme)
    leaders, lowers, uppers = [], [], []
    for image in toy.images():
        shares = _exact_probabilities(toy, base, image)
        leader = shares.index(max(shares))
        leaders.append(leader)
        lowers.append(_below(shares[leader]))
        uppers.append(float(max(s for c, s in enumerate(shares) if c != leader)))
    prediction = torch.tensor(leaders)
    p_lower, p_upper = torch.tensor(lowers, dtype=torch.float64), torch.tensor(uppers, dtype=torch.float64)
    one_sided = scheme.radius(p_lower, 1 - p_lower, shape=toy.shape)
    simultaneous = scheme.radius(p_lower, p_upper, shape=toy.shape)
    assert (simultaneous >= one_sided).all()
    return prediction, simultaneous


@pytest.mark.parametrize("toy", sampled(), ids=lambda toy: toy.name)
def test_sampled_certificates_hold_everywhere_at_exact_probabilities(toy: Toy):
    attacked = 0
    for num_classes, seed, bias in CLASSIFIERS:
        attacked += _attack(toy, *_certify_exactly(toy, Lookup(num_classes, seed, bias)))
    assert attacked > 0, "no certificate was worth attacking"


@pytest.mark.parametrize("toy", sampled(), ids=lambda toy: toy.name)
def test_samples_follow_the_exact_probabilities(toy: Toy):
    """Frequencies of all distinct copies, over 20,000 samples, within 5 standard deviations."""
    image, n = toy.images()[-2], 20_000
    assert toy.outcomes is not None
    expected: dict[bytes, Fraction] = {}
    for probability, copy in toy.outcomes(image[None]):
        expected[key(copy)] = expected.get(key(copy), Fraction(0)) + probability
    order = {k: c for c, k in enumerate(expected)}
    base = lambda copies: torch.nn.functional.one_hot(  # noqa: E731
        torch.tensor([order[key(copy)] for copy in copies]), max(2, len(order))
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
    own = [key(copy) for copy in scheme.copies(x, index)[0]]
    for y in images[1:]:
        other = [key(copy) for copy in scheme.copies(y[None], index)[0]]
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
        base = Lookup(2, 0)
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
    theirs = {key(copy) for _, copy in toy.outcomes(y)}
    moved = sum(probability for probability, copy in toy.outcomes(x) if key(copy) not in theirs)
    assert isinstance(scheme, SampledScheme)
    # a classifier with this lead over one half loses its majority at y, one with more keeps it
    edge = torch.tensor([0.5 + float(moved)], dtype=torch.float64)
    assert scheme.radius(edge, 1 - edge, shape=toy.shape)[0] < toy.step
    above = edge + 1e-6
    if above[0] < 1:
        assert scheme.radius(above, 1 - above, shape=toy.shape)[0] >= toy.step


@pytest.mark.parametrize("toy", [*enumerated(), *sampled()], ids=lambda toy: toy.name)
def test_zeros_have_no_sign(toy: Toy):
    """-0.0 is at distance 0 from 0.0 for every threat model, so the copies have to be the same, to the last bit."""
    images = toy.images()[:7]
    negative = torch.where(images == 0, -images, images)
    assert (toy.distance(images, negative) == 0).all()
    if isinstance(toy.scheme, EnumeratedScheme):
        index = torch.arange(toy.scheme.num_copies(toy.shape)).expand(len(images), -1)
        copies = [toy.scheme.copies(x, index) for x in (images, negative)]
    else:
        assert isinstance(toy.scheme, SampledScheme)
        draws = Draws.of(0, ESTIMATION, torch.arange(len(images)), range(50))
        copies = [toy.scheme.sample(x, draws) for x in (images, negative)]
    assert key(copies[0]) == key(copies[1])
