"""What the plots of the scripts have in common, and that curves can be read off as the tables say."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from certify.threats import NOT_CERTIFIED
from scripts.parts import curves, figures
from scripts.parts.tables import Run
from scripts.parts.under_attack import AttackRun

ROOT = Path(__file__).parent.parent
SCHEME = "BlockAblation(size=3)"


def run(radius, correct, threat="patch (side in pixels)", scheme=SCHEME, data="digits") -> Run:
    rows = {"idx": np.arange(len(radius)), "radius": np.array(radius, float), "correct": np.array(correct)}
    config = {"data": data, "scheme": scheme, "checkpoint_sha256": "a", "vote": "Argmax()"}
    return Run(f"{data}, {scheme}", threat, None, rows, config=config)


def attack(verified, options, threat="patch (side in pixels)", scheme=SCHEME) -> AttackRun:
    rows = {"idx": np.arange(len(verified)), "verified": np.array(verified, float)}
    config = {"data": "digits", "scheme": scheme, "checkpoint_sha256": "a", "vote": "Argmax()", "attack": options}
    return AttackRun(f"digits, {scheme}, {options['name']} attack", threat, rows, config, "run")


def drawn(runs, found):
    axis = figures.new_figure(5, 4).subplots()
    curves.draw(axis, runs, found)
    return axis


def value(line, at: float) -> float:
    """What a reader sees above ``at``."""
    x, y, where = line.get_xdata(), line.get_ydata(), line.get_drawstyle()
    if where == "steps-pre":
        return y[np.searchsorted(x, at, side="left")]
    return y[np.searchsorted(x, at, side="right") - 1]


def luminance(color: str) -> float:
    linear = [(int(color[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("palette", [figures.COLORS, figures.CLASS_COLORS])
def test_colors_are_different(palette):
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in palette)
    for a, b in itertools.combinations(palette, 2):
        assert sum(abs(int(a[i : i + 2], 16) - int(b[i : i + 2], 16)) for i in (1, 3, 5)) > 60
    assert all(luminance(color) < 0.72 for color in palette)  # to be seen on white


def test_more_curves_than_colors():
    looks = {(figures.color(i), figures.style(i)) for i in range(20)}
    assert len(looks) == 20


def test_no_script_touches_pyplot(tmp_path):
    """In a notebook it would change the backend under the user's own plots."""
    code = (
        "import sys; from pathlib import Path; from scripts.parts import figures; "
        "f = figures.new_figure(2, 2); f.subplots(); figures.save(f, Path(sys.argv[1])); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    path = tmp_path / "new" / "plot.png"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert path.read_bytes().startswith(b"\x89PNG")
    for script in (ROOT / "scripts").rglob("*.py"):
        assert "matplotlib.pyplot" not in script.read_text(), script
        assert "matplotlib.use(" not in script.read_text(), script


def test_whole_radii_are_read_off_above_their_number():
    (certified,) = drawn([run([0, 1, 2, 2], [1, 1, 1, 0])], []).get_lines()
    assert [value(certified, side) for side in (0, 1, 2)] == [0.75, 0.5, 0.25]
    axis = drawn([], [attack([0, 1, 3, np.inf], {"name": "pointwise"}, "l0 (pixels)")])
    (attacked,) = axis.get_lines()
    assert [value(attacked, radius) for radius in (0, 1, 2, 3)] == [0.75, 0.5, 0.5, 0.25]
    assert axis.get_xlim() == (0, 3.5)


def test_attacks_of_some_sizes_are_points():
    """Between them nothing was tried, so there is nothing to draw."""
    patch = attack([0, 1, np.inf, np.inf], {"name": "patch", "patch": "2"})
    scaled = AttackRun(
        patch.name, patch.threat, patch.rows | {"verified": 2 * patch.rows["verified"]}, patch.config, ""
    )
    assert scaled.points() == ([0, 2], [0.75, 0.5])
    linf = attack([0.1, np.inf], {"name": "linf", "eps": ["0.2", "0.1"]}, "l-inf")
    assert linf.points() == ([0, 0.1, 0.2], [1, 0.5, 0.5])
    assert attack([1], {"name": "pointwise"}).points() is None
    axis = drawn([run([0, 1, 2, 2], [1, 1, 1, 0])], [scaled])
    certified, points = axis.get_lines()
    assert points.get_linestyle() == "None"
    assert (list(points.get_xdata()), list(points.get_ydata())) == ([0, 2], [0.75, 0.5])
    assert points.get_color() == certified.get_color()  # one classifier
    assert "points" in axis.get_ylabel()


def test_tried_radii_are_inside_the_plot():
    """Also where the attack broke nothing there."""
    axis = drawn([run([0, 1], [1, 1])], [attack([np.inf, np.inf], {"name": "patch", "patch": "5"})])
    assert axis.get_xlim()[1] >= max(axis.get_lines()[-1].get_xdata()) == 5
    unbroken = attack([np.inf, np.inf], {"name": "linf", "eps": ["0.1", "2"]}, "l-inf")
    axis = drawn([], [unbroken])
    assert axis.get_xlim()[1] >= max(axis.get_lines()[-1].get_xdata()) == 2


def test_title_has_what_is_common():
    axis = drawn([run([1, 1], [1, 1]), run([1, 0], [1, 1], scheme="BandAblation(width=2)")], [])
    assert axis.get_title() == "digits, 2 images"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [SCHEME, "BandAblation(width=2)"]
    axis = drawn([run([1, 1], [1, 1]), run([1, 0, 0], [1, 1, 1], data="mnist")], [])
    assert axis.get_title() == ""
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [f"digits, {SCHEME}", f"mnist, {SCHEME}"]
    unproven = Run("mine", f"l2: {NOT_CERTIFIED}", None, run([1], [1]).rows, config=None)
    longer = Run("other", unproven.threat, None, run([1, 1], [1, 1]).rows, config=None)
    assert drawn([unproven, longer], []).get_title() == NOT_CERTIFIED
