from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from certify.models import CLIPS, MODELS, POINT_CLOUDS, ModelSpec, Normalize, build
from certify.models.resnet import ResidualBlock
from certify.models.wide_resnet import PreActivationBlock

# Channels and image sizes: the data sets', one image or two in one input, and both sides of each limit.
SIZES = {
    "mnist_cnn": [(1, 4), (1, 8), (2, 28), (6, 29)],
    "resnet18": [(2, 8), (6, 32), (3, 64), (3, 65), (6, 224)],
    "resnet50": [(1, 8), (6, 224)],
    "resnet110": [(6, 32)],
    "wide_resnet40_2": [(2, 8), (3, 32), (6, 48)],
    "network_in_network": [(1, 8), (2, 28), (6, 32), (3, 48)],
    "nin_block": [(192, 7), (3, 1), (3, 32)],
    "small_cnn": [(1, 4), (1, 8), (2, 28), (3, 33)],
    "linear": [(1, 1), (1, 8), (3, 32)],
}


IMAGE_MODELS = [
    name for name in MODELS if name not in (*POINT_CLOUDS, *CLIPS)
]  # the others: test_pointnet, test_videos


def on_meta(name: str, in_channels: int, num_classes: int, image_size: int, **options) -> nn.Module:
    with torch.device("meta"):
        return build(name, in_channels, num_classes, image_size, **options)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_covered():
    assert list(SIZES) == IMAGE_MODELS


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_output_shape(name, size):
    in_channels, side = size
    model = on_meta(name, in_channels, 7, side)
    scores = model(torch.empty(2, in_channels, side, side, device="meta"))
    assert scores.shape == (2, 7)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_parameter_is_trained(name):
    model = on_meta(name, 2, 10, 8)
    model(torch.empty(2, 2, 8, 8, device="meta")).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["mnist_cnn", "network_in_network"])
def test_scores_are_finite_and_depend_on_the_image(name):
    torch.manual_seed(0)
    model = build(name, 2, 10, 8).eval()
    with torch.inference_mode():
        scores = model(torch.rand(2, 2, 8, 8))
    assert scores.isfinite().all()
    assert not torch.allclose(scores[0], scores[1])


@pytest.mark.parametrize("bottleneck", [False, True])
def test_residual_block_without_a_body_is_the_rectified_shortcut(bottleneck):
    x = torch.randn(2, 8, 5, 5)
    block = ResidualBlock(8, 2 if bottleneck else 8, 1, bottleneck).eval()
    nn.init.zeros_(block.body[-1].weight)
    assert torch.equal(block(x.clone()), x.relu())
    halved = ResidualBlock(8, 4, 2, bottleneck).eval()
    nn.init.zeros_(halved.body[-1].weight)
    assert torch.equal(halved(x.clone()), halved.shortcut(x).relu())
    assert halved(x).shape == (2, halved.outputs, 3, 3)


def test_pre_activation_block_without_a_body_is_its_shortcut():
    x = torch.randn(2, 8, 5, 5)
    block = PreActivationBlock(8, 8, 1).eval()
    nn.init.zeros_(block.body[-1].weight)
    assert torch.equal(block(x), x)
    halved = PreActivationBlock(8, 16, 2).eval()
    nn.init.zeros_(halved.body[-1].weight)
    assert torch.equal(halved(x), halved.projection(halved.first(x)))


@pytest.mark.parametrize(
    ("name", "in_channels", "num_classes", "image_size", "expected"),
    [
        ("resnet18", 3, 1000, 224, 11_689_512),  # torchvision
        ("resnet50", 3, 1000, 224, 25_557_032),  # torchvision
        ("resnet18", 3, 10, 32, 11_173_962),  # the usual CIFAR-10 variant with a 3x3 stem
        ("resnet110", 3, 10, 32, 1_730_714),
        ("wide_resnet40_2", 3, 10, 32, 2_243_546),
    ],
)
def test_published_number_of_parameters(name, in_channels, num_classes, image_size, expected):
    assert parameters(on_meta(name, in_channels, num_classes, image_size)) == expected


def test_mnist_cnn_is_the_table():
    model = on_meta("mnist_cnn", 2, 10, 28)
    shapes = [tuple(m.weight.shape) for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert shapes == [(64, 2, 4, 4), (128, 64, 4, 4), (500, 6272), (100, 500), (10, 100)]
    biases = 64 + 128 + 500 + 100 + 10
    assert parameters(model) == 64 * 2 * 16 + 128 * 64 * 16 + 500 * 6272 + 100 * 500 + 10 * 100 + biases


@pytest.mark.parametrize("name", [name for name in IMAGE_MODELS if name != "linear"])
def test_more_channels_only_widen_the_first_convolution(name):
    one, six = (on_meta(name, channels, 10, 32) for channels in (1, 6))
    first = next(m for m in six.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == 6
    assert parameters(six) - parameters(one) == 5 * first.weight.numel() // 6


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_large_images_get_the_large_stem(name):
    for size in (8, 64):
        first, *_, after = on_meta(name, 3, 10, size)[:4]
        assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
        assert isinstance(after, ResidualBlock)
    for size in (65, 225):
        first, *_, after = on_meta(name, 3, 10, size)[:4]
        assert (first.kernel_size, first.stride) == ((7, 7), (2, 2))
        assert isinstance(after, nn.MaxPool2d)


def test_depths_are_those_in_the_names():
    def kinds(name: str) -> list[tuple[int, ...]]:
        return [m.kernel_size for m in on_meta(name, 3, 10, 32).modules() if isinstance(m, nn.Conv2d)]

    assert kinds("resnet110").count((3, 3)) + 1 == 110
    assert kinds("resnet18").count((3, 3)) + 1 == 18
    assert len(kinds("wide_resnet40_2")) == 40


def test_mnist_cnn_needs_four_pixels():
    with pytest.raises(ValueError, match="image_size: got 3x3, mnist_cnn needs at least 4"):
        build("mnist_cnn", 1, 10, 3)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_images_need_not_be_square(name):
    assert on_meta(name, 2, 7, (8, 20))(torch.empty(2, 2, 8, 20, device="meta")).shape == (2, 7)


def test_square_images_are_stored_as_one_number():
    assert ModelSpec("resnet18", 3, 10, (32, 32)) == ModelSpec("resnet18", 3, 10, 32)
    assert ModelSpec("resnet18", 3, 10, (32, 32)).image_size == 32
    assert ModelSpec("resnet18", 3, 10, (32, 16)).size == (32, 16)
    with pytest.raises(ValueError, match="image_size: got"):
        ModelSpec("resnet18", 3, 10, (0, 4))


def test_unknown_model():
    with pytest.raises(ValueError, match=f"model: got 'vgg', expected one of {', '.join(MODELS)}"):
        build("vgg", 3, 10, 32)


def test_normalize_repeats_over_doubled_channels():
    x = torch.rand(2, 3, 4, 4)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    single, double = Normalize(mean, std, 3), Normalize(mean, std, 6)
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.allclose(single(x), expected)
    assert torch.equal(double(torch.cat((x, 1 - x), 1)), torch.cat((single(x), single(1 - x)), 1))


def test_normalize_grey_over_many_channels():
    x = torch.rand(1, 4, 2, 2)
    assert torch.allclose(Normalize((0.25,), (0.5,), 4)(x), (x - 0.25) / 0.5)


@pytest.mark.parametrize(
    ("mean", "std", "channels"),
    [((0.1, 0.2), (0.1, 0.2), 3), ((0.1,), (0.1, 0.2), 2), ((0.1, 0.2, 0.3), (1.0,) * 3, 1)],
)
def test_statistics_that_do_not_fit(mean, std, channels):
    with pytest.raises(ValueError, match=f"got {len(mean)} means and {len(std)} stds for {channels} channels"):
        Normalize(mean, std, channels)


def test_normalization_is_the_first_layer_and_saved():
    torch.manual_seed(0)
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    model = build("mnist_cnn", 6, 10, 8, mean=mean, std=std).eval()
    normalize, rest = model
    assert isinstance(normalize, Normalize)
    x = torch.rand(2, 6, 8, 8)
    with torch.inference_mode():
        assert torch.equal(model(x), rest(normalize(x)))
    state: dict[str, Tensor] = model.state_dict()
    assert state["0.mean"].flatten().tolist() == torch.tensor(mean * 2).tolist()
    assert state["0.std"].flatten().tolist() == torch.tensor(std * 2).tolist()
    assert all(not name.startswith("0.") for name, _ in model.named_parameters())


def test_spec_builds_the_same_architecture_again():
    spec = ModelSpec("mnist_cnn", 2, 10, 8, mean=(0.1307,), std=(0.3081,))
    first, second = spec.build(), spec.build()
    second.load_state_dict(first.state_dict())
    x = torch.rand(2, 2, 8, 8)
    assert torch.equal(first(x), second(x))


def test_without_statistics_nothing_is_normalized():
    assert not any(isinstance(m, Normalize) for m in on_meta("resnet18", 3, 10, 32).modules())


def test_half_a_normalization_is_refused():
    with pytest.raises(ValueError, match="expected both or neither"):
        build("mnist_cnn", 1, 10, 8, mean=(0.5,))
