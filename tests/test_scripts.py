"""The command lines as a user runs them: killed, sharded, resumed, and given bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from certify import SampledScheme
from certify.data import load
from certify.files import lock_file
from certify.models import ModelSpec
from certify.results import TableFile, read_rows, read_votes
from certify.spec import parse
from certify.topk import certified_top_k_accuracy, certify_counts
from certify.training import Trainer, TrainingConfig, load_checkpoint
from scripts import agreement as agreement_script
from scripts import certify as certify_script
from scripts import report as report_script
from scripts import train as train_script
from scripts.parts import cli

ROOT = Path(__file__).parent.parent
SCHEMES = {"ablation": "RandomizedAblation(keep=20)", "dssn": "DeterministicSplittingNoise(lam=0.5)"}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, text in SCHEMES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        scheme, data = parse(text), load("digits", "train")
        spec = ModelSpec("mnist_cnn", scheme.channels(1), 10, 8)
        Trainer(data, scheme, spec, TrainingConfig(epochs=4, batch_size=64, lr=0.1), folders[name]).run()
    return folders


def certify(out: Path, checkpoint: Path, **options) -> None:
    scheme = parse(options["scheme"]) if "scheme" in options else load_checkpoint(checkpoint)[1].scheme
    defaults = {"n0": 50, "n": 400, "max": 24} if isinstance(scheme, SampledScheme) else {"max": 24}
    if options.keys() & {"at", "within"}:
        defaults.pop("n", None)
    certify_script.main(certify_script.Args(out=out, checkpoint=checkpoint, **(defaults | options)))


def lines(folder: Path) -> list[list[str]]:
    """All rows of a run without their times, ordered by index."""
    rows = [line.split("\t") for path in folder.glob("rows*.tsv") for line in path.read_text().splitlines()[1:]]
    return sorted(([*row[:5], *row[6:]] for row in rows), key=lambda row: int(row[0]))


@pytest.mark.parametrize("name", SCHEMES)
def test_shards_and_step_sizes_give_the_same_rows(tmp_path, checkpoints, name):
    certify(tmp_path / "one", checkpoints[name])
    certify(tmp_path / "single", checkpoints[name], images_per_step=1)
    certify(tmp_path / "large", checkpoints[name], images_per_step=256)
    for i in (2, 0, 3, 1):
        certify(tmp_path / "four", checkpoints[name], shard=f"{i}/4")
    expected = lines(tmp_path / "one")
    assert len(expected) == 24
    for other in ("single", "large", "four"):
        assert lines(tmp_path / other) == expected
    votes = [read_votes(tmp_path / folder).votes.counts.tolist() for folder in ("one", "single", "large", "four")]
    assert all(v == votes[0] for v in votes)


@pytest.mark.parametrize("name", SCHEMES)
def test_forward_batches_of_one_and_of_256_give_the_same_rows(tmp_path, checkpoints, name):
    certify(tmp_path / "1", checkpoints[name], batch_size=1, max=6)
    certify(tmp_path / "256", checkpoints[name], batch_size=256, max=6)
    assert lines(tmp_path / "1") == lines(tmp_path / "256")


def test_skip_takes_every_so_manieth_image(tmp_path, checkpoints):
    certify(tmp_path, checkpoints["dssn"], skip=50, max=4)
    assert read_rows(tmp_path)["idx"].tolist() == [0, 50, 100, 150]


def test_kill_in_the_middle_of_a_certification(tmp_path, checkpoints):
    """SIGKILL at an arbitrary moment, and a line cut in half on top; the resumed rows and votes are identical."""
    command = [sys.executable, "-m", "scripts.certify", "--checkpoint", str(checkpoints["ablation"])]
    command += ["--n0", "100", "--n", "3000", "--max", "20"]
    subprocess.run([*command, tmp_path / "whole"], cwd=ROOT, check=True, capture_output=True)
    part = tmp_path / "part"
    process = subprocess.Popen([*command, part], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not ((part / "rows.tsv").exists() and len(lines(part)) >= 3):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(lines(part))
    assert 3 <= done < 20, "the run was over before it could be killed"
    with (part / "rows.tsv").open("a") as rows, (part / "votes.tsv").open("a") as votes:
        rows.write("39\t5\t")
        votes.write("39\t5\t100\t3000\t1:2")
    subprocess.run([*command, part, "--resume"], cwd=ROOT, check=True, capture_output=True)
    assert lines(part) == lines(tmp_path / "whole")
    assert (part / "votes.tsv").read_text() == (tmp_path / "whole/votes.tsv").read_text()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_interrupt_ends_quietly_and_keeps_the_rows(tmp_path, checkpoints, sent, status):
    command = [sys.executable, "-m", "scripts.certify", str(tmp_path), "--checkpoint", str(checkpoints["ablation"])]
    process = subprocess.Popen(
        [*command, "--n", "20000"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background shell has ignored
    )
    while process.poll() is None and not ((tmp_path / "rows.tsv").exists() and len(lines(tmp_path)) >= 1):
        time.sleep(0.02)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "with --resume to continue" in stderr
    assert "Traceback" not in stderr
    assert len(lines(tmp_path)) >= 1


@dataclass
class NoArgs:
    """A command without arguments."""


def test_sigterm_is_handled_once_and_only_where_it_is_not_ignored():
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread")
    handlers = []

    def interrupted(args: NoArgs) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.run(interrupted, NoArgs, "scripts.test", [])
    assert ended.value.code == 143
    assert handlers == [signal.SIG_DFL]  # a second one ends the process at once
    assert signal.getsignal(signal.SIGTERM) == before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        cli.run(lambda args: os.kill(os.getpid(), signal.SIGTERM), NoArgs, "scripts.test", [])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    program = f"""
import os, subprocess, sys
from dataclasses import dataclass
from scripts.parts import cli
@dataclass
class Args:
    "A command without arguments."
def main(args):
    with open({str(tmp_path / "results")!r}, "w") as results:
        for number in (1, 2):
            os.write(number, b"a warning of a library")
        print("progress")
        print("a message", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo from a worker; echo and another >&2"], close_fds=True)
        results.write("results")
cli.run(main, Args, "scripts.test", [])
"""
    line = shlex.join([sys.executable, "-c", program]) + " <&- >&- 2>&-"
    subprocess.run(line, shell=True, cwd=ROOT, check=True)
    assert (tmp_path / "results").read_text() == "results"


def test_closed_streams_are_no_obstacle(tmp_path, checkpoints):
    """Some programs start others without standard output; what is printed must not end up in the results."""
    command = [sys.executable, "-m", "scripts.certify", "--checkpoint", str(checkpoints["ablation"]), "--n", "100"]
    for name, closed in (("open", ""), ("closed", " >&- 2>&-")):
        line = shlex.join([*command, "--max", "2", str(tmp_path / name)]) + closed
        subprocess.run(line, shell=True, cwd=ROOT, check=True, capture_output=not closed)
    assert lines(tmp_path / "closed") == lines(tmp_path / "open")
    assert (tmp_path / "closed/votes.tsv").read_text() == (tmp_path / "open/votes.tsv").read_text()


def test_full_disk_keeps_the_rows(tmp_path, checkpoints):
    """A limit on the size of files stands in for a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    command = [sys.executable, "-m", "scripts.certify", "--checkpoint", str(checkpoints["dssn"]), "--max", "60"]
    full = subprocess.run([*command, tmp_path / "a"], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "no space" in full.stderr
    assert 0 < len(read_rows(tmp_path / "a")["idx"]) < 60
    subprocess.run([*command, tmp_path / "a", "--resume"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run([*command, tmp_path / "b"], cwd=ROOT, check=True, capture_output=True)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_full_disk_message(monkeypatch, capsys, tmp_path, checkpoints):
    def full(self: TableFile, line: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(TableFile, "append", full)
    with pytest.raises(SystemExit) as stop:
        cli.run(
            certify_script.main,
            certify_script.Args,
            "scripts.certify",
            [str(tmp_path), "--checkpoint", str(checkpoints["dssn"])],
        )
    assert stop.value.code == 1
    assert "free some and use --resume" in capsys.readouterr().err


def test_a_run_can_be_extended(tmp_path, checkpoints):
    certify(tmp_path / "part", checkpoints["dssn"], max=5)
    certify(tmp_path / "part", checkpoints["dssn"], max=9, resume=True)
    certify(tmp_path / "whole", checkpoints["dssn"], max=9)
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")


def test_other_shards_are_not_computed_again(tmp_path, checkpoints):
    certify(tmp_path, checkpoints["dssn"], max=8, shard="0/2")
    certify(tmp_path, checkpoints["dssn"], max=8)
    assert len(read_rows(tmp_path)["idx"]) == 8
    assert len((tmp_path / "rows.tsv").read_text().splitlines()) == 1 + 4


def test_two_processes_on_one_shard(tmp_path, checkpoints):
    certify(tmp_path, checkpoints["dssn"], max=2)
    with (tmp_path / "rows.tsv").open("a") as other:
        lock_file(other.fileno())
        with pytest.raises(ValueError, match="another process writes to it"):
            certify(tmp_path, checkpoints["dssn"], max=4, resume=True)
    assert len(lines(tmp_path)) == 2


def test_resume_refuses_other_settings(tmp_path, checkpoints):
    certify(tmp_path, checkpoints["ablation"], max=2)
    with pytest.raises(ValueError, match="add --resume"):
        certify(tmp_path, checkpoints["ablation"], max=2)
    with pytest.raises(ValueError, match="was made with sampling"):
        certify(tmp_path, checkpoints["ablation"], max=2, resume=True, n=500)
    assert len(lines(tmp_path)) == 2


def refused(arguments: list[str], message: str) -> None:
    result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr), result.stderr


BAD = [
    (["--shard", "4/4"], "shard: got '4/4', expected i/n with 0 <= i < n"),
    (["--alpha", "0"], r"alpha .*: got 0.0, expected a number strictly between 0 and 1"),
    (["--alpha", "1"], "strictly between 0 and 1"),
    (["--scheme", "RandomizedAblation(keep=65)"], "keep: got 65, expected between 1 and .* d = 64"),
    (["--scheme", "Ablation()"], "expected e.g. RandomizedAblation"),
    (["--scheme", "DeterministicSplittingNoise(lam=0.5)"], "makes copies of 1 channels"),
    (["--data", "mnist", "--data-root", "/nonexistent"], "run 'python -m scripts.fetch mnist'"),
    (["--data", "svhn"], "data set: got 'svhn', expected one of digits"),
    (["--scheme", "ThresholdVote(theta=0.6)"], "expected a smoothing scheme such as"),
    (["--scheme", "RandomizedAblation(keep=abc)"], "abc is not a number"),
    (["--vote", "RandomizedAblation(keep=3)"], "expected argmax or a vote rule"),
    (["--device", "warp"], "device: got 'warp', which is not available here"),
    (["--images-per-step", "-1"], "images-per-step: got -1"),
    (["--n", "0"], "n: got 0, expected at least 1 sample"),
    (["--skip", "0"], "expected at least 1"),
    (["--vote", "ThresholdVote(theta=0.3)"], "may vote for several classes"),
    (["--seed", "-1"], "seed: got -1"),
    (["--at", "-2"], "radius: got -2.0"),
    (["--at", "2", "--within", "2"], "at, within: got both"),
    (["--within", "0.9"], r"factor: got 0\.9"),
    (["--at", "2", "--max-n", "0"], "max-n: got 0"),
    (["--at", "2", "--bounds", "simultaneous"], "apply to a fixed number of samples"),
    (["--at", "2", "--n", "50"], "n: got 50 with --at or --within"),
    (["--max-n", "50"], "max-n: got 50 without --at or --within"),
    (["--scheme", "DeterministicAblation(alpha=5)", "--alpha", "0.01"], "alpha: got 0.01, but .* is exact"),
    (["--scheme", "DeterministicAblation(alpha=5)", "--n0", "10"], "n0: got 10, but DeterministicAblation is exact"),
]


@pytest.mark.parametrize(
    ("options", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_leaves_no_trace(tmp_path, checkpoints, capsys, options, message):
    arguments = [str(tmp_path / "out"), "--checkpoint", str(checkpoints["ablation"]), *options]
    with pytest.raises(SystemExit) as stop:
        cli.run(certify_script.main, certify_script.Args, "scripts.certify", arguments)
    assert stop.value.code == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"macer_beta": 4.0}, "--macer-beta.*--loss macer"),
        ({"loss": "stability", "noise_samples": 4}, "--noise-samples.*--loss smoothadv or macer"),
        ({"loss": "macer", "epsilon": 1.0}, "--epsilon.*--loss smoothadv"),
    ],
)
def test_options_of_another_loss_are_refused_before_work(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        train_script.main(train_script.Args(out=tmp_path / "run", scheme="GaussianNoise(0.5)", **options))
    assert not (tmp_path / "run").exists()


def test_a_model_of_clean_images_is_certified_with_an_explicit_scheme(tmp_path, capsys):
    train_script.main(train_script.Args(out=tmp_path / "clean", scheme="none", epochs=1))
    assert "base accuracy on the 359 test images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="trained on clean images; choose a --scheme"):
        certify(tmp_path / "a", tmp_path / "clean")
    assert not (tmp_path / "a").exists()
    certify(tmp_path / "a", tmp_path / "clean", scheme=SCHEMES["dssn"], max=2)
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["trained_with"] == "none"
    assert config["scheme"] == SCHEMES["dssn"]


def test_bad_checkpoints_are_told_in_one_line(tmp_path, checkpoints):
    refused(["scripts.certify", str(tmp_path / "out"), "--checkpoint", str(tmp_path)], "no such checkpoint; train one")
    truncated = tmp_path / "model.safetensors"
    truncated.write_bytes((checkpoints["dssn"] / "model.safetensors").read_bytes()[:999])
    refused(
        ["scripts.certify", str(tmp_path / "out"), "--checkpoint", str(truncated)], "truncated, or not a checkpoint"
    )
    refused(["scripts.certify", str(tmp_path / "out")], "--checkpoint")


def test_report_from_rows_and_from_votes(tmp_path, checkpoints, capsys):
    certify(tmp_path / "a", checkpoints["ablation"])
    certify(tmp_path / "d", checkpoints["dssn"])
    report_script.main(report_script.Args(runs=[tmp_path / "a", tmp_path / "d"], out=tmp_path / "r"))
    printed = capsys.readouterr().out
    assert "certified accuracy at radius r, l0 (pixels)" in printed
    assert "certified accuracy at radius r, l1" in printed
    assert (tmp_path / "r/certified_accuracy.png").read_bytes().startswith(b"\x89PNG")
    first, second = json.loads((tmp_path / "r/report.json").read_text())
    rows = read_rows(tmp_path / "a")
    assert first["images"] == 24
    assert first["certified_accuracy"][0] == pytest.approx(((rows["correct"] > 0) & (rows["radius"] >= 0)).mean())
    assert all(
        low <= high
        for low, high in zip(first["certified_accuracy_high_probability"], first["certified_accuracy"], strict=True)
    )
    assert second["alpha"] is None
    # the same votes, read again: at the same settings the same numbers, at a smaller alpha no more
    report_script.main(report_script.Args(runs=[tmp_path / "a"], out=tmp_path / "s", alpha=0.05, radii=first["radii"]))
    again = json.loads((tmp_path / "s/report.json").read_text())[0]
    assert again["certified_accuracy"] == first["certified_accuracy"]
    report_script.main(report_script.Args(runs=[tmp_path / "a"], out=tmp_path / "t", alpha=1e-6, radii=first["radii"]))
    strict = json.loads((tmp_path / "t/report.json").read_text())[0]
    assert sum(strict["certified_accuracy"]) <= sum(first["certified_accuracy"])
    report_script.main(report_script.Args(runs=[tmp_path / "a"], out=tmp_path / "u", bounds="simultaneous"))
    with pytest.raises(ValueError, match="is exact"):
        report_script.main(report_script.Args(runs=[tmp_path / "d"], alpha=0.1))


def test_report_with_randomized_intervals(tmp_path, checkpoints):
    certify(tmp_path / "plain", checkpoints["ablation"])
    certify(tmp_path / "randomized", checkpoints["ablation"], interval="randomized")
    assert (tmp_path / "plain/votes.tsv").read_text() == (tmp_path / "randomized/votes.tsv").read_text()
    radii = [0.0, 1.0, 2.0, 3.0]
    for run, interval in (("plain", "randomized"), ("randomized", None)):
        arguments = report_script.Args(runs=[tmp_path / run], out=tmp_path / f"r-{run}", radii=radii, interval=interval)
        report_script.main(arguments)
    summaries = [json.loads((tmp_path / f"r-{run}/report.json").read_text())[0] for run in ("plain", "randomized")]
    assert summaries[0]["certified_accuracy"] == summaries[1]["certified_accuracy"]


def test_report_restates_l1_radii_in_lp(tmp_path, checkpoints):
    certify(tmp_path / "d", checkpoints["dssn"])
    report_script.main(report_script.Args(runs=[tmp_path / "d"], p=0.5, radii=[0.0, 0.1, 0.2]))
    (summary,) = json.loads((tmp_path / "d/report.json").read_text())
    assert summary["threat"] == "lp (p=0.5)"
    rows = read_rows(tmp_path / "d")
    expected = [((rows["correct"] > 0) & (rows["radius"] >= r)).mean() for r in (0, 0.1, 0.2)]  # R > R^2 below 1
    assert summary["certified_accuracy"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="p: got 2"):
        report_script.main(report_script.Args(runs=[tmp_path / "d"], p=2.0))


def test_sequential_runs_resume_and_are_not_certified_again_with_other_bounds(tmp_path, checkpoints):
    certify(tmp_path / "at", checkpoints["ablation"], at=1.0, max_n=2_000, alpha=0.01)
    rows = read_rows(tmp_path / "at")
    assert 3 <= (rows["radius"] >= 1).sum() <= 20
    certify(tmp_path / "part", checkpoints["ablation"], at=1.0, max_n=2_000, alpha=0.01, max=7)
    certify(tmp_path / "part", checkpoints["ablation"], at=1.0, max_n=2_000, alpha=0.01, images_per_step=3, resume=True)
    assert lines(tmp_path / "part") == lines(tmp_path / "at")
    assert (tmp_path / "part/votes.tsv").read_text() == (tmp_path / "at/votes.tsv").read_text()
    report_script.main(report_script.Args(runs=[tmp_path / "at"]))
    (summary,) = json.loads((tmp_path / "at/report.json").read_text())
    assert summary["name"].endswith("until CertifiedAt(radius=1.0)")
    assert summary["clean_accuracy"] is summary["median_certified_robustness"] is None
    with pytest.raises(ValueError, match="sampling stopped depending on the votes"):
        read_votes(tmp_path / "at")
    with pytest.raises(ValueError, match=r"was sampled until CertifiedAt\(radius=1.0\) was settled"):
        report_script.main(report_script.Args(runs=[tmp_path / "at"], alpha=0.1))
    certify(tmp_path / "within", checkpoints["ablation"], within=1.5, max_n=2_000, max=5)
    assert len(lines(tmp_path / "within")) == 5
    with pytest.raises(ValueError, match="is exact and samples nothing"):
        certify(tmp_path / "exact", checkpoints["dssn"], at=0.1)


def test_agreement_of_sequential_and_fixed_sampling(tmp_path, checkpoints, capsys):
    certify(tmp_path / "at", checkpoints["ablation"], at=1.0, max_n=2_000, alpha=0.01)
    certify(tmp_path / "fixed", checkpoints["ablation"], n=1_000, alpha=0.01)
    capsys.readouterr()
    agreement_script.main(agreement_script.Args(tmp_path / "at", tmp_path / "fixed"))
    text = capsys.readouterr().out
    assert re.search(r"certified at 1: same decision on \d+\.\d\d% .*\nsamples: median \d+", text)
    result = agreement_script.compare(tmp_path / "at", tmp_path / "fixed")
    rows = [read_rows(tmp_path / name) for name in ("at", "fixed")]
    held = [(own["correct"] > 0) & (own["radius"] >= 1) for own in rows]
    assert result.same.tolist() == (held[0] == held[1]).tolist()
    assert result.same.mean() >= 0.9
    assert len(set(result.fixed_samples)) == 1
    assert min(result.samples) < result.fixed_samples[0]
    with pytest.raises(ValueError, match="got a run without --at"):
        agreement_script.compare(tmp_path / "fixed", tmp_path / "at")
    certify(tmp_path / "other", checkpoints["dssn"])
    with pytest.raises(ValueError, match=r"differs from .* in scheme, checkpoint_sha256"):
        agreement_script.compare(tmp_path / "at", tmp_path / "other")


def test_report_of_certified_top_k_accuracy(tmp_path, checkpoints, capsys):
    certify(tmp_path / "a", checkpoints["ablation"])
    capsys.readouterr()
    arguments = {"runs": [tmp_path / "a"], "radii": [0.0, 1.0, 2.0, 3.0, 5.0]}
    report_script.main(report_script.Args(**arguments, top_k=[1, 3]))
    printed = capsys.readouterr().out
    assert "digits, RandomizedAblation(keep=20), top-1, alpha=0.05" in printed
    summaries = json.loads((tmp_path / "a/report.json").read_text())
    assert [s["top_k"] for s in summaries] == [None, 1, 3]
    assert (tmp_path / "a/certified_accuracy.png").exists()
    stored = read_votes(tmp_path / "a")
    for summary, k in zip(summaries[1:], (1, 3), strict=True):
        radius = certify_counts(stored.votes.counts, k, 64, 20, 0.05, n=stored.votes.n).radius_of(stored.label)
        expected = certified_top_k_accuracy(radius.numpy(), arguments["radii"])
        assert summary["certified_accuracy"] == pytest.approx(expected.tolist())
        order = stored.votes.counts.argsort(dim=1, descending=True, stable=True)[:, :k]
        among = (order == stored.label[:, None]).any(1)
        assert summary["clean_accuracy"] == pytest.approx(among.double().mean().item())
        assert summary["certified_accuracy_high_probability"][0] <= summary["certified_accuracy"][0]
    assert summaries[2]["certified_accuracy"][1] >= summaries[1]["certified_accuracy"][1]
    # at a smaller alpha no more
    report_script.main(report_script.Args(**arguments, top_k=[3], alpha=1e-6, out=tmp_path / "strict"))
    strict = json.loads((tmp_path / "strict/report.json").read_text())[1]
    assert strict["alpha"] == 1e-6
    assert sum(strict["certified_accuracy"]) < sum(summaries[2]["certified_accuracy"])


def test_top_k_is_refused_where_it_does_not_hold(tmp_path, checkpoints):
    certify(tmp_path / "a", checkpoints["ablation"], max=2)
    certify(tmp_path / "d", checkpoints["dssn"], max=2)
    certify(tmp_path / "s", checkpoints["ablation"], max=2, at=1.0, max_n=300)
    table = tmp_path / "log.tsv"
    table.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.51\t1\t0.1\n")
    for run, k, message in (
        ("d", 1, r"got DeterministicSplittingNoise\(.*\), top-k certificates are for RandomizedAblation"),
        ("s", 1, "bounds for a fixed number of samples do not hold"),
        ("log.tsv", 1, "got a table of rows"),
        ("a", 10, r"k \(predicted labels\): got 10, expected an integer in \[1, 9\]"),
        ("a", 0, "got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            report_script.main(report_script.Args(runs=[tmp_path / run], top_k=[k], out=tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_point_clouds_from_training_to_report(tmp_path):
    """The example of the documentation, in small: points are the features."""
    folder = tmp_path / "shapes"
    options = {"data": "shapes", "model": "pointnet_small", "scheme": "RandomizedAblation(keep=16)"}
    train_script.main(train_script.Args(out=folder, **options, epochs=4, batch_size=32, lr=0.05, augment=True))
    certify(folder / "test", folder, max=30)
    report_script.main(report_script.Args(runs=[folder / "test"], top_k=[2], radii=[0.0, 1.0, 2.0]))
    prediction, top_2 = json.loads((folder / "test/report.json").read_text())
    assert prediction["threat"] == "l0 (pixels)"
    assert prediction["certified_accuracy"][1] > 0.3
    assert top_2["certified_accuracy"][1] >= prediction["certified_accuracy"][1]
    with pytest.raises(ValueError, match="takes copies of 6 channels"):
        certify(folder / "digits", folder, data="digits")


def test_report_reads_published_six_column_logs(tmp_path, capsys):
    path = tmp_path / "log.tsv"
    path.write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.51\t1\t0:00:15.1\n20\t8\t-1\t0.0\t0\t0:00:14.9\n"
    )
    report_script.main(report_script.Args(runs=[path], radii=[0.0, 0.5, 1.0]))
    summary = json.loads((tmp_path / "report.json").read_text())[0]
    assert summary["certified_accuracy"] == [0.5, 0.5, 0]
    assert summary["abstained"] == 0.5


def test_report_without_rows(tmp_path):
    refused(["scripts.report", str(tmp_path)], "no such run; certify one")


def test_demo_in_small(tmp_path):
    small = "--images 10 --n 200 --epochs 1 --steps 40 --jobs 1"
    arguments = [str(tmp_path / "demo"), *small.split()]
    subprocess.run([sys.executable, "-m", "scripts.demo", *arguments], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "demo/certified_accuracy.png").exists()
    assert len(lines(tmp_path / "demo/dssn/test")) == 10
    assert (tmp_path / "demo/curves.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "demo/curves.json").read_text())
    assert [method["name"] for method in summary["methods"]] == ["ddpg", "reengage"]
    refused(["scripts.demo", str(ROOT / "tests")], "is not an earlier demo")


def test_a_reader_that_has_seen_enough_ends_it_quietly():
    """As ``scripts.reproduce list | head`` does; closed from the beginning, so that no write is too early to notice."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        shown = subprocess.run(
            [sys.executable, "-m", "scripts.reproduce", "list"],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (shown.returncode, shown.stderr) == (141, "")


def test_all_commands_are_listed():
    command = [sys.executable, "-m", "scripts"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    runnable = {file.stem for file in Path("scripts").glob("*.py") if "    cli.run(main" in file.read_text()}
    assert {line.split()[0] for line in listed.splitlines()[2:] if not line.startswith(" ")} == runnable
    assert all(len(line) <= 120 for line in listed.splitlines())
    for word, message in (("train", "expected python -m scripts.train\n"), ("tarin", "which lists all commands")):
        refused = subprocess.run([*command, word], capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert message in refused.stderr
