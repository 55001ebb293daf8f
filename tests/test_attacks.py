"""The Pointwise attack against certificates, against brute force, and against foolbox's implementation."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from certify import (
    L0,
    DeterministicAblation,
    RandomizedAblation,
    SampledScheme,
    Smoothed,
    UniformNoise,
    engine,
)
from certify.attacks import Attacked, pointwise_attack
from certify.attacks.jobs import Jobs
from certify.attacks.noise import LEVELS, salt_and_pepper
from certify.attacks.oracle import Oracle
from certify.data import load
from certify.metrics import attacked_accuracy, median_attack_magnitude
from certify.models import ModelSpec
from certify.results import read_config, read_rows
from certify.spec import parse
from certify.testing import RandomTable
from certify.training import Trainer, TrainingConfig
from scripts import attack as attack_script
from scripts import certify as certify_script
from scripts import report as report_script
from scripts.parts import cli
from tests.soundness.table import Toy, enumerated, sampled

needs_foolbox = pytest.mark.skipif(importlib.util.find_spec("foolbox") is None, reason="needs the extra 'attacks'")


class Linear:
    """Class 1 iff a weighted sum of the features reaches a threshold; no ties."""

    def __init__(self, features: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(features, generator=generator, dtype=torch.float64)
        self.threshold = float(self.weight.sum() / 2)

    def __call__(self, x: Tensor) -> Tensor:
        score = x.flatten(1).double() @ self.weight - self.threshold
        return torch.stack((-score, score), 1)


def chosen(toy: Toy, count: int) -> Tensor:
    """Some images of a toy domain, spread over it."""
    images = toy.images()
    return images[torch.linspace(0, len(images) - 1, count).long().unique()]


# --- attacks never succeed within a certified radius -----------------------------------------------------------------


def assert_outside(toy: Toy, x: Tensor, radius: Tensor, result: Attacked) -> int:
    """No success within the radius; returns the number of successes on certified images."""
    distance = toy.distance(x, result.adversarial)
    broken = result.success & (radius >= 0)
    assert (distance[broken] > radius[broken]).all(), toy.name
    return int(broken.sum())


@pytest.mark.parametrize("toy", enumerated(), ids=lambda toy: toy.name)
def test_no_success_within_an_exact_certificate(toy: Toy):
    succeeded = 0
    for num_classes, seed, bias in ((2, 0, 0.0), (3, 1, 0.3), (3, 2, 0.6), (2, 3, 0.7)):
        smoothed = Smoothed(RandomTable(num_classes, seed, bias), toy.scheme, num_classes)
        x = chosen(toy, 8)
        certified = smoothed.certify(x)
        result = pointwise_attack(smoothed, x, certified.prediction, restarts=3, seed=seed, fallback=x)
        assert torch.equal(smoothed.predict(result.adversarial) != certified.prediction, result.success)
        assert torch.equal(result.clean, certified.prediction)
        succeeded += assert_outside(toy, x, certified.radius, result)
    assert succeeded > 0, "no attack succeeded anywhere"


@pytest.mark.parametrize(
    "toy", [t for t in sampled() if len(t.images()) < 100 and t.levels > t.steps], ids=lambda toy: toy.name
)
def test_no_success_within_a_sampled_certificate_at_exact_probabilities(toy: Toy):
    """The classifier that is attacked knows the exact probabilities."""
    scheme, outcomes = toy.scheme, toy.outcomes
    assert isinstance(scheme, SampledScheme)
    assert outcomes is not None
    succeeded = 0
    for num_classes, seed, bias in ((2, 0, 0.0), (2, 1, 0.0), (2, 2, 0.0), (3, 3, 0.4)):
        base = RandomTable(num_classes, seed, bias)

        def shares(image: Tensor, base: RandomTable = base) -> list[Fraction]:
            total = [Fraction(0)] * base.num_classes
            for probability, copy in outcomes(image[None]):
                total[base.classify(copy)] += probability
            return total

        table = {image.numpy().tobytes(): shares(image) for image in toy.images()}

        def exact(x: Tensor, table: dict[bytes, list[Fraction]] = table) -> Tensor:
            rows = [[float(p) for p in table[image.numpy().tobytes()]] for image in x]
            return torch.tensor(rows, dtype=torch.float64)

        x = chosen(toy, 8)
        scores = exact(x)
        p_lower = torch.nextafter(scores.amax(1), torch.zeros(()).double())
        radius = scheme.radius(p_lower, 1 - p_lower, shape=toy.shape)
        result = pointwise_attack(exact, x, scores.argmax(1), restarts=2, fallback=x)
        succeeded += assert_outside(toy, x, radius, result)
        if succeeded >= 3:
            break
    assert succeeded > 0, "no attack succeeded anywhere"


# --- against the true minimum ----------------------------------------------------------------------------------------


def brute_force(classifier, domain: Tensor, image: Tensor, label: int, threat: L0) -> float:
    """The least number of changed units over a whole domain."""
    wrong = classifier(domain).argmax(1) != label
    if not wrong.any():
        return math.inf
    return float(threat.distance(image.expand_as(domain[wrong]), domain[wrong]).min())


@pytest.mark.parametrize(("shape", "unit"), [((1, 2, 4), "pixel"), ((2, 1, 4), "pixel"), ((2, 1, 4), "feature")])
def test_magnitude_is_at_least_the_true_minimum_and_often_equal(shape, unit):
    domain = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8))).view(-1, *shape)
    tight = total = 0
    for seed in range(4):
        classifier = Linear(8, seed)
        x = domain[:: 256 // 12]
        labels = classifier(x).argmax(1)
        result = pointwise_attack(classifier, x, labels, unit=unit, seed=seed)
        assert result.threat == L0(unit)
        for i in range(len(x)):
            least = brute_force(classifier, domain, x[i], int(labels[i]), result.threat)
            assert result.magnitude[i] >= least
            tight += int(result.magnitude[i] == least)
            total += 1
    assert tight >= 0.8 * total, f"{tight} of {total}"


@pytest.mark.parametrize("unit", ["pixel", "feature"])
def test_no_single_unit_can_be_set_back(unit):
    """Every reported example is minimal in the sense of the attack."""
    x = torch.rand((6, 3, 3, 3), generator=torch.Generator().manual_seed(5))
    classifier = Linear(27, 7)
    labels = classifier(x).argmax(1)
    result = pointwise_attack(classifier, x, labels, restarts=1, unit=unit)
    assert result.success.all()
    for image, adversarial, label in zip(x, result.adversarial, labels, strict=True):
        units = [(slice(None), h, w) for h in range(3) for w in range(3)]
        if unit == "feature":
            units = [(c, h, w) for c in range(3) for h in range(3) for w in range(3)]
        for at in units:
            if not torch.equal(adversarial[at], image[at]):
                back = adversarial.clone()
                back[at] = image[at]
                assert classifier(back[None]).argmax(1) == label


# --- what is counted -------------------------------------------------------------------------------------------------


def test_wrong_images_have_magnitude_zero_and_unbreakable_ones_infinity():
    x = torch.rand((4, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    constant = lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2)  # noqa: E731
    result = pointwise_attack(constant, x, torch.tensor([0, 1, 0, 1]), restarts=2)
    assert result.magnitude.tolist() == [math.inf, 0, math.inf, 0]
    assert result.verified.tolist() == [math.inf, 0, math.inf, 0]
    assert result.success.tolist() == [False, True, False, True]
    assert torch.equal(result.adversarial, x)
    assert result.queries[[1, 3]].tolist() == [1, 1]
    everything_wrong = pointwise_attack(constant, x, torch.ones(4, dtype=torch.int64))
    assert everything_wrong.magnitude.tolist() == [0, 0, 0, 0]


def test_fallback_starts_where_noise_does_not():
    """Only the exact image of the other class is adversarial: no noise finds it."""
    other = torch.full((1, 1, 2, 2), 0.5)
    secret = lambda x: torch.stack((torch.ones(len(x)), 2.0 * (x == 0.5).flatten(1).all(1)), 1)  # noqa: E731
    x, labels = torch.zeros((1, 1, 2, 2)), torch.zeros(1, dtype=torch.int64)
    assert pointwise_attack(secret, x, labels).magnitude.tolist() == [math.inf]
    assert pointwise_attack(secret, x, labels, fallback=torch.cat((x, other))).magnitude.tolist() == [4]


def ablated(n: int = 200, seed: int = 0) -> Smoothed:
    """A smoothed classifier that counts bright pixels among those kept."""

    def base(copies: Tensor) -> Tensor:
        bright = copies[:, 0].flatten(1).sum(1)
        return torch.stack((1.25 - bright, bright - 1.25), 1)

    return Smoothed(base, RandomizedAblation(4), 2, n=n, seed=seed)


def test_abstaining_counts_as_success():
    x = torch.zeros((2, 1, 3, 4))
    result = pointwise_attack(ablated(), x, torch.zeros(2, dtype=torch.int64), restarts=3)
    assert result.success.all()
    assert result.prediction.tolist() == [-1, -1]
    assert torch.equal(ablated().predict(result.adversarial), result.prediction)


def test_fresh_samples_verify():
    """The verified magnitude belongs to an example that fresh samples do not classify as the label."""
    x, labels = torch.zeros((6, 1, 3, 4)), torch.zeros(6, dtype=torch.int64)
    result = pointwise_attack(ablated(), x, labels, restarts=5)
    assert (result.verified >= result.magnitude).all()
    assert torch.isfinite(result.verified).any()
    oracle, which = Oracle(ablated(), x, labels), torch.arange(6)
    confirmed = oracle.fresh(result.adversarial, which) != labels
    assert (result.verified == result.magnitude)[confirmed].all()
    assert oracle.fresh(x, which).tolist() == [0] * 6
    assert oracle.queries.tolist() == [2] * 6


def test_oracle_uses_the_samples_of_predict_and_others_to_verify(monkeypatch):
    monkeypatch.setattr(engine, "_is_spot_check", lambda number: False)  # no batch is scored again
    seen: list[Tensor] = []

    def base(copies: Tensor) -> Tensor:
        seen.append(copies.clone())
        return torch.zeros(len(copies), 2)

    smoothed = Smoothed(base, UniformNoise(0.5), 2, n=8, batch_size=8)
    x, index = torch.full((1, 1, 2, 2), 99, dtype=torch.uint8), torch.tensor([77])
    oracle = Oracle(smoothed, x, torch.zeros(1, dtype=torch.int64), index=index)
    which = torch.zeros(1, dtype=torch.int64)
    smoothed.predict(x, index=index)  # also checks the classifier
    seen.clear()
    smoothed.predict(x, index=index)
    oracle.classes(x, which)
    oracle.fresh(x, which)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_queries_and_budget():
    x = torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    classifier = Linear(16, 3)
    labels = classifier(x).argmax(1)
    answered: list[int] = []
    free = pointwise_attack(classifier, x, labels, restarts=4, on_queries=answered.append)
    assert sum(answered) == int(free.queries.sum())
    for budget in (4, 20, 60):
        held = pointwise_attack(classifier, x, labels, restarts=4, max_queries=budget)
        assert (held.queries <= budget + 2).all()
        assert (held.magnitude >= free.magnitude).all()
        broken = held.success & (held.magnitude > 0)
        assert (classifier(held.adversarial).argmax(1) != labels)[broken].all()
    assert torch.equal(pointwise_attack(classifier, x, labels, restarts=4, max_queries=10**6).magnitude, free.magnitude)


def test_no_query_is_asked_twice():
    asked: list[bytes] = []
    classifier = Linear(16, 3)

    def record(x: Tensor) -> Tensor:
        asked.extend(image.numpy().tobytes() for image in x)
        return classifier(x)

    x = torch.full((1, 1, 4, 4), 0.3)
    result = pointwise_attack(record, x, classifier(x).argmax(1), restarts=1)
    assert result.success.all()
    assert len(asked) == int(result.queries[0])
    # noise levels that set the same pixels, and the final answer, are the only repetitions
    assert len(asked) - len(set(asked)) <= 8


@pytest.mark.parametrize("implementation", ["own", pytest.param("foolbox", marks=needs_foolbox)])
def test_same_seed_same_result_whatever_the_batch(implementation):
    x = torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    classifier = Linear(16, 3)
    labels, index = classifier(x).argmax(1), torch.tensor([9, 3, 5, 1, 7])
    attack = partial(pointwise_attack, classifier, restarts=2, implementation=implementation)
    whole, other = attack(x, labels, index=index), attack(x, labels, index=index, seed=1)
    assert not torch.equal(whole.adversarial, other.adversarial)
    for i in (4, 2, 0):
        one = attack(x[i : i + 1], labels[i : i + 1], index=index[i : i + 1])
        assert torch.equal(one.adversarial[0], whole.adversarial[i])
        assert one.queries[0] == whole.queries[i]


def test_more_restarts_are_never_worse():
    x = torch.rand((8, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    classifier = Linear(16, 4)
    labels = classifier(x).argmax(1)
    best = torch.full((8,), torch.inf, dtype=torch.float64)
    for restarts in (1, 3, 10):
        magnitude = pointwise_attack(classifier, x, labels, restarts=restarts).magnitude
        assert (magnitude <= best).all()
        best = magnitude


def test_8_bit_and_float_images_give_the_same_attack():
    x = torch.randint(0, 256, (4, 1, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    smoothed = Smoothed(Linear(16, 1), DeterministicAblation(4, null="mean", mean=(0.5,)), 2)
    labels = smoothed.predict(x)
    small = pointwise_attack(smoothed, x, labels, restarts=2)
    large = pointwise_attack(smoothed, x.float() / 255, labels, restarts=2)
    assert small.adversarial.dtype == torch.uint8
    assert torch.equal(small.adversarial.float() / 255, large.adversarial)


@given(st.integers(0, LEVELS), st.integers(0, LEVELS), st.integers(0, 99))
def test_noise_levels_are_nested(low, high, seed):
    low, high = sorted((low, high))
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((1, 1, 4, 4), generator=generator)
    uniforms = torch.rand((1, 1, 4, 4), generator=generator, dtype=torch.float64)
    a, b = (salt_and_pepper(x, uniforms, torch.tensor([level])) for level in (low, high))
    assert (b[a != x] == a[a != x]).all()
    assert salt_and_pepper(x, uniforms, torch.tensor([0])).equal(x)
    assert set(salt_and_pepper(x, uniforms, torch.tensor([LEVELS])).unique().tolist()) <= {0.0, 1.0}


# --- foolbox ---------------------------------------------------------------------------------------------------------


@needs_foolbox
@pytest.mark.parametrize("seed", range(4))
def test_both_implementations_take_the_same_path(monkeypatch, seed):
    """In ascending order, from the same starts, the two end in the same images."""
    monkeypatch.setattr(np.random, "permutation", np.asarray)
    given_uniforms = Jobs.uniforms

    def ascending(jobs: Jobs, rows: Tensor, number: Tensor | int, part: int) -> Tensor:
        uniforms = given_uniforms(jobs, rows, number, part)
        return uniforms if part == 0 else torch.linspace(0, 0.5, jobs.units).expand_as(uniforms).double()

    monkeypatch.setattr(Jobs, "uniforms", ascending)
    torch.manual_seed(seed)
    x = torch.rand((6, 1, 5, 5))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    labels = network(x).argmax(1)
    own = pointwise_attack(network, x, labels, restarts=2)
    reference = pointwise_attack(network, x, labels, restarts=2, implementation="foolbox")
    assert own.success.any()
    assert torch.equal(own.adversarial, reference.adversarial)
    assert torch.equal(own.magnitude, reference.magnitude)
    assert (own.queries <= reference.queries).all()


@needs_foolbox
def test_both_implementations_agree_on_a_smoothed_classifier():
    x, labels = torch.zeros((2, 1, 3, 4), dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    state = np.random.get_state()  # noqa: NPY002
    results = [
        pointwise_attack(ablated(n=50), x, labels, restarts=3, implementation=name) for name in ("own", "foolbox")
    ]
    again = pointwise_attack(ablated(n=50), x, labels, restarts=3, implementation="foolbox")
    assert torch.equal(results[1].adversarial, again.adversarial)
    assert all(a is b or np.array_equal(a, b) for a, b in zip(state, np.random.get_state(), strict=True))  # noqa: NPY002
    assert results[0].adversarial.dtype == results[1].adversarial.dtype == torch.uint8
    assert (results[0].magnitude - results[1].magnitude).abs().max() <= 1
    assert (ablated(n=50).predict(results[1].adversarial) == -1).all()


def test_missing_foolbox_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "foolbox", None)  # any import of it fails
    with pytest.raises(ImportError, match=r"pip install 'scalable-robust-ml\[attacks\]'"):
        pointwise_attack(
            Linear(4, 0), torch.zeros((1, 1, 2, 2)), torch.zeros(1, dtype=torch.int64), implementation="foolbox"
        )
    arguments = [str(tmp_path / "out"), "--checkpoint", str(tmp_path), "--implementation", "foolbox"]
    with pytest.raises(SystemExit):
        cli.run(attack_script.main, attack_script.Args, "scripts.attack", arguments)
    assert "scalable-robust-ml[attacks]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- bad input -------------------------------------------------------------------------------------------------------

BAD = [
    ({"restarts": 0}, "restarts: got 0, expected an integer in"),
    ({"restarts": 2.0}, "restarts: got 2.0"),
    ({"seed": -1}, "seed: got -1"),
    ({"max_queries": 9}, "max_queries: got 9, expected an integer at least 10"),
    ({"implementation": "art"}, "expected 'own' or 'foolbox'"),
    ({"implementation": "foolbox", "max_queries": 100}, "foolbox cannot enforce one"),
    ({"unit": "row"}, "unit: got 'row'"),
    ({"index": torch.tensor([0])}, "index: got torch.int64"),
    ({"labels": torch.tensor([0, 1, 1])}, "labels: got torch.int64"),
    ({"labels": torch.tensor([0.0, 1.0])}, "labels: got torch.float32"),
    ({"labels": torch.tensor([0, 2])}, r"labels: got 0 to 2, expected 0\.\.1"),
    ({"images": torch.full((2, 1, 2, 2), 2.0)}, r"expected \[0, 1\]"),
    ({"fallback": torch.zeros((2, 1, 3, 3))}, "fallback: got torch.float32"),
    ({"fallback": torch.zeros((2, 1, 2, 2), dtype=torch.uint8)}, "like the images"),
    ({"fallback": torch.full((2, 1, 2, 2), -1.0)}, r"expected \[0, 1\]"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input(options, message):
    asked = []

    def base(copies: Tensor) -> Tensor:
        asked.append(len(copies))
        return torch.zeros(len(copies), 2)

    arguments = {"images": torch.zeros((2, 1, 2, 2)), "labels": torch.tensor([0, 1])} | options
    images, labels = arguments.pop("images"), arguments.pop("labels")
    with pytest.raises(ValueError, match=message):
        pointwise_attack(Smoothed(base, RandomizedAblation(2), 2, n=10), images, labels, **arguments)
    assert asked == []


def test_bad_scores():
    x, labels = torch.zeros((1, 1, 2, 2)), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="NaN scores"):
        pointwise_attack(lambda x: torch.full((len(x), 2), torch.nan), x, labels)
    with pytest.raises(ValueError, match="expected scores of shape"):
        pointwise_attack(lambda x: x.flatten(1)[:, 0], x, labels)


# --- metric ----------------------------------------------------------------------------------------------------------


def test_median_attack_magnitude():
    assert median_attack_magnitude([31]) == 31
    assert median_attack_magnitude([0, math.inf, 5]) == 5
    assert median_attack_magnitude([math.inf, math.inf, 3]) == math.inf
    assert median_attack_magnitude([0, 16, 17, 40]) == 16
    for bad in ([], [[1.0]], [math.nan], [-1]):
        with pytest.raises(ValueError, match="magnitude: got"):
            median_attack_magnitude(bad)


@given(st.lists(st.integers(0, 5) | st.just(math.inf), min_size=1))
def test_median_is_the_least_magnitude_that_breaks_half(magnitudes):
    breaking = [m for m in [*magnitudes, math.inf] if 2 * sum(v <= m for v in magnitudes) >= len(magnitudes)]
    assert median_attack_magnitude(magnitudes) == min(breaking)


@given(st.lists(st.integers(0, 5) | st.just(math.inf), min_size=1))
def test_attacked_accuracy_is_the_share_not_broken(magnitudes):
    radii = [0, 0.5, 1, 4, 5, 9]
    expected = [sum(m > r for m in magnitudes) / len(magnitudes) for r in radii]
    assert attacked_accuracy(magnitudes, radii).tolist() == pytest.approx(expected)


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    scheme, data = parse("RandomizedAblation(keep=20)"), load("digits", "train")
    config = TrainingConfig(epochs=2, batch_size=64, lr=0.1)
    Trainer(data, scheme, ModelSpec("mnist_cnn", scheme.channels(1), 10, 8), config, folder).run()
    return folder


def run(out: Path, checkpoint: Path, **options) -> None:
    defaults = {"n": 40, "max": 6, "restarts": 2, "max_queries": 60}
    attack_script.main(attack_script.Args(out=out, checkpoint=checkpoint, **(defaults | options)))


def rows(folder: Path) -> list[list[str]]:
    """All rows without their times, ordered by index."""
    found = [line.split("\t") for path in folder.glob("rows*.tsv") for line in path.read_text().splitlines()[1:]]
    return sorted(([*row[:7], row[8]] for row in found), key=lambda row: int(row[0]))


def test_rows_tell_the_attack(tmp_path, checkpoint, capsys):
    run(tmp_path, checkpoint, max=4)
    printed = capsys.readouterr().out
    assert "4 images: median attack magnitude" in printed
    table = read_rows(tmp_path)
    assert f"median attack magnitude {median_attack_magnitude(table['magnitude']):g}," in printed
    assert read_config(tmp_path)["attack"]["restarts"] == 2
    data = load("digits", "test")
    for row in rows(tmp_path):
        idx, label, clean, _, magnitude, verified, queries, changed = row
        assert int(label) == int(data.labels[int(idx)])
        assert float(verified) >= float(magnitude)
        assert 1 <= int(queries) <= 60 + 2 + 2
        units = [] if changed == "-" else changed.split(" ")
        assert len(units) == (float(magnitude) if math.isfinite(float(magnitude)) else 0)
        image = data.images[int(idx)].flatten()
        assert all(int(image[int(u.split(":")[0])]) != int(u.split(":")[1]) for u in units)
        assert (float(magnitude) == 0) == (int(clean) != int(label))


def test_resumed_and_sharded_runs_are_identical(tmp_path, checkpoint):
    run(tmp_path / "whole", checkpoint)
    run(tmp_path / "part", checkpoint, max=2, images_per_step=1)
    with (tmp_path / "part/rows.tsv").open("a") as handle:
        handle.write("2\t5\t")  # cut off by a kill
    run(tmp_path / "part", checkpoint, resume=True, images_per_step=3)
    for shard in ("1/2", "0/2"):
        run(tmp_path / "shards", checkpoint, shard=shard)
    expected = rows(tmp_path / "whole")
    assert len(expected) == 6
    assert rows(tmp_path / "part") == rows(tmp_path / "shards") == expected
    with pytest.raises(ValueError, match="add --resume"):
        run(tmp_path / "whole", checkpoint)
    with pytest.raises(ValueError, match="was made with attack"):
        run(tmp_path / "whole", checkpoint, restarts=3, resume=True)
    with pytest.raises(ValueError, match=r"was made with .*, attack = "):
        certify_script.main(
            certify_script.Args(out=tmp_path / "whole", checkpoint=checkpoint, n=40, max=6, resume=True)
        )
    with pytest.raises(ValueError, match="holds an attack"):
        report_script.main(report_script.Args(runs=[tmp_path / "whole"]))


BAD_OPTIONS = [
    (["--attack", "square"], "attack: got 'square', expected one of pointwise"),
    (["--restarts", "0"], "restarts: got 0"),
    (["--max-queries", "5"], "max_queries: got 5, expected an integer at least 10"),
    (["--implementation", "foolbox", "--max-queries", "50"], "foolbox cannot enforce one"),
    (["--scheme", "RandomizedAblation(keep=65)"], "keep: got 65"),
    (["--shard", "2/2"], "shard: got '2/2'"),
    (["--seed", "-1"], "seed: got -1"),
    (["--n", "0"], "n: got 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_bad_options_leave_no_trace(tmp_path, checkpoint, capsys, options, message):
    arguments = [str(tmp_path / "out"), "--checkpoint", str(checkpoint), *options]
    with pytest.raises(SystemExit) as stop:
        cli.run(attack_script.main, attack_script.Args, "scripts.attack", arguments)
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
