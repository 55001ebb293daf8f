"""What several commands share; none of these modules is a command itself."""

from importlib.util import find_spec as _find_spec

for _package in ("rich", "matplotlib"):
    if _find_spec(_package) is None:
        raise ModuleNotFoundError(
            f"scripts: {_package} is not installed; install the extra with pip install -e '.[commands]'", name=_package
        )
