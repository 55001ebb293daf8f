"""PointNet: NULL points take no part, the order of points does not matter, rows are independent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from certify import DeterministicAblation, RandomizedAblation, Smoothed
from certify.draws import ESTIMATION, Draws
from certify.inference import check_independence, exact_inference
from certify.models import POINT_CLOUDS, build
from certify.models.pointnet import BatchNorm, KeptPoints, PointNet, TransformNet

WIDTHS = {"local": (8, 8), "point": (8, 16), "head": (12, 10)}


def small(**options) -> PointNet:
    """With large weights, T-Nets away from the identity, and batch statistics that are not those of a new network."""
    torch.manual_seed(0)
    model = PointNet(3, 5, **(WIDTHS | options))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.bias, std=0.5)
    for module in model.modules():
        if isinstance(module, TransformNet):
            nn.init.normal_(module.matrix.weight, std=0.02)
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def cloud(points: int = 40, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, points, 1, generator=torch.Generator().manual_seed(seed))


def copies(scheme: RandomizedAblation, x: Tensor, n: int) -> Tensor:
    return scheme.sample(x, Draws.of(0, ESTIMATION, torch.arange(len(x)), range(n))).flatten(0, 1)


def by_definition(model: PointNet, copy: Tensor) -> Tensor:
    """The scores of one copy ``[6, N, 1]``, from its kept points alone, in plain layers."""
    kept = copy[:3, :, 0] + copy[3:, :, 0] > 0.5
    x = 2 * copy[:3, kept.all(0), 0].T - 1

    def transform(net: TransformNet, x: Tensor) -> Tensor:
        features = net.head(net.features(x).max(0).values[None])
        return x @ net.matrix(features).view(net.size, net.size)

    if model.input_transform is not None:
        x = transform(model.input_transform, x)
    x = model.local(x)
    if model.feature_transform is not None:
        x = transform(model.feature_transform, x)
    return model.head(model.features(x).max(0).values[None])[0]


@pytest.mark.parametrize("input_transform", [True, False])
@pytest.mark.parametrize("feature_transform", [True, False])
@torch.inference_mode()
def test_scores_are_those_of_the_kept_points(input_transform, feature_transform):
    model = small(input_transform=input_transform, feature_transform=feature_transform)
    made = copies(RandomizedAblation(7), cloud(), 5)
    scores = model(made)
    expected = torch.stack([by_definition(model, copy) for copy in made])
    assert torch.allclose(scores, expected, rtol=0, atol=1e-5)
    assert scores.std(0).min() > 1e-2


@torch.inference_mode()
def test_copies_that_keep_different_numbers_of_points():
    model, scheme = small(), DeterministicAblation(alpha=9)
    x = cloud(30, 1)
    made = scheme.copies(x, torch.arange(9)[None])[0]
    counts = (made.sum(1) > 0).sum((1, 2))
    assert counts.min() < counts.max()
    expected = torch.stack([by_definition(model, copy) for copy in made])
    assert torch.allclose(model(made), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_the_corners_of_the_cube_are_no_null_points():
    model = small()
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0, 1, 0]]).T[None, :, :, None]
    encoded = RandomizedAblation(3).encode(corners, torch.ones(1, 1, 1, 3, 1, dtype=torch.bool))[:, 0]
    assert torch.allclose(model(encoded)[0], by_definition(model, encoded[0]), rtol=0, atol=1e-5)
    origin = encoded.clone()
    origin[:, :, 0] = 0  # NULL is not the point (0, 0, 0)
    assert not torch.allclose(model(origin), model(encoded), atol=1e-4)


@pytest.mark.parametrize("null", [0, 3, 60])
@torch.inference_mode()
def test_null_points_change_nothing(null):
    model = small()
    made = copies(RandomizedAblation(7), cloud(), 4)
    more = torch.cat((made, torch.zeros(*made.shape[:2], null, 1)), 2)
    assert torch.equal(model(more), model(made))


@torch.inference_mode()
def test_order_of_points_does_not_matter():
    model = small()
    made = copies(RandomizedAblation(11), cloud(64, 3), 6)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(made[:, :, order]), model(made), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_rows_are_independent():
    model = small()
    made = copies(RandomizedAblation(6), cloud(20, 3), 8)
    check_independence(model, made, 8)
    scores = model(made)
    alone = torch.cat([model(row[None]) for row in made])
    assert torch.allclose(alone, scores, rtol=0, atol=1e-5)
    # a neighbour that keeps more points, or none
    made[1] = 0
    made[2] = RandomizedAblation(6).encode(cloud(20, 1), torch.ones(1, 1, 1, 20, 1, dtype=torch.bool))[0, 0]
    others = [0, *range(3, len(made))]
    assert torch.allclose(model(made)[others], scores[others], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_copy_without_points():
    model = small()
    scores = model(torch.zeros(3, 6, 10, 1))
    assert scores.isfinite().all()
    assert torch.equal(scores[0], scores[2])


def test_batch_statistics_are_those_of_the_kept_points():
    model = small(input_transform=False, feature_transform=False)
    made = copies(RandomizedAblation(5), cloud(30, 4), 1)
    linear, norm = model.local[0], model.local[1]
    norm.momentum = 1.0
    model.train()(made)
    kept = torch.cat([copy[:, copy.sum((0, 2)) > 0, 0].T for copy in made])
    assert len(kept) == 20
    expected = linear(kept[:, :3] - kept[:, 3:])
    assert torch.allclose(norm.running_mean, expected.mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, expected.var(0), atol=1e-5)


def test_a_minibatch_of_one_cloud_can_be_trained():
    model = small().train()
    model(copies(RandomizedAblation(1), cloud(10, 1), 1)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_feature_transform_is_pulled_towards_orthogonal_matrices():
    """The same gradients as with the penalty written into the loss."""

    def gradients(model: PointNet, extra: float) -> list[Tensor]:
        torch.manual_seed(1)
        matrices: list[Tensor] = []
        assert model.feature_transform is not None
        hook = model.feature_transform.matrix.register_forward_hook(lambda m, i, o: matrices.append(o.view(-1, 8, 8)))
        loss = model.train()(made).square().mean()
        hook.remove()
        off = matrices[0] @ matrices[0].transpose(1, 2) - torch.eye(8)
        model.zero_grad()
        (loss + extra * off.square().sum((1, 2)).mean()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    made = copies(RandomizedAblation(7), cloud(30, 6), 1)
    inside = gradients(small(orthogonality=0.1), 0.0)
    outside = gradients(small(orthogonality=0.0), 0.1)
    without = gradients(small(orthogonality=0.0), 0.0)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(inside, outside, strict=True))
    assert not all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(inside, without, strict=True))


def test_new_transforms_are_the_identity():
    torch.manual_seed(0)
    net = TransformNet(3, (8, 16), (12,), 0.0).eval()
    x = torch.randn(6, 3)
    assert torch.equal(net(x, KeptPoints(torch.ones(2, 3, dtype=torch.bool))), x)


@pytest.mark.parametrize("name", POINT_CLOUDS)
def test_registered_models(name):
    torch.manual_seed(0)
    model = build(name, 6, 4, (12, 1))
    scores = model(copies(RandomizedAblation(5), cloud(12, 4), 1))
    assert scores.shape == (4, 4)
    scores.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_published_number_of_parameters():
    """3.5 million and 0.8 million in the paper's comparison of sizes."""
    sizes = {name: sum(p.numel() for p in build(name, 6, 40, (1024, 1)).parameters()) for name in POINT_CLOUDS}
    assert 3.4e6 < sizes["pointnet"] < 3.55e6
    assert 0.75e6 < sizes["pointnet_basic"] < 0.85e6
    assert sizes["pointnet_small"] < 3e4
    widths = [m.out_features for m in build("pointnet", 6, 40, (1024, 1)).modules() if isinstance(m, nn.Linear)]
    t_net = [64, 128, 1024, 512, 256]
    assert widths == [*t_net, 9, 64, 64, *t_net, 4096, 64, 128, 1024, 512, 256, 40]


def test_certificate_counts_points():
    """Through the engine: the same votes whatever the batch size, and a radius in points."""
    model, x = small(), cloud(40, 2)
    for scheme in (RandomizedAblation(4), DeterministicAblation(alpha=13)):
        votes = [
            Smoothed(model, scheme, 5, n0=20, n=100, batch_size=size).votes(x).counts.tolist() for size in (7, 16, 128)
        ]
        assert votes[0] == votes[1] == votes[2]
    assert RandomizedAblation(4).units((3, 40, 1)) == 40
    with exact_inference(model):
        assert model(copies(RandomizedAblation(4), x, 2)).shape == (4, 5)


def test_bad_input():
    with pytest.raises(ValueError, match="in_channels: got 3, expected two for each coordinate: PointNet"):
        build("pointnet", 3, 40, (128, 1))
    with pytest.raises(ValueError, match="which normalization would hide"):
        build("pointnet_small", 6, 40, (128, 1), mean=(0.5,), std=(0.2,))
    with pytest.raises(ValueError, match="copies: got 4 channels, expected 6"):
        small()(torch.rand(2, 4, 9, 1))


@pytest.mark.gpu
def test_cuda_gives_the_same_scores():
    model, made = small(), copies(RandomizedAblation(7), cloud(), 8)
    with torch.inference_mode():
        expected = model(made)
        with exact_inference(model):
            got = model.cuda()(made.cuda())
    assert torch.allclose(got.cpu(), expected, rtol=0, atol=1e-4)
