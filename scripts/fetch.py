"""Download data sets: ``python -m scripts.fetch mnist fashion-mnist cifar10``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from certify.data import default_root
from certify.data.fetch import SOURCES, fetch
from scripts.parts import cli


@dataclass
class Args:
    """Download data sets, verify their checksums and store them in the canonical layout."""

    names: list[str] = cli.arg(f"data sets, any of {', '.join(SOURCES)}", positional=True)
    source: str | None = cli.arg("use only this source: npm, debian, installed, mirror or original", None)
    data_root: Path | None = cli.arg("folder to store them in, by default $CERTIFY_DATA or ./data", None)


def main(args: Args) -> None:
    for name in args.names:
        for path in fetch(name, args.data_root or default_root(), source=args.source):
            print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.fetch")
