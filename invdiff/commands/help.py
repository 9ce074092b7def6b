"""What `--help` prints; nothing heavy is imported for it."""

from __future__ import annotations

from textwrap import fill

from ..configs import names

__all__ = ["text"]

_MAIN = """\
invdiff: Bayesian inverse problems with diffusion priors

  invdiff run [OPTION=VALUE ...]       reconstruct, with uncertainty, and write a report; alone: a demonstration of seconds
  invdiff list GROUP [--json]          tasks, operators, priors, samplers, guidances or sets
  invdiff validate [--quick] [--json]  samplers against posteriors that are known exactly; out=DIR writes a page with drawings,
                                       --sizes runs the exact ones at two sizes and three noise levels, --gate the diagnostics
  invdiff train prior=NAME             train a prior, or continue its training
  invdiff simulate set=NAME out=FILE   compute a data set, or continue one that was interrupted
  invdiff doctor [--json]              versions, devices, threads, weights

  invdiff run --help, invdiff train --help, invdiff simulate --help   their options
  --debug                                                             tracebacks instead of one-line errors
  --version
"""

_RUN = """\
invdiff run [OPTION=VALUE ...]

{task}
{sampler}
{prior}

  n=8            draws for each item; else the task's own number
  items=1        images, volumes ... of the task's data
  seed=0         of the data, the noise and the draws
  out=DIR        folder of the report; else outputs/TASK/DATE_TIME
  batch=4        draws computed at once, or batch=8GiB; else all
  dtype=float32  or float64
  device=cpu     or cuda, cuda:1, mps
  resume=true    continue an interrupted run that is found in `out`
  progress=true  bars, where standard error is a terminal

  sampler.steps=50 task.noise.sigma=0.1   any value that --cfg job shows; +sampler.x=1 gives one that it does not show
  --cfg job                               print the configuration, compute nothing
  -m seed=0,1,2 sampler=mmps,ddnm         a sweep: one run for each combination, each in a folder of its own
  --config-dir DIR                        your own DIR/task/NAME.yaml, DIR/sampler/NAME.yaml ...; they build classes of invdiff
  --allow PACKAGE                         and of the packages named here
  --info searchpath                       where configurations come from (also: config, defaults, plugins)
"""

_TRAIN = """\
invdiff train prior=NAME [OPTION=VALUE ...]     (or task=idm_cs ...: a network for a task)

{train}

  out=DIR        folder of the weights, the checkpoint and the log; else outputs/train/NAME
  device=cpu     or cuda, cuda:1, mps
  threads=2      of torch; else its own choice
  resume=true    continue from the checkpoint in `out`
  start=NAME     begin with the weights of a packaged prior, or of start=FILE, those that fit the network
  progress=true  a bar, where standard error is a terminal

  training.steps=20000 source.paths=[a.nii.gz,b.nii.gz]   any value that --cfg job shows
  --cfg job, -m, --config-dir DIR, --allow PACKAGE        as for invdiff run
"""


_SIMULATE = """\
invdiff simulate set=NAME out=FILE [OPTION=VALUE ...]

{set}

  out=FILE       the file, .h5, in a folder that exists; until it is complete, FILE.part
  count=1000     samples
  first=0        index of the first of them
  chunk=64       samples computed at once
  dtype=float32  or float64
  device=cpu     or cuda, cuda:1, mps
  threads=2      of torch; else its own choice
  resume=true    continue FILE.part, or leave the complete file as it is; false begins anew
  progress=true  a bar, where standard error is a terminal

  generator.seed=1000 generator.size=32              any value that --cfg job shows
  --cfg job, -m, --config-dir DIR, --allow PACKAGE   as for invdiff run
"""


def text(command: str = "") -> str:
    """The help of the program, or of `run`, `train` or `simulate`."""
    template = {"run": _RUN, "train": _TRAIN, "simulate": _SIMULATE}.get(command, _MAIN)
    return template.format(**{group: _choices(group) for group in ("task", "sampler", "prior", "train", "set")})


def _choices(group: str) -> str:
    key = "prior" if group == "train" else group
    return fill(", ".join(names(group)), 124, initial_indent=f"  {f'{key}=':<15}", subsequent_indent=" " * 17)
