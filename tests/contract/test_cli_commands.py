"""The commands beside `invdiff run`: list, doctor, validate and train."""

import json
import sys
import types
from pathlib import Path

import pytest

from invdiff.commands import doctor, listing, training
from invdiff.configs import names
from invdiff.core import Streams

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize("group", ["task", "operator", "prior", "sampler", "guidance"])
def test_lists(call, group):
    rows = json.loads(call("list", f"{group}s", "--json")[1])
    assert [row["name"] for row in rows] == names(group)
    assert all(row["about"] for row in rows)
    table = call("list", f"{group}s")[1].splitlines()
    assert len(table) == 1 + len(rows)
    assert table[0].split()[0] == "name"
    if group == "sampler":
        facts = {row["name"]: row for row in rows}
        assert facts["mmps"]["kind"] == "posterior"
        assert facts["mmps"]["needs"] == facts["mmps_tangent"]["needs"] == facts["mmps_field"]["needs"] == ["vjp"]
        assert {"adjoint", "solve"} <= set(facts["mmps_preconditioned"]["needs"])
        assert facts["dps"]["kind"] == "point"
    if group == "task":
        assert {row["sampler"] for row in rows} <= set(names("sampler"))
        assert {row["prior"] for row in rows} <= set(names("prior"))
    assert listing.table([]) == "none"


def test_doctor(call, monkeypatch):
    code, out, _ = call("doctor", "--json")
    facts = json.loads(out)
    assert code == 0 if facts["ok"] else 1
    assert facts["versions"]["invdiff"] == "0.1.0"
    assert facts["devices"][0] == "cpu"
    assert all(w["state"] == "ok" for w in facts["weights"])
    text = call("doctor")[1]
    assert "torch" in text
    # the hash is looked at
    monkeypatch.setattr(doctor, "names", lambda _: ["altered", "gone", "none"])
    altered, gone = ({"sha256": "0" * 64, "file": f"{name}.safetensors"} for name in ("altered", "gone"))
    # anywhere in a configuration, and each file once
    weights = {"altered": {"autoencoder": altered}, "gone": {"priors": {"first": gone, "second": altered}}, "none": {}}
    monkeypatch.setattr(doctor, "read", lambda path: weights[path.split("/")[1]])
    folder = Path("package/weights")
    folder.mkdir(parents=True)
    (folder / "altered.safetensors").write_bytes(b"x")
    monkeypatch.setattr(doctor.resources, "files", lambda _: Path("package"))
    code, out, _ = call("doctor")
    assert code == 1
    assert "altered: altered.safetensors is altered" in out
    assert "gone: gone.safetensors is missing" in out
    assert "none:" not in out


def test_validate(call, monkeypatch):
    seen = []
    rows = [{"sampler": "a", "ok": True}, {"sampler": "b", "ok": False}]
    laboratory = types.ModuleType("invdiff.validation")
    laboratory.run = lambda quick, progress: seen.append((quick, progress)) or rows
    laboratory.Results = lambda rows, sizes, gate: types.SimpleNamespace(
        text=f"{len(rows)} rows", numbers={}, ok=all(r["ok"] for r in rows), save=seen.append
    )
    monkeypatch.setitem(sys.modules, "invdiff.validation", laboratory)
    assert call("validate") == (1, "2 rows\n", "")
    rows.pop()
    assert call("validate", "--quick") == (0, "1 rows\n", "")
    assert json.loads(call("validate", "--json")[1]) == rows
    assert [quick for quick, _ in seen] == [False, True, False]
    assert call("validate", "out=page")[0] == 0 and seen[-1] == "page"


class Blobs:
    """Sixteen pixels of noise, for a training of no use."""

    shape = (1, 16, 16)

    def __call__(self, index):
        return Streams(0, (index,)).normal(0, self.shape)[0]


def test_train_and_resume(call, monkeypatch):
    monkeypatch.setattr(training, "build", lambda config, allow: build(config, allow))
    from invdiff.core import build as build_object

    def build(config, allow):
        return Blobs() if "Phantoms" in config.get("_target_", "") else build_object(config, allow)

    tiny = ["network.net.widths=[32]", "network.net.blocks=1", "training.batch=2", "training.crop=8", "training.bf16=false"]
    line = ["train", "prior=ct128", *tiny, "training.warmup=0", "training.save_every=1", "card.images=2", "out=here"]
    code, out, err = call(*line, "training.steps=2", "threads=1")
    assert (code, err) == (0, "")
    assert out == "weights: here/ct128.safetensors\n"
    code, out, err = call(*line, "training.steps=3")
    assert (code, err) == (0, "")
    steps = [json.loads(text)["step"] for text in Path("here/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert [p.name for p in Path().iterdir()] == ["here"]
    # another network does not continue from it
    assert call(*line, "network.net.blocks=2", "training.steps=4")[0] == 2
