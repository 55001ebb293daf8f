from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certify.data import load
from certify.poisoning import ContentHash, PixelSum, SortedIndex
from certify.poisoning.partition import padded_key, sample_keys, spread_buckets
from certify.threats import TrainingLabels, TrainingSamples

VALUES = {
    torch.uint8: st.integers(0, 255),
    torch.int64: st.integers(-(2**63), 2**63 - 1),
    torch.float32: st.floats(width=32, allow_nan=False, allow_infinity=False),
}


@settings(max_examples=30)
@given(st.data(), st.sampled_from(sorted(VALUES, key=str)))
def test_keys_are_ordered_as_the_values_are(data, dtype):
    rows = data.draw(st.lists(st.tuples(VALUES[dtype], VALUES[dtype]), min_size=2, max_size=8))
    keys = sample_keys(torch.tensor(rows, dtype=dtype))
    for a, key_a in zip(rows, keys, strict=True):
        for b, key_b in zip(rows, keys, strict=True):
            signed_a, signed_b = ([(v, math.copysign(1, v)) for v in row] for row in (a, b))  # -0.0 is below 0.0
            assert (key_a < key_b) == (signed_a < signed_b)
            assert (key_a == key_b) == (signed_a == signed_b)


def test_the_published_hash_is_the_sum_of_the_pixels():
    images = torch.tensor([[[[255, 255], [255, 5]]], [[[0, 0], [0, 7]]]], dtype=torch.uint8)
    assert PixelSum(50).assign(images).tolist() == [770 % 50, 7]


def test_the_content_hash_is_blake2_of_kind_and_content():
    sample = torch.tensor([[1, 258]], dtype=torch.int64)
    content = b"torch.int64 (2,)" + np.array([1, 258], ">i8").astype(">u8").tobytes()
    flipped = bytes(b ^ (0x80 if i % 8 == 0 else 0) for i, b in enumerate(content[16:]))
    digest = hashlib.blake2b(content[:16] + flipped, digest_size=16, key=b"k").digest()
    assert ContentHash(1000, key="k").assign(sample).tolist() == [int.from_bytes(digest, "big") % 1000]


@pytest.mark.parametrize("partitioner", [PixelSum(30), ContentHash(30), ContentHash(30, key="other")])
def test_a_hash_depends_on_the_sample_alone(partitioner):
    images = load("digits", "train").images[:200]
    buckets = partitioner.assign(images)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(partitioner.assign(images[order]), buckets[order])
    assert torch.equal(partitioner.assign(images[7:9]), buckets[7:9])
    assert len(buckets.unique()) > 25


def test_sorted_index_makes_equal_parts_and_keeps_equal_samples_together():
    images = load("digits", "train").images[:100]
    buckets = SortedIndex(8).assign(torch.cat((images, images[:5])))
    assert torch.equal(buckets[:5], buckets[100:])
    counts = torch.bincount(SortedIndex(8).assign(images))
    assert counts.tolist() == [13, 13, 13, 13, 12, 12, 12, 12]
    order = sorted(range(100), key=lambda i: images[i].flatten().tolist())
    assert [buckets[i].item() for i in order] == [i % 8 for i in range(100)]


def _padded(images: list[torch.Tensor]) -> torch.Tensor:
    """With zeros on the right and below, all of the same size."""
    padded = torch.zeros((len(images), 2, 6, 6), dtype=torch.uint8)
    for image, whole in zip(images, padded, strict=True):
        whole[:, : image.shape[1], : image.shape[2]] = image
    return padded


@settings(max_examples=60)
@given(st.data())
def test_images_of_any_size_are_ordered_as_padded_ones(data):
    images = []
    for _ in range(5):
        height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
        values = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 255]), min_size=72, max_size=72))
        images.append(torch.tensor(values, dtype=torch.uint8).view(2, 6, 6)[:, :height, :width])
    keys, padded = [padded_key(image) for image in images], sample_keys(_padded(images))
    for a, of_a in zip(keys, padded, strict=True):
        for b, of_b in zip(keys, padded, strict=True):
            assert ((a < b), (a == b)) == ((of_a < of_b), (of_a == of_b))
    for partitioner in (PixelSum(3), SortedIndex(3)):
        assert torch.equal(partitioner.assign_each(images), partitioner.assign(_padded(images)))


@pytest.mark.parametrize("partitioner", [PixelSum(7), ContentHash(7), SortedIndex(7)])
def test_samples_one_by_one_get_the_same_buckets(partitioner):
    images = load("digits", "train").images[:50]
    assert torch.equal(partitioner.assign_each(iter(images)), partitioner.assign(images))


def test_only_hashes_certify_against_inserted_samples():
    assert SortedIndex(3).threats == (TrainingLabels(),)
    assert PixelSum(3).threats == ContentHash(3).threats == (TrainingSamples(), TrainingLabels())


@pytest.mark.parametrize(("buckets", "spread"), [(1, 1), (7, 1), (7, 3), (12, 12)])
def test_every_bucket_feeds_as_many_models_as_feed_on_buckets(buckets, spread):
    feeds = spread_buckets(buckets, spread)
    assert feeds.shape == (buckets, spread)
    assert all(len(set(row)) == spread for row in feeds.tolist())
    assert torch.bincount(feeds.flatten(), minlength=buckets).tolist() == [spread] * buckets


def test_distances_between_training_sets():
    samples, labels = torch.tensor([[1], [1], [2]]), torch.tensor([0, 0, 1])
    assert TrainingSamples().distance((samples, labels), (samples[1:], labels[1:])) == 1
    assert TrainingSamples().distance((samples, labels), (samples, torch.tensor([1, 1, 1]))) == 4
    assert TrainingLabels().distance((samples, labels), (samples, torch.tensor([1, 1, 1]))) == 1
    assert TrainingLabels().distance((samples, labels), (samples, torch.tensor([1, 0, 0]))) == 2
    assert TrainingLabels().distance((samples, labels), (samples[1:], labels[1:])) == float("inf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PixelSum(0), "num_partitions"),
        (lambda: PixelSum(4).assign(torch.rand(3, 2)), "use ContentHash"),
        (lambda: ContentHash(4).assign(torch.tensor([[float("nan")]])), "NaN or infinite"),
        (lambda: ContentHash(4, key="k" * 65), "at most 64"),
        (lambda: ContentHash(4).assign(torch.zeros(3)), "samples"),
        (lambda: SortedIndex(4).assign_each([torch.zeros(1, 2, 2)]), "originals"),
        (lambda: spread_buckets(4, 5), "spread"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
