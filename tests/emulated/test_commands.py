"""Commands with ``--device``, from training to results."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from certify.results import read_rows
from scripts.parts import cli
from tests.emulated.device import GPU


def run(name: str, *words: str) -> None:
    module = import_module(f"scripts.{name}")
    module.main(cli.parse_args(module.Args, list(words), f"scripts.{name}"))


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("RandomizedAblation(keep=20)", ("--n", "50")),
        ("GaussianNoise(sigma=0.25)", ("--at", "0.1", "--max-n", "400")),
        ("BandAblation(width=2)", ("--vote", "ThresholdVote(theta=0.3)")),
        ("VariableLambda(p=0.5, alpha=2, budget=40)", ()),
    ],
)
def test_training_certifying_and_attacking(scheme, options, tmp_path, capsys):
    run("train", f"{tmp_path}/m", "--data", "digits", "--scheme", scheme, "--epochs", "1", "--device", GPU)
    results = []
    for device in ("cpu", GPU):
        out = tmp_path / device
        run("certify", f"{out}", "--checkpoint", f"{tmp_path}/m", "--skip", "80", "--device", device, *options)
        results.append(read_rows(out)["radius"].tolist())
    assert results[0] == results[1]
    run("report", f"{tmp_path}/{GPU}")
    if scheme.startswith("Randomized"):
        run("logits", f"{tmp_path}/{GPU}", "--checkpoint", f"{tmp_path}/m", "--images", "0", "80", "--device", GPU)
    if scheme.startswith("Band"):
        run("select_vote", f"{tmp_path}/m", "--patch", "2", "--skip", "80", "--device", GPU)
        attack = ("--attack", "patch", "--patch", "2", "--restarts", "1", "--steps", "1")
    else:
        attack = ("--restarts", "1", "--max-queries", "20")
    if not scheme.startswith("Variable"):
        n = () if scheme.startswith("Band") else ("--n", "20")
        where = ("--checkpoint", f"{tmp_path}/m", "--skip", "150", "--device", GPU)
        run("attack", f"{tmp_path}/attack", *where, *attack, *n)


@pytest.mark.parametrize("options", [(), ("--method", "run-off"), ("--at-once", "3")])
def test_poisoning(options, tmp_path, capsys):
    learner = ("--learner", "Network('small_cnn', steps=2, batch_size=4)", "--partition", "PixelSum(5)")
    votes = []
    for device in ("cpu", GPU):
        run("poisoning", "all", f"{tmp_path}/{device}", "--data", "digits", *learner, "--device", device, *options)
        votes.append(read_rows(next(Path(tmp_path / device).rglob("rows.tsv")).parent)["radius"].tolist())
    assert votes[0] == votes[1]


def test_denoisers_and_features(tmp_path, capsys):
    run("train", f"{tmp_path}/clean", "--data", "digits", "--scheme", "none", "--epochs", "1", "--device", GPU)
    noise = ("--scheme", "GaussianNoise(sigma=0.25)", "--epochs", "1", "--device", GPU)
    run("train_denoiser", f"{tmp_path}/d", "--classifier", f"{tmp_path}/clean", "--objective", "mse", *noise)
    run(
        "train_features",
        f"{tmp_path}/f",
        "--data",
        "digits",
        "--method",
        "RotNet('small_cnn', epochs=1)",
        "--device",
        GPU,
    )


@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("train_continuous_seek", "1020", ("--d", "2", "--goal-gradient-coef", "0.2", "--layers", "16", "16")),
        ("train_bit_flipping", "128", ("--d", "4", "--goal-gradient-coef", "0.5")),
        (
            "train_multi_goal",
            "1020",
            ("--env", "DriveSeek-v0", "--goal-gradient-coef", "0.1", "--max-goals", "5", "--head", "16"),
        ),
    ],
)
def test_agents(name, steps, options, tmp_path, capsys):
    often = ("--steps", "--eval-every", "--checkpoint-every")
    plan = (*(word for option in often for word in (option, steps)), "--eval-episodes", "2", "--seeds", "0")
    run(name, f"{tmp_path}/run", *options, *plan, "--batch-size", "8", "--device", GPU)
    run("rollout", f"{tmp_path}/run/seed-0", "--episodes", "1")
