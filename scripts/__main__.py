"""List all commands: ``python -m scripts``."""

from __future__ import annotations

import ast
import os
import sys
import textwrap
from pathlib import Path

SCRIPTS = Path(__file__).parent


def commands() -> dict[str, str]:
    """What each command does, by name."""
    found = {}
    for file in sorted(SCRIPTS.glob("[!_]*.py")):
        # parsed rather than imported, which would take seconds
        summary = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
        found[file.stem] = " ".join(summary.split())
    return found


def main() -> None:
    known = commands()
    given = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    if given:
        right = f"python -m scripts.{given[0]}" if given[0] in known else "python -m scripts, which lists all commands"
        raise SystemExit(f"scripts: got {' '.join(given)!r} after a space, expected {right}")
    print("Each command runs as python -m scripts.NAME; with --help, it shows its options and examples.\n")
    for name, summary in known.items():
        first, *others = textwrap.wrap(summary, 92) or [""]
        print("\n".join([f"{name:23} {first}", *(f"{'':23} {line}" for line in others)]))


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # as in scripts.parts.cli.run, which would take seconds to import
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
