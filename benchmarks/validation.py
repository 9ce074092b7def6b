"""Write docs/validation.md: the exactness table with a page of explanation around it.

python benchmarks/validation.py [--quick] [--threads 1] [--out docs/validation.md] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

TEXT = """# Which samplers sample the posterior

Made by `python benchmarks/validation.py`; `invdiff validate` prints the same table for your machine. {draws} draws a
row ({biased} where a bias on a mixture is shown), means over three problems, torch {torch}, Python {python}.

The posterior of a Gaussian or Gaussian-mixture prior under a linear operator with Gaussian noise is known in closed
form. A row that claims to be `exact` passes when its mean, its covariance and its overall spread agree with the known
ones to five standard errors (`worst z`), or, on a mixture, when its sliced Wasserstein distance to exact draws exceeds
the distance between two sets of exact draws (`floor`) by less than five standard deviations. A `biased` row passes when
the bias that the method is known for is reproduced. A `wrong` row is a planted fault (the correction of MMPS doubled,
a coupling of split Gibbs that is not let go) and passes when it is rejected.

{table}

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
- **Fine enough steps**: on the mixtures the first-order integrators take 800 steps. With 300 the ancestral one is
  rejected (worst z 5.6 at 4,000 draws), and a deterministic one is when it starts at 300 instead of 3,000 (5.5 at 1,000
  draws): the modes lie 45 apart.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 draws instead of 4,000")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--out", type=Path, default=Path("docs/validation.md"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import torch

    from invdiff import validation

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = validation.run(quick=arguments.quick, progress=sys.stderr.isatty())
    counts = sorted({row["draws"] for row in rows})
    facts = {
        "draws": counts[-1],
        "biased": counts[0],
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }
    arguments.out.write_text(TEXT.format(table=validation.table(rows), **facts))
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))
    failed = [f"{row['sampler']} on {row['case']}" for row in rows if not row["ok"]]
    print(f"{arguments.out}: {len(rows)} rows, {'all as claimed' if not failed else 'FAILED: ' + ', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
