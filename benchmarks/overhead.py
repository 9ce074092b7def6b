"""The budgets of docs/design.md, measured: import and help times, and a sampler's own time beyond network and operator calls.

A sampler's own time is the run's time minus the time inside the prior (forward and vector-Jacobian products, which are timed
by calling them alone as often as the run did) and inside the operator, relative to the latter two. Run and replay alternate
in one process; medians of `--repeats`.

    python benchmarks/overhead.py [--threads 1] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOALS = {"import": 0.3, "help": 0.6, "run_help": 0.6, "overhead": 0.05}
SAMPLERS = {
    "mmps": {"steps": 10},
    "pigdm": {"steps": 10},
    "dps": {"steps": 20},
    "ddnm": {"steps": 10},
    "diffpir": {"steps": 20},
    "reddiff": {"steps": 40},
}


def seconds(code: list[str]) -> float:
    """Best of five of a fresh interpreter."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *code], check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


def interpreter_rows() -> list[dict]:
    """Import and help times."""
    torch_alone, empty = seconds(["-c", "import torch"]), seconds(["-c", "pass"])
    rows = [("import", seconds(["-c", "import torch, invdiff"]) - torch_alone, "import invdiff beyond import torch")]
    rows += [
        ("help", seconds(["-m", "invdiff", "--help"]), "invdiff --help"),
        ("run_help", seconds(["-m", "invdiff", "run", "--help"]), "invdiff run --help"),
    ]
    print(f"(a bare interpreter takes {empty:.2f} s, importing torch {torch_alone:.2f} s)")
    return [
        {"name": label, "ours": value, "unit": "s", "goal": GOALS[key], "ok": value <= GOALS[key]} for key, value, label in rows
    ]


def overhead_rows(repeats: int) -> list[dict]:
    """Own time of each sampler on 128^2 sparse-view CT with the shipped network, four draws."""
    import torch

    import invdiff

    operator = invdiff.operators.ParallelBeamCT(size=128, angles=20)
    prior = invdiff.prior("ct128")
    truth = invdiff.tasks.phantoms.Phantoms(seed=1_000_000)(0)
    problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(0.5), truth, seed=0)

    class Timed(invdiff.core.Denoiser):
        """The prior, with the seconds spent in forward and backward."""

        def __init__(self) -> None:
            super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
            self.prior, self.spent = prior, 0.0

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            if torch.is_grad_enabled() and x.requires_grad:
                out = _Segment.apply(x, sigma, self)
            else:
                out = self.prior(x, sigma)
            self.spent += time.perf_counter() - start
            return out

    class _Segment(torch.autograd.Function):
        """Forward and backward of the network as one node, so that its backward can be timed."""

        @staticmethod
        def forward(ctx, x, sigma, owner):
            with torch.enable_grad():
                ctx.x = x.detach().requires_grad_()
                ctx.out, ctx.owner = owner.prior(ctx.x, sigma), owner
            return ctx.out.detach()

        @staticmethod
        def backward(ctx, gradient):
            start = time.perf_counter()
            (out,) = torch.autograd.grad(ctx.out, ctx.x, gradient, retain_graph=True)
            ctx.owner.spent += time.perf_counter() - start
            return out, None, None

    class Clocked(invdiff.core.LinearOperator):
        """The operator, with the seconds spent in it."""

        def __init__(self) -> None:
            super().__init__(operator.in_shape, operator.out_shape)
            self.inner, self.spent, self.depth = operator, 0.0, 0

        def _timed(self, function, *args):
            start = time.perf_counter()
            out = function(*args)
            self.spent += time.perf_counter() - start
            return out

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._timed(self.inner.forward, x)

        def adjoint(self, y: torch.Tensor) -> torch.Tensor:
            return self._timed(self.inner.adjoint, y)

        def normal(self, x: torch.Tensor) -> torch.Tensor:
            return self._timed(self.inner.normal, x)

        def solve(self, b: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
            return self._timed(self.inner.solve, b, rho)

        def pinv(self, y: torch.Tensor) -> torch.Tensor:
            return self._timed(self.inner.pinv, y)

    rows = []
    for name, options in SAMPLERS.items():
        shares = []
        for repeat in range(repeats + 1):
            timed, clocked = Timed(), Clocked()
            sampler = invdiff.sampler(name, **options)
            start = time.perf_counter()
            sampler(invdiff.Problem(clocked, problem.noise, problem.y), timed, n=4, seed=repeat)
            total, inside = time.perf_counter() - start, timed.spent + clocked.spent
            if repeat:
                shares.append((total - inside) / inside)
        value = statistics.median(shares)
        rows.append(
            {
                "name": f"own time of {name}",
                "ours": value,
                "unit": "of network + operator",
                "goal": GOALS["overhead"],
                "ok": value <= GOALS["overhead"],
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = interpreter_rows() + overhead_rows(arguments.repeats)
    for row in rows:
        value = f"{100 * row['ours']:.1f} %" if row["unit"].startswith("of") else f"{row['ours']:.2f} s"
        goal = f"{100 * row['goal']:.0f} %" if row["unit"].startswith("of") else f"{row['goal']:.1f} s"
        print(f"{row['name']:<40} {value:>10}   budget {goal:>6}   {'ok' if row['ok'] else 'OVER'}")
    if arguments.json:
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(),
        }
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
