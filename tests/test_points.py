"""Point clouds: meshes and their surfaces, the three formats of ModelNet40 on generated shapes, the generated set."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from certify import RandomizedAblation
from certify.data import Dataset, load
from certify.data import modelnet as modelnet_module
from certify.data.meshes import Mesh, parse_off, revolve, sample_surface
from certify.data.modelnet import read_modelnet40
from certify.data.points import SHAPES, STEPS, as_images, normalized_levels, shapes
from certify.training.augment import augmented

# Meshes, made without the code under test


def cube() -> Mesh:
    """Of side 2 around the origin, corner 4 i + 2 j + k at (+-1, +-1, +-1)."""
    vertices = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    return Mesh(vertices, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]))


def sphere(steps: int = 3) -> Mesh:
    """An octahedron, divided again and again."""
    faces = [((sx, 0, 0), (0, sy, 0), (0, 0, sz)) for sx in (-1, 1) for sy in (-1, 1) for sz in (-1, 1)]
    triangles = [tuple(np.array(p, float) for p in face) for face in faces]
    for _ in range(steps):
        halves = [(a, b, c, *(m / np.linalg.norm(m) for m in (a + b, b + c, c + a))) for a, b, c in triangles]
        triangles = [t for a, b, c, ab, bc, ca in halves for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    return Mesh(np.array(triangles).reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3))


def cylinder(height: float = 4.0, sides: int = 64) -> Mesh:
    """Of radius 1, without lids, standing on the plane z = 0."""
    angle = 2 * np.pi * np.arange(sides) / sides
    ring = np.stack((np.cos(angle), np.sin(angle), np.zeros(sides)), 1)
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    triangles = np.concatenate((np.stack((i, j, i + sides), 1), np.stack((j, j + sides, i + sides), 1)))
    return Mesh(np.concatenate((ring, ring + np.array([0, 0, height]))), triangles)


def off(mesh: Mesh, *, header: str = "OFF\n", comments: bool = False, colours: bool = False) -> bytes:
    lines = [f"{header}{len(mesh.vertices)} {len(mesh.triangles)} 0"]
    lines += ["# vertices", ""] if comments else []
    lines += [" ".join(repr(float(x)) for x in v) + (" 255 0 0" if colours else "") for v in mesh.vertices]
    lines += [f"3 {a} {b} {c}" + (" 0.5 0.5 0.5" if colours else "") for a, b, c in mesh.triangles]
    return ("\n".join(lines) + "\n").encode()


def randoms(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3))


@pytest.mark.parametrize(
    "options",
    [{}, {"header": "OFF"}, {"header": "OFF "}, {"comments": True}, {"colours": True}],
    ids=["plain", "glued", "one line", "comments", "colours"],
)
def test_off_variants(options):
    mesh = parse_off(off(cube(), **options), "file")
    assert np.array_equal(mesh.vertices, cube().vertices)
    assert np.array_equal(mesh.triangles, cube().triangles)
    assert np.array_equal(parse_off(off(cube(), **options).replace(b"\n", b"\r\n"), "file").vertices, mesh.vertices)


def test_off_header_glued_to_the_counts():
    """As in a number of files of ModelNet40."""
    vertices = [f"{i} {i * i} 1" for i in range(490)]
    faces = [f"3 {i % 490} {(i + 1) % 490} {(i + 7) % 490}" for i in range(518)]
    mesh = parse_off("\n".join(["OFF490 518 0", *vertices, *faces]).encode(), "file")
    assert mesh.vertices.shape == (490, 3)
    assert mesh.triangles.shape == (518, 3)


def test_polygons_become_fans():
    lines = ["OFF", "5 2 0", "0 0 0", "1 0 0", "1 1 0", "0 1 0", "0 0 1", "4 0 1 2 3", "3 0 1 4"]
    mesh = parse_off("\n".join(lines).encode(), "file")
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]


GOOD = ["OFF", "3 1 0", "0 0 0", "1 0 0", "0 1 0", "3 0 1 2"]


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "PLY", "starts with b'PLY', expected OFF"),
        (0, "COFF", "expected OFF"),
        (1, "three 1 0", "got counts b'three 1 0', expected 'vertices faces edges'"),
        (1, "3", "got counts b'3'"),
        (1, "3 0 0", "got 3 vertices and 0 faces"),
        (1, "4 1 0", "got 4 lines, but the header announces 4 vertices and 1 faces; the file is truncated"),
        (2, "0 0", "a vertex has fewer than 3 coordinates"),
        (2, "0 0 x", "not a mesh"),
        (2, "0 0 nan", "NaN or infinite vertices"),
        (5, "3 0 1 3", "got vertex numbers 0 to 3, expected 0 to 2"),
        (5, "3 0 1 -1", "got vertex numbers -1 to 1"),
        (5, "3 0 1", "got the face b'3 0 1' with 3 corners"),
        (5, "2 0 1 1", "with 2 corners"),
        (5, "3 0 1 1.5", "not a mesh"),
    ],
)
def test_malformed_off(line, text, message):
    lines = [*GOOD[:line], text, *GOOD[line + 1 :]]
    with pytest.raises(ValueError, match=re.escape(f"file: {message}") if message.startswith("got c") else message):
        parse_off("\n".join(lines).encode(), "file")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"OFF", b"OFF\n"])
def test_empty_off(data):
    with pytest.raises(ValueError, match=r"file: got"):
        parse_off(data, "file")


# Points on surfaces


def test_points_lie_on_the_surface():
    assert np.allclose(np.abs(sample_surface(cube(), randoms(2000))).max(1), 1)
    on_sphere = np.linalg.norm(sample_surface(sphere(), randoms(2000)), axis=1)
    assert on_sphere.min() > 0.97
    assert on_sphere.max() <= 1 + 1e-12
    on_cylinder = sample_surface(cylinder(), randoms(2000))
    assert np.linalg.norm(on_cylinder[:, :2], axis=1).min() > 0.998


def test_points_are_uniform_by_area():
    """Whatever the sizes of the triangles: six faces of a cube alike, heights of a cylinder uniform."""
    n = 60_000
    points = sample_surface(cube(), randoms(n))
    face = np.abs(points).argmax(1) * 2 + (points[np.arange(n), np.abs(points).argmax(1)] > 0)
    assert np.abs(np.bincount(face, minlength=6) / n - 1 / 6).max() < 0.008
    fine, coarse = cylinder(4, 64), Mesh(cylinder(1, 64).vertices * [1, 1, 4] + [0, 0, 4], cylinder(1, 64).triangles)
    both = Mesh(
        np.concatenate((fine.vertices, coarse.vertices)), np.concatenate((fine.triangles, coarse.triangles + 128))
    )
    heights = sample_surface(both, randoms(n, 1))[:, 2]
    assert np.abs(np.histogram(heights, 8, (0, 8))[0] / n - 1 / 8).max() < 0.007
    # moments inside one triangle: the centroid, and E[x^2] = 1/6 for the triangle (0, 0), (1, 0), (0, 1)
    triangle = Mesh(np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)], float), np.array([[0, 1, 2]]))
    inside = sample_surface(triangle, randoms(n, 2))
    assert inside.mean(0)[:2] == pytest.approx([1 / 3, 1 / 3], abs=0.006)
    assert (inside**2).mean(0)[:2] == pytest.approx([1 / 6, 1 / 6], abs=0.006)


def test_degenerate_triangles_get_no_points():
    flat = Mesh(np.array([(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0)], float), np.array([[0, 1, 2], [0, 1, 3]]))
    assert (sample_surface(flat, randoms(500))[:, 1] > 0).all()
    with pytest.raises(ValueError, match="mesh: got a surface of area 0"):
        sample_surface(Mesh(flat.vertices, flat.triangles[:1]), randoms(5))


def test_surfaces_of_revolution():
    can = revolve(np.array([(0, 1), (1, 1), (1, -1), (0, -1)]), 64)
    points = sample_surface(can, randoms(20_000))
    radius, lid = np.linalg.norm(points[:, [0, 2]], axis=1), np.abs(points[:, 1]) > 1 - 1e-9
    assert radius.max() <= 1 + 1e-12
    assert radius[~lid].min() > 0.998
    assert lid.mean() == pytest.approx(2 * math.pi / (2 * math.pi + 4 * math.pi), abs=0.015)


# Clouds


def test_clouds_are_centred_and_scaled_to_the_unit_cube():
    points = randoms(300) * [3, 1, 7] + [100, -5, 0]
    image = as_images(normalized_levels(points, "cloud")[None])
    assert image.shape == (1, 3, 300, 1)
    assert image.dtype == torch.float32
    centred = image[0, :, :, 0].T.double() - 0.5
    assert centred.mean(0).abs().max() < 2e-5
    assert centred.norm(dim=1).max().item() == pytest.approx(0.5, abs=5e-5)
    expected = (points - points.mean(0)) / (2 * np.linalg.norm(points - points.mean(0), axis=1).max())
    assert np.allclose(centred.numpy(), expected, atol=2e-5)
    assert ((image * STEPS).frac() == 0).all()
    # the encoding then loses nothing
    assert torch.equal((1 - image).double(), 1 - image.double())
    RandomizedAblation(5).check(image)
    # moving or scaling the cloud changes nothing
    assert np.array_equal(normalized_levels(points * 2 + 1, "cloud"), normalized_levels(points, "cloud"))


@pytest.mark.parametrize("points", [np.zeros((4, 3)), np.full((4, 3), np.nan), np.array([[0, 0, np.inf]] * 4)])
def test_clouds_without_extent(points):
    with pytest.raises(ValueError, match="cloud: got"):
        normalized_levels(points, "cloud")


def test_generated_shapes():
    train, test = load("shapes", "train"), load("shapes", "test")
    assert (len(train), len(test), train.num_classes, train.kind) == (1000, 250, len(SHAPES), "points")
    assert train.shape == (3, 128, 1)
    assert torch.equal(load("shapes", "test").images, test.images)
    assert not torch.equal(train.images[:250], test.images)
    assert train.checksum() != test.checksum()
    assert test.labels.bincount().tolist() == [50] * 5
    # a cube has points near its edges, far outside of its inscribed sphere; a torus none near its axis
    distance = (test.images[:, :, :, 0] - 0.5).norm(dim=1)
    spread = distance.std(1)
    assert spread[test.labels == SHAPES.index("sphere")].mean() < spread[test.labels == SHAPES.index("cone")].mean()
    axis = (test.images[:, [0, 2], :, 0] - 0.5).norm(dim=1).amin(1)
    assert axis[test.labels == SHAPES.index("torus")].min() > axis[test.labels == SHAPES.index("cone")].mean()
    few, _ = shapes("test", points=16)
    assert few.shape == (250, 3, 16, 1)
    other, _ = shapes("test", points=16, seed=1)
    assert not torch.equal(few, other)
    with pytest.raises(ValueError, match="already scaled"):
        train.channel_statistics()


def test_augmentation_turns_and_jitters():
    data = load("shapes", "test")
    index, generator = torch.arange(20), torch.Generator().manual_seed(0)
    made, labels = augmented(data, index, generator)
    clouds, _ = data.batch(index)
    assert torch.equal(labels, data.labels[index])
    assert made.shape == clouds.shape
    assert made.min() >= 0
    assert made.max() <= 1
    assert (made[:, 1] - clouds[:, 1]).abs().max() <= 0.025 + 1e-6
    radius, before = ((c[:, [0, 2]] - 0.5).norm(dim=1) for c in (made, clouds))
    assert (radius - before).abs().max() <= 0.025 * 2**0.5 + 1e-6
    assert (made[:, 0] - clouds[:, 0]).abs().max() > 0.3


# ModelNet40 on disk

SOLIDS = {"cube": cube(), "cylinder": cylinder(), "night_stand": sphere()}


def write_meshes(folder: Path) -> None:
    for name, mesh in SOLIDS.items():
        for split, numbers in (("train", (1, 2)), ("test", (3,))):
            (folder / name / split).mkdir(parents=True)
            for number in numbers:
                scaled = Mesh(mesh.vertices * number, mesh.triangles)
                header = "OFF" if number == 2 else "OFF\n"
                (folder / name / split / f"{name}_{number:04}.off").write_bytes(off(scaled, header=header))


def write_text(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(SOLIDS) + "\n")
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        entries = [f"{name}_{number:04}" for name in SOLIDS for number in numbers]
        (folder / f"modelnet40_{split}.txt").write_text("\n".join(entries) + "\n")
        for i, entry in enumerate(entries):
            name = entry[:-5]
            (folder / name).mkdir(exist_ok=True)
            points = sample_surface(SOLIDS[name], randoms(80, i))
            lines = [",".join(f"{x:.6f}" for x in (*p, 0, 0, 1)) for p in points]
            (folder / name / f"{entry}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("place", ["", "modelnet40", "modelnet40/ModelNet40", "ModelNet40"])
def test_meshes(tmp_path, place):
    write_meshes(tmp_path / place)
    images, labels, classes = read_modelnet40(tmp_path, "train", points=64)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert classes == 3
    assert images.shape == (6, 3, 64, 1)
    # the sphere keeps its distance from the centre, the cylinder stands upright
    distance = (images[4:, :, :, 0] - 0.5).norm(dim=1)
    assert distance.min() > 0.3
    assert (images[2, 1].max() - images[2, 1].min()) > 1.5 * (images[2, 0].max() - images[2, 0].min())
    # seeded: the same points again, others for another object, seed or split
    again, _, _ = read_modelnet40(tmp_path, "train", points=64)
    assert torch.equal(again, images)
    assert not torch.equal(images[4], images[5])
    assert not torch.equal(read_modelnet40(tmp_path, "train", points=64, seed=1)[0], images)
    test = load("modelnet40", "test", tmp_path) if not place else None
    if test is not None:
        assert isinstance(test, Dataset)
        assert (test.shape, test.num_classes, test.kind, len(test)) == ((3, 1024, 1), 3, "points", 3)


def test_points_of_an_object_do_not_depend_on_other_files(tmp_path):
    write_meshes(tmp_path)
    before, _, _ = read_modelnet40(tmp_path, "train", points=32)
    (tmp_path / "cube/train/cube_0001.off").unlink()
    after, labels, _ = read_modelnet40(tmp_path, "train", points=32)
    assert torch.equal(after, before[1:])
    assert len(labels) == 5


def test_clouds_are_kept_and_read_again(tmp_path, monkeypatch):
    write_meshes(tmp_path)
    images, _, _ = read_modelnet40(tmp_path, "train", points=32)
    cache = tmp_path / "clouds-train-32.npz"
    assert cache.exists()
    with monkeypatch.context() as patch:
        patch.setattr(modelnet_module, "_read_mesh", lambda *_: pytest.fail("read again"))
        assert torch.equal(read_modelnet40(tmp_path, "train", points=32)[0], images)
    cache.write_bytes(cache.read_bytes()[:100])  # a damaged one is made again
    assert torch.equal(read_modelnet40(tmp_path, "train", points=32)[0], images)
    path = tmp_path / "cube/train/cube_0001.off"  # and one of other files as well
    path.write_bytes(off(Mesh(cube().vertices * [1, 1, 5], cube().triangles)) + b"# another size\n")
    assert not torch.equal(read_modelnet40(tmp_path, "train", points=32)[0][0], images[0])


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    write_meshes(tmp_path)

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(modelnet_module, "write_atomically", refuse)
    assert len(read_modelnet40(tmp_path, "test", points=32)[0]) == 3


@pytest.mark.parametrize("place", ["", "modelnet40", "modelnet40/modelnet40_normal_resampled"])
def test_text_files(tmp_path, place):
    write_text(tmp_path / place)
    images, labels, classes = read_modelnet40(tmp_path, "train", points=50)
    assert (labels.tolist(), classes) == ([0, 0, 1, 1, 2, 2], 3)
    expected = normalized_levels(np.round(sample_surface(cube(), randoms(80, 0)), 6)[:50], "cube")
    assert torch.equal(images[0], as_images(expected[None])[0])
    assert read_modelnet40(tmp_path, "test", points=50)[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [("", "expected x,y,z"), ("1,2", "expected x,y,z"), ("1,2,x,0,0,1", "expected x,y,z"), ("nan,0,0,0,0,1", "NaN")],
)
def test_malformed_text(tmp_path, line, message):
    write_text(tmp_path)
    path = tmp_path / "cube/cube_0002.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:7], line, *lines[8:]]))
    with pytest.raises(ValueError, match=f"cube_0002.txt: .*{message}"):
        read_modelnet40(tmp_path, "train", points=50)


def test_text_with_two_columns_or_too_few_points(tmp_path):
    write_text(tmp_path)
    with pytest.raises(ValueError, match=r"cube_0001.txt: got 80 points, expected at least 81"):
        read_modelnet40(tmp_path, "train", points=81)
    (tmp_path / "cube/cube_0001.txt").write_text("1,2\n" * 60)
    with pytest.raises(ValueError, match="got 2 numbers per line"):
        read_modelnet40(tmp_path, "train", points=50)


def test_missing_text_files(tmp_path):
    write_text(tmp_path)
    (tmp_path / "cube/cube_0002.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"cube_0002.txt: listed, but missing"):
        read_modelnet40(tmp_path, "train", points=50)
    (tmp_path / "modelnet40_test.txt").write_text("lamp_0001\n")
    with pytest.raises(ValueError, match="got 'lamp_0001', expected objects of the classes"):
        read_modelnet40(tmp_path, "test", points=50)
    (tmp_path / "modelnet40_shape_names.txt").unlink()
    with pytest.raises(FileNotFoundError, match="it numbers the classes"):
        read_modelnet40(tmp_path, "test", points=50)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"modelnet40: no ply_data_test\*.h5, .*--data-root"):
        load("modelnet40", "test", tmp_path)


def write_hdf5(folder: Path, names: bool = True) -> np.ndarray:
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True, exist_ok=True)
    data = np.stack([sample_surface(mesh, randoms(2048, i)) for i, mesh in enumerate(SOLIDS.values())])
    for i, (part, label) in enumerate(((data[:2], [[0], [1]]), (data[2:], [[2]]))):
        with h5py.File(folder / f"ply_data_train{i}.h5", "w") as file:
            file["data"], file["label"] = part.astype(np.float32), np.array(label, np.uint8)
    if names:
        (folder / "shape_names.txt").write_text("\n".join(SOLIDS) + "\n")
    return data


@pytest.mark.parametrize("place", ["", "modelnet40", "modelnet40/modelnet40_ply_hdf5_2048"])
def test_hdf5(tmp_path, place):
    data = write_hdf5(tmp_path / place)
    loaded = load("modelnet40", "train", tmp_path)
    assert (loaded.labels.tolist(), loaded.num_classes, loaded.shape) == ([0, 1, 2], 3, (3, 1024, 1))
    expected = normalized_levels(data[2, :1024].astype(np.float32).astype(np.float64), "cloud")
    assert torch.equal(loaded.images[2], as_images(expected[None])[0])


def test_hdf5_without_names_has_40_classes(tmp_path):
    write_hdf5(tmp_path / "modelnet40", names=False)
    assert load("modelnet40", "train", tmp_path).num_classes == 40


def test_damaged_hdf5(tmp_path):
    write_hdf5(tmp_path / "modelnet40")
    h5py = importlib.import_module("h5py")
    path = tmp_path / "modelnet40/ply_data_train1.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((2, 2048, 3), np.float32)
    with pytest.raises(ValueError, match=r"ply_data_train1.h5: cannot be read as HDF5 with data and label"):
        load("modelnet40", "train", tmp_path)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = np.ones((2, 100, 3)), np.zeros((2, 1), np.uint8)
    with pytest.raises(ValueError, match="got 100 points, expected at least 1024"):
        load("modelnet40", "train", tmp_path)
    path.write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        load("modelnet40", "train", tmp_path)


def test_hdf5_without_h5py_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "ply_data_test0.h5").write_bytes(b"")

    def without(name: str, *arguments):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"reading HDF5 needs h5py: pip install 'scalable-robust-ml\[hdf5\]'"):
        load("modelnet40", "test", tmp_path)
