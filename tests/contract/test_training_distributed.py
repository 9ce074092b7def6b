"""Data-parallel training: two processes do what one does, and stop together.

The processes are started once, as this file with a rank and a folder, and leave what they did in the folder.
"""

import functools
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from invdiff.core.errors import ConfigError, DataError, InvdiffError
from invdiff.core.rng import Streams
from invdiff.learning import Training, fit
from invdiff.learning.distributed import Team, processes
from invdiff.priors.network import EDMDenoiser
from invdiff.priors.unet import UNet

# whole images at the end: one item a step, so that one of the processes has nothing to do
RUN = Training(steps=6, batch=5, crop=8, full_from=0.6, lr=1e-3, warmup=2, cooldown=0.0, ema=0.9, save_every=2, accumulate=2)
HALF = replace(RUN, steps=3, full_from=1.0)


def white(index):
    return Streams(7, (index,)).normal(0, (1, 16, 16))[0]


def train(out, training=RUN, source=white):
    denoiser = EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, embedding=16, patch=1), sigma_data=1.0)
    return fit(denoiser, source, training, out, progress=False)


def failing(rank, error, index):
    """The fourth step fails in process 1, whose first item of it is 17."""
    if rank == 1 and index == 17:
        raise error
    return white(index)


def worker(rank, out):
    torch.set_num_threads(1)
    found = {}
    with processes("cpu") as device:
        assert device == "cpu"
        train(out / "two")
        train(out / "resumed")
        train(out / "half", HALF)
        for name, error in (("error", DataError("the disk is gone")), ("interrupt", KeyboardInterrupt())):
            try:
                train(out / name, RUN, functools.partial(failing, rank, error))
            except (InvdiffError, KeyboardInterrupt) as raised:
                found[name] = [type(raised).__name__, str(raised)]
        try:
            train(out / f"own{rank}")  # one of them holds a checkpoint
        except ConfigError as raised:
            found["folders"] = [type(raised).__name__, str(raised)]
    (out / f"found{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What two processes left, and what one process did with the same settings."""
    out = tmp_path_factory.mktemp("distributed")
    train(out / "one")
    train(out / "resumed", replace(HALF, steps=4))
    train(out / "own0", HALF)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    fixed |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(out)],
            env={**os.environ, **fixed, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return out


def weights(out, name="net"):
    return torch.load(out / "checkpoint.pt", weights_only=True)[name]


def assert_close(a, b):
    for key in ("net", "average"):
        for x, y in zip(weights(a, key).values(), weights(b, key).values(), strict=True):
            # AdamW's first steps have the size lr whatever the gradient is: rounding of a small gradient shows
            torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-5)


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_processes_train_the_weights_of_one(out):
    assert_close(out / "two", out / "one")
    assert [line["step"] for line in log(out / "two")] == [2, 4, 6]
    for one, two in zip(log(out / "one"), log(out / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["gradient"] == pytest.approx(one["gradient"], rel=1e-4)
    assert sorted(p.name for p in (out / "two").iterdir()) == ["checkpoint.pt", "ema.safetensors", "log.jsonl"]


def test_a_run_goes_on_with_another_number_of_processes(out):
    """Four steps by one process, two by two; and three by two, three by one."""
    assert_close(out / "resumed", out / "one")
    train(out / "half")
    assert_close(out / "half", out / "one")


def test_a_failure_of_one_process_stops_both(out):
    found = [json.loads((out / f"found{rank}.json").read_text()) for rank in (0, 1)]
    assert found[1]["error"] == ["DataError", "the disk is gone"]
    assert found[0]["error"] == ["InvdiffError", "fit: another process failed: its own message says why"]
    assert torch.load(out / "error" / "checkpoint.pt", weights_only=True)["step"] == 2


def test_an_interruption_of_one_process_leaves_a_checkpoint(out):
    found = [json.loads((out / f"found{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0]["interrupt"] == found[1]["interrupt"] == ["KeyboardInterrupt", ""]
    assert torch.load(out / "interrupt" / "checkpoint.pt", weights_only=True)["step"] == 3
    train(out / "interrupt")
    assert_close(out / "interrupt", out / "one")


def test_folders_that_are_not_shared_are_found_out(out):
    found = [json.loads((out / f"found{rank}.json").read_text()) for rank in (0, 1)]
    assert all("different checkpoints" in words["folders"][1] for words in found)


def test_one_process_is_no_group(monkeypatch):
    team = Team.here(torch.device("cpu"))
    assert (team.rank, team.size, team.writes) == (0, 1, True)
    assert team.together(lambda: 3) == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="by torchrun"), processes("cpu"):
        pass


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
