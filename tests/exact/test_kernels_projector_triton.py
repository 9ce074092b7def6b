"""The Triton form of the projectors: the torch form's numbers in the interpreter, and code from the compiler for a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from invdiff import kernels
from invdiff.core import Streams
from invdiff.operators import ConeBeamCT, FanBeamCT, ParallelBeamCT

INTERPRETED = """
import json, torch
from invdiff import kernels
from invdiff.core import Streams
from invdiff.kernels.beams import FanBeam, trace
from invdiff.kernels.projector import gather_pixels, integrate
from invdiff.operators import ConeBeamCT, FanBeamCT, ParallelBeamCT


def row(forward, adjoint, x, y):
    with kernels.using():
        plain = forward(x), adjoint(y)
    with kernels.using("projector"):
        ax, aty, again = forward(x), adjoint(y), forward(x)
    gap = (ax * y).sum().double() - (x * aty).sum().double()
    return {
        "forward": float((ax - plain[0]).abs().max() / plain[0].abs().max()),
        "adjoint": float((aty - plain[1]).abs().max() / plain[1].abs().max()),
        "gap": float(gap.abs() / (ax.norm() * y.norm())),
        "same": torch.equal(ax, again),
    }


rows = {}
for operator in (
    ParallelBeamCT((5, 7), 3),
    FanBeamCT((5, 7), 3, 9, source_distance=9.0, detector_distance=4.0, pixel=0.9, pitch=1.4, offset=0.3, engine="direct"),
    ConeBeamCT((2, 3, 4), 2, (3, 7), 8.0, 4.0, 1.0, 1.3, (0.2, 0.3), engine="direct"),
):
    x, y = (Streams(0, 2).normal(0, shape) for shape in (operator.in_shape, operator.out_shape))
    rows[type(operator).__name__] = row(operator, operator.adjoint, x, y)
beams = FanBeam((8, 5), torch.tensor([0.1, 2.0], dtype=torch.float64), 13, 9.0, 4.0, 0.9, 1.1, 0.3)
layout, rays = beams.layout, trace(beams.layout, beams.angles)
x, y = (Streams(0, 3).normal(0, shape, dtype=torch.float64) for shape in (layout.size, (2, 1, 13)))
rows["float64"] = row(lambda v: integrate(v, rays, layout), lambda v: gather_pixels(v, rays, layout), x, y)
print(json.dumps(rows))
"""


def test_triton_gives_the_same_numbers_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 4
    for name, row in rows.items():
        bar = 1e-14 if name == "float64" else 1e-6
        assert row["same"] and max(row["forward"], row["adjoint"], row["gap"]) < bar, (name, row)


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from invdiff.kernels import projector_triton

for kernel in (projector_triton._project, projector_triton._backproject):
    for flat in (True, False):
        # an argument that is one is a constant of the kernel
        fixed = {"FLAT": flat, "ITEMS": 2, "BLOCK": 64, "SLACK": 0.125} | ({"d": 1, "rows": 1, "reach_rows": 1} if flat else {})
        fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
        kinds = dict.fromkeys(("image", "weighted", "lines", "rise", "axes", "out"), "*fp32")
        kinds |= dict.fromkeys(("kappa", "first_v", "first_u", "step_v", "step_u"), "fp32")
        signature = {name: "constexpr" if name in fixed else kinds.get(name, "i32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
        print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]))
"""


def test_triton_compiles_without_a_gpu(tmp_path):
    """What the interpreter lets pass, types above all, the compiler need not."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 4


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ParallelBeamCT((64, 50), 14, pitch=1.3, engine="joseph"),
        lambda: FanBeamCT((64, 50), 14, source_distance=80.0, detector_distance=50.0, pitch=1.3, engine="direct"),
        lambda: ConeBeamCT((12, 20, 17), 14, source_distance=80.0, detector_distance=50.0, pitch=1.3, engine="direct"),
    ],
    ids=["parallel", "fan", "cone"],
)
def test_triton_on_a_gpu(make):
    pytest.importorskip("triton")
    operator = make().to("cuda")
    x, y = (Streams(0, 3).normal(0, shape, device="cuda") for shape in (operator.in_shape, operator.out_shape))
    with kernels.using():
        plain = operator(x), operator.adjoint(y)
    with kernels.using("projector"):
        ax, aty, again = operator(x), operator.adjoint(y), (operator(x), operator.adjoint(y))
    for found, want, repeated in zip((ax, aty), plain, again, strict=True):
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * float(want.abs().max()))
        assert torch.equal(found, repeated)
    gap = ((ax.double() * y).sum() - (x.double() * aty).sum()).abs()
    assert float(gap / (ax.norm() * y.norm())) < 1e-6
