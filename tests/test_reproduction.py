"""The machinery of the catalogue: reading it, doing runs, measuring cells, keeping and showing results."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from certify.variable_lambda import radius_through_norms
from reproduction import document, results, running
from reproduction.catalogue import Catalogue, chapter_of, order_of
from reproduction.quantities import measure
from reproduction.reading import load
from reproduction.running import LOCK, read_state, run_commands, script_lines
from reproduction.sources import Source
from reproduction.tables import decimals_of, number_text, text_table, value_text
from reproduction.values import Value, mean, median, share
from scripts import reproduce as reproduce_script
from scripts.parts import cli

RUNS = """
[run.digits]
commands = [
    "scripts.train {run} --data digits --scheme '{scheme}' --epochs {epochs} {train}",
    "scripts.certify {run}/test --checkpoint {run} {images}",
]
result = "test"
smoke = { scheme = "SCHEME", epochs = 1, train = "", images = "--skip 60" }
cpu = { scheme = "SCHEME", epochs = 1, train = "--lr 0.05", images = "--skip 12", minutes = 2 }
full = { scheme = "SCHEME", epochs = 3, train = "", images = "--device cuda" }
""".replace("SCHEME", "DeterministicSplittingNoise(lam=0.5)")
ENTRY = """
[[entry]]
name = "table-3.1"
title = "l1 certificates"
source = "A thesis, Table 3.1"
kind = "table"
setting = "8 x 8 digits"
needs = ["gpu"]
note = "A note"
columns = [
    { name = "clean", unit = "%", quantity = "clean" },
    { name = "at 0.5", unit = "%", quantity = "certified", radius = 0.5 },
    { name = "median", quantity = "median" },
]
rows = [
    { label = "theirs", published = [60.51, nan, "N/A"] },
    { label = "DSSN", published = [96.50, 50.0, 0.25], run = "digits" },
]
"""


def catalogue_of(folder: Path, *texts: str) -> Catalogue:
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i}.toml").write_text(text)
    return load(folder)


@pytest.fixture
def catalogue(tmp_path) -> Catalogue:
    return catalogue_of(tmp_path / "entries", RUNS + ENTRY)


# Reading


def test_an_entry_is_read_with_its_runs(catalogue):
    entry, run = catalogue.entries["table-3.1"], catalogue.runs["digits"]
    assert entry.runs == ("digits",)
    assert entry.chapter == "3"
    assert entry.rows[0].published == (60.51, None, -math.inf)
    assert run.budgets["cpu"].minutes == 2
    train, certify = run.words("smoke")
    assert train[:4] == ["scripts.train", "{run}", "--data", "digits"]
    assert train[4:] == ["--scheme", "DeterministicSplittingNoise(lam=0.5)", "--epochs", "1"]
    assert certify == ["scripts.certify", "{run}/test", "--checkpoint", "{run}", "--skip", "60"]


def test_runs_may_be_in_another_file_than_their_entries(tmp_path):
    assert catalogue_of(tmp_path, ENTRY, RUNS).entries.keys() == {"table-3.1"}


def test_options_of_a_row_and_results_of_columns(tmp_path):
    text = ENTRY.replace("radius = 0.5", 'result = "other"').replace('run = "digits"', 'run = "digits", radius = 2')
    found = catalogue_of(tmp_path, RUNS + text)
    entry = found.entries["table-3.1"]
    cells = [entry.cell(entry.rows[1], column, found.runs["digits"]) for column in entry.columns]
    assert [cell.options for cell in cells] == [{}, {"radius": 2}, {}]
    assert [cell.result for cell in cells] == ["test", "other", "test"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "l1', 'titel = "l1', "unknown key 'titel'"),
        ('title = "l1 certificates"', "", "'title' is missing"),
        ('title = "l1 certificates"', "title = 3", "title = 3, expected text"),
        ('kind = "table"', 'kind = "plot"', "expected table or curve"),
        ('needs = ["gpu"]', 'needs = ["tpu"]', "needs 'tpu'"),
        ('name = "table-3.1"', 'name = "tab-3"', "got 'tab-3', expected one such as table-6.1"),
        ("[96.50, 50.0, 0.25]", "[96.54, 50.0]", r"row 2 \(DSSN\): got 2 published values, expected 3"),
        ("[96.50, 50.0, 0.25]", '[96.54, "fifty", 0.25]', "published value 'fifty'"),
        ('run = "digits" }', 'run = "digit" }', "run 'digit', which does not exist"),
        ('label = "theirs"', 'label = "DSSN"', "row 'DSSN' twice"),
        ('name = "median"', 'name = "clean"', "column 'clean' twice"),
        ('quantity = "clean"', 'quantity = "cleen"', "quantity 'cleen', expected one of clean"),
        ('quantity = "clean"', 'quantity = "clean", radius = 1', "got radius = 1; the options of clean are"),
        ('quantity = "clean"', 'quantity = "acr"', "unit % for acr"),
        ("radius = 0.5", "radius = -1", "radius = -1, expected a number of at least 0"),
        ("radius = 0.5", 'patch = "5 by 5"', "patch = '5 by 5', expected a size"),
        (", radius = 0.5", "", "certified needs patch or radius"),
        ('run = "digits" }', 'run = "digits", loss = "standard" }', "got loss, which no column accepts"),
        ('"N/A"] }', '"N/A"], result = "test" }', "got result without a run"),
        ("[run.digits]", "[run.Digits]", "lower-case letters"),
        ("smoke = {", "tiny = {", "unknown key 'tiny'"),
        ("epochs = 1, train", "train", "'epochs' is missing, which a command uses"),
        ("epochs = 1, train", "epochs = 1, depth = 2, train", "'depth', which no command uses"),
        ("minutes = 2", "minutes = -2", "minutes = -2"),
        ("scripts.train {run}", "scripts.trian {run}", "command scripts.trian, expected a module"),
        ("scripts.train {run}", "os.system {run}", "command os.system, expected a module"),
        ("scripts.train {run}", "scripts.train out", "does not use {run}"),
        ("--scheme '{scheme}'", "--scheme '{scheme}", "cannot be split into words"),
        ("--scheme '{scheme}'", "--scheme {scheme", "braces are for placeholders"),
        ("--scheme '{scheme}'", "--scheme {0}", "expected names in its braces"),
        ("[[entry]]", "[[entries]]", "unknown key 'entries'"),
        ("rows = [", "rows = (", "is not TOML"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, old, new, message):
    text = RUNS + ENTRY
    assert old in text
    with pytest.raises(ValueError, match=message):
        catalogue_of(tmp_path, text.replace(old, new, 1))


def test_names_are_unique_over_all_files(tmp_path):
    with pytest.raises(ValueError, match=r"1\.toml, run digits: there is another run"):
        catalogue_of(tmp_path / "a", RUNS + ENTRY, RUNS)
    with pytest.raises(ValueError, match=r"1\.toml, entry table-3\.1: there is another entry"):
        catalogue_of(tmp_path / "b", RUNS + ENTRY, ENTRY)


def test_a_run_that_no_entry_uses(tmp_path):
    with pytest.raises(ValueError, match="run digits: no entry uses it"):
        catalogue_of(tmp_path, RUNS + ENTRY.replace(', run = "digits"', ""))


def test_entries_are_in_the_order_of_the_papers():
    names = [
        "table-2.1",
        "table-2.8",
        "table-2.10",
        "figure-2.4",
        "table-10.1",
        "table-B.2",
        "figure-B.1",
        "topk-table-1",
    ]
    assert sorted(["topk-table-1", *names[:-1]], key=order_of) == names
    assert [chapter_of(name) for name in ("table-E.1", "topk-modelnet40", "smooth-reduce-figure-2")] == [
        "E",
        "topk",
        "smooth-reduce",
    ]


# Values and quantities


def test_intervals_of_shares():
    value = share(0.5, 100)
    assert value.n == 100
    assert (value.low, value.high) == pytest.approx((0.398321, 0.601679), abs=1e-6)  # of Clopper and Pearson's tables
    assert share(0.0, 10).low == 0
    assert share(1.0, 10).high == 1


def test_intervals_of_medians_cover_the_true_one():
    assert median(3.0, [1, 2, 3, 4, 5]).low is None  # the extremes of five cover it with less than 95 %
    six = median(3.0, range(1, 7))
    assert (six.low, six.high) == (1, 6)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        value = median(0.0, rng.normal(size=30))
        assert value.low is not None
        assert value.high is not None
        covered += value.low <= 0 <= value.high
    assert covered >= 0.94 * 400


def test_means_of_one_have_no_interval():
    assert mean([2.0]) == Value(2.0, None, None, 1)
    value = mean([1.0, 2.0, 3.0])
    assert (value.value, value.low, value.high) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)


def rows_file(folder: Path, rows: list[tuple[int, int, float, int]], threat: str = "l1", **config) -> Path:
    """A result folder by hand: label, certified class, radius, prediction."""
    folder.mkdir(parents=True)
    head = "idx\tlabel\tpredict\tradius\tcorrect\ttime\tclean\tp_lower\tlabel_share\n"
    if "radius_column" in config:
        head = head.replace("radius", config.pop("radius_column"))
    lines = [
        f"{i}\t{label}\t{predict}\t{radius}\t{int(label == predict)}\t0.5\t{clean}\tnan\t0.75\n"
        for i, (label, predict, radius, clean) in enumerate(rows)
    ]
    (folder / "rows.tsv").write_text(head + "".join(lines))
    shared = {"scheme": "DeterministicSplittingNoise(lam=0.5)", "data": "digits", "sampling": None, "threat": threat}
    (folder / "config.json").write_text(json.dumps(shared | {"shape": [1, 8, 8], "split": "test"} | config))
    return folder


ROWS = [(0, 0, 0.5, 0), (1, 1, 1.5, 1), (2, 2, 2.5, 2), (3, 1, 3.0, 1), (4, -1, -1, -1)]


def test_quantities_of_certificates(tmp_path):
    source = Source(rows_file(tmp_path / "r", ROWS))
    assert measure(source, "clean", {}, "").value == pytest.approx(0.6)
    assert measure(source, "clean", {}, "%").value == pytest.approx(60)
    assert measure(source, "abstained", {}, "").value == pytest.approx(0.2)
    assert measure(source, "certified", {"radius": 1.5}, "").value == pytest.approx(0.4)
    assert measure(source, "median", {}, "").value == 0.5
    assert measure(source, "acr", {}, "").value == pytest.approx(4.5 / 5)
    assert measure(source, "acr-correct", {}, "").value == pytest.approx(4.5 / 3)
    assert measure(source, "base", {}, "").value == 0.75
    assert measure(source, "seconds", {}, "").value == 0.5
    certified = measure(source, "certified", {"radius": 1.5}, "%")
    assert certified.n == 5
    assert (certified.low, certified.high) == pytest.approx((5.27, 85.34), abs=0.01)
    # in l(1/2), through norms, and not in a norm that nothing is known of
    restated = radius_through_norms(torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64), 0.5)
    assert measure(source, "acr", {"p": "1/2"}, "").value == pytest.approx(float(restated.sum()) / 5)
    pixels = rows_file(tmp_path / "l0", ROWS, "l0 (pixels)", scheme="DeterministicAblation(alpha=9)")
    with pytest.raises(ValueError, match="cannot be restated in lp"):
        measure(Source(pixels), "median", {"p": 0.5}, "")
    with pytest.raises(ValueError, match="only one certificate; leave it out"):
        measure(source, "median", {"bound": "tight"}, "")


def test_predictions_and_certificates_abstain_on_their_own(tmp_path):
    source = Source(rows_file(tmp_path / "r", [(0, -1, -1, 0), (1, 1, 0.5, 1)]))
    for name, prediction, certificate in (("clean", 1, 0.5), ("abstained", 0, 0.5)):
        assert measure(source, name, {}, "").value == prediction
        assert measure(source, name, {"by": "prediction"}, "").value == prediction
        assert measure(source, name, {"by": "certificate"}, "").value == certificate


def test_most_images_not_certified_is_no_median(tmp_path):
    source = Source(rows_file(tmp_path / "r", [(0, 1, 1.0, 1), (0, -1, -1, -1), (0, 0, 1.0, 0)]))
    assert measure(source, "median", {}, "").value == -math.inf


def test_radii_without_a_theorem_stay_marked(tmp_path):
    threat = "l2, NOT certified: for a test"
    source = Source(rows_file(tmp_path / "r", ROWS, threat, radius_column="radius_not_certified", scheme="ForATest()"))
    for quantity, options in (("certified", {"radius": 1}), ("median", {}), ("acr", {})):
        assert not measure(source, quantity, options, "").guaranteed
    assert measure(source, "clean", {}, "").guaranteed


def test_answers_to_one_question_say_nothing_of_others(tmp_path):
    sampling = {"alpha": 0.05, "until": "CertifiedAt(radius=1.0)"}
    source = Source(rows_file(tmp_path / "r", ROWS, sampling=sampling, scheme="SplittingNoise(lam=0.5)"))
    assert measure(source, "certified", {"radius": 1.0}, "").value == pytest.approx(0.4)
    with pytest.raises(ValueError, match="was sampled until"):
        measure(source, "median", {}, "")


def test_quantities_of_attacks(tmp_path):
    folder = tmp_path / "attack"
    folder.mkdir()
    magnitudes = (0.0, 1.0, 1.0, math.inf, math.inf)
    lines = [f"{i}\t1\t1\t1\t{m}\t{m}\t7\t0.1\t-\n" for i, m in enumerate(magnitudes)]
    head = "idx\tlabel\tclean\tpredict\tmagnitude\tverified\tqueries\ttime\tchanges\n"
    (folder / "rows.tsv").write_text(head + "".join(lines))
    config = {"scheme": "BandAblation(width=2)", "data": "digits", "sampling": None}
    attack = {"name": "patch", "patch": "5"}
    (folder / "config.json").write_text(json.dumps(config | {"attack": attack}))
    source = Source(folder)
    assert measure(source, "attacked", {"patch": "5"}, "%").value == pytest.approx(40)
    assert measure(source, "attacked", {"radius": 5}, "%").value == pytest.approx(40)  # the side, in pixels
    assert measure(source, "attacked", {"radius": 0}, "%").value == pytest.approx(80)
    assert measure(source, "median-attack", {}, "").value == 5
    with pytest.raises(ValueError, match="an attack with patches 5, expected 7"):
        measure(source, "attacked", {"patch": "7"}, "%")
    with pytest.raises(ValueError, match="holds an attack"):
        measure(source, "clean", {}, "%")


def test_quantities_of_agents(tmp_path):
    for seed, scores in enumerate(([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        successes = np.array([[score] * 2 for score in scores])
        arrays = {"results": -10 + 10 * successes, "ep_lengths": np.ones((3, 2), int), "successes": successes}
        np.savez(folder / "evaluations.npz", timesteps=[100, 200, 300], **arrays)  # pyright: ignore[reportArgumentType]
    source = Source(tmp_path)
    assert measure(source, "success", {}, "%") == Value(100, 100, 100, 2)
    assert measure(source, "return", {}, "").value == 0
    assert measure(source, "height", {}, "").value == pytest.approx((0.5 + 0.75) / 2)
    assert measure(source, "height", {"metric": "return"}, "").value == pytest.approx(-10 + 10 * 0.625)
    assert measure(source, "steps-to", {"at": 0.9}, "").value == 250
    assert measure(source, "steps-to", {"at": 1.1}, "").value == math.inf
    (tmp_path / "seed-0/config.json").write_text(json.dumps({"arguments": {"net_arch": [256, 128], "gamma": 0.95}}))
    assert measure(source, "setting", {"of": "arguments.gamma"}, "").value == 0.95
    assert measure(source, "setting", {"of": "arguments.net_arch.1"}, "").value == 128
    for of, message in (("arguments.tau", "has no arguments.tau"), ("arguments.net_arch", "expected a number")):
        with pytest.raises(ValueError, match=message):
            measure(source, "setting", {"of": of}, "")


def test_share_of_copies_that_a_perturbation_touches(tmp_path):
    source = Source(rows_file(tmp_path / "r", ROWS, "l0 (pixels)", scheme="RandomizedAblation(keep=2)"))
    assert measure(source, "touched", {"radius": 0}, "").value == 0
    assert measure(source, "touched", {"radius": 1}, "").value == pytest.approx(2 / 64)
    assert measure(source, "touched", {"radius": 63}, "").value == 1
    with pytest.raises(ValueError, match="at most 64"):
        measure(source, "touched", {"radius": 65}, "")


def test_exponents_with_the_interval_of_the_fit(tmp_path):
    needed = {"4": [16, 16], "8": [64, 64]}
    curve = {"environment": "dense", "loss": "standard", "needed": needed, "exponent": 2.0}
    (tmp_path / "efficiency.json").write_text(json.dumps({"curves": [curve | {"exponent_standard_error": 0.1}]}))
    value = measure(Source(tmp_path), "exponent", {"environment": "dense", "loss": "standard"}, "")
    assert (value.value, value.low, value.high) == pytest.approx((2, 2 - 0.430265, 2 + 0.430265), abs=1e-5)
    assert value.n == 4
    with pytest.raises(ValueError, match="got 0 fits for sparse"):
        measure(Source(tmp_path), "exponent", {"environment": "sparse", "loss": "standard"}, "")


# Running


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Catalogue, Path]:
    """The run of the catalogue above, done with its smoke and cpu budgets."""
    folder = tmp_path_factory.mktemp("reproduce")
    catalogue = catalogue_of(folder / "entries", RUNS + ENTRY)
    for budget in ("smoke", "cpu"):
        run_commands(catalogue.runs["digits"], budget, folder / "runs", in_process=True)
    return catalogue, folder


def test_a_finished_run_is_not_repeated(finished):
    catalogue, folder = finished
    path = folder / "runs/digits/smoke/model.safetensors"
    before, told = path.stat().st_mtime_ns, []
    run_commands(catalogue.runs["digits"], "smoke", folder / "runs", in_process=True, report=told.append)
    assert told == []
    assert path.stat().st_mtime_ns == before


def test_an_interrupted_run_goes_on(tmp_path, catalogue, monkeypatch):
    """Stopped while it certifies: what is finished stays, and the rows are those of a run without a stop."""
    run, told = catalogue.runs["digits"], []
    main = running._in_process

    def stopped(words: list[str]) -> None:
        main([*words, "--max", "3"] if words[0] == "scripts.certify" else words)
        if words[0] == "scripts.certify":
            raise KeyboardInterrupt

    monkeypatch.setattr(running, "_in_process", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_commands(run, "smoke", tmp_path, in_process=True)
    state = read_state(tmp_path / "digits/smoke")
    assert state is not None
    assert (state.begun, state.finished, state.complete) == (2, 1, False)
    with pytest.raises(ValueError, match="no run is finished"):
        results.collect(catalogue, catalogue.entries["table-3.1"], "smoke", tmp_path)
    monkeypatch.setattr(running, "_in_process", main)
    folder = run_commands(run, "smoke", tmp_path, in_process=True, report=told.append)
    assert len(told) == 1
    assert told[0].endswith("--skip 60 --resume")
    rows = (folder / "test/rows.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in rows[1:]] == [str(60 * i) for i in range(len(rows) - 1)]
    assert len(rows) - 1 == 6


def test_results_made_by_hand_are_taken_over(tmp_path, catalogue):
    run = catalogue.runs["digits"]
    folder = running.folder_of(tmp_path, run, "smoke")
    for words in run.words("smoke"):
        running._in_process(running.in_folder(words, folder))
    told: list[str] = []
    run_commands(run, "smoke", tmp_path, in_process=True, report=told.append)
    assert all(line.endswith("--resume") for line in told)
    state = read_state(folder)
    assert state is not None
    assert state.complete


def test_runs_of_other_commands_are_refused(tmp_path, finished):
    _, folder = finished
    changed = catalogue_of(tmp_path / "entries", (RUNS + ENTRY).replace("--skip 60", "--skip 30"))
    with pytest.raises(ValueError, match="was made by other commands than the catalogue has now"):
        run_commands(changed.runs["digits"], "smoke", folder / "runs", in_process=True)


def test_sigterm_ends_the_command_in_progress(tmp_path):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread")
    path = tmp_path / "process"
    begun = f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(100)"

    def terminate_this_process() -> None:
        while not (path.exists() and path.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=terminate_this_process)
    sender.start()
    words = ["timeit", "-n", "1", "-r", "1", begun]  # any module that runs for a while stands in for a script
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda _: running._as_subprocess(words), reproduce_script.Args, "scripts.reproduce", ["list"])
    sender.join()
    assert ended.value.code == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_two_processes_do_not_share_a_run(tmp_path, catalogue):
    with (
        running._claimed(tmp_path / "digits/smoke"),
        pytest.raises(ValueError, match="another process is at work on this run"),
    ):
        run_commands(catalogue.runs["digits"], "smoke", tmp_path, in_process=True)
    assert (tmp_path / "digits/smoke" / LOCK).exists()


def test_arguments_are_checked_before_anything_is_run(tmp_path, capsys):
    found = catalogue_of(tmp_path / "entries", (RUNS + ENTRY).replace("--skip 60", "--skipp 60"))
    with pytest.raises(ValueError, match=r"scripts\.certify .* --skipp 60: is not understood"):
        run_commands(found.runs["digits"], "smoke", tmp_path / "runs", in_process=True)
    assert not (tmp_path / "runs").exists()
    assert "unrecognized arguments" in capsys.readouterr().err


def test_commands_as_processes_of_their_own(tmp_path):
    text = RUNS.replace("scripts.train {run} --data digits --scheme '{scheme}' --epochs {epochs} {train}", "CUT")
    text = text.replace('    "CUT",\n', "").replace("scripts.certify {run}/test --checkpoint {run} {images}", "CUT")
    text = text.replace("CUT", "scripts.learning_efficiency {run} --dims {dims} --seeds 1").replace('"test"', '""')
    text = re.sub(r"smoke = .*\n", 'smoke = { dims = "3 4" }\n', re.sub(r"(cpu|full) = .*\n", "", text))
    entry = ENTRY.split("columns")[0] + (
        'columns = [{ name = "exponent", quantity = "exponent", environment = "dense", loss = "ReenGAGE" }]\n'
        'rows = [{ label = "a", published = [1], run = "digits" }]\n'
    )
    found = catalogue_of(tmp_path / "entries", text + entry)
    folder = run_commands(found.runs["digits"], "smoke", tmp_path / "runs")
    assert (folder / "efficiency.json").exists()
    result = results.collect(found, found.entries["table-3.1"], "smoke", tmp_path / "runs")
    assert result.values["a", "exponent"].value == pytest.approx(1, abs=0.2)
    assert result.seeds == {"digits": [0]}


def test_a_command_that_fails_is_told(tmp_path):
    text = (RUNS + ENTRY).replace("--data digits", "--data letters")
    found = catalogue_of(tmp_path / "entries", text)
    with pytest.raises(ChildProcessError, match=r"ended with status 1; what was finished is on disk"):
        run_commands(found.runs["digits"], "smoke", tmp_path / "runs")


# Results


def test_results_are_kept_and_read_back(tmp_path, finished):
    catalogue, folder = finished
    entry = catalogue.entries["table-3.1"]
    result = results.collect(catalogue, entry, "cpu", folder / "runs", remark="one epoch")
    assert result.values.keys() == {("DSSN", "clean"), ("DSSN", "at 0.5"), ("DSSN", "median")}
    path = results.write(result, tmp_path)
    assert path.name == "table-3.1.cpu.json"
    text = path.read_text()
    assert str(folder) not in text
    assert results.to_json(results.read(path, catalogue)) == text
    document = json.loads(text)
    assert list(document) == sorted(document)
    assert document["remark"] == "one epoch"
    assert document["runs"]["digits"]["seeds"] == [0]
    assert document["runs"]["digits"]["commands"][0] == "RUN=runs/reproduce/digits/cpu"
    assert document["versions"].keys() == {"certify", "torch"}
    assert {"row", "column", "value", "low", "high", "n", "measure"} == document["cells"][0].keys()


def test_smoke_results_are_not_kept(tmp_path, finished):
    catalogue, folder = finished
    result = results.collect(catalogue, catalogue.entries["table-3.1"], "smoke", folder / "runs")
    with pytest.raises(ValueError, match="smoke, which is not kept"):
        results.write(result, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("--lr 0.05", "--lr 0.06", "was made by other commands"),
        ('name = "median"', 'name = "middle"', "does not have the entry's current cells"),
        ('quantity = "median"', 'quantity = "acr"', r"does not have the entry's current cells.*'median'"),
        ("radius = 0.5", "radius = 0.4", r"does not have the entry's current cells.*'at 0\.5'"),
        ('name = "table-3.1"', 'name = "table-3.2"', "is not the result of an entry"),
    ],
)
def test_outdated_results_are_refused(tmp_path, finished, old, new, message):
    catalogue, folder = finished
    path = results.write(results.collect(catalogue, catalogue.entries["table-3.1"], "cpu", folder / "runs"), tmp_path)
    changed = catalogue_of(tmp_path / "entries", (RUNS + ENTRY).replace(old, new))
    with pytest.raises(ValueError, match=message):
        results.read(path, changed)


def test_collect_goes_on_after_a_change_of_an_entry(tmp_path, finished, capsys):
    """What is kept of an older definition is left out and told, in place of numbers of both kinds in one column."""
    catalogue, folder = finished
    kept = tmp_path / "results"
    results.write(results.collect(catalogue, catalogue.entries["table-3.1"], "cpu", folder / "runs"), kept)
    changed = catalogue_of(tmp_path / "entries", (RUNS + ENTRY).replace('quantity = "median"', 'quantity = "acr"'))
    found, reasons = results.usable(kept / "table-3.1.cpu.json", changed)
    assert not found.runs
    assert not found.values
    assert len(reasons) == 1
    reproduce("collect", "table-3.1", folder=tmp_path, budget="cpu", runs=folder / "runs")
    assert "left out: " in (text := capsys.readouterr().out)
    assert "see ('DSSN', 'median')" in text
    result = results.read(kept / "table-3.1.cpu.json", changed)
    assert result.measures["DSSN", "median"] == {"quantity": "acr", "unit": "", "result": "test"}
    assert result.measures["DSSN", "at 0.5"] == {"quantity": "certified", "unit": "%", "result": "test", "radius": 0.5}


def test_infinite_and_unproven_values_survive(catalogue, tmp_path):
    values = {
        ("DSSN", "clean"): Value(50.0, 40.0, 60.0, 9),
        ("DSSN", "at 0.5"): Value(40.0, None, None, 9, guaranteed=False),
        ("DSSN", "median"): Value(-math.inf, -math.inf, 0.5, 9),
    }
    lines = script_lines(catalogue.runs["digits"], "cpu")
    result = results.Result("table-3.1", "cpu", values, {"digits": lines}, {"digits": [0]}, {"torch": "2"})
    assert dict(results.read(results.write(result, tmp_path), catalogue).values) == values


# Showing


@pytest.mark.parametrize(
    ("number", "decimals", "rounding", "text"),
    [
        (96.549, 2, "down", "96.54"),
        (96.541, 2, "up", "96.55"),
        (100 * 0.35, 2, "down", "35"),
        (1234.5, 0, "down", "1,234"),
        (0.0132991, None, "down", "0.01329"),
        (8.0, None, "nearest", "8"),
        (0.0, None, "nearest", "0"),
        (-math.inf, 2, "down", "N/A"),
        (math.inf, 2, "up", "never"),
    ],
)
def test_numbers_as_text(number, decimals, rounding, text):
    assert number_text(number, decimals, rounding) == text


def test_our_numbers_have_the_digits_of_the_paper(tmp_path, catalogue):
    one_model = '"clean", unit = "%", quantity = "one-model"'
    entry = catalogue.entries["table-3.1"]
    assert [decimals_of(entry, i) for i in range(3)] == [2, 1, 2]
    assert value_text(entry, 0, Value(96.547, 96.123, 97.001, 9)) == "96.54 [96.12, 97.01]"
    assert value_text(entry, 2, Value(0.25, 0.2, 0.3, 9)) == "0.25 [0.2, 0.3]"
    models = catalogue_of(tmp_path, RUNS + ENTRY.replace('"clean", unit = "%", quantity = "clean"', one_model))
    assert value_text(models.entries["table-3.1"], 0, Value(63.287925, 63.1, 63.4, 9)) == "63.28 [63.10, 63.40]"
    assert value_text(entry, 1, Value(50.0, None, None, 9, guaranteed=False)) == "50.00†"


def test_published_and_ours_side_by_side(finished):
    catalogue, folder = finished
    entry = catalogue.entries["table-3.1"]
    text = text_table(entry, {"cpu": results.collect(catalogue, entry, "cpu", folder / "runs")})
    lines = text.splitlines()
    assert lines[0].split() == ["clean,", "%", "at", "0.5,", "%", "median"]
    assert lines[1].split() == ["theirs", "60.51", "N/A"]
    assert lines[2] == "DSSN"
    assert lines[3].split() == ["published", "96.50", "50.0", "0.25"]
    assert lines[4].startswith("  here, cpu, 30 images  ")
    assert re.fullmatch(r"  95 % +\[.*, .*\]  +\[.*, .*\]  +\[.*, .*\]", lines[5])
    assert lines[6].split()[0] == "difference"
    assert lines[6].split()[1].endswith("*")  # one epoch is far from the published number


def test_the_document_is_the_same_for_the_same_results(tmp_path, finished):
    catalogue, folder = finished
    entry = catalogue.entries["table-3.1"]
    results.write(results.collect(catalogue, entry, "cpu", folder / "runs", remark="one epoch only"), tmp_path)
    text = document.render(catalogue, results.read_all(catalogue, tmp_path))
    assert text == document.render(load(folder / "entries"), results.read_all(catalogue, tmp_path))
    assert "[table-3.1](#table-3.1)" in text
    assert "Why they differ: one epoch only." in text
    assert "train: epochs 1 instead of 3, lr 0.05 instead of 0.1" in text
    assert "about 2 core-minutes; seed 0; certify" in text
    assert "python -m scripts.certify $RUN/test --checkpoint $RUN --skip 12\n" in text
    assert re.search(r"\| {2}\| difference \| \*\*[+-]\d+\.\d\d\*\* \|", text)
    assert "## Not run" not in text
    assert "docs/results.md" not in text
    empty = document.render(catalogue, {})
    assert "| `table-3.1` | l1 certificates | `cpu` not run yet, 2 core-minutes; `full` needs a GPU |" in empty
    assert "[docs/results.md](docs/results.md) has further measurements" in empty


def test_costs_are_those_of_the_printed_commands_and_runs_left_out_are_named(tmp_path, finished):
    """Of an entry with a second run that was not done: its minutes are not counted, its name is told."""
    folder = finished[1]
    other = RUNS.replace("[run.digits]", "[run.others]").replace("minutes = 2", "minutes = 50")
    row = '{ label = "other", published = [96.50, 50.0, 0.25], run = "others" },\n]'
    found = catalogue_of(tmp_path / "entries", RUNS + other + ENTRY.removesuffix("]\n") + row)
    results.write(results.collect(found, found.entries["table-3.1"], "cpu", folder / "runs"), tmp_path / "results")
    text = document.render(found, results.read_all(found, tmp_path / "results"))
    assert "Budget `cpu`, about 2 core-minutes" in text
    assert "\nNot run yet (available budgets in parentheses): `others` (`cpu`, `full`).\n" in text
    assert "`cpu` not run yet, 52 core-minutes" in document.render(found, {})


# The command line


def reproduce(step: str, *names: str, folder: Path, **options) -> None:
    paths = {"entries": folder / "entries", "results": folder / "results"}
    if step in ("show", "run", "collect"):
        paths["runs"] = folder / "runs"
    reproduce_script.main(reproduce_script.Args(step, list(names), **(paths | options)))  # pyright: ignore


def test_list_by_words_and_chapter(finished, capsys):
    folder = finished[1]
    reproduce("list", "certificates", "digits", folder=folder, chapter="3")  # a word of the setting and of a run
    text = capsys.readouterr().out
    assert "Dissertation, Chapter 3" in text
    assert re.search(r"table-3\.1 +l1 certificates +smoke cpu full", text)
    with pytest.raises(ValueError, match="no entry matches; use fewer words, or one of the chapters 3"):
        reproduce("list", "patches", folder=folder)


def test_list_says_what_full_needs_only_where_there_is_full(tmp_path, capsys):
    published_only = ENTRY.replace('name = "table-3.1"', 'name = "figure-3.2"').replace(', run = "digits"', "")
    catalogue_of(tmp_path / "entries", RUNS + ENTRY + published_only)
    reproduce("list", "gpu", folder=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "table-3.1" in line).endswith("smoke cpu full  full needs gpu")
    assert next(line for line in lines if "figure-3.2" in line).endswith("published numbers only")


def test_a_number_names_the_only_entry_that_ends_so(tmp_path):
    texts = (RUNS + ENTRY, *(ENTRY.replace("table-3.1", name) for name in ("figure-3.1", "table-3.2", "figure-E.3")))
    found = catalogue_of(tmp_path, *texts)
    assert reproduce_script.find(found, "3.2").name == "table-3.2"
    assert reproduce_script.find(found, "e.3").name == "figure-E.3"
    with pytest.raises(ValueError, match=r"got '3\.1', expected one of table-3\.1, figure-3\.1"):
        reproduce_script.find(found, "3.1")


def test_show_prints_numbers_from_rows_on_disk_and_commands(finished, capsys):
    folder = finished[1]
    reproduce("show", "Table-3.1", folder=folder)
    text = capsys.readouterr().out
    assert "A thesis, Table 3.1. 8 x 8 digits" in text
    assert "here, smoke" not in text  # it is of other data, and says nothing
    assert "here, cpu, 30 images" in text
    assert (
        f"full, needs gpu: python -m scripts.reproduce run table-3.1 --budget full --runs {folder / 'runs'}\n" in text
    )
    with pytest.raises(ValueError, match=r"got 'table-3\.2', expected an entry such as table-3\.1"):
        reproduce("show", "table-3.2", folder=folder)


def test_collect_keeps_numbers_and_the_remark(finished, capsys):
    folder = finished[1]
    reproduce("collect", "table-3.1", folder=folder, budget="cpu", remark="one epoch")
    reproduce("collect", "table-3.1", folder=folder, budget="cpu")
    kept = json.loads((folder / "results/table-3.1.cpu.json").read_text())
    assert kept["remark"] == "one epoch"
    capsys.readouterr()
    reproduce("list", folder=folder)
    assert "1 entries, 1 with results" in capsys.readouterr().out
    reproduce("document", folder=folder, out=folder / "RESULTS.md")
    assert "one epoch" in (folder / "RESULTS.md").read_text()


def test_collect_keeps_runs_that_are_on_another_disk(tmp_path, finished, capsys):
    """Of an entry with two runs, one is on disk; the numbers of the other stay as they were kept."""
    other = 'rows = [{ label = "other", published = [1, 1, 1], run = "others" }, '
    text = RUNS + RUNS.replace("[run.digits]", "[run.others]") + ENTRY.replace("rows = [", other)
    catalogue = catalogue_of(tmp_path / "entries", text)
    entry = catalogue.entries["table-3.1"]
    digits = results.collect(catalogue, entry, "cpu", finished[1] / "runs", remark="one epoch")
    values = {("other", column.name): Value(1.0, 0.0, 2.0, 5) for column in entry.columns}
    kept = replace(
        digits,
        values=values,
        runs={"others": running.script_lines(catalogue.runs["others"], "cpu")},
        seeds={"others": [7]},
        versions={"torch": "1.0"},
    )
    results.write(kept, tmp_path / "results")
    reproduce("collect", "table-3.1", folder=tmp_path, budget="cpu", runs=finished[1] / "runs")
    assert "not on this disk, kept as stored before: others" in capsys.readouterr().out
    found = results.read(tmp_path / "results/table-3.1.cpu.json", catalogue)
    alone = results.read(results.write(digits, tmp_path), catalogue)
    assert found.values == {**values, **alone.values}
    assert found.seeds == {"others": [7], "digits": [0]}
    assert found.versions["torch"] == f"1.0, {torch.__version__}"
    assert results.joined(entry, digits, None) is digits
    assert results.joined(entry, digits, digits) is digits


def test_run_does_what_is_left_and_collects(finished, capsys):
    folder = finished[1]
    reproduce("run", "table-3.1", folder=folder, budget="smoke")
    text = capsys.readouterr().out
    assert "finished after" in text
    assert "its numbers are not stored" in text
    assert not (folder / "results/table-3.1.smoke.json").exists()
    with pytest.raises(ValueError, match="budget: got none"):
        reproduce("run", "table-3.1", folder=folder)
    with pytest.raises(ValueError, match="expected runs of the entries: digits"):
        reproduce("run", "table-3.1", folder=folder, budget="smoke", only=["mnist"])
    with pytest.raises(ValueError, match="names: got none"):
        reproduce("run", folder=folder, budget="smoke")
    with pytest.raises(ValueError, match="budget: is used by run, collect, not by show"):
        reproduce("show", "table-3.1", folder=folder, budget="smoke")


def with_runs(folder: Path, *plans: tuple[str, str, str]) -> Catalogue:
    """An entry with runs by name, data set and budgets, of which full is on a GPU."""
    runs, rows, train = [], [], "scripts.train --scheme 'BandAblation(width=2)'"
    options = {"cpu": 'cpu = { device = "" }', "full": 'full = { device = "--device cuda" }'}
    for name, data, budgets in plans:
        runs.append(f'[run.{name}]\ncommands = ["{train} {{run}} --data {data} {{device}}"]')
        runs += [options[budget] for budget in budgets.split()]
        rows.append(f'{{ label = "{name}", published = [1, 1, 1], run = "{name}" }}')
    entry = ENTRY.split("rows = [")[0] + f"rows = [{', '.join(rows)}]"
    return catalogue_of(folder / "entries", "\n".join(runs), entry)


def test_run_tells_all_that_is_missing_before_it_starts(tmp_path, monkeypatch):
    root = tmp_path / "data"
    monkeypatch.setenv("CERTIFY_DATA", str(root))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = with_runs(tmp_path, ("a", "mnist", "cpu full"), ("b", "imagenet", "full"), ("c", "digits", "cpu"))

    def told(budget: str) -> list[str]:
        with pytest.raises(ValueError, match="nothing was started, because this is missing:") as error:
            reproduce("run", "table-3.1", folder=tmp_path, budget=budget)
        assert not (tmp_path / "runs").exists()
        return str(error.value).splitlines()[1:]

    mnist = (
        f"  mnist: no train-images-idx3-ubyte[.gz] in {root / 'mnist'}, {root / 'MNIST/raw'}, {root}; run 'python -m"
    )
    mnist += " scripts.fetch mnist' or point $CERTIFY_DATA to the folder with the data sets (for a)"
    imagenet = f"  imagenet: none of {root / 'imagenet/train'}, {root / 'train'} exists; put it there or point "
    imagenet += "$CERTIFY_DATA to the folder with the data sets (for b)"
    gpu = f"  cuda: torch {torch.__version__} finds no GPU that it can use"
    assert told("cpu") == [mnist, "the other runs are possible: --only c"]
    last = "no other run is left to do"
    assert told("full") == [mnist, f"{gpu}; --budget cpu does without (for a)", imagenet, f"{gpu} (for b)", last]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert told("full") == [mnist, imagenet, last]
    # a run that is finished needs nothing
    run = found.runs["a"]
    folder = running.folder_of(tmp_path / "done", run, "cpu")
    folder.mkdir(parents=True)
    running._write_state(folder, running.State(run.words("cpu"), 1, 1, {}))
    assert running.missing(run, "cpu", tmp_path / "done") == []


def test_of_an_interrupted_run_only_what_is_left_needs_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = RUNS.replace(
        'epochs = 3, train = "", images = "--device cuda"', 'epochs = 3, train = "--device cuda", images = ""'
    )
    run = catalogue_of(tmp_path / "entries", text + ENTRY).runs["digits"]
    assert [text.partition(":")[0] for text in running.missing(run, "full", tmp_path)] == ["cuda"]
    folder = running.folder_of(tmp_path, run, "full")
    folder.mkdir(parents=True)
    running._write_state(folder, running.State(run.words("full"), 1, 1, {}))
    assert running.missing(run, "full", tmp_path) == []


def test_run_with_only_collects_the_entries_that_use_it(tmp_path, finished, capsys):
    other = RUNS.replace("[run.digits]", "[run.others]") + ENTRY.replace("table-3.1", "table-2.1")
    catalogue_of(tmp_path / "entries", RUNS + ENTRY, other.replace('run = "digits"', 'run = "others"'))
    names, runs = ("table-2.1", "table-3.1"), finished[1] / "runs"
    reproduce("run", *names, folder=tmp_path, budget="smoke", only=["digits"], runs=runs)
    text = capsys.readouterr().out
    assert "table-3.1: l1 certificates" in text
    assert "table-2.1" not in text


def test_the_command_line_as_words():
    args = cli.parse_args(
        reproduce_script.Args, ["run", "table-6.1", "table-6.2", "--budget", "cpu"], "scripts.reproduce"
    )
    assert (args.step, args.names, args.budget) == ("run", ["table-6.1", "table-6.2"], "cpu")
