"""Wavelet diffusion neural operators against their twin without wavelets and a Fourier neural operator: a small protocol.

    python benchmarks/wdno.py                                  # all variants, 3 seeds: hours on one core
    python benchmarks/wdno.py --steps 600 --variants fno pixel "haar 1" "haar 2" "bior2.4 white 1" "bior2.4 shaped 1" \\
        "refine haar 1" "refine pixel"                         # what docs/wdno.md reports
    python benchmarks/wdno.py --variants pixel "haar 1" --seeds 0
    python benchmarks/wdno.py --published --steps 300 --variants fno "haar 1" --seeds 0        # on 80 x 120 points
    python benchmarks/wdno.py --tiny --out FILE                # seconds, for a test; its numbers mean nothing

Burgers' equation with shocks and forcing (`generators.BurgersControl`), 32 x 64 points in time and space, averaged from 64 x
128, 500 trajectories, networks of about 0.3 M parameters, equal steps, batches and items. One conditional network each for

    simulation     u given u(0) and f, 32 held-out trajectories: relative L2 error and mean square error of one draw, of
                   the mean of four, and of one evaluation at the highest level
    control        J = mean |u(T) - u*|^2 + w mean |f|^2 by the solver, for u* of held-out trajectories: f drawn given u(0) and
                   u(T) = u*; the same with MMPS on J. Beside it J of no control, of the f that made u*, and of Adam on J
                   through the Fourier network
    refinement     from the exact 16 x 32 solution to 32 x 64 (trained) and 64 x 128 (never seen): relative L2 error at each
                   level, beside interpolation alone, and the Fourier network on those grids

Rows go to benchmarks/results/wdno.json as they are made; what is there is not made again.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from invdiff.core import Karras, Problem
from invdiff.core.files import atomic
from invdiff.generators.burgers import BurgersControl
from invdiff.guidance import MMPS
from invdiff.learning import Training, fit
from invdiff.operators.pde.forced import BurgersWalls
from invdiff.priors import FNO, EDMDenoiser, UNet
from invdiff.priors.bands import BandUNet
from invdiff.priors.refine import refine, upsample
from invdiff.priors.regression import Regression
from invdiff.priors.wdno import FieldCode, FieldPrior, field_network
from invdiff.samplers import Guided, Heun
from invdiff.tasks.control import control_problem, descent, objective, solved
from invdiff.tasks.trajectories import RefinedTrajectories, Trajectories

ROOT = Path(__file__).parents[1]
# wavelet, levels, whether the noise is shaped
FIELDS = {
    "pixel": (None, 1, False),
    "haar 1": ("haar", 1, False),
    "haar 2": ("haar", 2, False),
    "bior2.4 white 1": ("bior2.4", 1, False),
    "bior2.4 white 2": ("bior2.4", 2, False),
    "bior2.4 shaped 1": ("bior2.4", 1, True),
    "bior2.4 shaped 2": ("bior2.4", 2, True),
}
REFINERS = {"refine pixel": None, "refine haar 1": "haar", "refine bior2.4 1": "bior2.4"}
VARIANTS = ("fno", *FIELDS, *REFINERS)
KEEP = {"u0": 0.9, "uT": 0.5, "f": 0.5}
WEIGHT = 1e-3


class Kept:
    """A generator whose first samples are computed once and kept in a file."""

    def __init__(self, generator, count, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with atomic(path) as part:
                torch.save(generator(range(count)), part)
        self.fields = torch.load(path)

    def __call__(self, indices, **_):
        chosen = torch.tensor(list(indices))
        return {name: v[chosen] for name, v in self.fields.items()}


class Protocol:
    """Data, sizes and settings."""

    def __init__(self, options):
        tiny = self.tiny = options.tiny
        self.grid = (8, 16) if tiny else (80, 120) if options.published else (32, 64)
        self.count, self.held, self.controls = (6, 3, 2) if tiny else (500, 32, 8)
        self.steps, self.batch = (options.steps, 2) if tiny else (options.steps, 16)
        # the Haar network of two levels needs 4 * 2 points on the coarse grid of the smallest level
        self.widths = (32,) if tiny else (32, 64, 64)
        self.draws, self.levels = (2, 4) if tiny else (4, 12)
        self.temperature, self.time, self.factor = (0.02, 1.0, 1) if tiny else (0.02, 8.0, 2)
        self.options = options
        time_size, space = (2 * n for n in self.grid)
        sizes = {"size": space, "frames": time_size, "slots": time_size, "time": self.time, "factor": 1, "batch": 250}
        # 4096 steps are stable up to |u| = 4.7 on 128 cells; the fastest of these trajectories has 3.5
        sizes["steps"] = None if tiny else 7680 if options.published else 4096
        size = f"_{self.grid[0]}x{self.grid[1]}" if options.published else ""
        self.train = Kept(BurgersControl(seed=0, **sizes), self.count, options.work / f"train{size}.pt")
        self.unseen = Kept(BurgersControl(seed=1000, **sizes), self.held, options.work / f"held{size}.pt")

    def training(self, seed):
        pace = {"lr": 1e-3, "warmup": min(100, self.steps // 10), "cooldown": 0.4, "ema": 0.998, "p_mean": -0.4, "p_std": 1.6}
        # crops larger than the fields: a batch is so many of them, whole
        size = {"steps": self.steps, "batch": self.batch, "crop": 256, "full_from": 0.0}
        return Training(**size, **pace, seed=seed, save_every=max(1, self.steps // 4))

    def source(self, code, seed, coarser=1):
        keep = {name: p for name, p in KEEP.items() if name in code.told}
        return Trajectories(self.train, code, count=self.count, keep=keep, coarser=coarser, batch=self.count, seed=seed)

    def held_out(self, coarser):
        code = FieldCode(wavelet=None)
        return Trajectories(self.unseen, code, count=self.held, coarser=coarser, batch=self.held).samples(range(self.held))

    def sampler(self, guidance=None):
        return Guided(guidance, Heun(), Karras(0.02, 40.0), steps=self.levels)


def unet(channels, told, seed, widths, patch):
    return UNet(channels, channels, widths=widths, blocks=1, embedding=64, patch=patch, concat_channels=told, seed=seed)


def diffusion(protocol, name, seed):
    """A conditional network and its code."""
    wavelet, levels, shaped = FIELDS[name]
    plain = FieldCode(wavelet=None if shaped else wavelet, levels=levels)
    samples = protocol.source(plain, seed).samples(range(protocol.count))
    code = plain.measured(samples)
    channels, told = sum(code.channels(n, 2) for n in code.unknown), code.concat_channels(2)
    widths = protocol.widths[: 3 if levels == 1 else 2]
    if shaped:
        unit = FieldCode(wavelet=wavelet, levels=levels).measured(samples)
        rows = [[s / dict(code.scales)[n][0] for s in dict(unit.scales)[n]] for n in code.unknown]
        net = BandUNet(
            channels, channels, wavelet=wavelet, levels=levels, scales=rows, widths=widths, blocks=1, embedding=64,
            concat_channels=told, seed=seed,
        )  # fmt: skip
    else:
        net = unet(channels, told, seed, widths, 1 if wavelet else 2)
    network = EDMDenoiser(net, sigma_data=1.0, sigma_min=0.005, sigma_max=80.0)
    return field_network(network, code), code


def relative(x, truth):
    return float(((x - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean())


def errors(x, truth):
    return {"relative_l2": relative(x, truth), "mse": float((x - truth).square().mean())}


def simulate(protocol, network, code):
    """Errors of u given u(0) and f."""
    held, sampler = protocol.held_out(1), protocol.sampler()
    prior = FieldPrior(network, code, protocol.grid, {"u0": held["u0"], "f": held["f"]})
    problem, n = Problem.unmeasured(prior.basis.in_shape), protocol.held
    draws = torch.stack([prior.basis(sampler(problem, prior, n, seed=k).x)[:, :1] for k in range(protocol.draws)])
    with torch.no_grad():
        noise = 80.0 * torch.randn(n, *prior.basis.in_shape, generator=torch.Generator().manual_seed(0))
        one = prior.basis(prior(noise, torch.full((n,), 80.0)))[:, :1]
    return {"draw": errors(draws[0], held["u"]), "mean": errors(draws.mean(0), held["u"]), "one": errors(one, held["u"])}


def scored(protocol, u0, forces, target):
    """J by the solver, on finer cells than those of the networks, of each of some sets of forces, {name: (B, 1, *grid)}."""
    slots, cells, factor = *protocol.grid, protocol.factor
    # twice the steps of the data, for controls that nobody has seen
    steps = int(8 * factor * cells * protocol.time)
    solver = BurgersWalls(factor * cells, slots=slots, time=protocol.time, steps=steps, save=slots, memory="full")
    f, sets = torch.cat(list(forces.values())), len(forces)
    final = solved(solver, u0.repeat(sets, 1, 1), f, factor=factor)[:, :, -1]
    values = objective(final, f, target.repeat(sets, 1, 1), weight=WEIGHT).unflatten(0, (sets, -1)).mean(1)
    return dict(zip(forces, values.tolist(), strict=True))


def controls(protocol):
    """What is to be controlled: initial states, targets, and the forces that reach them."""
    held, n = protocol.held_out(1), protocol.controls
    return held["u0"][:n], held["uT"][:n], held["f"][:n]


def control(protocol, network, code):
    """J by the solver of forces drawn given u(0) and u(T), without and with guidance by J."""
    u0, target, f = controls(protocol)
    told = FieldPrior(network, code, protocol.grid, {"u0": u0, "uT": target})
    draws = told.basis(protocol.sampler()(Problem.unmeasured(told.basis.in_shape), told, len(u0), seed=0).x)
    guided = []
    for k in range(len(u0)):
        prior = told.tell({"u0": u0[k : k + 1], "uT": target[k : k + 1]})
        problem = control_problem(
            prior.basis.out_shape, target[k], weight=WEIGHT, temperature=protocol.temperature
        ).through(prior.basis)  # fmt: skip
        guided.append(prior.basis(protocol.sampler(MMPS(cg_steps=3))(problem, prior, 1, seed=k).x))
    found = {"told": draws, "guided": torch.cat(guided)}
    forces = {name: x[:, 1:] for name, x in found.items()} | {"none": 0 * f, "data": f}
    believed = float(objective(found["guided"][:, :1, -1], found["guided"][:, 1:], target, weight=WEIGHT).mean())
    return scored(protocol, u0, forces, target) | {"believed": believed}


def cost(network, out):
    """Parameters, and the seconds of training by its log: another call, or an interrupted one, has them all the same."""
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    return {"parameters": sum(p.numel() for p in network.parameters()), "train_s": round(last["seconds"], 1)}


def fourier(protocol, seed, out):
    """The regression network: simulation, other grids, and control by descent through it."""
    plain = FieldCode(unknown=("u",), slices=("u0",), fields=("f",))
    source = protocol.source(plain, seed)
    source.keep = {}
    source.code = code = plain.measured(source.samples(range(protocol.count)))
    modes, width = ((2, 4), 8) if protocol.tiny else ((6, 10), 16)
    net = FNO(code.concat_channels(2), 1, modes=modes, width=width, depth=4, noise=False, seed=seed)
    model = Regression(net, code, pad=2 if protocol.tiny else 6)
    model = fit(model, source, protocol.training(seed), out, progress=False)
    row = cost(model, out)
    with torch.no_grad():
        for coarser in (1, 0):
            held = protocol.held_out(coarser)
            u = torch.cat([model.predict(held["u"].shape[2:], {k: v[i : i + 1] for k, v in held.items() if k in code.told})
                           for i in range(protocol.held)])  # fmt: skip
            size = "x".join(map(str, held["u"].shape[2:]))
            row |= {"simulation": {"one": errors(u, held["u"])}, "refinement": {size: {"fno": relative(u, held["u"])}}} \
                if coarser == 1 else {"refinement": row["refinement"] | {size: {"fno": relative(u, held["u"])}}}  # fmt: skip
    u0, target, _ = controls(protocol)
    u, f = descent(
        lambda f: model.predict(protocol.grid, {"u0": u0, "f": f}), torch.zeros(len(u0), 1, *protocol.grid), target,
        weight=WEIGHT, steps=5 if protocol.tiny else 150,
    )  # fmt: skip
    believed = float(objective(u[:, :, -1], f, target, weight=WEIGHT).mean())
    row["control"] = scored(protocol, u0, {"descent": f}, target) | {"believed": believed}
    return row


def refiner(protocol, name, seed, out):
    """Errors at each level, and of interpolation."""
    plain = FieldCode(unknown=("r",), slices=("u0",), fields=("f", "coarse"), wavelet=REFINERS[name])
    source = RefinedTrajectories(protocol.source(plain, seed), levels=1 if protocol.tiny else 2, batch=protocol.batch)
    parts = source.samples(range(protocol.count))
    # units of the finest level that it learns
    source.trajectories.code = code = plain.measured(parts[0])
    source.trajectories.keep = {}
    patch, widths = (2 if plain.wavelet is None else 1), protocol.widths[:2]
    network = EDMDenoiser(
        unet(code.channels("r", 2), code.concat_channels(2), seed, widths, patch), sigma_data=1.0, sigma_max=80.0
    )
    network = fit(field_network(network, code), source, protocol.training(seed), out, progress=False)
    row = cost(network, out)
    exact = [protocol.held_out(k) for k in (2, 1, 0)]
    finer = refine(network, code, exact[0]["u"], exact[-1]["u0"], exact[-1]["f"], protocol.sampler(), seed=0, times=2)
    plain_u, found = exact[0]["u"], {}
    for below, held, u in zip(exact, exact[1:], finer, strict=False):
        plain_u = upsample(plain_u, below["u0"])
        size = "x".join(map(str, held["u"].shape[2:]))
        once = upsample(below["u"], below["u0"])
        found[size] = {"network": relative(u, held["u"]), "interpolation": relative(plain_u, held["u"])}
        found[size]["interpolation_of_exact"] = relative(once, held["u"])
    return row | {"refinement": found}


def run(protocol, name, seed):
    size = f"_{protocol.grid[0]}x{protocol.grid[1]}" if protocol.options.published else ""
    out = protocol.options.work / f"{name.replace(' ', '_')}_{seed}_{protocol.steps}{size}"
    row = {"variant": name, "seed": seed, "steps": protocol.steps, "tiny": protocol.tiny, "grid": list(protocol.grid)}
    if name == "fno":
        return row | fourier(protocol, seed, out)
    if name in REFINERS:
        return row | refiner(protocol, name, seed, out)
    network, code = diffusion(protocol, name, seed)
    network = fit(network, protocol.source(code, seed), protocol.training(seed), out, progress=False)
    row |= cost(network, out)
    return row | {"simulation": simulate(protocol, network, code), "control": control(protocol, network, code)}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--published", action="store_true", help="80 x 120 points, as published, of 160 x 240")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "wdno.json")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "wdno", help="data and checkpoints")
    options = parser.parse_args(arguments)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    protocol = Protocol(options)
    for seed in options.seeds:
        for name in options.variants:
            new = {"variant": name, "seed": seed, "steps": options.steps, "tiny": options.tiny, "grid": list(protocol.grid)}
            if any({key: r[key] for key in new} == new for r in rows):
                continue
            rows.append(run(protocol, name, seed))
            print(json.dumps(rows[-1]), flush=True)
            with atomic(options.out, parents=True) as part:
                part.write_text(json.dumps({"machine": f"{os.cpu_count()} CPU cores", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
