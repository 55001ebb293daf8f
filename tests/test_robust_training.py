"""SmoothAdv, MACER and rising noise: losses and attack by hand, and as parts of the trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional

from certify import RandomizedAblation, SplittingNoise, UniformNoise
from certify.data import Dataset, load
from certify.draws import Draws
from certify.images import to_float
from certify.models import ModelSpec
from certify.scheme import SampledScheme
from certify.threats import L1
from certify.training import Trainer, TrainingConfig, load_checkpoint
from certify.training.checkpoint import read_tensors, write_tensors
from certify.training.copies import check_additive, gaussian_sigma
from certify.training.losses import log_mean_softmax, macer_loss
from certify.training.schedules import noise_level
from certify.training.smoothadv import smoothadv_attack, unit, within_ball
from scripts import train as train_script


@dataclass(frozen=True)
class Gaussian(SampledScheme):
    """Gaussian noise for training; it certifies nothing."""

    sigma: float

    @property
    def threat(self) -> L1:
        return L1()

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        noise = torch.special.ndtri(draws.uniforms(x[0].numel())).view(*draws.shape, *x.shape[1:])
        return (to_float(x)[:, None] + self.sigma * noise).float()

    def radius(self, p_lower, p_upper, *, shape=None) -> Tensor:
        return torch.full_like(p_lower, -1)


SCHEME = Gaussian(0.25)
SPEC = ModelSpec("mnist_cnn", 1, 10, 8)
CONFIG = TrainingConfig(epochs=3, batch_size=32, lr=0.05, attack_warmup=2, attack_steps=2, noise_samples=2)


def small(count: int = 96) -> Dataset:
    data = load("digits", "train")
    return replace(data, images=data.images[torch.arange(count)], labels=data.labels[:count])


def logits_of(*probabilities: tuple[float, ...]) -> Tensor:
    """Scores ``[k, 1, classes]`` of copies with these soft-max values."""
    return torch.tensor(probabilities, dtype=torch.float64).log()[:, None]


# losses


def test_log_mean_softmax_by_hand():
    scores = logits_of((0.5, 0.25, 0.25), (0.1, 0.1, 0.8)) + torch.tensor([[[3.0]], [[-7.0]]])
    assert log_mean_softmax(scores).exp()[0].tolist() == pytest.approx([0.3, 0.175, 0.525])
    sure = torch.tensor([[[0.0, -1e4]], [[0.0, -2e4]]])
    assert log_mean_softmax(sure)[0].tolist() == pytest.approx([0, -1e4 - log(2)])


def test_macer_loss_by_hand():
    scores = torch.cat((logits_of((0.5, 0.3, 0.2), (0.7, 0.2, 0.1)), logits_of((0.2, 0.5, 0.3), (0.1, 0.2, 0.7))), 1)
    labels = torch.tensor([0, 1])  # the second image is wrong: 0.35 for class 1, 0.5 for class 2
    classification = (-log(0.6) - log(0.35)) / 2
    radius = float(norm.ppf(0.6) - norm.ppf(0.25))
    loss = macer_loss(scores, labels, sigma=0.5, weight=12, beta=1, gamma=8)
    assert loss.item() == pytest.approx(classification + 12 * 0.5 / 2 * (8 - radius) / 2, rel=1e-12)
    assert macer_loss(scores, labels, sigma=0.5, weight=12, beta=1, gamma=radius).item() == pytest.approx(
        classification
    )
    # the temperature is of the radius, not of the cross entropy
    powers = [0.25 / 0.38, 0.49 / 0.54]
    rivals = [0.09 / 0.38, 0.04 / 0.54]
    p, r = sum(powers) / 2, sum(rivals) / 2
    warm = macer_loss(scores, labels, sigma=0.5, weight=1, beta=2, gamma=8).item()
    assert warm == pytest.approx(classification + 0.25 * (8 - (norm.ppf(p) - norm.ppf(r))) / 2, rel=1e-12)


def test_macer_ties_go_to_the_lower_class():
    tied = logits_of((0.5, 0.5))
    for label, hinge in ((0, 8.0), (1, 0.0)):
        loss = macer_loss(tied, torch.tensor([label]), sigma=1, weight=1, beta=1, gamma=8)
        assert loss.item() == pytest.approx(log(2) + hinge / 2)


def test_macer_gradient_by_finite_differences():
    scores = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(5) % 4

    def loss(values: Tensor) -> Tensor:
        return macer_loss(values, labels, sigma=0.5, weight=3, beta=2, gamma=2)

    assert torch.autograd.gradcheck(loss, (scores,))


def test_macer_quantiles_of_very_sure_images():
    """1 - p = 1e-20 is 0 in floating point, and its quantile is not infinite."""
    scores = torch.tensor([[[0.0, log(1e-20)]]], dtype=torch.float64)
    loss = macer_loss(scores, torch.tensor([0]), sigma=2, weight=1, beta=1, gamma=30)
    assert loss.item() == pytest.approx(30 + 2 * norm.ppf(1e-20), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_macer_beyond_the_hinge_is_the_cross_entropy(size, dtype):
    scores = torch.tensor([[[size, -size, 0.0], [-size, 0.0, size]]] * 2, dtype=dtype).requires_grad_()
    labels = torch.tensor([0, 1])  # sure and right, sure and wrong
    loss = macer_loss(scores, labels, sigma=1, weight=12)
    expected = functional.nll_loss(log_mean_softmax(scores), labels)
    assert loss.dtype == dtype
    assert loss.item() == expected.item()
    slope, plain = (torch.autograd.grad(value, scores, retain_graph=True)[0] for value in (loss, expected))
    assert torch.equal(slope, plain)
    assert slope.isfinite().all()


# the attack


class Linear(nn.Module):
    """Two classes whose scores differ by ``w . x``."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weights).flatten(1).sum(1)
        return torch.stack((score, torch.zeros_like(score)), 1)


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 3, 2, 2)])
def test_the_attack_on_a_linear_classifier_is_the_steepest_descent(shape):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(shape, generator=generator)
    images, noise = torch.full((2, *shape), 0.5), 0.3 * torch.randn((4, 2, *shape), generator=generator)
    module = Linear(weights)
    attacked = smoothadv_attack(module, images, torch.tensor([0, 1]), noise, epsilon=0.2, steps=3)
    toward = 0.2 * weights / weights.norm()
    assert torch.allclose(attacked[0], 0.5 - toward, atol=1e-6)
    assert torch.allclose(attacked[1], 0.5 + toward, atol=1e-6)
    assert module.weights.grad is None
    assert not attacked.requires_grad
    alone = smoothadv_attack(module, images[1:], torch.tensor([1]), noise[:, 1:], epsilon=0.2, steps=3)
    assert torch.allclose(alone, attacked[1:], atol=1e-6)


def test_the_attack_stays_in_the_ball_and_is_wrong_more_often():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 3))
    images, labels = torch.rand(6, 1, 4, 4).round(decimals=1), torch.arange(6) % 3
    noise = 0.1 * torch.randn(5, 6, 1, 4, 4)

    def wrong(x: Tensor) -> Tensor:
        scores = module((x + noise).flatten(0, 1)).unflatten(0, (5, 6))
        return -log_mean_softmax(scores).gather(1, labels[:, None])[:, 0]

    for steps in (1, 4):
        attacked = smoothadv_attack(module, images, labels, noise, epsilon=0.5, steps=steps)
        assert (attacked >= 0).all()
        assert (attacked <= 1).all()
        assert ((attacked - images).flatten(1).norm(dim=1) <= 0.5 + 1e-6).all()
        assert (wrong(attacked) > wrong(images)).all()
    assert smoothadv_attack(module, images, labels, noise, epsilon=0, steps=4) is images


def test_units_and_balls():
    slopes = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-30, -4e-30], [1e30, 0.0]]).view(4, 1, 1, 2)
    expected = torch.tensor([[0.6, 0.8], [0, 0], [0.6, -0.8], [1, 0]]).view(4, 1, 1, 2)
    assert torch.allclose(unit(slopes), expected)
    images = torch.tensor([0.0, 0.0]).expand(3, 2)
    moved = torch.tensor([[0.3, 0.4], [0.6, 0.8], [-3.0, 4.0]])
    inside = torch.tensor([[0.3, 0.4], [0.3, 0.4], [0.0, 0.4]])
    assert torch.allclose(within_ball(moved, images, 0.5), inside)


# schedules


def test_noise_rises_in_stages():
    assert [noise_level(e, ramp=0) for e in (0, 5)] == [1, 1]
    assert [noise_level(e, ramp=4) for e in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [noise_level(e, ramp=80, stage=20) for e in (0, 19, 20, 59, 60, 79, 80, 200)] == [
        *(0, 0, 0.25, 0.5, 0.75, 0.75),
        *(1, 1),
    ]


def test_epsilon_rises_linearly():
    config = replace(CONFIG, epsilon=0.5, attack_warmup=4)
    assert [config.epsilon_in(e) for e in range(6)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert replace(CONFIG, epsilon=0.5, attack_warmup=0).epsilon_in(0) == 0.5


def test_copies_while_the_noise_rises(tmp_path):
    data = small()
    rising = Trainer(data, SCHEME, SPEC, replace(CONFIG, noise_ramp=2), tmp_path)
    full = Trainer(data, SCHEME, SPEC, CONFIG, tmp_path)
    images = data.batch([3, 1])[0]
    assert rising.steps_per_epoch == 3
    assert torch.equal(rising.copies(images, 2), to_float(images))
    noise = full.copies(images, 4) - to_float(images)
    assert torch.allclose(rising.copies(images, 4), to_float(images) + noise / 2, atol=1e-6)
    assert torch.equal(rising.copies(images, 6), full.copies(images, 6))


# the trainer


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, loss="smoothadv", augment=True),
        replace(CONFIG, loss="macer", noise_samples=4, noise_ramp=2),
        replace(CONFIG, loss="smoothadv", noise="batch", noise_ramp=1),
    ],
    ids=["smoothadv", "macer", "batch"],
)
def test_interrupted_training_ends_in_the_identical_model(tmp_path, config):
    whole = Trainer(small(), SCHEME, SPEC, config, tmp_path / "whole")
    whole.run()

    class Killed(Exception):
        pass

    def kill(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 1):
            raise Killed

    with pytest.raises(Killed):
        Trainer(small(), SCHEME, SPEC, config, tmp_path / "part").run(on_step=kill)
    resumed = Trainer(small(), SCHEME, SPEC, config, tmp_path / "part")
    resumed.load_state()
    assert resumed.epoch == 1
    resumed.run()
    assert (tmp_path / "part/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.parametrize(("loss", "copies"), [("smoothadv", 2), ("macer", 16), ("cross_entropy", 1)])
def test_number_of_copies(loss, copies):
    config = replace(CONFIG, loss=loss, noise_samples=None)
    assert config.num_copies == copies
    assert replace(config, noise_samples=5).num_copies == (1 if loss == "cross_entropy" else 5)


def test_an_attack_of_norm_zero_is_noise_augmentation(tmp_path):
    """With one copy and no attack, SmoothAdv is the usual training, bit for bit."""
    config = replace(CONFIG, noise_samples=1, epsilon=0.0)
    usual = Trainer(small(), SCHEME, SPEC, config, tmp_path / "usual").run()
    attacked = Trainer(small(), SCHEME, SPEC, replace(config, loss="smoothadv"), tmp_path / "attacked").run()
    for a, b in zip(usual.state_dict().values(), attacked.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)  # the noise is subtracted and added again


def test_the_attack_does_not_touch_batch_statistics(tmp_path):
    spec = ModelSpec("network_in_network", 1, 10, 8)
    t = Trainer(small(4), SCHEME, spec, replace(CONFIG, loss="smoothadv"), tmp_path)
    t.trained.train()
    before = {name: value.clone() for name, value in t.module.state_dict().items()}
    images, labels = t.data.batch([0, 1, 2, 3])
    attacked = t._attacked(images, labels, [t.copies(images, 0, i) for i in range(2)], 0)
    assert all(torch.equal(value, before[name]) for name, value in t.module.state_dict().items())
    assert t.module.training
    assert all(p.grad is None for p in t.module.parameters())
    change = (attacked[0] - t.copies(images, 0, 0)).flatten(1).norm(dim=1)
    assert ((change > 0) & (change <= t.config.epsilon_in(0) + 1e-5)).all()


def test_which_schemes_add_noise():
    images = small().batch([0])[0]
    for scheme in (SCHEME, UniformNoise(0.5)):
        check_additive(scheme, images, "smoothadv")
    for scheme in (SplittingNoise(0.5), RandomizedAblation(20), RandomizedAblation(20, null="mean", mean=(0.5,))):
        with pytest.raises(ValueError, match=r"not the image plus noise .* smoothadv needs a scheme such as Gaussian"):
            check_additive(scheme, images, "smoothadv")
    with pytest.raises(ValueError, match="scheme: got none"):
        check_additive(None, images, "smoothadv")
    assert gaussian_sigma(SCHEME, images, "macer") == 0.25
    with pytest.raises(ValueError, match=r"got UniformNoise\(lam=0.5\), expected Gaussian noise; macer"):
        gaussian_sigma(UniformNoise(0.5), images, "macer")


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        (SplittingNoise(0.5), {"loss": "smoothadv"}, "smoothadv needs a scheme"),
        (SplittingNoise(0.5), {"loss": "macer"}, "macer needs a scheme"),
        (UniformNoise(0.5), {"loss": "macer"}, "expected Gaussian noise"),
        (SplittingNoise(0.5), {"noise_ramp": 2}, "noise_ramp needs a scheme"),
        (None, {"noise_ramp": 2}, "scheme: got none"),
        (None, {"loss": "macer"}, "scheme: got none"),
    ],
)
def test_schemes_that_do_not_fit_are_refused(tmp_path, scheme, options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(small(), scheme, SPEC, replace(CONFIG, **options), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, "epsilon: got -1"),
        ({"epsilon": float("inf")}, "epsilon: got inf"),
        ({"macer_beta": 0.0}, "macer_beta: got 0"),
        ({"macer_gamma": float("nan")}, "macer_gamma: got nan"),
        ({"macer_weight": -2.0}, "macer_weight: got -2"),
        ({"noise_samples": 0}, "noise_samples: got 0"),
        ({"attack_steps": 0}, "attack_steps: got 0"),
        ({"attack_warmup": -1}, "attack_warmup: got -1"),
        ({"noise_stage": 0}, "noise_stage: got 0"),
        ({"noise_ramp": 3}, "noise_ramp: got 3 of 3 epochs, expected fewer"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **options)


def test_states_from_before_a_setting_existed_can_be_resumed(tmp_path):
    config = replace(CONFIG, attack_warmup=10, attack_steps=4, noise_samples=None)
    first = Trainer(small(), SCHEME, SPEC, config, tmp_path)
    first.save_state()
    tensors, header = read_tensors(first.state_path)
    for name in ("noise_samples", "epsilon", "attack_steps", "attack_warmup", "noise_ramp", "noise_stage"):
        del header["config"][name]
    write_tensors(first.state_path, tensors, header)
    Trainer(small(), SCHEME, SPEC, config, tmp_path).load_state()
    with pytest.raises(ValueError, match=r"was made with config\.epsilon = 0\.5, not 1\.0"):
        Trainer(small(), SCHEME, SPEC, replace(config, epsilon=1.0), tmp_path).load_state()


def test_the_command_line_records_the_settings(tmp_path, capsys):
    train_script.main(
        train_script.Args(
            out=tmp_path, scheme="UniformNoise(lam=0.5)", epochs=2, batch_size=512, loss="smoothadv", noise_ramp=1,
            noise_samples=1, epsilon=0.25, attack_steps=1,
        )
    )  # fmt: skip
    training = load_checkpoint(tmp_path)[1].training
    names = ("loss", "noise_ramp", "noise_samples", "epsilon", "attack_steps")
    assert [training[name] for name in names] == ["smoothadv", 1, 1, 0.25, 1]
    with pytest.raises(ValueError, match="expected Gaussian noise"):
        train_script.main(train_script.Args(out=tmp_path / "b", scheme="UniformNoise(lam=0.5)", loss="macer"))
