"""Statistics of learning curves against hand-computed values, scipy and simulation; logs and the script as used."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rl import evaluation
from rl.evaluation import bootstrap, difference, interquartile_mean, mean, stratified
from rl.logs import read_config, read_evaluations, read_method
from scripts import evaluate as script
from scripts.parts import cli

floats = st.floats(-1e3, 1e3)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- aggregates


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7], 7),
        ([1, 2], 1.5),
        ([0, 3, 9], (0.25 * 0 + 3 + 0.25 * 9) / 1.5),
        ([9, 1, 2, 100], 5.5),
        ([0, 1, 2, 4, 100], (0.75 * 1 + 2 + 0.75 * 4) / 2.5),
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(scores) == pytest.approx(expected)


@given(st.integers(1, 6), st.data())
def test_interquartile_mean_is_scipys_for_multiples_of_four(quarter, data):
    scores = np.array(data.draw(st.lists(floats, min_size=4 * quarter, max_size=4 * quarter)))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25), abs=1e-9)


@given(st.lists(floats, min_size=1, max_size=9))
def test_interquartile_mean_is_the_middle_half_of_four_copies(scores):
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(np.repeat(scores, 4), 0.25), abs=1e-9)


def test_interquartile_mean_along_an_axis():
    scores = rng().normal(size=(3, 5, 2))
    got = interquartile_mean(scores, axis=1)
    assert got.shape == (3, 2)
    assert got[1, 0] == pytest.approx(interquartile_mean(scores[1, :, 0]).item())


def test_area_is_the_mean_height():
    assert evaluation.area_under_curve([0, 1, 1], [0, 10, 30]) == pytest.approx((5 + 20) / 30)
    assert evaluation.area_under_curve([[2, 2], [0, 1]], [100, 300]).tolist() == [2, 0.5]
    assert evaluation.area_under_curve([[0.3], [0.4]], [5]).tolist() == [0.3, 0.4]


@pytest.mark.parametrize(
    ("scores", "timesteps", "message"),
    [
        ([1, 2], [5, 5], "timesteps: got steps that do not increase"),
        ([1, 2], [1, 2, 3], "scores, timesteps: got shapes"),
        ([], [], "scores, timesteps: got shapes"),
    ],
)
def test_areas_that_make_no_sense(scores, timesteps, message):
    with pytest.raises(ValueError, match=message):
        evaluation.area_under_curve(scores, timesteps)


def test_probability_of_improvement_is_mann_whitneys():
    a, b = np.array([1.0, 2, 2, 5]), np.array([0.0, 2, 3])
    got = evaluation.probability_of_improvement(a[None], b[None]).item()
    assert got == pytest.approx((6 + 2 / 2) / 12)  # of 12 pairs, 1 > 0, 2 > 0 twice, 5 > all; 2 = 2 twice
    assert got == pytest.approx(stats.mannwhitneyu(a, b).statistic / 12)


# --- intervals


def test_student_intervals_are_scipys():
    a, b = rng(1).normal(size=4), rng(2).normal(1, 3, size=6)
    got = evaluation.student_interval(a, level=0.9)
    assert (got.low, got.high) == pytest.approx(stats.t.interval(0.9, 3, a.mean(), stats.sem(a)))
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    got = evaluation.student_difference(a, b, level=0.9)
    assert (got.low, got.high) == pytest.approx((welch.low, welch.high))
    paired = stats.ttest_rel(a, b[:4]).confidence_interval(0.9)
    got = evaluation.student_difference(a, b[:4], level=0.9, paired=True)
    assert (got.low, got.high) == pytest.approx((paired.low, paired.high))


def test_student_intervals_of_equal_scores():
    same = evaluation.student_difference([0.5, 0.5], [0.25, 0.25])
    assert (same.value, same.low, same.high) == (0.25, 0.25, 0.25)


def test_bootstrap_is_scipys():
    a = rng().normal(size=12)
    expected = stats.bootstrap((a,), np.mean, method="percentile", n_resamples=40_000, rng=rng(1)).confidence_interval
    got = bootstrap(stratified(mean), a, generator=rng(2), resamples=40_000)
    assert got.value == pytest.approx(a.mean())
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_bootstrap_of_two_runs_by_enumeration():
    """The mean of two draws of {0, 1} is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    wide = bootstrap(stratified(mean), [0, 1], generator=rng(), level=0.6)
    assert (wide.value, wide.low, wide.high) == (0.5, 0, 1)
    narrow = bootstrap(stratified(mean), [0, 1], generator=rng(), level=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_strata_are_resampled_apart():
    """Two tasks of very different height: runs never move from one to the other."""
    easy, hard = [10.0, 10, 10], [0.0, 0]
    got = bootstrap(stratified(mean), easy, hard, generator=rng())
    assert (got.value, got.low, got.high) == (6, 6, 6)


def test_pairs_are_drawn_together():
    a = rng().normal(size=5)
    got = bootstrap(difference(), a + 1, a, generator=rng(), paired=True)
    assert (got.value, got.low, got.high) == pytest.approx((1, 1, 1))
    apart = bootstrap(difference(), a + 1, a, generator=rng())
    assert apart.low < 0.9 < 1.1 < apart.high


def test_curves_are_resampled_whole_and_in_pieces(monkeypatch):
    curves = rng().normal(size=(4, 7))
    whole = bootstrap(stratified(interquartile_mean), curves, generator=rng(3))
    monkeypatch.setattr(evaluation, "_VALUES_AT_ONCE", 100)
    pieces = bootstrap(stratified(interquartile_mean), curves, generator=rng(3))
    assert whole.low.shape == (7,)
    for name in ("value", "low", "high"):
        assert np.array_equal(getattr(whole, name), getattr(pieces, name))


@given(st.lists(floats, min_size=1, max_size=8), st.sampled_from([mean, interquartile_mean]))
def test_bootstrap_stays_in_the_range_of_the_runs(scores, aggregate):
    got = bootstrap(stratified(aggregate), scores, generator=rng(), resamples=50)
    assert min(scores) - 1e-9 <= got.low <= got.high <= max(scores) + 1e-9


@pytest.mark.parametrize(("runs", "least", "most"), [(4, 0.75, 0.85), (40, 0.915, 0.96)])
def test_coverage_in_simulation(runs, least, most):
    """As the documentation says: Student's t covers 95 % with any number of runs, the bootstrap only with many."""
    generator, times = rng(), 2_000
    scores = generator.normal(size=(times, runs))
    by_bootstrap = [bootstrap(stratified(mean), row, generator=generator, resamples=500) for row in scores]
    by_student = [evaluation.student_interval(row) for row in scores]
    assert least <= np.mean([e.low <= 0 <= e.high for e in by_bootstrap]) <= most
    assert 0.93 <= np.mean([e.low <= 0 <= e.high for e in by_student]) <= 0.97


def test_coverage_of_paired_and_unpaired_differences():
    generator, times = rng(), 600
    shared = generator.normal(size=(times, 30))
    a, b = shared + generator.normal(size=(times, 30)) / 3, shared + generator.normal(size=(times, 30)) / 3
    widths = []
    for paired, most in ((True, 0.97), (False, 1)):  # unpaired ignores what the seeds share: too wide here
        got = [
            bootstrap(difference(), x, y, generator=generator, resamples=400, paired=paired)
            for x, y in zip(a, b, strict=True)
        ]
        assert 0.91 <= np.mean([e.low <= 0 <= e.high for e in got]) <= most
        widths.append(np.mean([e.high - e.low for e in got]))
    assert widths[0] < widths[1] / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(stratified(mean), [0.0, math.nan], generator=rng()), "got NaN or infinity"),
        (lambda: bootstrap(stratified(mean), [], generator=rng()), "expected \\[runs, ...\\]"),
        (lambda: bootstrap(stratified(mean), [1.0], generator=rng(), level=95), "level: got 95"),
        (lambda: bootstrap(stratified(mean), [1.0], generator=rng(), resamples=0), "resamples: got 0"),
        (lambda: bootstrap(difference(), [1, 2], [1], generator=rng(), paired=True), "paired: got"),
        (lambda: evaluation.student_interval([1.0]), "at least 2 runs"),
        (lambda: evaluation.student_interval([1.0, 2], level=1), "level: got 1"),
        (lambda: evaluation.student_difference([1, 2], [1, 2, 3], paired=True), "paired: got 2 and 3"),
        (lambda: evaluation.student_difference([1, 2], [1]), "b: got shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- logs


def write_log(folder: Path, timesteps, rates, episodes: int = 20, config: dict | None = None, success=True) -> Path:
    """What EvalCallback writes, with success rates that are multiples of 1 / episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    won = np.arange(episodes) < np.round(np.array(rates)[:, None] * episodes)
    arrays = {"timesteps": timesteps, "results": won - 5.0, "ep_lengths": np.full(won.shape, 10)}
    np.savez(folder / "evaluations.npz", **arrays, **({"successes": won} if success else {}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "evaluations.npz"


def test_log_as_stable_baselines_writes_it(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.monitor import Monitor

    environment = Monitor(gymnasium.make("CartPole-v1"))
    callback = EvalCallback(environment, n_eval_episodes=3, eval_freq=40, log_path=str(tmp_path), verbose=0)
    sb3.DQN("MlpPolicy", "CartPole-v1", learning_starts=1_000, seed=0).learn(120, callback=callback)
    log = read_evaluations(tmp_path / "evaluations.npz")
    assert log.timesteps.tolist() == [40, 80, 120]
    assert log.results.shape == log.ep_lengths.shape == (3, 3)
    assert np.array_equal(log.scores("return"), log.ep_lengths.mean(1))
    with pytest.raises(ValueError, match='got "success", but the log holds none'):
        log.scores("success")


def test_runs_in_progress_are_cut_to_common_steps(tmp_path):
    write_log(tmp_path / "seed-10", [100, 200, 300, 400], [0, 0.5, 1, 1])
    write_log(tmp_path / "seed-9", [100, 200], [0, 0.25], config={"env": "E"})
    (tmp_path / "seed-old").mkdir()
    method = read_method(tmp_path, "success")
    assert method.seeds == (9, 10)
    assert method.timesteps.tolist() == [100, 200]
    assert method.scores.tolist() == [[0, 0.25], [0, 0.5]]
    assert method.logged == (2, 4)
    assert method.config == {"env": "E"}
    assert method.at(np.array([200])).tolist() == [[0.25], [0.5]]
    assert read_method(tmp_path, "return").scores[1].tolist() == [-5, -4.5]


def savez(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def ragged(path: Path) -> Path:
    rows = np.empty(2, object)
    rows[:] = [[1.0], [1.0, 2.0]]
    return savez(path, timesteps=[1, 2], results=rows, ep_lengths=rows)


def truncated(path: Path) -> Path:
    whole = io.BytesIO()
    np.savez(whole, timesteps=[1], results=[[1.0]], ep_lengths=[[1]])
    path.write_bytes(whole.getvalue()[:200])
    return path


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (truncated, "is cut off"),
        (lambda path: path.write_bytes(b""), "is cut off"),
        (lambda path: path.write_bytes(b"text"), "got more than numbers"),
        (ragged, "got more than numbers"),
        (lambda path: savez(path, results=ONES), "got results; timesteps, ep_lengths missing"),
        (lambda path: savez(path, timesteps=[1], results=ONES, ep_lengths=ONES), r"timesteps \(1,\) and results"),
        (lambda path: savez(path, timesteps=[], results=ONES[:0], ep_lengths=ONES[:0]), "E >= 1"),
        (lambda path: savez(path, timesteps=[1, 2], results=ONES, ep_lengths=ONES[:, :2]), "got ep_lengths"),
        (
            lambda path: savez(path, timesteps=[1, 2], results=ONES, ep_lengths=ONES, successes=ONES[:1]),
            "got successes",
        ),
        (lambda path: savez(path, timesteps=[1, 2], results=ONES * np.nan, ep_lengths=ONES), "not finite"),
        (lambda path: savez(path, timesteps=[2, 1], results=ONES, ep_lengths=ONES), "log of two training runs"),
    ],
)
def test_damaged_logs(tmp_path, write, message):
    path = tmp_path / "evaluations.npz"
    write(path)
    with pytest.raises(ValueError, match=message):
        read_evaluations(path)


def test_missing_and_unfit_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="got no seed folders"):
        read_method(tmp_path, "success")
    write_log(tmp_path / "seed-0", [1, 2], [0, 1], config={"env": "A"})
    (tmp_path / "seed-1").mkdir()
    with pytest.raises(FileNotFoundError, match="seed-1"):
        read_method(tmp_path, "success")
    write_log(tmp_path / "seed-1", [3], [0])
    with pytest.raises(ValueError, match="without a common evaluation step"):
        read_method(tmp_path, "success")
    write_log(tmp_path / "seed-1", [2], [0], config={"env": "B"})
    with pytest.raises(ValueError, match="seeds with env A and B, expected one"):
        read_method(tmp_path, "success")
    # what is trained is the same in a method, how far it is and by which command may differ
    for arguments, fits in (({"lr": 1}, True), ({"lr": 2}, False)):
        config = {"env": "A", "arguments": {"lr": 1}, "plan": {"steps": 9, "eval_every": 1}, "command": "a", "seed": 0}
        write_log(tmp_path / "seed-0", [1, 2], [0, 1], config=config)
        other = config | {"arguments": arguments, "plan": {"steps": 5, "eval_every": 1}, "command": "b", "seed": 1}
        write_log(tmp_path / "seed-1", [2], [0], config=other)
        if fits:
            assert read_method(tmp_path, "success").seeds == (0, 1)
            continue
        with pytest.raises(ValueError, match=r"seeds with arguments\.lr 1 and 2, expected one method"):
            read_method(tmp_path, "success")
    write_log(tmp_path / "seed-0", [1, 2], [0, 1], config={"env": "A"})
    write_log(tmp_path / "seed-1", [2], [0], config={"env": "A"}, success=False)
    with pytest.raises(ValueError, match="seed-1: metric"):
        read_method(tmp_path, "success")


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "got list, expected a JSON object")])
def test_configurations_that_are_none(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


# --- the script


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    config, steps = {"env": "Toy-v0", "algorithm": "DDPG"}, np.arange(1, 6) * 1_000
    for seed, rate in enumerate((0.1, 0.2, 0.3, 0.4)):
        write_log(tmp_path / f"slow/seed-{seed}", steps, np.full(5, rate), config=config)
        write_log(tmp_path / f"fast/seed-{seed}", steps[:4], np.full(4, rate + 0.5), config=config)
    write_log(tmp_path / "one/seed-7", steps, np.full(5, 0.5))
    return [tmp_path / name for name in ("slow", "fast", "one")]


def test_script_end_to_end(runs, tmp_path, capsys):
    out, summary = tmp_path / "out/c.png", tmp_path / "out/s.json"
    script.main(script.Args(runs=runs, baseline=runs[0], out=out, json=summary))
    printed = capsys.readouterr().out
    assert "Toy-v0: success, mean height of the learning curve to step 4,000 (4 evaluations)" in printed
    assert "minus slow" in printed
    assert "slow: 4 evaluations at common steps are used, logged are seed-0: 5" in printed
    assert out.read_bytes().startswith(b"\x89PNG")
    slow, fast, one = json.loads(summary.read_text())["methods"]
    assert slow["auc"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert slow["auc_iqm"]["value"] == slow["auc_mean"]["value"] == pytest.approx(0.25)
    assert "comparison" not in slow
    gap = fast["comparison"]
    assert gap["paired"]
    assert gap["baseline"] == "slow"
    for name in ("difference", "difference_student"):
        assert list(gap[name].values()) == pytest.approx([0.5, 0.5, 0.5])
    assert gap["probability_of_improvement"] == {"value": 1, "low": 1, "high": 1}
    assert not one["comparison"]["paired"]
    assert one["auc_mean"] == {"value": 0.5, "low": None, "high": None}
    assert one["comparison"]["difference"]["low"] is None


def test_numbers_do_not_depend_on_the_other_runs(runs, tmp_path):
    got = []
    for chosen in (runs, runs[:0:-1]):  # both with a run that ends at step 4,000
        script.main(script.Args(runs=chosen, metric="return", line="mean", json=tmp_path / "s.json"))
        methods = json.loads((tmp_path / "s.json").read_text())["methods"]
        got.append({m["name"]: {key: m[key] for key in m if key.startswith("auc")} for m in methods})
    assert got[0]["fast"] == got[1]["fast"]
    assert (runs[0] / "curves.png").exists()
    assert (runs[2] / "curves.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slow", "--baseline", "fast"], "baseline: got fast, expected one of slow"),
        (["slow", "slow"], "got one of them twice"),
        (["nowhere"], "nowhere: got no seed folders"),
        (["slow", "--interval", "95"], "level: got 95"),
        (["slow", "other"], "got Other-v0 and Toy-v0, expected runs of one environment"),
    ],
)
def test_script_failures_are_one_line(runs, tmp_path, monkeypatch, capsys, words, message):
    write_log(tmp_path / "other/seed-0", [1_000], [0], config={"env": "Other-v0"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.run(script.main, script.Args, "scripts.evaluate", words)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("**/summary.json"))


def test_labels_that_would_overlap_are_spread():
    heights = script._spread_labels([0.5, 0.5, 0.9, 0.52], 0.1)
    ranked = sorted(heights)
    assert np.diff(ranked).min() >= 0.1 - 1e-9
    assert heights[2] == 0.9
    assert np.mean([heights[0], heights[1], heights[3]]) == pytest.approx(np.mean([0.5, 0.5, 0.52]))
