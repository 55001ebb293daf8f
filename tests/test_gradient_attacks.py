"""Gradient attacks on smoothed classifiers: the gradient itself, where steps may go, and against certificates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from certify import (
    BandAblation,
    BlockAblation,
    DeterministicAblation,
    DeterministicSplittingNoise,
    DoubleMasking,
    EnumeratedScheme,
    LInf,
    MultiBandAblation,
    Patch,
    RandomizedAblation,
    Smoothed,
    ThresholdVote,
    Undefended,
    argmax_vote,
)
from certify.attacks import linf_attack, patch_attack
from certify.attacks.gradient import votes_and_gradient
from certify.attacks.ifgsm import Starts
from certify.attacks.oracle import Oracle
from certify.attacks.patch import _starts, copies_reached
from certify.data import load
from certify.images import to_float
from certify.models import ModelSpec
from certify.results import read_config, read_rows
from certify.training import Trainer, TrainingConfig
from scripts import attack as attack_script
from scripts.parts import cli

SHAPE = (2, 6, 7)
SCHEMES: list[EnumeratedScheme] = [
    BandAblation(2),
    BandAblation(2, axis="row"),
    BandAblation(3, stride=2),
    BandAblation(2, null="mean", mean=(0.3, 0.6)),
    BlockAblation(3, mean=(0.3, 0.6), std=(0.5, 0.4)),
    BlockAblation(2, stride=3),
    MultiBandAblation(2, 2),
    DeterministicAblation(5),
    DoubleMasking(2, masks=2),
    Undefended(),
]


class Smooth(nn.Module):
    """A network without kinks, in float64."""

    def __init__(self, channels: int, classes: int = 3, size: int = 42, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(channels * size, 8, generator=generator, dtype=torch.float64) / 3)
        self.second = nn.Parameter(torch.randn(8, classes, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).double() @ self.first).tanh() @ self.second


def smoothed_of(scheme: EnumeratedScheme, vote=argmax_vote, batch_size: int = 16) -> Smoothed:
    return Smoothed(Smooth(scheme.channels(SHAPE[0])), scheme, 3, vote=vote, batch_size=batch_size)


def images_of(count: int, seed: int = 0) -> Tensor:
    """Multiples of 1/64, so that small steps on them are exact in float32."""
    return torch.randint(8, 57, (count, *SHAPE), generator=torch.Generator().manual_seed(seed)) / 64


def mean_share(smoothed: Smoothed, x: Tensor, labels: Tensor) -> Tensor:
    """N_y of Appendix E.7, from all copies in one batch: float64 ``[B]``."""
    scheme, n = smoothed.scheme, smoothed.copies_per_image(SHAPE)
    assert isinstance(scheme, EnumeratedScheme)
    copies = scheme.copies(x, torch.arange(n)[None])
    shares = smoothed.engine.base_classifier(copies.flatten(0, 1)).softmax(1).view(len(x), n, -1)
    return shares.mean(1).gather(1, labels[:, None])[:, 0]


# The gradient


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("batch_size", [3, 16, 500])
def test_gradient_is_that_of_the_published_objective(scheme, batch_size):
    smoothed, x, labels = smoothed_of(scheme, batch_size=batch_size), images_of(5), torch.tensor([0, 1, 2, 0, 1])
    n = smoothed.copies_per_image(SHAPE)
    votes, gradient = votes_and_gradient(smoothed, x, labels, torch.arange(n).expand(5, n))
    leaf = x.clone().requires_grad_()
    share = mean_share(smoothed, leaf, labels)
    loss = -share.log()
    naive = torch.autograd.grad(loss.sum(), leaf)[0]
    factor = (n * share).detach().float()[:, None, None, None]
    assert torch.allclose(-gradient / factor, naive, rtol=1e-4, atol=1e-7)
    assert naive.abs().max() > 1e-3
    assert torch.equal(votes, smoothed.engine.enumerated_by_copy(x))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gradient_by_finite_differences(scheme):
    smoothed, x, labels = smoothed_of(scheme), images_of(1), torch.tensor([1])
    n, step = smoothed.copies_per_image(SHAPE), 2.0**-10
    gradient = votes_and_gradient(smoothed, x, labels, torch.arange(n)[None])[1].flatten() / n
    basis = torch.eye(x.numel()).view(-1, *SHAPE) * step
    with torch.no_grad():
        many = labels.expand(len(basis))
        difference = mean_share(smoothed, x + basis, many) - mean_share(smoothed, x - basis, many)
    assert torch.allclose(gradient.double(), difference / (2 * step), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("patch", [(1, 1), (2, 3), (6, 2), (6, 7)])
def test_copies_that_do_not_see_the_patch_are_left_out(scheme, patch):
    """On the patch the gradient is that of all copies; their votes are those of the whole classifier."""
    smoothed, x = smoothed_of(scheme), images_of(3)
    smoothed.engine.prepare(x)
    labels, votes = torch.tensor([0, 1, 2]), smoothed.votes(x)
    starts = _starts(Oracle(smoothed, x, labels), votes, torch.arange(3).repeat_interleave(4), patch, 4, seed=5)
    inside = starts.low != starts.high
    n = votes.n
    part, some = votes_and_gradient(smoothed, starts.x, labels[starts.which], starts.copies)
    whole, every = votes_and_gradient(smoothed, starts.x, labels[starts.which], torch.arange(n).expand(12, n))
    assert torch.allclose(some[inside], every[inside], rtol=1e-5, atol=1e-9)
    assert torch.equal(starts.outside + part.sum(1), whole.sum(1))
    reached = copies_reached(smoothed, SHAPE, patch)
    assert part.shape[1] == reached <= n
    if isinstance(scheme, BandAblation) and scheme.axis == "column" and scheme.stride == 1:
        assert reached == min(7, patch[1] + scheme.width - 1)


def test_a_copy_that_is_sure_of_itself_still_has_a_slope():
    base = lambda copies: 100 * (copies.flatten(1)[:, :2].double() + torch.tensor([0.3, 0.0]))  # noqa: E731
    smoothed = Smoothed(base, Undefended(), 2, batch_size=4)
    x = torch.full((1, 1, 1, 2), 0.5)
    gradient = votes_and_gradient(smoothed, x, torch.tensor([0]), torch.zeros((1, 1), dtype=torch.int64))[1]
    assert gradient[0, 0, 0, 0] > 0 > gradient[0, 0, 0, 1]


def test_the_classifier_is_left_as_it_was():
    model = nn.Sequential(Smooth(4), nn.Dropout(0.5))
    smoothed = Smoothed(model, BandAblation(2), 3, batch_size=16)
    model.train()
    model[0].eval()
    x = images_of(2)
    before = x.clone()
    with torch.no_grad():
        first = patch_attack(smoothed, x, torch.tensor([0, 1]), patch_size=2, restarts=2, steps=2)
    with torch.inference_mode():
        second = patch_attack(smoothed, x, torch.tensor([0, 1]), patch_size=2, restarts=2, steps=2)
    assert torch.equal(first.adversarial, second.adversarial)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x, before)
    assert not first.adversarial.requires_grad


# Where the attack goes


def test_starts_are_uniform_over_places_and_values():
    smoothed, x = smoothed_of(BandAblation(2)), images_of(1)
    smoothed.engine.prepare(x)
    starts: Starts = _starts(
        Oracle(smoothed, x, torch.tensor([0])), smoothed.votes(x), torch.zeros(3000, dtype=torch.int64), (2, 3), 3000, 1
    )
    inside = starts.low != starts.high
    assert (inside.sum((1, 2, 3)) == 2 * 2 * 3).all()
    assert torch.equal(starts.x[~inside], x.expand_as(starts.x)[~inside])
    assert starts.x[inside].min() >= 0
    assert starts.x[inside].max() <= 1
    assert starts.x[inside].mean() == pytest.approx(0.5, abs=0.01)
    corners = inside[:, 0].flatten(1).int().argmax(1)
    counts = torch.bincount(corners, minlength=42).view(6, 7)
    assert (counts[:5, :5] > 70).all(), "120 are expected at each of 5 x 5 places"
    assert counts[:5, :5].sum() == 3000


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_changes_stay_inside_one_patch(scheme):
    smoothed, x = smoothed_of(scheme), images_of(12, seed=1)
    labels = smoothed.predict(x)
    result = patch_attack(smoothed, x, labels, patch_size=(3, 4), restarts=4, steps=8, step_size=0.2)
    assert result.success.any()
    assert result.threat == Patch(3, 4)
    assert torch.equal(result.magnitude, torch.where(result.success, 1.0, torch.inf).double())
    assert (result.threat.distance(x, result.adversarial)[result.success] == 1).all()
    assert torch.equal(result.adversarial[~result.success], x[~result.success])
    assert 0 <= result.adversarial.min() <= result.adversarial.max() <= 1
    assert torch.equal(smoothed.predict(result.adversarial), result.prediction)
    assert torch.equal(result.prediction != labels, result.success)
    assert torch.equal(result.verified, result.magnitude)


@pytest.mark.parametrize("scheme", [BandAblation(2), Undefended()], ids=str)
def test_linf_stays_inside_the_ball(scheme):
    smoothed, x = smoothed_of(scheme), images_of(20, seed=2)
    x[:4] = x[:4].round()  # at the ends of [0, 1]
    labels, eps = smoothed.predict(x), (0.02, 0.1, 0.4)
    result = linf_attack(smoothed, x, labels, eps=eps, steps=30, step_size=0.02)
    assert isinstance(result.threat, LInf)
    assert set(result.magnitude.tolist()) <= {*eps, math.inf}
    assert len(result.magnitude.unique()) > 1
    assert (result.threat.distance(x, result.adversarial) <= result.magnitude + 1e-6).all()
    assert 0 <= result.adversarial.min() <= result.adversarial.max() <= 1
    assert torch.equal(smoothed.predict(result.adversarial) != labels, result.success)


def test_one_step_of_ifgsm():
    """Two features, scores (x0, x1): from (0.6, 0.4), class 0 loses after the step that makes them cross."""
    base = lambda copies: copies.flatten(1).double()  # noqa: E731
    x = torch.tensor([0.6, 0.4]).view(1, 1, 1, 2)
    smoothed = Smoothed(base, Undefended(), 2, batch_size=4)
    result = linf_attack(smoothed, x, torch.tensor([0]), eps=[0.1, 0.25], steps=3, step_size=0.08)
    # at 0.1 they meet, and the tie goes to class 0; at 0.25 the second step crosses: no third one is taken
    assert result.magnitude.tolist() == [0.25]
    assert torch.allclose(result.adversarial.flatten(), torch.tensor([0.44, 0.56]))
    assert (result.clean.tolist(), result.prediction.tolist()) == ([0], [1])


@pytest.mark.parametrize("attack", [patch_attack, linf_attack])
def test_results_depend_on_the_image_and_its_index_alone(attack):
    smoothed, x = smoothed_of(BlockAblation(3), ThresholdVote(0.3)), images_of(9, seed=3)
    options = {"steps": 6, "step_size": 0.02} | (
        {"patch_size": 2, "restarts": 5, "seed": 3} if attack is patch_attack else {"eps": (0.02, 0.05)}
    )
    labels, index = smoothed.predict(x), torch.arange(40, 49)
    labels[0] = (labels[0] + 1) % 3  # wrong without an attack
    whole = attack(smoothed, x, labels, index=index, **options)
    order = torch.tensor([7, 2, 4, 0, 8, 1, 6, 3, 5])
    for rows in (*order.split(1), *order.split(4)):
        part = attack(smoothed, x[rows], labels[rows], index=index[rows], **options)
        for name in ("adversarial", "magnitude", "clean", "prediction", "queries"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
    assert 0 < whole.success.sum() < 9
    assert whole.magnitude[0] == 0
    assert torch.equal(whole.adversarial[0], x[0])
    assert whole.queries[0] == 1


def test_seed_and_index_matter():
    smoothed, x = smoothed_of(Undefended()), images_of(4)
    labels = smoothed.predict(x)

    def attacked(**options) -> Tensor:
        return patch_attack(
            smoothed, x, labels, patch_size=4, restarts=2, steps=3, step_size=0.3, **options
        ).adversarial

    assert not torch.equal(attacked(), attacked(seed=1))
    assert not torch.equal(attacked(), attacked(index=torch.arange(1, 5)))
    assert torch.equal(attacked(), attacked(index=torch.arange(4)))


def test_eight_bit_images_and_floats_are_the_same_images():
    smoothed = smoothed_of(BandAblation(3))
    x = torch.randint(256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    labels = smoothed.predict(x)
    eight, floats = (patch_attack(smoothed, y, labels, patch_size=4, restarts=3, steps=5) for y in (x, to_float(x)))
    assert eight.adversarial.dtype == torch.float32
    assert torch.equal(eight.adversarial, floats.adversarial)
    assert torch.equal(patch_attack(smoothed, x, labels, patch_size=99, restarts=1, steps=1).clean, labels)


# Against certificates


def trained(scheme: EnumeratedScheme, folder: Path, epochs: int) -> nn.Module:
    data = load("digits", "train")
    model = ModelSpec("mnist_cnn", scheme.channels(1), 10, 8)
    trainer = Trainer(data, scheme, model, TrainingConfig(epochs=epochs, batch_size=64, lr=0.1), folder)
    trainer.run()
    return trainer.module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of bands."""
    return tmp_path_factory.mktemp("bands")


@pytest.fixture(scope="module")
def networks(tmp_path_factory, checkpoint) -> dict[EnumeratedScheme, nn.Module]:
    found: dict[EnumeratedScheme, nn.Module] = {BandAblation(2): trained(BandAblation(2), checkpoint, 12)}
    others: dict[EnumeratedScheme, int] = {BlockAblation(4, stride=2): 12, Undefended(): 4}
    for scheme, epochs in others.items():
        found[scheme] = trained(scheme, tmp_path_factory.mktemp("digits"), epochs)
    return found


@pytest.mark.parametrize("vote", [argmax_vote, ThresholdVote(0.3)], ids=["top-1", "threshold"])
@pytest.mark.parametrize("scheme", [BandAblation(2), BlockAblation(4, stride=2)], ids=str)
def test_certified_images_are_never_broken(networks, scheme, vote):
    smoothed = Smoothed(networks[scheme], scheme, 10, vote=vote, batch_size=128)
    images, labels = load("digits", "test").batch(list(range(0, 300, 12)))
    votes = smoothed.votes(images)
    assert votes.by_copy is not None
    for size in (1, 2):
        result = patch_attack(smoothed, images, labels, patch_size=size, restarts=6, steps=15, step_size=0.2)
        for bound in ("location", "published"):
            certified = scheme.certify_votes(votes.by_copy, size, shape=votes.shape, bound=bound)
            held = certified.certified & (certified.prediction == labels)
            assert not (held & result.success).any()
            if size == 1:
                assert held.any(), "nothing is certified"
    assert (result.magnitude == 1).any(), "the attack broke nothing"


def test_an_undefended_classifier_is_broken(networks):
    scheme = Undefended()
    smoothed = Smoothed(networks[scheme], scheme, 10)
    images, labels = load("digits", "test").batch(list(range(0, 300, 15)))
    result = patch_attack(smoothed, images, labels, patch_size=3, restarts=10, steps=20)
    assert (result.clean == labels).float().mean() > 0.8
    assert result.success.float().mean() > 0.7
    ball = linf_attack(smoothed, images, labels, eps=[8 / 255, 64 / 255], steps=40, step_size=4 / 255)
    assert (ball.magnitude <= 64 / 255).float().mean() > 0.9
    assert (smoothed.certify(images).radius == 0).all()


# Bad input


def attack_with(**options):
    arguments = {
        "smoothed": smoothed_of(BandAblation(2)),
        "images": images_of(2),
        "labels": torch.tensor([0, 1]),
        "restarts": 2,
        "steps": 1,
    }
    return patch_attack(**(arguments | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, "patch_size: got 0"),
        ({"patch_size": (2, 2, 2)}, "expected one integer or"),
        ({"restarts": 0}, "restarts: got 0"),
        ({"steps": -1}, "steps: got -1"),
        ({"steps": 1.5}, "steps: got 1.5"),
        ({"step_size": 0}, "step_size: got 0"),
        ({"step_size": math.nan}, "step_size: got nan"),
        ({"seed": -1}, "seed: got -1"),
        ({"labels": torch.tensor([0, 3])}, r"labels: got 0 to 3, expected 0\.\.2"),
        ({"index": torch.tensor([0])}, "index: got torch.int64"),
        ({"images": torch.full((2, *SHAPE), 2.0)}, r"expected \[0, 1\]"),
        ({"smoothed": Smoothed(Smooth(4), RandomizedAblation(2), 3, n=5)}, "whose copies are random"),
        (
            {
                "smoothed": Smoothed(Smooth(2), DeterministicSplittingNoise(0.5), 3, batch_size=16),
                "images": torch.zeros((2, *SHAPE), dtype=torch.uint8),
            },
            "copies are quantized",
        ),
        ({"smoothed": Smoothed(lambda x: Smooth(4)(x).detach(), BandAblation(2), 3)}, "scores without a gradient"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        attack_with(**options)


def test_bad_input_to_linf():
    smoothed, x, labels = smoothed_of(BandAblation(2)), images_of(2), torch.tensor([0, 1])
    for eps in ((), (0.2, 0.1), (0.1, 0.1), (0,), (1.5,), (math.nan,)):
        with pytest.raises(ValueError, match="expected distinct numbers in"):
            linf_attack(smoothed, x, labels, eps=eps)
    with pytest.raises(TypeError, match="for an undefended classifier"):
        linf_attack(Smooth(2), x, labels)  # pyright: ignore[reportArgumentType]


# The command


def attack(out: Path, checkpoint: Path, **options) -> None:
    defaults = {"max": 6, "vote": "ThresholdVote(theta=0.3)", "steps": 4}
    attack_script.main(attack_script.Args(out=out, checkpoint=checkpoint, **(defaults | options)))


def lines(folder: Path) -> list[list[str]]:
    """All rows without their times, ordered by index."""
    found = [line.split("\t") for path in folder.glob("rows*.tsv") for line in path.read_text().splitlines()[1:]]
    return sorted(([*row[:7], row[8]] for row in found), key=lambda row: int(row[0]))


PATCH = {"attack": "patch", "patch": "3x2", "restarts": 3, "step_size": "0.2"}
LINF = {"attack": "linf", "eps": ["4/255", "0.2"], "step_size": "8/255"}


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("options", [PATCH, LINF], ids=["patch", "linf"])
def test_runs_are_resumed_and_sharded(tmp_path, checkpoint, capsys, options):
    attack(tmp_path / "whole", checkpoint, **options)
    printed = capsys.readouterr().out
    attack(tmp_path / "part", checkpoint, **options, images_per_step=1, shard="1/2")
    attack(tmp_path / "part", checkpoint, **options, images_per_step=2, shard="0/2")
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")
    path = tmp_path / "whole/rows.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    attack(tmp_path / "whole", checkpoint, **options, resume=True)
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")
    config, rows = read_config(tmp_path / "whole")["attack"], read_rows(tmp_path / "whole")
    assert config == {"name": options["attack"], "seed": 0, "steps": 4} | {
        k: v for k, v in options.items() if k != "attack"
    }
    limits = {"patch 3x2": 1.0} if options is PATCH else {"4/255": 4 / 255, "0.2": 0.2}
    for name, limit in {"without": 0.0, **limits}.items():
        assert f"{name} {(rows['magnitude'] > limit).mean():.2%}" in printed
    data = load("digits", "test")
    smoothed = attack_script.classifier_runs.build(
        attack_script.Args(out=tmp_path, checkpoint=checkpoint, vote="ThresholdVote(theta=0.3)")
    )[0]
    for row in lines(tmp_path / "whole"):
        image = to_float(data.batch([int(row[0])])[0])
        for unit in () if row[7] == "-" else row[7].split(" "):
            number, value = unit.split(":")
            image.view(-1)[int(number)] = float(value)
        assert int(smoothed.predict(image)) == int(row[3])  # the stored image is the adversarial one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack", "patch", "--patch", "0"], "patch: got '0'"),
        (["--attack", "patch", "--eps", "0.1"], "eps: is not an option of the patch attack, which has patch, restarts"),
        (["--attack", "pointwise", "--step-size", "0.1"], "step-size: is not an option of the pointwise attack"),
        (["--attack", "linf", "--eps", "1/0"], "got '1/0', expected a number or a fraction, such as"),
        (["--attack", "linf", "--eps", "2/255", "1/255"], "expected distinct numbers in"),
        (["--attack", "patch", "--scheme", "RandomizedBandAblation(width=2)"], "whose copies are random"),
    ],
    ids=lambda value: str(value)[:50],
)
@pytest.mark.usefixtures("networks")
def test_bad_options_leave_no_trace(tmp_path, checkpoint, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        cli.run(
            attack_script.main,
            attack_script.Args,
            "scripts.attack",
            [str(tmp_path / "out"), "--checkpoint", str(checkpoint), *options],
        )
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
