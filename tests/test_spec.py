from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import certify
from certify import (
    L0,
    L1,
    DeterministicSplittingNoise,
    GaussianNoise,
    RandomizedAblation,
    SmoothReduce,
    SmoothReduceVideo,
    SplittingNoise,
    ThresholdVote,
    spec,
)

probabilities = st.floats(0, 1)
colours = st.lists(probabilities, min_size=1, max_size=4).map(tuple)


@st.composite
def ablations(draw) -> RandomizedAblation:
    keep, unit = draw(st.integers(1, 10**9)), draw(st.sampled_from(["pixel", "feature"]))
    if draw(st.booleans()):
        return RandomizedAblation(keep, unit=unit, null="mean", mean=draw(colours))
    mean = draw(st.none() | colours)
    return RandomizedAblation(keep, unit=unit, mean=mean, std=None if mean is None else draw(st.none() | colours))


@st.composite
def grids(draw) -> tuple[float, int]:
    """A legal (lam, q)."""
    q = draw(st.integers(1, 1000))
    return draw(st.integers(1, 5000)) / (2 * q), q


deterministic = st.builds(
    lambda grid, seed: DeterministicSplittingNoise(*grid, seed), grids(), st.integers(0, 2**32 - 1)
)
on_the_grid = grids().map(lambda grid: SplittingNoise(*grid))
continuous = st.floats(1e-6, 1e6).map(SplittingNoise)
others = st.sampled_from([L0("pixel"), L0("feature"), L1()]) | st.floats(0, 1, exclude_max=True).map(ThresholdVote)


@given(ablations() | deterministic | on_the_grid | continuous | others)
def test_round_trip(value):
    text = spec.to_text(value)
    again = spec.parse(text)
    assert again == value
    assert type(again) is type(value)
    assert spec.to_text(again) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("RandomizedAblation(keep=45)", RandomizedAblation(45)),
        ("RandomizedAblation(45)", RandomizedAblation(45)),
        ("  RandomizedAblation( keep = 45 , unit = 'feature' )\n", RandomizedAblation(45, unit="feature")),
        ("RandomizedAblation(keep=3, null='mean', mean=(0.5,))", RandomizedAblation(3, null="mean", mean=(0.5,))),
        ("DeterministicSplittingNoise(lam=0.5)", DeterministicSplittingNoise(0.5)),
        ("DeterministicSplittingNoise(0.5, 15, seed=7)", DeterministicSplittingNoise(0.5, 15, 7)),
        ("SplittingNoise(lam=0.5, q=None)", SplittingNoise(0.5)),
        ("GaussianNoise(0.25, q=16)", GaussianNoise(0.25, q=16)),
        ("GaussianNoise(sigma=1, sound=False)", GaussianNoise(1.0, sound=False)),
        ("SmoothReduce(0.25, 28, resize=32, stride=4)", SmoothReduce(0.25, 28, resize=32, stride=4)),
        ("SmoothReduce(0.5, (8, 9), count=3, reduce='max')", SmoothReduce(0.5, (8, 9), count=3, reduce="max")),
        ("SmoothReduceVideo(0.5, 64, chunk=8, stride=32)", SmoothReduceVideo(0.5, 64, 8, stride=32)),
        ("ThresholdVote(theta=0.5)", ThresholdVote(0.5)),
        ("L0('feature')", L0("feature")),
        ("L1()", L1()),
    ],
)
def test_parse(text, value):
    assert spec.parse(text) == value
    assert spec.parse(spec.to_text(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (RandomizedAblation(45), "RandomizedAblation(keep=45)"),
        (RandomizedAblation(45, unit="feature"), "RandomizedAblation(keep=45, unit='feature')"),
        (DeterministicSplittingNoise(0.5, q=255, seed=0), "DeterministicSplittingNoise(lam=0.5)"),
        (L1(), "L1()"),
    ],
)
def test_defaults_are_left_out(value, text):
    assert spec.to_text(value) == text


@given(st.integers(1, 400))
def test_from_sigma(hundredths):
    sigma = hundredths / 100
    parsed = spec.parse(f"DeterministicSplittingNoise.from_sigma({sigma})")
    assert parsed == DeterministicSplittingNoise.from_sigma(sigma)
    assert parsed.period == math.floor(2 * math.sqrt(3) * sigma * 255)
    assert spec.parse(spec.to_text(parsed)) == parsed


def test_from_sigma_takes_the_other_arguments():
    value = DeterministicSplittingNoise.from_sigma(0.5, q=15, seed=3)
    assert spec.parse("DeterministicSplittingNoise.from_sigma(sigma=0.5, q=15, seed=3)") == value
    assert spec.parse("SplittingNoise.from_sigma(0.5)") == SplittingNoise(0.5 * math.sqrt(3))


@pytest.mark.parametrize("scheme", [DeterministicSplittingNoise, SplittingNoise])
def test_numbers_of_numpy(scheme):
    value = scheme(np.float64(0.5))  # a float, e.g. out of np.linspace
    assert spec.parse(spec.to_text(value)) == value


def test_every_exported_dataclass_is_known():
    assert set(spec.known()) - certify.Scheme.own.keys() <= set(certify.__all__)
    assert {"RandomizedAblation", "DeterministicSplittingNoise", "SplittingNoise", "ThresholdVote"} <= set(spec.known())
    assert not {"Smoothed", "argmax_vote", "Scheme"} & set(spec.known())


MALICIOUS = [
    "__import__('os').system('{command}')",
    "__import__('os')",
    "eval(\"__import__('os').system('{command}')\")",
    "open('{path}', 'w')",
    "RandomizedAblation(keep=__import__('os').system('{command}'))",
    "RandomizedAblation(__import__('os').system('{command}'))",
    "RandomizedAblation(keep=open('{path}', 'w'))",
    "RandomizedAblation(keep=[open('{path}', 'w') for _ in (1,)])",
    "RandomizedAblation(keep=(lambda: open('{path}', 'w'))())",
    "RandomizedAblation(keep=45, **open('{path}', 'w'))",
    "RandomizedAblation(*open('{path}', 'w'))",
    "RandomizedAblation(keep=f\"{{open('{path}', 'w')}}\")",
    "RandomizedAblation(keep=(x := 45))",
    "__import__('os').from_sigma('{command}')",
    "open('{path}', 'w').from_sigma(1)",
    "import os",
    "x = RandomizedAblation(keep=45)",
    "RandomizedAblation(keep=45); open('{path}', 'w')",
]


@pytest.mark.parametrize("text", MALICIOUS)
def test_code_is_refused_and_not_run(tmp_path, text):
    path = tmp_path / "ran"
    with pytest.raises(ValueError, match="got "):
        spec.parse(text.format(command=f"touch {path}", path=path))
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "RandomizedAblation.__init__(45)",
        "RandomizedAblation.__class__(45)",
        "RandomizedAblation.sample(45)",
        "RandomizedAblation.mro()",
        "RandomizedAblation.__subclasses__()",
        "RandomizedAblation(45).channels(3)",
        "RandomizedAblation(45).keep",
        "RandomizedAblation.keep",
        "RandomizedAblation.from_sigma(1)",
        "RandomizedAblation.from_(1)",
        "DeterministicSplittingNoise.from_sigma",
        "DeterministicSplittingNoise.from_sigma(1)(2)",
        "DeterministicSplittingNoise(0.5).from_sigma(1)",
        "certify.RandomizedAblation(45)",
        "certify.DeterministicSplittingNoise.from_sigma(1)",
    ],
)
def test_attributes_are_refused(text):
    with pytest.raises(ValueError, match="got '"):
        spec.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "RandomizedAblation",
        "RandomizedAblation(",
        "(45)",
        "45",
        "'RandomizedAblation(keep=45)'",
        "randomizedablation(keep=45)",
        "NoSuchScheme(0.5)",
        "Smoothed(None, None, 2)",
        "argmax_vote([[1, 2]])",
        "Scheme()",
        "SampledScheme()",
        "dict(keep=45)",
        "[RandomizedAblation(keep=45)][0](1)",
        "RandomizedAblation(keep=45) or 1",
        "RandomizedAblation(keep=45), 1",
        "RandomizedAblation keep=45",
        "\0",
    ],
)
def test_unknown_names_and_other_texts(text):
    with pytest.raises(ValueError, match=r"expected e\.g\. RandomizedAblation"):
        spec.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "RandomizedAblation()",
        "RandomizedAblation('many')",
        "RandomizedAblation([45])",
        "RandomizedAblation(None)",
        "RandomizedAblation(2.5)",
        "RandomizedAblation(1, 2, 3, 4, 5, 6)",
        "RandomizedAblation(45, keep=45)",
        "RandomizedAblation(45, 'row')",
        "RandomizedAblation(0)",
        "RandomizedAblation(keep=45, sigma=1)",
        "RandomizedAblation(keep=keep)",
        "RandomizedAblation(keep=40 + 5)",
        "RandomizedAblation(keep=45, keep=46)",
        "RandomizedAblation(*[45])",
        "RandomizedAblation(keep=45, **{'unit': 'feature'})",
        "RandomizedAblation(**{'keep': 45})",
        "DeterministicSplittingNoise('0.5')",
        "DeterministicSplittingNoise(-1)",
        "DeterministicSplittingNoise(1e999)",
        "DeterministicSplittingNoise(0.5, q=0)",
        "DeterministicSplittingNoise(0.5, q=1.5)",
        "DeterministicSplittingNoise(0.5, 255, 'seed')",
        "DeterministicSplittingNoise.from_sigma()",
        "DeterministicSplittingNoise.from_sigma('x')",
        "DeterministicSplittingNoise.from_sigma(1e999)",
        "SplittingNoise(0.5, 255, 3)",
        "SplittingNoise(1j)",
        "ThresholdVote(1)",
        "L1(1)",
    ],
)
def test_wrong_arguments(text):
    with pytest.raises(ValueError):
        spec.parse(text)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"got 'RandomizedAblation\(keep=keep\)': keep is not a number"):
        spec.parse("RandomizedAblation(keep=keep)")


def test_parse_scheme():
    assert spec.parse_scheme("RandomizedAblation(keep=45)") == RandomizedAblation(45)
    for text in ("ThresholdVote(theta=0.5)", "L1()"):
        with pytest.raises(ValueError, match="expected a smoothing scheme"):
            spec.parse_scheme(text)


def test_parse_vote():
    assert spec.parse_vote("argmax") is certify.argmax_vote
    assert spec.parse_vote("ThresholdVote(theta=0.5)") == ThresholdVote(0.5)
    for text in ("RandomizedAblation(keep=45)", "L1()"):
        with pytest.raises(ValueError, match="expected argmax or a vote rule"):
            spec.parse_vote(text)


def test_deep_nesting_is_refused():
    with pytest.raises(ValueError):
        spec.parse(f"RandomizedAblation({'-' * 3000}1)")


@given(st.text())
def test_any_text_is_refused(text):
    with pytest.raises(ValueError):
        spec.parse(text)


@given(st.text())
def test_any_arguments_are_parsed_or_refused(text):
    try:
        value = spec.parse(f"RandomizedAblation({text})")
    except ValueError:
        return
    assert isinstance(value, RandomizedAblation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GausianNoise(0.25)", r"did you mean GaussianNoise\("),
        ("GaussianNoise(0.25", "not complete"),
        ("GaussianNoise(sgma=0.25)", r"unexpected keyword argument 'sgma'.*; expected GaussianNoise\(sigma[,)]"),
        ("Ablate(3)", "expected e.g. RandomizedAblation"),
    ],
)
def test_misspelt_schemes_are_helped_with(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        spec.parse_scheme(text)
    assert "ThresholdVote" not in str(caught.value)
    with pytest.raises(ValueError, match=r"did you mean ThresholdVote\("):
        spec.parse_vote("Threshold(0.3)")
