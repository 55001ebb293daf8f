from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from torch import Tensor, nn
from torch.nn import functional

from certify import L2, GaussianNoise, Smoothed, SmoothReduce, SmoothReduceVideo, Unproven, smooth_reduce_patches
from certify.draws import ESTIMATION, Draws
from certify.smooth_reduce_patches import Axis
from certify.smooth_reduce_scores import Reduced


def draws(items=1, copies=range(6)) -> Draws:
    return Draws.of(0, ESTIMATION, torch.arange(items), copies)


def images(*shape: int, seed=0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# operators


@settings(max_examples=40)
@given(size=st.integers(1, 9), resized=st.integers(1, 12), data=st.data())
def test_resizing_is_bilinear_at_positions_rounded_to_quarters(size, resized, data):
    values = torch.tensor(data.draw(st.lists(st.integers(0, 255), min_size=size, max_size=size)))
    got = smooth_reduce_patches.resize(values.float().view(1, 1, 1, size), [Axis(3, size, resized, 1)]) / 4
    centres = [(2 * i + 1) * size / (2 * resized) - 0.5 for i in range(resized)]
    rounded = np.clip([math.floor(4 * centre + 0.5) / 4 for centre in centres], 0, size - 1)
    assert got.flatten().tolist() == np.interp(rounded, np.arange(size), values.numpy()).tolist()


@pytest.mark.parametrize(("size", "resized"), [((4, 6), (8, 12)), ((8, 4), (4, 8))])
def test_where_positions_are_quarters_it_is_the_usual_resizing(size, resized):
    x = images(2, 3, *size).float()
    axes = [Axis(3, size[0], resized[0], 1), Axis(4, size[1], resized[1], 1)]
    usual = functional.interpolate(x, resized, mode="bilinear", align_corners=False)
    assert torch.equal(smooth_reduce_patches.resize(x[:, None], axes)[:, 0] / 16, usual)


def matrix_of(axes: tuple[Axis, ...], starts: list[tuple[int, ...]], resizes: bool) -> np.ndarray:
    """The stacked patch operators, from what they do to every pixel."""
    pixels = axes[0].size * axes[1].size
    basis = torch.eye(pixels).view(pixels, 1, 1, axes[0].size, axes[1].size)
    resized = smooth_reduce_patches.resize(basis, axes) / 16 if resizes else basis
    places = torch.tensor(starts).T[:, None, None]
    return smooth_reduce_patches.windows(resized, [*places], axes).reshape(pixels, -1).T.double().numpy()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_windows_are_these_parts_of_the_image(data):
    """Of one image for all copies (whole windows are copied then, if there are few of them) or one for each."""
    size, batch, copies = data.draw(st.tuples(*[st.integers(1, 6)] * 2)), data.draw(st.integers(1, 3)), 5
    window = [data.draw(st.integers(1, side)) for side in size]
    axes = [Axis(3, size[0], size[0], window[0]), Axis(4, size[1], size[1], window[1])]
    x = images(batch, data.draw(st.sampled_from([1, copies])), 2, *size)
    starts = [torch.tensor(dense) for dense in zip(*smooth_reduce_patches.dense_starts(axes, 1), strict=True)]
    picks = draws(batch, range(copies)).integers(len(starts[0]), data.draw(st.integers(1, 4)))
    got = smooth_reduce_patches.windows(x, [start[picks] for start in starts], axes)
    assert got.shape == (*picks.shape, 2, *window)
    for (b, n, k), pick in np.ndenumerate(picks.numpy()):
        top, left = (int(start[pick]) for start in starts)
        of = x[b, n if x.shape[1] > 1 else 0]
        assert torch.equal(got[b, n, k], of[:, top : top + window[0], left : left + window[1]])


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 2), (4, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_dense_windows_are_those_at_dense_starts(size, stride):
    """On one axis or two. They are written to: no two may share memory."""
    x = images(2, 3, 1, 5, 5, 4)
    sides = [Axis(dim, x.shape[dim], x.shape[dim], side) for dim, side in zip((3, 4), size, strict=True)]
    for axes in (sides[:1], sides):
        starts = torch.tensor(smooth_reduce_patches.dense_starts(axes, stride)).T[:, None, None]
        got = smooth_reduce_patches.dense_windows(x, axes, stride)
        assert torch.equal(got, smooth_reduce_patches.windows(x, [*starts], axes))
        assert got.is_contiguous()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_operator_norm_from_both_sides(data):
    """The singular value of the whole stack, and power iteration: Rayleigh quotients from below, the quotients of
    Collatz and Wielandt from above."""
    size, resizes = (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))), data.draw(st.booleans())
    resized = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))) if resizes else size
    window = (data.draw(st.integers(1, resized[0])), data.draw(st.integers(1, resized[1])))
    stride = data.draw(st.integers(1, 4))
    scheme = SmoothReduce(0.5, window, resize=resized if resizes else None, stride=stride, noise="patch", sound=False)
    axes = scheme.axes((1, *size))
    norm = scheme.operator_norm((3, *size))
    stack = matrix_of(axes, smooth_reduce_patches.dense_starts(axes, stride), resizes)
    exact = np.linalg.svd(stack, compute_uv=False)[0]
    assert exact * (1 - 1e-12) <= norm <= exact * (1 + 1e-8)
    gram, v = stack.T @ stack, np.ones(stack.shape[1])
    for _ in range(50):
        v = gram @ v + v  # with the identity added, no pixel that is seen is ever left out
        v /= v.max()
    assert v @ gram @ v / (v @ v) <= norm**2 * (1 + 1e-12)
    assert exact**2 <= (gram @ v / v).max() * (1 + 1e-12)
    if not resizes:
        covered = np.zeros(size)
        for top, left in smooth_reduce_patches.dense_starts(axes, stride):
            covered[top : top + window[0], left : left + window[1]] += 1
        assert norm == math.sqrt(covered.max())


@pytest.mark.parametrize("resize", [None, 7, (5, 8)])
def test_random_patches_have_the_norm_of_the_worst_draw(resize):
    scheme = SmoothReduce(0.5, 4, resize=resize, count=2, noise="patch", sound=False)
    axes = scheme.axes((1, 6, 6))
    places = list(itertools.product(*(range(axis.places) for axis in axes)))
    norms = [
        np.linalg.svd(matrix_of(axes, [a, b], resize is not None), compute_uv=False)[0]
        for a, b in itertools.combinations_with_replacement(places, 2)
    ]
    norm = scheme.operator_norm((1, 6, 6))
    assert max(norms) * (1 - 1e-12) <= norm <= max(norms) * (1 + 1e-8)


def test_published_settings():
    """CIFAR-10: 32x32 images resized to 36x36, 4 patches of 32x32."""
    plain = SmoothReduce(0.5, 28, stride=4, noise="patch")
    assert plain.operator_norm((3, 32, 32)) == 2.0
    resized = SmoothReduce(0.5, 32, resize=36, stride=4, noise="patch")
    assert resized.patches((3, 32, 32)) == 4
    assert 2.0 < resized.operator_norm((3, 32, 32)) < 2 * 1.3
    p = torch.tensor([0.9, 0.99]).double()
    radius = resized.radius(p, 1 - p, shape=(3, 32, 32))
    expected = GaussianNoise(0.5).radius(p, 1 - p, shape=(3, 32, 32)) / resized.operator_norm((3, 32, 32))
    torch.testing.assert_close(radius, expected, rtol=1e-9, atol=0)
    assert torch.equal(SmoothReduce(0.5, 28, stride=4).radius(p, 1 - p), GaussianNoise(0.5).radius(p, 1 - p))


# copies


@pytest.mark.parametrize("resize", [None, (7, 9)])
def test_noise_on_the_image_is_cut_into_patches(resize):
    """The patches of a copy are those of the copy that plain smoothing makes from the same random numbers."""
    x = images(3, 2, 6, 8)
    scheme = SmoothReduce(0.25, (4, 5), resize=resize, stride=2)
    copies = scheme.sample(x, draws(3))
    numbers = GaussianNoise(0.25).sample(x, draws(3)) * 255
    if resize is not None:
        numbers = smooth_reduce_patches.resize(numbers, scheme.axes((2, 6, 8))) / 16
    expected = [
        numbers[..., top : top + 4, left : left + 5]
        for top, left in itertools.product(range(0, numbers.shape[-2] - 3, 2), range(0, numbers.shape[-1] - 4, 2))
    ]
    assert copies.shape == (3, 6, scheme.inputs_per_copy((2, 6, 8)), *scheme.input_shape((2, 6, 8)))
    torch.testing.assert_close(copies * 255, torch.stack(expected, 2), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("resize", [None, 7])
@pytest.mark.parametrize("places", [{"stride": 2}, {"count": 3}], ids=str)
def test_noise_on_patches_is_independent_and_in_whole_steps(places, resize):
    x = torch.full((1, 1, 6, 6), 100, dtype=torch.uint8)
    scheme = SmoothReduce(0.1, 5, resize=resize, noise="patch", **places)
    copies = scheme.sample(x, draws(1, range(3000)))[0]
    steps = (copies.double() - 100 / 255) * 255 * scheme.refinement
    assert scheme.refinement == (1 if resize is None else 16)
    assert (steps - steps.round()).abs().max() < 1e-2
    noise = (copies.double() - 100 / 255).flatten(1)
    assert abs(noise.std() / 0.1 - 1) < 0.01
    correlation = torch.corrcoef(noise.T) - torch.eye(noise.shape[1])
    assert correlation.abs().max() < 5.5 / 3000**0.5


def test_random_patches_come_from_everywhere_and_repeat_with_their_copy():
    x = images(2, 1, 5, 6)
    scheme = SmoothReduce(1e-4, (4, 3), count=4)  # hardly any noise: patches are recognized
    copies = scheme.sample(x, draws(2, range(50)))
    found = set()
    for b, n, k in itertools.product(range(2), range(50), range(4)):
        places = [
            (top, left)
            for top, left in itertools.product(range(2), range(4))
            if torch.equal((copies[b, n, k] * 255).round(), x[b, :, top : top + 4, left : left + 3].float())
        ]
        assert len(places) == 1
        found.add((b, *places))
    assert len(found) == 16
    alone = scheme.sample(x[1:], Draws.of(0, ESTIMATION, torch.tensor([1]), range(7, 8)))
    assert torch.equal(alone[0, 0], copies[1, 7])


@pytest.mark.parametrize("scheme", [
    SmoothReduce(1e-4, (4, 3), count=4),
    SmoothReduce(1e-4, (4, 3), stride=1, noise="patch"),
    SmoothReduce(1e-4, (4, 3), stride=1, noise="patch", sound=False),
], ids=str)  # fmt: skip
def test_training_sees_one_random_patch_of_each_copy(scheme):
    x = images(2, 1, 5, 6)
    patches = scheme.sample_inputs(x, draws(2, range(60)))
    assert patches.shape == (2, 60, 1, 4, 3)
    found = set()
    for top, left in itertools.product(range(2), range(4)):
        window = x[:, None, :, top : top + 4, left : left + 3].float()
        same = ((patches * 255).round() == window).flatten(2).all(2)
        found |= {(top, left, b) for b in range(2) if same[b].any()}
    assert len(found) == 16


# reductions


def test_reductions():
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 4.0], [0.0, 0.0]])

    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scores[x.flatten().long()]

    stacks = torch.tensor([[0, 1], [2, 3]]).view(2, 2, 1, 1, 1).float()
    assert Reduced(Table(), "mean")(stacks).tolist() == [[1.0, 0.5], [0.0, 2.0]]
    expected = torch.stack((scores[:2].softmax(1).amax(0), scores[2:].softmax(1).amax(0)))
    assert torch.equal(Reduced(Table(), "max")(stacks), expected)
    chunks = stacks.view(1, 2, 2, 1, 1, 1)
    assert Reduced(Table(), "mean", chunked=True)(chunks).tolist() == [[0.5, 1.25]]
    with pytest.raises(ValueError, match="base classifier: got"):
        Reduced(lambda x: x.flatten(), "mean")(stacks)


@pytest.mark.parametrize("options", [
    {"stride": 2}, {"count": 3, "reduce": "max"}, {"stride": 3, "noise": "patch", "resize": 9},
], ids=str)  # fmt: skip
def test_any_module_of_patches_can_be_smoothed(options):
    """Votes do not depend on how images are batched, and the model is left as it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4)).train()
    smoothed = Smoothed(model, SmoothReduce(0.3, 6, **options), 4, n0=20, n=200, batch_size=64)
    x = images(4, 1, 8, 8)
    counts = smoothed.votes(x).counts
    assert (counts.sum(1) == 200).all()
    assert torch.equal(smoothed.votes(x[2:3], index=torch.tensor([2])).counts, counts[2:3])
    automatic = Smoothed(model, smoothed.scheme, 4, n0=20, n=200)
    assert (automatic.votes(x).counts - counts).abs().max() <= 1
    assert model.training


# the printed rule


class Brightness(nn.Module):
    """Class 0 for patches brighter than ``threshold`` (in 1/255), by a linear score."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        score = x.double().mean((1, 2, 3)) * 255 - self.threshold
        return torch.stack((score, -score), 1)


def test_the_printed_rule_certifies_beyond_an_adversarial_example_and_the_sound_ones_do_not():
    """Patches that all see the whole image: with independent noise, p grows as if sigma were smaller by sqrt(k)."""
    k, sigma, x = 16, 0.25, torch.full((1, 1, 4, 4), 160, dtype=torch.uint8)
    threshold, darker = 152.5, torch.full((1, 1, 4, 4), 152, dtype=torch.uint8)
    distance = float(L2().distance(x, darker)[0])
    # The noise is symmetric, exactly: below the threshold, class 0 has a probability below one half. Whatever k is.
    options = {"count": k, "noise": "patch"}
    for noise in ({"noise": "image", "count": k}, options):
        weights = SmoothReduce(sigma, 4, **noise).rounded.weights()
        assert weights == weights[::-1]

    def smooth(**options) -> Smoothed:
        return Smoothed(Brightness(threshold), SmoothReduce(sigma, 4, **options), 2, n0=20, n=2000, alpha=0.001)

    printed = smooth(**options, as_printed=True)
    result = printed.certify(x)
    assert result.prediction.tolist() == [0]
    assert printed.predict(darker).tolist() in ([1], [-1])
    assert printed.certify(torch.full_like(x, 145)).prediction.tolist() == [1]
    assert result.radius[0] > 3 * distance
    to_boundary = 4 * 7.5 / 255
    exact = sigma * ndtri(0.5 * (1 + math.erf(to_boundary * math.sqrt(k) / sigma / math.sqrt(2))))
    assert exact == pytest.approx(math.sqrt(k) * to_boundary)
    for sound in (smooth(**options), smooth(count=k), smooth(count=k, reduce="max")):
        found = sound.certify(x)
        assert found.guaranteed
        assert found.prediction.tolist() == [0]
        assert 0 < found.radius[0] < distance


def test_the_printed_rule_is_marked_wherever_it_shows():
    scheme = SmoothReduce(0.25, 4, count=2, noise="patch", as_printed=True)
    assert scheme.threat == Unproven(L2(), "as printed")
    assert str(scheme.threat) == "l2, NOT certified (as printed)"
    result = scheme.certify_counts(torch.tensor([[9, 1]]), torch.tensor([[99, 1]]), 0.01, n=100, shape=(1, 4, 4))
    assert not result.guaranteed
    with pytest.raises(ValueError, match="nothing is certified"):
        result.certified_at(0.1)
    ranked = scheme.certify_top_k(torch.tensor([[99, 1, 0]]), 1, 0.01, n=100, shape=(1, 4, 4))
    assert ranked.threat == scheme.threat
    assert not ranked.guaranteed
    both = SmoothReduce(0.25, 4, count=2, noise="patch", as_printed=True, sound=False)
    assert "as printed, floating-point noise" in str(both.threat)
    assert SmoothReduce(0.25, 4, count=2, noise="patch").threat == L2()


def test_probabilities_with_noise_on_patches_obey_the_theorem_with_the_norm():
    """Two patches of two pixels that share one, whose exact joint probabilities are sums: every perturbation of the
    three pixels, thresholds on a reduction that is not linear."""
    scheme = SmoothReduce(0.6, (1, 2), stride=1, noise="patch", q=2)
    shape, q = (1, 1, 3), 2
    norm = scheme.operator_norm(shape)
    assert norm == math.sqrt(2)
    weights = np.array([w / 2**64 for w in scheme.rounded.weights()])
    reach = scheme.rounded.reach
    steps = np.arange(-reach, reach + 1)
    pair = weights[:, None] * weights[None, :]

    def probability(x: tuple[int, ...], limit: float) -> float:
        """Of ``max over patches of (2 a - b) >= limit``, for patches (a, b): they are independent."""
        below = 1.0
        for a, b in ((x[0], x[1]), (x[1], x[2])):
            below *= (pair * (2 * (a + steps[:, None]) - (b + steps[None, :]) < limit)).sum()
        return 1 - below

    levels, attacked = list(itertools.product(range(q + 1), repeat=3)), 0
    for limit in (-1.5, 0.5, 2.5):
        p = {x: probability(x, limit) for x in levels}
        for x in levels:
            leader = max(p[x], 1 - p[x])
            bounds = torch.tensor([leader - 1e-9, 1 - leader + 1e-9]).double()
            radius = float(scheme.radius(bounds[:1], bounds[1:], shape=shape)[0])
            for y in levels:
                if math.dist(x, y) / q <= radius:
                    assert (p[y] > 0.5) == (p[x] > 0.5)
                    attacked += x != y
    assert attacked > 10


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_worst_base_classifier_by_exact_probabilities(k):
    """A threshold on the sum of k patches of one pixel: within the radius nothing changes, and just outside it does,
    where the printed rule still promises that nothing will."""
    q, threshold = 60, 20
    sound = SmoothReduce(0.3, 1, count=k, noise="patch", q=q)
    printed = SmoothReduce(0.3, 1, count=k, noise="patch", q=q, as_printed=True)
    weights = np.array([w / 2**64 for w in sound.rounded.weights()])
    together = np.ones(1)
    for _ in range(k):
        together = np.convolve(together, weights)
    steps = np.arange(len(together)) - k * sound.rounded.reach
    bright = np.array([together[k * level + steps >= k * threshold].sum() for level in range(q + 1)])
    broken = 0
    for level in range(threshold, q + 1):
        p = torch.tensor([bright[level] - 1e-12]).double()
        if p >= 1 - 1e-9:
            break
        radius = {scheme: float(scheme.radius(p, 1 - p, shape=(1, 1, 1))[0]) for scheme in (sound, printed)}
        inside = level - math.floor(radius[sound] * q)
        assert (bright[max(inside, 0) : level] > 0.5).all()
        assert inside - threshold <= 1
        claimed = max(0, level - math.floor(radius[printed] * q))
        broken += bool((bright[claimed:level] < 0.5).any())
    assert (broken > 3) == (k > 1)


# videos


def test_sub_videos_and_chunks():
    x = images(2, 3, 10, 2, 2)
    scheme = SmoothReduceVideo(1e-4, 6, 3, stride=2)
    scheme.check(x)
    copies = scheme.sample(x, draws(2))
    assert copies.shape == (2, 6, 3, 2, 3, 3, 2, 2)
    levels = (copies * 255).round()
    for k, chunk in itertools.product(range(3), range(2)):
        frames = x[:, :, 2 * k + 3 * chunk : 2 * k + 3 * chunk + 3].float()
        assert torch.equal(levels[:, :, k, chunk], frames[:, None].expand(-1, 6, -1, -1, -1, -1))
    assert scheme.input_shape((3, 10, 2, 2)) == (3, 3, 2, 2)
    assert scheme.inputs_per_copy((3, 10, 2, 2)) == 6
    trained = (scheme.sample_inputs(x, draws(2, range(80))) * 255).round()
    assert trained.shape == (2, 80, 3, 3, 2, 2)
    found = {s for s in range(8) if (trained[1] == x[1, None, :, s : s + 3].float()).flatten(1).all(1).any()}
    assert found == {0, 2, 4, 3, 5, 7}


@pytest.mark.parametrize(("places", "square"), [({"stride": 2}, 3), ({"stride": 6}, 1), ({"count": 5}, 5)], ids=str)
def test_the_norm_of_sub_videos_is_the_root_of_how_many_cover_a_frame(places, square):
    scheme = SmoothReduceVideo(0.5, 6, 3, noise="patch", **places)
    assert scheme.operator_norm((3, 12, 4, 4)) == math.sqrt(square)
    assert scheme.noisy_features((3, 12, 4, 4)) == scheme.patches((3, 12, 4, 4)) * 6 * 48
    p = torch.tensor([0.99]).double()
    plain = GaussianNoise(0.5).radius(p, 1 - p)
    assert scheme.radius(p, 1 - p, shape=(3, 12, 4, 4))[0] == pytest.approx(float(plain[0]) / math.sqrt(square))


@pytest.mark.parametrize("noise", ["image", "patch"])
def test_any_classifier_of_chunks_can_be_smoothed(noise):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    scheme = SmoothReduceVideo(0.25, 4, 2, count=2, noise=noise, reduce="max")
    smoothed = Smoothed(model, scheme, 4, n0=20, n=100, alpha=0.01)
    x = images(2, 1, 6, 4, 4)
    result = smoothed.certify(x)
    assert result.threat == L2()
    assert torch.equal(smoothed.votes(x).counts, smoothed.votes(x).counts)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SmoothReduce(0.5, 4), "stride, count"),
        (lambda: SmoothReduce(0.5, 4, stride=1, count=3), "stride, count"),
        (lambda: SmoothReduce(0.5, 4, stride=0), "stride"),
        (lambda: SmoothReduce(0.5, 0, stride=1), "size"),
        (lambda: SmoothReduce(0.5, (4, 4, 4), stride=1), "size"),  # pyright: ignore[reportArgumentType]
        (lambda: SmoothReduce(0.5, 4, resize=0, stride=1), "resize"),
        (lambda: SmoothReduce(0.5, 4, stride=1, reduce="median"), "reduce"),  # pyright: ignore[reportArgumentType]
        (lambda: SmoothReduce(0.5, 4, stride=1, noise="all"), "noise"),  # pyright: ignore[reportArgumentType]
        (lambda: SmoothReduce(0.5, 4, stride=1, as_printed=True), "as_printed"),
        (lambda: SmoothReduce(-1, 4, stride=1), "sigma"),
        (lambda: SmoothReduce(0.5, 9, stride=1).check(images(1, 1, 8, 8)), "size: got patches of 9x9"),
        (lambda: SmoothReduce(0.5, 4, stride=1).check(images(1, 1, 8, 8, 8)), r"expected \[B, C, H, W\]"),
        (lambda: SmoothReduce(0.5, 4, count=2, noise="patch").radius(torch.ones(1), torch.zeros(1)), "shape"),
        (lambda: SmoothReduceVideo(0.5, 6, 4, stride=1), "chunk"),
        (lambda: SmoothReduceVideo(0.5, 6, 3, stride=1).check(images(1, 1, 5, 8, 8)), "frames"),
        (lambda: SmoothReduceVideo(0.5, 6, 3, stride=1).check(images(1, 1, 8, 8)), r"expected \[B, C, T, H, W\]"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("k", "alpha"), [(4, 0.001), (16, 0.001), (9, 0.05)])
def test_theorem_2_does_not_hold_for_patches_that_fail_together(k, alpha):
    """Its bound is right for independent failures of k patches, with alpha each; k equal patches fail with alpha."""
    bound = math.exp(-k * alpha) * (2 * math.e * alpha) ** (k / 2)
    half = math.ceil(k / 2)
    independent = sum(math.comb(k, i) * alpha**i * (1 - alpha) ** (k - i) for i in range(half, k + 1))
    assert independent <= bound
    together = alpha  # all k votes are wrong, or none is
    assert bound < together


def test_more_patches_do_not_divide_the_failure_probability():
    """Section 2 claims alpha / k; of two independent patches, one or both fail more often than a single one does."""
    alpha = 0.001
    assert 1 - (1 - alpha) ** 2 > alpha > alpha / 2
