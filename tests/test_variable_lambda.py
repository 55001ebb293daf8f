from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from certify import (
    ConcaveSmoothing,
    DeterministicSplittingNoise,
    ElementwiseConcave,
    RandomizedVariableLambda,
    Smoothed,
    VariableLambda,
    lambda_design,
)
from certify.data import load
from certify.draws import ESTIMATION, Draws
from certify.lambda_design import design, exact_power, greedy_design, outcomes, power_limits, verify
from certify.models import ModelSpec
from certify.spec import parse_scheme, to_text
from certify.threats import L1, Lp
from certify.training import Trainer, TrainingConfig
from certify.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from certify.variable_lambda import radius_through_norms
from scripts.parts import classifier_runs

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)


def designed(p: Fraction, q: int, budget: int, eps: float | None = None) -> tuple[int, ...]:
    target = tuple((k / q) ** float(p) for k in range(1, q + 1))
    return design(power_limits(p, Fraction(1), q, budget), target, budget, eps)


def split_share(listed: tuple[tuple[int, int], ...], x: int, y: int) -> int:
    """How many outcomes put two levels into different cells, from the definition of a cell."""

    def cell(level: int, width: int, split: int) -> int:
        return -((2 * split + 1 - 2 * level) // (2 * width))

    return sum(cell(x, width, split) != cell(y, width, split) for width, split in listed)


@pytest.mark.parametrize("p", [HALF, THIRD, Fraction(2, 3), Fraction(1)])
@pytest.mark.parametrize(("q", "budget"), [(1, 5), (4, 10), (9, 40), (20, 100)])
def test_no_pair_of_levels_is_split_too_often(p, q, budget):
    listed, limits = outcomes(designed(p, q, budget)), power_limits(p, Fraction(1), q, budget)
    assert len(listed) <= budget
    for x, y in itertools.combinations(range(q + 1), 2):
        share = split_share(listed, x, y)
        assert share <= limits[y - x]
        assert Fraction(share, budget) ** p.denominator <= Fraction(y - x, q) ** p.numerator


@given(
    p=st.sampled_from([HALF, THIRD, Fraction(3, 4), Fraction(1)]),
    alpha=st.sampled_from([Fraction(1), Fraction(3, 5), Fraction(0.3), Fraction(7)]),
    q=st.integers(1, 300),
    budget=st.integers(1, 2000) | st.just(1 << 32),
)
def test_limits_are_the_floor_of_the_power(p, alpha, q, budget):
    a, b = p.numerator, p.denominator
    for k, limit in enumerate(power_limits(p, alpha, q, budget)):
        power = (budget / alpha) ** b * Fraction(k, q) ** a  # (budget (k / q)^p / alpha)^b
        assert limit**b <= power
        assert limit == budget or power < (limit + 1) ** b


@pytest.mark.parametrize("p", [HALF, THIRD])
def test_published_budget_comes_within_two_percent(p):
    """8 bits and a budget of 1,000: the paper's eps is 0.02."""
    sums = list(itertools.accumulate(designed(p, 255, 1000)))
    gaps = [(k / 255) ** float(p) - total / 1000 for k, total in enumerate(sums, start=1)]
    assert min(gaps) >= -1e-12
    assert max(gaps) <= 0.02 + 1e-12


def test_p_1_is_splitting_noise():
    """At p = 1 and budget = q all cells are as wide as the range: the copies are those of DSSN with 2 lam = alpha."""
    scheme, reference = VariableLambda(1, alpha=3, q=5, budget=5), DeterministicSplittingNoise(1.5, q=5)
    assert scheme.num_copies((1, 1, 1)) == reference.period
    x = torch.arange(6).view(6, 1, 1, 1) / 5
    ends = scheme.copies(x, torch.arange(15)[None])
    centres = reference.copies(x, torch.arange(15)[None])
    for i in range(6):
        assert torch.allclose(ends[i].mean(1).sort(0).values, centres[i, :, 0].sort(0).values)


def test_cells_hold_their_values():
    scheme = VariableLambda(0.5, alpha=2, q=20, budget=50)
    x = torch.randint(0, 21, (3, 2, 4, 4)) / 20
    copies = scheme.copies(x, torch.arange(100)[None])
    lower, upper = copies[:, :, :2], copies[:, :, 2:]
    assert copies.shape == (3, 100, 4, 4, 4)
    assert ((lower <= x[:, None]) & (x[:, None] <= upper)).all()
    assert ((lower >= 0) & (upper <= 1)).all()
    nothing = ((lower == 0) & (upper == 1)).double().mean()
    assert 0.5 <= nothing < 0.75


def test_every_feature_meets_every_outcome_once():
    scheme = VariableLambda(0.5, alpha=1.5, q=4, budget=12, seed=5)
    copies = scheme.copies(torch.full((1, 1, 3, 3), 0.5), torch.arange(18)[None])[0]
    pairs = [
        sorted((float(lo), float(up)) for lo, up in zip(copies[:, 0, i, j], copies[:, 1, i, j], strict=True))
        for i in range(3)
        for j in range(3)
    ]
    assert all(pair == pairs[0] for pair in pairs)


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 2, 3)])
def test_copies_against_the_definition(shape):
    """Bit by bit, copy by copy: the outcome of each feature, and the ends of its cell in half-steps."""
    scheme, images = VariableLambda(0.5, alpha=1.5, q=7, budget=20, seed=4), 3
    listed, total = outcomes(scheme.designs()[0]), scheme.num_copies(shape)
    levels = torch.randint(0, 8, (images, *shape), generator=torch.Generator().manual_seed(0))
    starts = np.random.RandomState(4).randint(0, total, size=shape)
    expected = torch.empty(images, total, 2 * shape[0], *shape[1:])
    for t, (c, i, j) in itertools.product(range(total), itertools.product(*map(range, shape))):
        number = (t + starts[c, i, j]) % total
        for image in range(images):
            lower, upper = 0, 14
            if number < len(listed):
                width, split = listed[number]
                lower = 2 * split + 1 + (2 * int(levels[image, c, i, j]) - 2 * split - 1) // (2 * width) * 2 * width
                lower, upper = max(0, lower), min(14, lower + 2 * width)
            expected[image, t, c, i, j], expected[image, t, shape[0] + c, i, j] = lower / 14, upper / 14
    assert torch.equal(scheme.copies(levels / 7, torch.arange(total)[None]), expected)
    some = torch.randint(0, total, (images, 5))
    assert torch.equal(
        scheme.copies(levels / 7, some), torch.stack([e[n] for e, n in zip(expected, some, strict=True)])
    )


def test_radius():
    scheme = VariableLambda(0.5, alpha=15)
    counts = torch.tensor([[9_000, 6_000], [8_000, 7_000], [7_500, 7_500], [15_000, 0]])
    radius = scheme.certify_counts(counts).radius
    published = scheme.published_radius(counts)
    # flips 1500, 500, 0 and 7500 of a budget of 1000: (flips / 1000)^2 as printed
    assert published.tolist() == pytest.approx([2.25, 0.25, 0, 56.25])
    assert radius.tolist() == pytest.approx([1.501**2, 0.501**2, 0.001**2, 7.501**2])
    assert (radius >= published).all()
    assert all(1000 * r**0.5 < flips + 1 for r, flips in zip(radius.tolist(), (1500, 500, 0, 7500), strict=True))


@pytest.mark.parametrize(("p", "alpha"), [(0.5, 1), (0.5, 0.3), (1 / 3, 15), (2 / 3, 1), (1, 2)])
def test_the_published_radius_is_rounded_down(p, alpha):
    scheme = VariableLambda(p, alpha=alpha)
    votes = scheme.num_copies((1, 1, 1))
    gaps = torch.arange(0, votes + 1, max(1, votes // 300))
    radius = scheme.published_radius(torch.stack(((votes + gaps) // 2, (votes - gaps) // 2), 1))
    power = Fraction(p).limit_denominator(100)
    for gap, r in zip(gaps.tolist(), radius.tolist(), strict=True):
        exact = gap * min(Fraction(float(alpha)), Fraction(1)) / (2 * scheme.budget)
        above = math.nextafter(r, math.inf)
        assert Fraction(r) ** power.numerator <= exact**power.denominator < Fraction(above) ** power.numerator


def test_the_published_radius_is_finite():
    scheme = VariableLambda(0.01, alpha=1e5, budget=1_000)
    votes = scheme.num_copies((1, 1, 1))
    counts = torch.tensor([[votes, 0], [votes // 2 + 1, votes // 2 - 1]])
    assert (scheme.published_radius(counts) <= scheme.certify_counts(counts).radius).all()


def test_baseline_through_norms():
    radius = radius_through_norms(torch.tensor([-1.0, 0.0, 0.5, 3.0], dtype=torch.float64), 0.5)
    assert radius.tolist() == pytest.approx([-1, 0, 0.5, 9])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0}, "p: got 0"),
        ({"p": 1.5}, "p: got 1.5"),
        ({"p": 2**0.5 / 2}, "expected a fraction with a denominator up to 100"),
        ({"p": 0.5, "alpha": 0}, "alpha: got 0, expected a number between 0.001"),
        ({"p": 0.5, "alpha": 1e-320}, "expected a number between 0.001"),
        ({"p": 0.5, "alpha": True}, "alpha: got True"),
        ({"p": 0.5, "alpha": float("nan")}, "alpha: got nan"),
        ({"p": 0.5, "alpha": 1.00005}, r"expected alpha \* budget = 1000.05"),
        ({"p": 0.5, "encoding": "ends"}, "encoding: got 'ends', expected one of lower-upper, centre"),
        ({"p": 0.5, "coupling": "local"}, "coupling: got 'local', expected one of cyclic"),
        ({"p": 0.5, "budget": 0}, "budget: got 0"),
        ({"p": 0.5, "q": 2.5}, "q .*: got 2.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        VariableLambda(**options)


def test_powers_are_simple_fractions():
    assert [exact_power(p) for p in (0.5, 1 / 3, 2 / 3, 1)] == [HALF, THIRD, Fraction(2, 3), 1]


def test_designs_are_kept_on_disk_and_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("CERTIFY_CACHE", str(tmp_path))
    design.cache_clear()
    first = designed(HALF, 30, 50)
    (path,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(lambda_design, "_solve", None)
        design.cache_clear()
        assert designed(HALF, 30, 50) == first  # read, not solved
    stored = json.loads(path.read_text())
    for damaged in (
        "",
        "{",
        "{}",
        "[1, 2]",
        "[" * 100_000,
        # a design within the limits, but not this one
        json.dumps(stored | {"increments": [*stored["increments"][:-1], stored["increments"][-1] - 1]}),
        json.dumps(stored | {"increments": [50] * 30}),
        json.dumps({"increments": [1.5]}),
    ):
        path.write_text(damaged)
        design.cache_clear()
        assert designed(HALF, 30, 50) == first
        assert json.loads(path.read_text()) == stored


def test_a_cache_that_cannot_be_written_is_no_obstacle(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CERTIFY_CACHE", str(tmp_path / "file"))
    design.cache_clear()
    assert sum(designed(HALF, 5, 20)) <= 20


def test_without_a_home_there_is_no_cache(monkeypatch):
    def nobody() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CERTIFY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    design.cache_clear()
    assert sum(designed(HALF, 5, 20)) <= 20


@pytest.mark.parametrize("p", [HALF, THIRD])
def test_designs_for_large_budgets_are_close_without_a_solver(p):
    for budget, gap in ((4_000, 0.0021), (20_000, 0.0002)):
        sums = list(itertools.accumulate(designed(p, 255, budget)))
        assert max((k / 255) ** float(p) - total / budget for k, total in enumerate(sums, start=1)) <= gap


def test_radii_beyond_doubles_stay_finite():
    """A pth root that overflows: the radius is a number, and the votes it stands for do flip further out."""
    scheme = VariableLambda(0.01, alpha=3_001, q=1, budget=1)
    radius = scheme.radius_of_flips(torch.tensor([0, 1, 1_500]))
    assert torch.isfinite(radius).all()
    assert radius[2] < torch.finfo(torch.float64).max
    p_lower = torch.tensor([0.999], dtype=torch.float64)
    for q in (None, 1):
        assert torch.isfinite(RandomizedVariableLambda(0.01, alpha=5_000, q=q).radius(p_lower, 1 - p_lower)).all()
    assert torch.isfinite(radius_through_norms(torch.tensor([5_000.0], dtype=torch.float64), 0.01)).all()


def test_schemes_read_back_from_their_text():
    for scheme in (VariableLambda(THIRD, alpha=Fraction(3, 2)), RandomizedVariableLambda(HALF, alpha=Fraction(3, 2))):
        assert parse_scheme(to_text(scheme)) == scheme


def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, the solver finds a coarser design."""
    for kind in (VariableLambda, ConcaveSmoothing):
        monkeypatch.setattr(kind, "found_here", lambda self: tuple((1,) + (0,) * (self.q - 1) for _ in self.limits))


STEADY = tuple(i / 60 for i in range(1, 61))
SCHEMES_WITH_DESIGN = [
    VariableLambda(0.5, alpha=2, budget=30),
    ConcaveSmoothing(g=STEADY),
    ConcaveSmoothing(g=(STEADY, (1.0,) * 60, *(tuple(value / i for value in STEADY) for i in range(2, 8))), by="row"),
]


@pytest.mark.parametrize("scheme", SCHEMES_WITH_DESIGN, ids=["VariableLambda", "ConcaveSmoothing", "several"])
def test_a_checkpoint_carries_its_design_to_other_machines(scheme, monkeypatch, tmp_path):
    """The base classifier meets the copies it was trained on, wherever it is certified."""
    model = ModelSpec("mnist_cnn", 2, 10, 8)
    save_checkpoint(tmp_path / "model.safetensors", model.build(), Checkpoint(model, scheme, "digits", {}))
    assert load_checkpoint(tmp_path)[1].scheme == scheme
    x = torch.arange(64).view(1, 1, 8, 8) / 63 * scheme.q
    x = (x.round() / scheme.q).float()
    index = torch.arange(scheme.num_copies((1, 8, 8)))[None]
    copies, fingerprint = scheme.copies(x, index), scheme.fingerprint()
    another_machine(monkeypatch)
    assert scheme.fingerprint() != fingerprint
    loaded = load_checkpoint(tmp_path)[1].scheme
    assert loaded is not None
    assert loaded.fingerprint() == fingerprint
    assert torch.equal(loaded.copies(x, index), copies)
    assert not torch.equal(scheme.copies(x, index), copies)
    assert to_text(loaded) == to_text(scheme)  # shards of both machines go into one folder
    save_checkpoint(tmp_path / "again.safetensors", model.build(), Checkpoint(model, loaded, "digits", {}))
    assert load_checkpoint(tmp_path / "again.safetensors")[1].scheme == loaded


def test_training_on_another_machine_goes_on_with_the_design_it_began_with(monkeypatch, tmp_path):
    """Whether it is resumed, or begins anew with the scheme of a checkpoint."""
    data, scheme = load("digits", "train"), VariableLambda(0.5, alpha=2, budget=30)
    data = replace(data, images=data.images[:60], labels=data.labels[:60])
    model, config = ModelSpec("mnist_cnn", 2, 10, 8), TrainingConfig(epochs=2, batch_size=30)

    class Killed(Exception):
        pass

    def kill(result: object) -> None:
        raise Killed

    Trainer(data, scheme, model, config, tmp_path / "whole").run()
    with pytest.raises(Killed):
        Trainer(data, scheme, model, config, tmp_path / "part").run(on_epoch=kill)
    another_machine(monkeypatch)
    resumed = Trainer(data, scheme, model, config, tmp_path / "part")
    resumed.load_state()
    resumed.run()
    assert (tmp_path / "part/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    loaded = load_checkpoint(tmp_path / "whole")[1].scheme
    assert loaded != scheme
    Trainer(data, loaded, model, config, tmp_path / "again").run()
    assert load_checkpoint(tmp_path / "again")[1].scheme == loaded
    args = classifier_runs.Args(tmp_path / "out", tmp_path / "whole", scheme=to_text(scheme), skip=300)
    assert classifier_runs.build(args)[0].scheme == loaded  # the scheme it was trained with, by its text


def test_the_design_is_part_of_the_classifier(monkeypatch, tmp_path):
    """Another design under the same text is another classifier: a checkpoint without its design is refused."""
    scheme = VariableLambda(0.5, alpha=2, budget=30)
    assert scheme.fingerprint() != VariableLambda(0.5, alpha=2, budget=200).fingerprint()
    model = ModelSpec("mnist_cnn", 2, 10, 8)
    monkeypatch.setattr(VariableLambda, "stored_design", lambda self: None)  # as earlier versions wrote it
    save_checkpoint(tmp_path / "model.safetensors", model.build(), Checkpoint(model, scheme, "digits", {}))
    assert load_checkpoint(tmp_path)[1].scheme == scheme
    another_machine(monkeypatch)
    with pytest.raises(ValueError, match="was trained with another design of VariableLambda"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "stored",
    [[1000] * 255, [1, 2] + [0] * 253, [1] * 30, [0.5] * 255, "1" * 255, {"0": 1}, [[1]] * 255],
    ids=["beyond the limits", "rising", "too few", "fractions", "text", "not a list", "lists"],
)
def test_a_design_that_would_certify_too_much_is_refused(stored, monkeypatch, tmp_path):
    """A stored design is not trusted: it is verified in exact arithmetic before a copy is made."""
    with pytest.raises(ValueError, match="design: got"):
        VariableLambda(0.5).with_design(stored)
    model = ModelSpec("mnist_cnn", 2, 10, 8)
    monkeypatch.setattr(VariableLambda, "stored_design", lambda self: stored)
    save_checkpoint(tmp_path / "model.safetensors", model.build(), Checkpoint(model, VariableLambda(0.5), "digits", {}))
    another_machine(monkeypatch)
    with pytest.raises(ValueError, match="design: got"):
        load_checkpoint(tmp_path)


def test_other_schemes_have_no_design():
    scheme = DeterministicSplittingNoise(lam=0.5)
    assert scheme.stored_design() is None
    with pytest.raises(ValueError, match="DeterministicSplittingNoise has none"):
        scheme.with_design([1])


def test_eps_is_kept_or_refused():
    sums = list(itertools.accumulate(designed(THIRD, 60, 200, eps=0.05)))
    assert max((k / 60) ** (1 / 3) - total / 200 for k, total in enumerate(sums, start=1)) <= 0.05 + 1e-9
    with pytest.raises(ValueError, match=r"no distribution within eps = 0\.001 was found"):
        designed(THIRD, 60, 20, eps=0.001)


@given(data=st.data())
def test_verification_refuses_everything_but_designs(data):
    limits = power_limits(HALF, Fraction(1), 4, 10)
    increments = data.draw(st.lists(st.integers(-1, 6), min_size=3, max_size=5))
    sums = list(itertools.accumulate(increments))
    good = (
        len(increments) == 4
        and min(increments) >= 0
        and increments == sorted(increments, reverse=True)
        and all(total <= limit for total, limit in zip(sums, limits[1:], strict=True))
    )
    if good:
        verify(increments, limits)
    else:
        with pytest.raises(ArithmeticError, match="design: "):
            verify(increments, limits)


@pytest.mark.parametrize("coupling", ["cyclic", "permuted", "global"])
@pytest.mark.parametrize("alpha", [0.7, 1, 2.5])
def test_every_coupling_splits_each_feature_equally_often(coupling, alpha):
    """The certificate rests on this: over all copies, each feature meets each outcome once."""
    scheme = VariableLambda(0.75, alpha=alpha, q=6, budget=20, seed=3, coupling=coupling)
    copies = scheme.num_copies((2, 2, 2))
    assert copies == max(20, round(20 * alpha))
    x = (torch.arange(7) / 6)[:, None, None, None].expand(7, 2, 2, 2)
    seen = scheme.copies(x, torch.arange(copies)[None])
    for i, j in itertools.combinations(range(7), 2):
        differ = (seen[i] != seen[j]).view(copies, 2, 2, 2, 2).any(1).sum(0)
        assert (differ == differ[0, 0, 0]).all()
        assert differ.max() <= scheme.limits[0][j - i]
        assert Fraction(int(differ.max()), 20) <= Fraction(1) / min(Fraction(1), Fraction(alpha))


def test_global_coupling_has_one_width_per_copy():
    scheme = VariableLambda(0.5, alpha=2, q=8, budget=30, coupling="global")
    copies = scheme.copies(torch.full((1, 1, 3, 3), 0.5), torch.arange(60)[None])[0]
    nothing = (copies[:, 0] == 0) & (copies[:, 1] == 1)
    assert nothing.flatten(1).all(1).sum() >= 30  # the paper's first objection to it
    assert torch.equal(nothing[30:].flatten(1).all(1), torch.ones(30, dtype=torch.bool))


def test_encodings_show_the_same_cells():
    x = torch.randint(0, 9, (2, 2, 3, 3)) / 8
    index = torch.arange(20)[None]
    options = {"alpha": 1, "q": 8, "budget": 20, "seed": 1}
    ends = VariableLambda(0.5, **options).copies(x, index).double()
    centre = VariableLambda(0.5, encoding="centre", **options).copies(x, index)
    twice = VariableLambda(0.5, encoding="centre-centre", **options).copies(x, index)
    error = VariableLambda(0.5, encoding="centre-error", **options).copies(x, index)
    lower, upper = ends[:, :, :2], ends[:, :, 2:]
    assert torch.allclose(centre.double(), (lower + upper) / 2)
    assert torch.equal(twice, torch.cat((centre, centre), 2))
    assert torch.equal(error[:, :, :2], centre)
    assert torch.allclose(error[:, :, 2:].double(), (upper - lower) / 2, atol=1e-7)


def test_permutations_too_large_for_memory_are_refused():
    scheme = VariableLambda(0.5, alpha=15, coupling="permuted")
    with pytest.raises(ValueError, match="'permuted', which would store 15000 x 150528 numbers"):
        scheme.copies(torch.zeros(1, 3, 224, 224), torch.zeros(1, 1, dtype=torch.int64))


def test_lp_is_a_concave_metric():
    """The general scheme with g(z) = z^p is Variable-Lambda smoothing; the radius is in the metric, rho^p."""
    g = tuple((k / 6) ** 0.5 for k in range(1, 7))
    general, special = ConcaveSmoothing(g, budget=40, seed=2), VariableLambda(0.5, q=6, budget=40, seed=2)
    x = torch.randint(0, 7, (3, 1, 3, 3)) / 6
    index = torch.arange(40)[None]
    assert general.q == 6
    assert torch.equal(general.copies(x, index), special.copies(x, index))
    counts = torch.tensor([[30, 10], [20, 20], [40, 0]])
    assert torch.allclose(general.certify_counts(counts).radius, special.certify_counts(counts).radius ** 0.5)
    y = torch.randint(0, 7, (3, 1, 3, 3)) / 6
    assert torch.allclose(general.threat.distance(x, y), special.threat.distance(x, y) ** 0.5)


@pytest.mark.parametrize(
    ("g", "message"),
    [
        ((0.1, 0.3), "not nondecreasing and concave at 1/2"),
        ((0.5, 0.4), "not nondecreasing and concave at 2/2"),
        ((0.5, 1.1), "expected finite numbers in"),
        ((float("nan"),), "expected finite numbers in"),
        ((), "q .*: got 0"),
    ],
)
def test_metrics_that_are_not_concave_are_refused(g, message):
    with pytest.raises(ValueError, match=message):
        ConcaveSmoothing(g)
    with pytest.raises(ValueError, match="q: got 7, expected 2"):
        ConcaveSmoothing((0.2, 0.4), q=7)


SEVERAL = ((0.3, 0.6), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5))


@pytest.mark.parametrize("coupling", ["cyclic", "permuted"])
@pytest.mark.parametrize(("by", "shape"), [("channel", (4, 1, 2)), ("row", (2, 4, 1)), ("column", (1, 3, 4))])
def test_each_part_of_an_image_has_the_copies_of_its_own_metric(by, shape, coupling):
    options = {"budget": 10, "seed": 3, "coupling": coupling}
    x = torch.randint(0, 3, (3, *shape), generator=torch.Generator().manual_seed(1)) / 2
    index = torch.arange(10)[None]
    scheme = ConcaveSmoothing(SEVERAL, by=by, **options)
    copies = scheme.copies(x, index).unflatten(2, (2, -1))
    axis = {"channel": 3, "row": 4, "column": 5}[by]
    for i, g in enumerate(SEVERAL):
        own = ConcaveSmoothing(g, **options).copies(x, index).unflatten(2, (2, -1))
        assert torch.equal(copies.select(axis, i), own.select(axis, i))
    named = {each: k for k, each in enumerate(SEVERAL)}
    by_feature = torch.arange(4).view([-1 if i == axis - 3 else 1 for i in range(3)]).expand(shape).flatten()
    same = ConcaveSmoothing(tuple(SEVERAL[named[SEVERAL[i]]] for i in by_feature.tolist()), by="feature", **options)
    assert torch.equal(same.copies(x, index).unflatten(2, (2, -1)), copies)
    y = torch.randint(0, 3, (3, *shape), generator=torch.Generator().manual_seed(2)) / 2
    assert torch.equal(same.threat.distance(x, y), scheme.threat.distance(x, y))


def test_distance_with_one_metric_for_each_part():
    threat = ElementwiseConcave(((0.5, 1.0), (0.25, 0.375)), by="column")
    x, y = torch.tensor([[[[0.0, 0.5], [1.0, 1.0]]]]), torch.tensor([[[[0.5, 0.5], [0.0, 0.0]]]])
    assert threat.distance(x, y).tolist() == [0.5 + 1.0 + 0.375]
    assert str(threat) != str(ElementwiseConcave(threat.g, by="row"))
    assert str(threat).endswith("(q=2, one g for each of 2 columns)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"g": SEVERAL}, "got several functions, expected numbers"),
        ({"g": (0.5, 1.0), "by": "row"}, "got numbers, expected one tuple of numbers for each part"),
        ({"g": (), "by": "row"}, "got numbers, expected one tuple"),
        ({"g": ((0.5,), (0.5, 1.0)), "by": "row"}, "got functions of 1, 2 values, expected the same number"),
        (
            {"g": ((0.5, 1.0), (0.1, 0.3)), "by": "row"},
            r"g\[1\]: got values that are not nondecreasing and concave at 1/2",
        ),
        ({"g": SEVERAL, "by": "pixel"}, "by: got 'pixel', expected one of channel, row, column, feature"),
        ({"g": SEVERAL, "by": "row", "coupling": "global"}, "'global', which gives all features one width"),
        ({"g": SEVERAL, "by": "row", "q": 3}, "q: got 3, expected 2"),
        ({"g": SEVERAL, "by": "row", "design": ((1, 0),)}, "design: got 1 lists of increments, expected 4"),
    ],
)
def test_metrics_of_parts_that_fit_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConcaveSmoothing(**options).designs()


def test_as_many_metrics_as_parts():
    smoothed = Smoothed(lambda copies: copies.flatten(1)[:, :3], ConcaveSmoothing(SEVERAL, by="channel", budget=10), 3)
    with pytest.raises(
        ValueError, match=r"g: got 4 functions, expected 2, one for each channel of images of shape \(2, 2"
    ):
        smoothed.certify(torch.zeros(1, 2, 2, 2))
    assert smoothed.certify(torch.zeros(1, 4, 2, 2)).radius.item() > 0


def test_metrics_of_parts_as_text():
    scheme = ConcaveSmoothing(SEVERAL, by="channel", budget=10)
    assert parse_scheme(to_text(scheme)) == scheme
    assert scheme.with_design(scheme.stored_design()).designs() == scheme.designs()
    for stored in ([1, 0], [[1, 0]], [[1, 0]] * 3 + [[9, 9]], "designs"):
        with pytest.raises(ValueError, match="design: got"):
            scheme.with_design(stored)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 60))
def test_greedy_designs_are_closer_than_equation_c_69(steps, budget):
    """Rounding down the w_j of Theorem 4.3 (c) leaves less than (q^2 + q) / (2 B); a greedy design less than q / B."""
    falling = sorted(steps, reverse=True)
    total, q = max(1, sum(falling)), len(falling)
    g = [Fraction(each, total) for each in itertools.accumulate(falling)]
    slopes = [after - before for before, after in itertools.pairwise([Fraction(0), *g])]
    w = [math.floor(budget * (own - below)) for own, below in zip(slopes, [*slopes[1:], Fraction(0)], strict=True)]
    rounded = list(itertools.accumulate(sum(w[k:]) for k in range(q)))
    greedy = list(itertools.accumulate(greedy_design((0, *(math.floor(budget * each) for each in g)))))
    for exact, down, ours in zip(g, rounded, greedy, strict=True):
        assert down <= ours <= budget * exact
        assert 2 * (budget * exact - down) < q * q + q
        assert budget * exact - ours < q


def test_distance_in_a_concave_metric():
    threat = ElementwiseConcave((0.5, 0.75))
    x, y = torch.tensor([[[[0.0, 0.5, 1.0]]]]), torch.tensor([[[[0.0, 0.0, 0.0]]]])
    assert threat.distance(x, y).tolist() == [1.25]
    with pytest.raises(ValueError, match="off the grid i/2"):
        threat.distance(x + 0.1, y)


def random_copies(scheme: RandomizedVariableLambda, x: torch.Tensor, n: int) -> torch.Tensor:
    return scheme.sample(x, Draws.of(0, ESTIMATION, torch.zeros(1, dtype=torch.int64), range(n)))


@pytest.mark.parametrize("q", [None, 8])
@pytest.mark.parametrize(("p", "alpha"), [(0.5, 3), (1 / 3, 1), (1, 2), (0.5, 0.6), (0.75, 0.3)])
def test_random_cells_tell_values_apart_with_the_probability_of_the_theorem(p, alpha, q):
    """Theorem 4.2 (c) and its second case: min(|x - y|^p / alpha, 1), within five standard deviations."""
    scheme, n = RandomizedVariableLambda(p, alpha=alpha, q=q), 40_000
    for x, y in ((0.125, 0.25), (0.0, 0.5), (0.875, 0.0), (0.0, 1.0)):
        a, b = (random_copies(scheme, torch.full((1, 1, 1, 1), value), n) for value in (x, y))
        share = float((a != b).flatten(2).any(2).double().mean())
        expected = min(1.0, abs(x - y) ** p / alpha)
        assert abs(share - expected) <= 5 * (expected * (1 - expected) / n) ** 0.5 + 1e-9


@pytest.mark.parametrize("q", [None, 255])
def test_random_cells_hold_their_values(q):
    scheme = RandomizedVariableLambda(0.5, alpha=1.5, q=q)
    x = torch.randint(0, 256, (1, 2, 5, 5), dtype=torch.uint8)
    copies = random_copies(scheme, x, 300).double()
    value = (x.double() / 255)[:, None]
    assert copies.shape == (1, 300, 4, 5, 5)
    assert (copies[:, :, :2] <= value + 1e-6).all()
    assert (copies[:, :, 2:] >= value - 1e-6).all()
    assert ((copies >= 0) & (copies <= 1)).all()


def test_very_small_powers_do_not_underflow():
    copies = random_copies(RandomizedVariableLambda(0.01), torch.full((1, 1, 8, 8), 0.25), 500)
    assert torch.isfinite(copies).all()
    assert ((copies[:, :, 0] - 0.25).abs() < 1e-6).double().mean() > 0.5


def test_random_cells_refuse_values_between_the_grid():
    scheme = RandomizedVariableLambda(0.5)
    with pytest.raises(ValueError, match=r"expected multiples of 2\^-36"):
        scheme.check(torch.full((1, 1, 1, 1), 1e-13))
    scheme.check(torch.rand(1, 1, 4, 4) * 0.5 + 0.25)
    scheme.check(torch.randint(0, 256, (1, 1, 4, 4), dtype=torch.uint8))


def test_random_cells_radius():
    p_lower = torch.tensor([0.5, 0.6, 0.75, 1.0], dtype=torch.float64)
    grid, free = RandomizedVariableLambda(0.5, alpha=4, q=255), RandomizedVariableLambda(0.5, alpha=4)
    assert grid.radius(p_lower, 1 - p_lower).tolist() == pytest.approx([-1, 0.4**2, 1, 4])
    assert free.radius(p_lower, 1 - p_lower).tolist() == pytest.approx([-1, 0.4**2, 1, 4], rel=1e-3)
    assert (free.radius(p_lower, 1 - p_lower)[1:] < grid.radius(p_lower, 1 - p_lower)[1:]).all()
    assert (grid.radius(p_lower, 1 - p_lower)[2:] < torch.tensor([1.0, 4.0])).all()


@pytest.mark.parametrize(("q", "budget", "p", "a", "b"), [(255, 255, 1.0, 153, 204), (100, 1000, 0.5, 0, 1)])
def test_floats_on_the_grid_are_compared_by_whole_steps(q, budget, p, a, b):
    """float32(204 / 255) - float32(153 / 255) is below 51 / 255, and a radius is only just below the next step."""
    scheme = VariableLambda(p=p, q=q, budget=budget)
    x, y = (torch.full((1, 1, 1, 1), level, dtype=torch.float32) / q for level in (a, b))
    copies = torch.arange(scheme.num_copies((1, 1, 1)))[None]
    touched = int((scheme.copies(x, copies) != scheme.copies(y, copies)).flatten(2).any(2).sum())
    distance = scheme.threat.distance(x, y)
    assert distance.item() == pytest.approx(((b - a) / q), rel=1e-15)
    assert scheme.radius_of_flips(torch.tensor([touched - 1])).item() < distance.item()
    assert scheme.radius_of_flips(torch.tensor([touched])).item() >= distance.item()
    assert scheme.threat == Lp(p)
    bytes_ = (torch.tensor([[[[v]]]], dtype=torch.uint8) for v in (0, 51))
    assert L1(q=5).distance(*bytes_).item() == 0.2
    with pytest.raises(ValueError, match="away from the grid"):
        scheme.threat.distance(x + 0.3 / q, y)


@pytest.mark.parametrize("kind", [VariableLambda, RandomizedVariableLambda])
def test_p_is_the_fraction_that_is_certified(kind):
    """A p that is a little off would have other distances than the radius is about, by more than rounding allows."""
    assert kind(0.5 + 9e-13, alpha=4) == kind(0.5, alpha=4)
    assert kind(0.5 + 9e-13, alpha=4).threat.p == 0.5
