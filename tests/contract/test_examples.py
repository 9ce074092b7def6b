"""The examples of the field tasks run, small, and write the figures that they name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from invdiff.catalogue import names

ROOT = Path(__file__).parents[2]

# example -> its files, and the shipped prior that it needs
EXAMPLES = {
    "blind_calibration": (["out.png"], None),
    "poisson_sources": (["out.png"], None),
    "burgers_sensors": (["out.png", "out_in_time.png"], None),
    "shock_and_smoke": (["out.png", "out.gif"], None),
    "darcy_permeability": (["out.png"], "darcy64"),
    "initial_vorticity": (["out.png", "out.gif"], None),
    "sar_despeckle": (["out.png"], "terrain_level"),
    "sar_imaging": (["out.png"], None),
    "sar_to_optical": (["out.png"], "sar_optical_fast"),
    "wdno_burgers": (["out.png", "out_control.png"], "burgers_wdno_sr"),
    "wdno_smoke": (["out.png", "out.gif"], "smoke_wdno"),
}


# above ten seconds each
SLOW = {
    "burgers_sensors",
    "initial_vorticity",
    "sar_imaging",
    "sar_to_optical",
    "shock_and_smoke",
    "wdno_burgers",
    "wdno_smoke",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in EXAMPLES])
def test_the_example_runs(name, tmp_path):
    script, (files, prior) = ROOT / "examples" / f"{name}.py", EXAMPLES[name]
    if not script.is_file():
        pytest.skip("the examples are not beside the tests")
    if prior is not None and prior not in names("prior"):
        pytest.skip(f"the prior {prior} is not in this tree")
    out = tmp_path / "new" / ("out.gif" if name == "initial_vorticity" else "out.png")
    command = [sys.executable, "-W", "error", str(script), "--tiny", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(files)
    for path in out.parent.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 100
            assert getattr(picture, "n_frames", 1) > (1 if path.suffix == ".gif" else 0)
    assert "nan" not in done.stdout
