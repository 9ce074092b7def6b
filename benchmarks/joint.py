"""A prior of the pair (f, u) against a prior of f alone with the exact operator: Poisson's source from sensors in the field.

    python benchmarks/joint.py --threads 1                     # two networks, then the rows: an hour on one core
    python benchmarks/joint.py --tiny --out FILE --work DIR    # seconds, for a test; its numbers mean nothing

-lap u = f, u = 0 on the walls, 32 x 32 points, 64 sensors in u at random points (others for each item), noise 1e-3 of the root
mean square of u. The law of f is the Gaussian of `SourceFields`, so that the exact posterior is known. Two networks, equal but
for their channels: p(f) and p(f, u), of equal steps, batches, noise levels and seeds. Rows, for held-out items:

    exact           the posterior itself; "bayes" is the error of its mean, the least that there is
    law             moment matching with the exact denoiser: of f, and of the pair
    alone           the network p(f), the operator exact: MMPS by Krylov steps; with the law as a preconditioner; DPS
    pair, tied      the network p(f, u), sensors in its second channel; tied: with the residual as a measurement of zero.
                    MMPS with the levels and Krylov steps of p(f); DPS, as published

    error, draw     relative L2 error of f: of the mean of the draws, of single draws
    error_u         of the mean of the draws of u; of A f for priors of f
    residual        |-lap u - f| / |f| of a draw
    misfit          mean square of (y - H u) / noise of a draw, and of the u that the solver makes of its f
    coverage        part of f in its interval of 90 %

DPS has a step size, and the tied one a weight of the residual; tied MMPS has its pseudo-noise, in units of rms f: those of the
least error of two other items, and the candidates are in the row. Rows go to benchmarks/results/joint.json as they are made;
what is there is not made again.
"""

import argparse
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from invdiff.core import Gaussian, Karras, Problem, Samples, Stack
from invdiff.core.algebra import dense
from invdiff.core.files import atomic
from invdiff.generators import SourceFields
from invdiff.guidance import MMPS
from invdiff.learning import Training, fit
from invdiff.metrics import coverage
from invdiff.operators.pde import Poisson, random_sensors, whitened
from invdiff.priors import EDMDenoiser, GaussianField, GaussianPrior, UNet
from invdiff.priors.wdno import FieldCode, FieldPrior, field_network
from invdiff.samplers import DPS, Guided, Heun
from invdiff.tasks.joint import Pairs, Residual, joint_problem

ROOT = Path(__file__).parents[1]
UNKNOWN = {"alone": ("f",), "pair": ("f", "u")}
HELD, TUNED = 1_000_000, 2_000_000
F64 = torch.float64
ZETAS, WEIGHTS, SLACKS = (0.3, 1.0, 3.0, 10.0), (0.003, 0.03), (0.1, 1.0)


class Protocol:
    def __init__(self, options):
        tiny = self.tiny = options.tiny
        self.n, self.sensors, self.draws, self.held = (8, 6, 3, 2) if tiny else (32, 64, 8, options.items)
        self.levels, self.krylov, self.dps = (3, 2, 2) if tiny else (20, 12, 200)
        self.zetas, self.slacks, self.tuned = (ZETAS[:2], SLACKS, 1) if tiny else (ZETAS, SLACKS, 2)
        self.widths = (32,) if tiny else (32, 64, 96)
        self.steps, self.batch = (2, 4) if tiny else (options.steps, 32)
        self.equation, self.options = Poisson((1, self.n, self.n)), options
        self.found, self.codes = {}, {}
        for name, unknown in UNKNOWN.items():
            plain = FieldCode(unknown=unknown, slices=(), fields=())
            self.codes[name] = plain.measured(Pairs(SourceFields(size=self.n), plain).samples(range(256)))
        self.units = {name: scale for name, (scale,) in self.codes["pair"].units.items()}

    def network(self, name):
        """The prior, trained where it is not, and a row about it."""
        if name not in self.found:
            code, c = self.codes[name], len(UNKNOWN[name])
            net = UNet(c, c, widths=self.widths, blocks=1, embedding=64, concat_channels=2, seed=0)
            network = field_network(EDMDenoiser(net, sigma_data=1.0, sigma_min=0.002, sigma_max=80.0), code)
            pace = {"lr": 1e-3, "warmup": 200, "cooldown": 0.4, "ema": 0.998, "p_mean": -1.0, "p_std": 1.8}
            size = {"steps": self.steps, "batch": self.batch, "crop": self.n, "full_from": 0.0, "save_every": 500}
            source, out = Pairs(SourceFields(size=self.n), code), self.options.work / f"{name}_{self.steps}"
            network = fit(network, source, Training(**size, **pace), out, progress=False).eval()
            last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
            facts = {"parameters": sum(p.numel() for p in network.parameters()), "train_s": last["seconds"]}
            self.found[name] = FieldPrior(network, code, (self.n, self.n)), facts
        return self.found[name]

    def law(self, scale=1.0):
        """That of scale f."""
        shape = (1, self.n, self.n)
        return GaussianField.laplacian(shape, scale=scale, tau=3.0, alpha=2.0, spacing=1.0 / self.n, zero_mean=True)

    def law_of_pair(self):
        size, shape = self.n**2, (1, self.n, self.n)
        c = self.law(1.0 / self.units["f"]).covariance(torch.eye(size, dtype=F64).reshape(size, *shape)).reshape(size, size)
        a = torch.cat([torch.eye(size, dtype=F64), dense(self.equation) * (self.units["f"] / self.units["u"])])
        cov = a @ c @ a.T
        return GaussianPrior(torch.zeros(2, *shape[1:], dtype=F64), 0.5 * (cov + cov.T), sigma_min=0.002, sigma_max=80.0)

    def item(self, seed, k):
        """A source, and the problem of its field in units of the field's root mean square over the set."""
        fields = SourceFields(seed=seed, size=self.n)((k,), dtype=F64)
        sensors = (1.0 / self.units["u"]) * random_sensors((1, self.n, self.n), self.sensors, seed=k)
        level = 1e-3 * float(fields["u"].square().mean().sqrt()) / self.units["u"]
        return fields, Problem.simulate(sensors, Gaussian(level), fields["u"], seed=k)

    def sampler(self, zeta=None, **more):
        if zeta is not None:
            return DPS(zeta=zeta, steps=self.dps)
        return Guided(MMPS(**({"cg_steps": self.krylov} | more)), Heun(), Karras(), steps=self.levels)

    def method(self, name):
        """How the draws of a row are made, with the best of the settings that there are; None for the exact posterior."""
        kind, how, *more = name.split(", ")
        if kind == "exact":
            return None
        field, tied, law = "alone" if "alone" in kind else "pair", kind == "tied", self.law(1.0 / self.units["f"])
        prior = {"law alone": law, "law pair": None}[kind] if "law" in kind else self.network(field)[0]
        reference = {"cg_steps": 1 if prior is law else 4, "reference": law} if prior is law or more else {}
        settings = [{"slack": s} for s in (self.slacks if tied else (None,))]
        if how == "dps":
            settings = [{"zeta": z, "weight": w} for z in self.zetas for w in (WEIGHTS if tied else (None,))]
        fixed = {"pair": field == "pair", "prior": prior or self.law_of_pair(), "slack": None, "weight": None, "tried": None}
        tried = [SimpleNamespace(**(fixed | s), sampler=self.sampler(s.get("zeta"), **reference)) for s in settings]
        if len(tried) > 1:
            errors = [self.score(m, TUNED, self.tuned, draws=4)["error"] for m in tried]
            tried = [tried[errors.index(min(errors))]]
            tried[0].tried = [s | {"error": e} for s, e in zip(settings, errors, strict=True)]
        return tried[0]

    def compare(self, name):
        method = self.method(name)
        return self.score(method, HELD, self.held) | {"tried": getattr(method, "tried", None)}

    def draw(self, method, problem, seed, draws):
        """f, u, and what they cost."""
        if method is None:
            mean, f = self.law().posterior_draws(problem.through(self.equation), draws, seed=seed)
            return f, self.equation(f), Samples(f, info=[{"mean": mean}])
        posed = problem.through(self.equation)
        if method.pair:
            posed = joint_problem(problem, self.equation, slack=method.slack and method.slack * self.units["f"])
        if method.weight is not None:
            # DPS knows one norm for all: the residual in units of f, times the weight
            tie = Stack([posed.operator, (method.weight / self.units["f"]) * Residual(self.equation)])
            posed = Problem(tie, Gaussian(1.0), torch.cat([posed.y.flatten(), torch.zeros(self.n**2, dtype=F64)]))
        basis = self.codes["pair" if method.pair else "alone"].synthesis((self.n, self.n))
        # else the few Krylov steps go to the residual, whose values are large and vague
        posed = whitened(posed) if method.slack else posed
        found = method.sampler(posed.through(basis), method.prior, n=draws, seed=seed)
        f, *u = basis(found.x).split(1, dim=1)
        return f, u[0] if method.pair else self.equation(f), found

    @torch.no_grad()
    def score(self, method, seed, items, draws=None):
        rows = []
        for k in range(items):
            truth, problem = self.item(seed, k)
            start = time.perf_counter()
            f, u, found = self.draw(method, problem, k, draws or self.draws)
            seconds, size = time.perf_counter() - start, truth["f"].norm()
            low, high = Samples(f).interval(0.9)
            rows.append({
                "error": (f.mean(0) - truth["f"][0]).norm() / size,
                "draw": ((f - truth["f"]).flatten(1).norm(dim=1) / size).mean(),
                "error_u": (u.mean(0) - truth["u"][0]).norm() / truth["u"].norm(),
                "residual": (self.equation.residual(f, u).flatten(1).norm(dim=1) / f.flatten(1).norm(dim=1)).mean(),
                "misfit": problem.chi2(u).mean(),
                "misfit_of_solver": problem.chi2(self.equation(f)).mean(),
                "coverage": coverage(low[None], high[None], truth["f"])[0],
                "network_calls": found.network_calls, "vjps": found.network_vjps, "seconds": seconds,
            })  # fmt: skip
            if method is None:
                rows[-1]["bayes"] = (found.info[0]["mean"] - truth["f"][0]).norm() / size
        table = {name: torch.tensor([float(r[name]) for r in rows], dtype=F64) for name in rows[0]}
        spread = float(table["error"].std() / len(rows) ** 0.5) if len(rows) > 1 else None
        return {name: float(v.mean()) for name, v in table.items()} | {"standard_error": spread}

    def about(self, name):
        """Of a network: what it cost, and how well its own draws keep the equation."""
        prior, row = self.network(name)
        free, sampler = Problem.unmeasured(prior.basis.in_shape, F64), Guided(None, Heun(), Karras(), steps=self.levels)
        f, *u = prior.basis(sampler(free, prior, n=4 * self.draws, seed=0).x).detach().split(1, dim=1)
        row = row | {"rms_f": float(f.square().mean().sqrt() / self.units["f"])}
        if u:
            row["residual"] = float(self.equation.residual(f, u[0]).norm() / f.norm())
            row["error_u"] = float((self.equation(f) - u[0]).norm() / u[0].norm())
        return row


ROWS = ["alone", "pair", "exact, posterior", "law alone, mmps", "law pair, mmps", "alone, mmps", "alone, mmps, law"]
ROWS += ["pair, mmps", "tied, mmps", "alone, dps", "pair, dps", "tied, dps"]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3000, help="of the training")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "joint.json")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "joint", help="checkpoints")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    protocol = Protocol(options)
    for name in options.rows:
        settings = {"name": name, "items": protocol.held, "steps": protocol.steps, "tiny": options.tiny}
        if any(settings.items() <= row.items() for row in rows):
            continue
        rows.append(settings | (protocol.about(name) if name in UNKNOWN else protocol.compare(name)))
        print(json.dumps(rows[-1]), flush=True)
        about = {"machine": f"{os.cpu_count()} CPU cores", "torch": torch.__version__, "threads": torch.get_num_threads()}
        with atomic(options.out, parents=True) as part:
            part.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
