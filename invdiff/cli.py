"""The command line.

    invdiff run task=ct_sparse_view sampler=mmps n=16 seed=0 out=outputs/ct

Configurations are composed by hydra and built by `invdiff.core.build`. Everything that a user can mend is one line on
standard error and exit code 2; `--debug` shows the traceback as well. torch is imported only when something is computed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .commands import help, own
from .commands.messages import Misuse, near, one_line
from .configs import names

__all__ = ["main"]

COMMANDS = ("run", "list", "validate", "train", "simulate", "doctor")
GROUPS = ("task", "operator", "prior", "sampler", "guidance", "set")

# the options of hydra that are passed on, and whether a value follows; its --experimental-rerun would unpickle a file
TAKES_VALUE = {"--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--config-name", "-cn", "--info", "-i"}
HYDRA_FLAGS = {*TAKES_VALUE, "--resolve", "--multirun", "-m", "--run", "-r", "--hydra-help"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 where a check failed, 2 for an error that the user can mend, 130 when interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [a for a in given if a != "--debug"]
    debug = len(arguments) < len(given)
    try:
        return _dispatch(*(arguments or ["run"]), debug=debug)
    except KeyboardInterrupt:
        print("invdiff: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of the pipe has left; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        line = one_line(error)
        if debug or not line:
            traceback.print_exc()
        if line:
            print(f"invdiff: {line}", file=sys.stderr)
        return 2 if line else 1


def _dispatch(command: str, *rest: str, debug: bool) -> int:
    if command in ("--help", "-h", "help"):
        print(help.text(), end="")
    elif command == "--version":
        print(f"invdiff {__version__}")
    elif command in ("run", "train", "simulate"):
        return _compose(command, list(rest), debug)
    elif command == "list":
        return _list(rest)
    elif command == "validate":
        return _validate(rest)
    elif command == "doctor":
        return _doctor(_flags(command, rest, "--json"))
    elif "=" in command:
        raise Misuse(f"expected a command before {command}: invdiff run {command}")
    else:
        raise Misuse(f"unknown command {command!r}{near(command, COMMANDS)} (invdiff --help)")
    return 0


def _list(rest: Sequence[str]) -> int:
    groups = {f"{group}s": group for group in GROUPS}
    asked = [a for a in rest if not a.startswith("-")]
    flags = _flags("list", [a for a in rest if a.startswith("-")], "--json")
    if len(asked) != 1 or asked[0] not in groups:
        raise Misuse(f"list: expected one of {', '.join(groups)}, got {' '.join(asked) or 'nothing'}")
    from .commands import listing

    rows = listing.rows(groups[asked[0]])
    print(json.dumps(rows, indent=2) if flags else listing.table(rows))
    return 0


def _validate(rest: Sequence[str]) -> int:
    from .commands import validating

    folders = [a.removeprefix("out=") for a in rest if a.startswith("out=")]
    flags = _flags("validate", [a for a in rest if not a.startswith("out=")], *validating.FLAGS)
    text, ok = validating.validate(flags, folders[-1] if folders else None, progress=sys.stderr.isatty())
    print(text)
    return 0 if ok else 1


def _doctor(flags: set[str]) -> int:
    from .commands import doctor

    facts = doctor.examine()
    print(json.dumps(facts, indent=2) if flags else doctor.text(facts))
    return 0 if facts["ok"] else 1


def _flags(command: str, given: Sequence[str], *known: str) -> set[str]:
    for flag in given:
        if flag not in known:
            raise Misuse(f"{command}: unknown option {flag!r}{near(flag, known)} (it takes {', '.join(known)})")
    return set(given)


@dataclass
class _Session:
    """The jobs of one command line: a single one, or those of a sweep."""

    command: str
    allow: list[str]
    debug: bool
    stamp: str
    jobs: int = 0
    failed: int = 0
    error: Exception | None = None
    out: Path | None = None

    def job(self, config: Any) -> None:
        """What hydra calls with each composed configuration."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        hydra = HydraConfig.get()
        sweep = hydra.mode == RunMode.MULTIRUN
        title = f"[{hydra.job.num}] {' '.join(hydra.overrides.task)}: " if sweep else ""
        self.jobs += 1
        try:
            plain: Any = OmegaConf.to_container(config, resolve=True)
            place = ("train", plain["name"]) if self.command == "train" else (hydra.runtime.choices.get("task"), self.stamp)
            chosen = hydra.runtime.output_dir if sweep else plain.get("out")
            if isinstance(chosen, bool) or not isinstance(chosen, str | int | None):
                raise Misuse(f"{self.command}: expected out to be the name of {_place(self.command)}, got {chosen!r}")
            if chosen is None and self.command == "simulate":
                raise Misuse("simulate: expected out to be the name of a file, as in out=FILE.h5, got nothing")
            out = (
                Path("outputs", *map(str, place))
                if chosen is None
                else Path(os.path.relpath(str(chosen)) if sweep else str(chosen))
            )
            self.out = out.parent if sweep else out
            out = out / f"{plain['name']}.h5" if sweep and self.command == "simulate" else out
            done = _work(self.command, plain, out, self.allow)
            # of the processes that torchrun starts, the first speaks
            if os.environ.get("RANK", "0") == "0":
                print(title + done, flush=True)
        except Exception as error:
            # raised again after hydra, which would add lines of its own; a sweep goes on with its next job
            self.failed, self.error = self.failed + 1, error
            if sweep and self.debug:
                traceback.print_exc()
            elif sweep:
                print(f"invdiff: {title}{one_line(error) or repr(error)}", file=sys.stderr, flush=True)
            if sweep:
                with contextlib.suppress(OSError):
                    # hydra made it, and it stays only if there is something to continue from
                    Path(hydra.runtime.output_dir).rmdir()


def _work(command: str, config: dict[str, Any], out: Path, allow: Sequence[str]) -> str:
    """Do it; what to print when it is done."""
    if command == "train":
        from .commands import training

        return f"weights: {training.from_config(config, out, allow)}"
    if command == "simulate":
        from .commands import simulate

        return f"data: {simulate.from_config(config, out, allow)}"
    from .commands import running

    report = running.run(config, out, allow)
    return f"\n{report.table()}\n\nreport: {out / 'report.html'}"


def _compose(command: str, arguments: list[str], debug: bool) -> int:
    """Let hydra compose the configuration, once or for each job of a sweep, and do the command's work on it."""
    if {"--help", "-h"} & set(arguments):
        print(help.text(command), end="")
        return 0
    overrides, flags, folder, allow = _parse(command, arguments)
    session = _Session(command, allow, debug, time.strftime("%Y-%m-%d_%H-%M-%S"))
    for line in own.examine(folder) if folder else ():
        print(f"invdiff: warning: {line}", file=sys.stderr)
    try:
        _launch(command, flags, overrides, session.job)
    except KeyboardInterrupt:
        out = [] if session.out is None or any(a.startswith("out=") for a in arguments) else [f"out={session.out}"]
        print(f"\ninvdiff: interrupted; to continue: invdiff {shlex.join([command, *arguments, *out])}", file=sys.stderr)
        return 130
    if session.error is not None and session.jobs == 1:
        raise session.error
    if session.failed:
        print(f"invdiff: {session.failed} of {session.jobs} jobs failed", file=sys.stderr)
    return 2 if session.failed else 0


def _place(command: str) -> str:
    return "a file" if command == "simulate" else "a folder"


def _parse(command: str, arguments: list[str]) -> tuple[list[str], list[str], str | None, list[str]]:
    """Overrides, hydra's flags, the value of --config-dir, and the prefixes of --allow."""
    overrides, flags, allow, folder = [], [], [], None
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if not argument.startswith("-"):
            if "=" not in argument and not argument.startswith("~"):
                task = f", did you mean task={argument}?" if argument in names("task") else ""
                raise Misuse(f"{command}: expected OPTION=VALUE, got {argument!r}{task}")
            if re.fullmatch(r"(task|sampler|prior|set)=(null|[-+.\d]*)|out=", argument):
                option, _, value = argument.partition("=")
                what = _place(command) if option == "out" else f"the name of a {option} (invdiff list {option}s)"
                raise Misuse(f"{command}: expected {option} to be {what}, got {value or 'nothing'}")
            overrides.append(argument)
            continue
        if flag not in HYDRA_FLAGS | {"--allow"}:
            raise Misuse(f"{command}: unknown option {flag!r}{near(flag, sorted(HYDRA_FLAGS))} (invdiff {command} --help)")
        if flag in TAKES_VALUE | {"--allow"} and not equals:
            value = next(rest, "")
        if flag in TAKES_VALUE | {"--allow"} and not value:
            raise Misuse(f"{command}: expected a value after {flag}")
        if flag == "--allow":
            allow.append(value)
            continue
        folder = value if flag in ("--config-dir", "-cd") else folder
        flags += [flag, value] if value else [flag]
    if command == "train":
        # a recipe is of a prior, or of a network for a task
        overrides = [re.sub(r"^(prior|task)=", "train=", o) for o in overrides]
    elif command == "run":
        # what belongs to the task can be said without naming it: data.path=FILE
        overrides = [re.sub(r"^(data|operator|noise)\.", r"task.\1.", o) for o in overrides]
    # hydra would take the parentheses of training.memory=checkpoint(block) for a function of its own
    policy = r"(?<![\w'\"])((?:checkpoint|revolve|offload|auto)\([^()]*\))"
    overrides = [re.sub(policy, r"'\1'", o) if re.match(r"\+*(\w+\.)*memory=", o) else o for o in overrides]
    if {"-m", "--multirun"} & set(flags):
        overrides = [re.sub(r"^out=", "hydra.sweep.dir=", o) for o in overrides]
    return overrides, flags, folder, allow


def _launch(command: str, flags: list[str], overrides: list[str], job: Callable[[Any], None]) -> None:
    import hydra

    version = tuple(int(part) for part in hydra.__version__.split(".")[:2])
    if sys.version_info >= (3, 14) and version < (1, 4):
        raise Misuse(f"hydra {hydra.__version__} does not run on Python 3.14: pip install 'hydra-core>=1.4.0rc3'")
    base = {"version_base": "1.3"} if version < (1, 4) else {}
    name = "config" if command == "run" else command
    with _environment([f"invdiff {command}", *flags, *overrides]):
        hydra.main(config_path="pkg://invdiff.configs", config_name=name, **base)(job)()


@contextlib.contextmanager
def _environment(argv: list[str]) -> Iterator[None]:
    """hydra reads sys.argv, and hands errors on instead of printing them only if a variable asks it to."""
    before, variable = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if variable is not None:
            os.environ["HYDRA_FULL_ERROR"] = variable
