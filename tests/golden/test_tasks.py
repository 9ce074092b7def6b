"""Numbers of two tiny tasks, recorded once in float64.

They hold the whole chain still: data, operator, noise streams, guidance, integrator, metrics. Libraries round differently; a
relative change of y by 1e-13 changes these numbers by less than 1e-11, so 1e-8 leaves room. A change of a definition shows in
the first digits. To record anew, run this file.
"""

import json
import sys

import pytest

from invdiff.catalogue import load, override
from invdiff.core import build
from invdiff.guidance import MMPS
from invdiff.priors import StationaryGaussian
from invdiff.samplers import Guided
from invdiff.tasks.setups import gaussian_signal

SAMPLER = Guided(guidance=MMPS(cg_steps=5), steps=12)

GOLDEN = {
    "toy_gaussian": {
        "nrmse": 0.5179436028328168,
        "misfit": 0.28734432772725704,
        "coverage": 0.875,
        "first": -0.13796892517357562,
        "std": 0.3906755166598265,
    },
    "inpaint": {
        "psnr": 21.318336412391794,
        "ssim": 0.8881577579779231,
        "nrmse": 0.15124022514667934,
        "misfit": 7.09721591998387,
        "coverage": 0.59765625,
        "first": 0.5439768943746426,
        "std": 0.0224911075667843,
    },
}


def measure(name: str) -> dict[str, float]:
    options = {"baselines": [], "exact": False} | ({"data.size": 16} if name == "inpaint" else {})
    task = build(override(load("task", name), options, name))
    prior = (
        gaussian_signal()
        if name == "toy_gaussian"
        else StationaryGaussian((1, 16, 16), mean=0.43, std=0.23, length=32.0, decay=1.25)
    )
    item = task.run(prior=prior, sampler=SAMPLER, n=4, seed=7, dtype="float64").items[0]
    estimate = item.estimates[-1]
    values = {k: v for k, v in item.metrics(estimate).items() if v is not None}
    return values | {"first": float(estimate.samples.x[0].flatten()[0]), "std": float(estimate.samples.std.mean())}


@pytest.mark.parametrize("name", ["toy_gaussian", "inpaint"])
def test_numbers_stay_what_they_were(name):
    assert measure(name) == pytest.approx(GOLDEN[name], rel=1e-8)


if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: measure(name) for name in GOLDEN}, indent=4) + "\n")
