"""Write docs/validation.md: the exactness table with a page of explanation around it.

python benchmarks/validation.py [--quick] [--threads 1] [--sizes] [--gate] [--out docs/validation.md] [--folder DIR]
                                [--results FILE]

--sizes and --gate add their tables (an hour, and some minutes); --folder also writes validation.json, .md and .html there;
--results takes what is in such a validation.json and runs what is missing in it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TEXT = """# Which samplers sample the posterior

Made by `python benchmarks/validation.py`; `invdiff validate` prints the same table for your machine, and writes it with
drawings to `out=FOLDER`. {draws} draws a row ({biased} where a bias on a mixture is shown, and on the toy, the random field
and the images), means over three problems, torch {torch}, Python {python}.

The posterior of a Gaussian or Gaussian-mixture prior under a linear operator with Gaussian noise is known in closed
form. A row that claims to be `exact` passes when its mean, its covariance and its overall spread agree with the known
ones to five standard errors (`worst z`), or, on a mixture, when its sliced Wasserstein distance to exact draws exceeds
the distance between two sets of exact draws (`floor`) by less than five standard deviations. A `biased` row passes when
the bias that the method is known for is reproduced. A `wrong` row is a planted fault (the correction of MMPS doubled,
a coupling of split Gibbs that is not let go) and passes when it is rejected.

{table}
{sizes}{gate}
How to read it

- **MMPS** is exact for every Gaussian prior: white, coloured, through a complex operator, through a synthesis.
  **PiGDM** is exact for the white one, whose standard deviation it is told. On mixtures neither is: they replace p(x0 |
  x) by one Gaussian. The exact posterior's own denoiser in the same integrators is exact there, so that what remains is
  the guidance and not the integrator.
- **DAPS** is exact for a white prior with that prior's covariance, for every Gaussian prior with Tweedie's
  (`jacobian`), and too wide as published.
- **PnP-DM** draws from the posterior of data that are noisier by rho, whose law is known; on mixtures it stays in the
  mode in which its sweeps have parted.
- **TDS** is exact as its particles grow, whatever its twist: with Tweedie's covariance for the twist four of them do for
  Gaussian posteriors, and sixteen keep the weights of 25 modes. **DDSMC** and **MCGdiff** are exact as particles grow for the
  prior of their ancestral chain, which has lost variance.
- **ULA, SK-ROCK, ALD** have stationary laws of closed form, off by the order of their step; the tests hold them to those.
- **Laplace** is exact for Gaussian fields and linear operators, at the cost of one factorisation; it takes no other prior.
- **Split Gibbs** is held to single speckled pixels, whose posterior is known by quadrature: exact where its coupling rho
  goes down to 0.2, rejected where it stays at 1.
- **Ancestral steps** lose variance in proportion to the step: compare 50, 100, 200, 400 steps. Heun's rule is of second
  order.
- **O-BELM and BDIA**, whose chains can be undone, match Heun's rule at half of its evaluations. **EDICT** is of first
  order, and too wide.
- **DPS, DDNM, DDRM, DiffPIR, Steered Diffusion, SITCOM, RED-Diff, D-Flow** return points: their spread is not that of the
  posterior (`observed`, `null`: variance over the true one in the row space of A and in its complement), and the package
  refuses to give intervals for them. The loss of the ancestral steps, DiffPIR, DDNM and Steered follow exactly from their
  equations, DPS is checked step by step against the paper's variance-preserving form and RED-Diff against its expected
  gradient and Adam (`tests/exact/test_linear_gaussian.py`); the intervals a biased row must fall into were recorded
  from this package's own runs, so that they see a change and prove no more than that. Published values for DiffPIR
  (0.48, 0.48), for the null space of DPS (0.97) and for the loss of 200 ancestral steps agree; the mean errors depend
  on problems that the publications do not give. DDNM+ is the form without a singular value decomposition, which adds no
  noise below sigma_y, so that its null space collapses. RED-Diff weighted by the prior's score ends at the mode, which
  is the mean of a Gaussian posterior.
- **Toy**: two modes three deviations apart in two of sixteen dimensions (arXiv:2602.04189). What MMPS, PiGDM and DAPS
  leave there is less than a thousand draws show; DPS and DiffPIR deviate.
- **Random field**: 16 x 16 pixels, P(k) ~ k^-3.035 with a cut-off, behind a blur; the truth 0.5, 1, 2 and 4 standard
  deviations from the mean in every direction. `distance` is the Wasserstein distance of the modes' means and deviations,
  in the units of the field, `floor` that of exact draws. The posterior's covariance does not know the shift: the
  distance of DiffPIR hardly does, that of DDRM grows with it, and that of DPS, whose step is divided by the misfit, falls.
- **Deconvolution, tomography**: images of 8 x 8 that are one of five shapes and a smooth field; two or three shapes are
  left by the data. The posterior's own denoiser passes; every guidance that takes p(x0 | x) for one Gaussian deviates.
- **Fine enough steps**: on the mixtures the first-order integrators take 800 steps. With 300 the ancestral one is
  rejected (worst z 5.6 at 4,000 draws), and a deterministic one is when it starts at 300 instead of 3,000 (5.5 at 1,000
  draws): the modes lie 45 apart.
"""


SIZES = """
Two sizes, three noise levels: worst z-scores of every exact sampler, {draws} draws of one problem each. Krylov steps
are as many as measurements (MMPS) or unknowns (DAPS), particles half as many (TDS; with four, 32 unknowns at the lowest
noise give 5.1), the lowest level a quarter of the noise where that is lower.

{table}
"""

GATE = """
The diagnostics themselves: alarms (z above 5, p of 0.001) on exact draws and on planted faults. `wide`: covariances
times 1.3^2, `moved`: by half a deviation, `shuffled`: elements permuted over the draws, `mode lost`: without the heaviest,
`exchanged`: weights in the reverse order, `prior`: the measurement ignored. `blind` cells are faults that this diagnostic
can't see (the kernel Stein discrepancy no weights of modes; the CRPS, which is of single elements, no dependence), `weak`
ones those that these numbers of draws need not show.

{table}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 draws instead of 4,000")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--out", type=Path, default=Path("docs/validation.md"))
    parser.add_argument("--sizes", action="store_true", help="also the exact samplers at two sizes and three noise levels")
    parser.add_argument("--gate", action="store_true", help="also the diagnostics on exact draws and on planted faults")
    parser.add_argument("--folder", type=Path, help="where to write validation.json, .md and .html")
    parser.add_argument("--results", type=Path, help="a validation.json whose rows are taken")
    arguments = parser.parse_args()
    import torch

    from invdiff import validation

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    held = json.loads(arguments.results.read_text()) if arguments.results else {}
    progress, quick = sys.stderr.isatty(), arguments.quick
    facts = held.get("facts") or {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    sizes, gate = held.get("sizes", []), held.get("gate", [])

    def keep(rows: list[dict[str, Any]]) -> None:
        if arguments.folder:
            validation.Results(rows=rows, sizes=sizes, gate=gate, facts=facts).save(arguments.folder)

    rows = validation.run(quick=quick, progress=progress, held=held.get("rows", ()), keep=keep)
    if arguments.sizes and not sizes:
        sizes = validation.sizes(n=250 if quick else 1000, progress=progress)
    if arguments.gate and not gate:
        gate = validation.gate(progress=progress)
    counts = Counter(row["draws"] for row in rows)
    results = validation.Results(rows=rows, sizes=sizes, gate=gate, facts=facts)
    tables = {
        "table": validation.table(rows),
        "sizes": SIZES.format(draws=sizes[0]["draws"], table=validation.sizes_table(sizes)) if sizes else "",
        "gate": GATE.format(table=validation.gate_table(gate)) if gate else "",
    }
    numbers = {"draws": max(counts), "biased": min(counts), "torch": facts["torch"], "python": facts["python"]}
    arguments.out.write_text(TEXT.format(**tables, **numbers))
    if arguments.folder:
        results.save(arguments.folder)
    parts = (rows, sizes, gate)
    failed = [" on ".join(str(v) for v in list(row.values())[:2]) for part in parts for row in part if not row["ok"]]
    print(f"{arguments.out}: {len(rows)} rows, {'all as claimed' if results.ok else 'FAILED: ' + ', '.join(failed)}")
    return 0 if results.ok else 1


if __name__ == "__main__":
    sys.exit(main())
