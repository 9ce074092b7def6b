"""Sets of fields as they are published: every layout and container, recognised, in one order of axes, never unpickled."""

import os
import pickle
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from invdiff.core import ConfigError, DataError
from invdiff.io.fields import read_fields

RNG = np.random.default_rng(0)
N, T, X, Y = 3, 5, 6, 4
LINE, PLANE = np.linspace(0.0, 1.0, X), RNG.normal(size=(N, X, Y))
TRAJECTORIES, FLOW = RNG.normal(size=(N, T, X)), RNG.normal(size=(N, T, X, Y))


def hdf5(path, arrays, **attrs):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs.update(attrs)
    return path


def mat73(path, arrays, classes=()):
    """As MATLAB writes version 7.3: a header of 512 bytes, axes reversed, complex numbers as pairs."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            values = np.asarray(array).T
            if np.iscomplexobj(values):
                pairs = np.empty(values.shape, [("real", "f8"), ("imag", "f8")])
                pairs["real"], pairs["imag"] = values.real, values.imag
                values = pairs
            kind = {"b": "logical", "f": "double", "V": "double", "u": "uint16"}[values.dtype.kind]
            file[name] = values.astype(np.uint8) if kind == "logical" else values
            file[name].attrs["MATLAB_class"] = np.bytes_(dict(classes).get(name, kind))
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def equal(found, **expected):
    assert found.values.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found.values[name], values, strict=True)


def points(*names):
    sizes = {"x": X, "y": Y, "t": T + 1}
    return {f"{name}-coordinate": np.linspace(0.0, 1.0, sizes[name]) for name in names}


def test_pdebench_trajectories_on_a_line(tmp_path):
    """The published files have the end of the last step among their times."""
    path = hdf5(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", {"tensor": TRAJECTORIES, **points("x", "t")}, Nu=0.01)
    found = read_fields(path)
    equal(found, tensor=TRAJECTORIES)
    assert found.layout == "pdebench"
    assert found.facts["Nu"] == 0.01
    np.testing.assert_array_equal(found.coordinates["t"], points("t")["t-coordinate"][:T])
    part = read_fields(path, entries=(1, 3), every=2, times=[-1, 0])
    equal(part, tensor=TRAJECTORIES[1:3][:, [-1, 0], ::2])
    np.testing.assert_array_equal(part.coordinates["t"], found.coordinates["t"][[-1, 0]])
    np.testing.assert_array_equal(part.coordinates["x"], LINE[::2])


def test_pdebench_darcy_and_flows(tmp_path):
    darcy = hdf5(tmp_path / "darcy.hdf5", {"nu": PLANE, "tensor": PLANE[:, None], **points("x", "y")}, beta=1.0)
    equal(read_fields(darcy), nu=PLANE, tensor=PLANE[:, None])
    equal(read_fields(darcy, only=["nu"], every=3), nu=PLANE[:, ::3, ::3])
    flow = hdf5(tmp_path / "flow.h5", {"Vx": FLOW, "density": FLOW + 1, **points("x", "y", "t")})
    found = read_fields(flow, times=[2])
    equal(found, Vx=FLOW[:, [2]], density=FLOW[:, [2]] + 1)
    assert found.coordinates.keys() == {"x", "y", "t"}
    with pytest.raises(ConfigError, match=r"flow\.h5: expected dataset to be one of Vx, density"):
        found.one()
    assert found.one("density") is found.values["density"]


@pytest.mark.parametrize("write", [scipy.io.savemat, mat73], ids=["v5", "v7.3"])
def test_fno_files(tmp_path, write):
    path = tmp_path / "a.mat"
    write(path, {"coeff": PLANE > 0, "sol": PLANE, "Kcoeff": PLANE + 1, "one": np.full((1, 1), 0.5)})
    found = read_fields(path)
    equal(found, coeff=PLANE > 0, sol=PLANE, Kcoeff=PLANE + 1)
    assert (found.layout, found.facts["one"]) == ("fno", 0.5)
    equal(read_fields(path, only=["sol"], entries=(2, 3), every=2), sol=PLANE[2:, ::2, ::2])
    # of an evolution the times are last; in the result they come before the grid
    write(path, {"a": PLANE, "u": np.moveaxis(FLOW, 1, -1), "t": np.arange(1.0, T + 1)[None]})
    found = read_fields(path)
    equal(found, a=PLANE, u=FLOW)
    np.testing.assert_array_equal(found.coordinates["t"], np.arange(1.0, T + 1))
    part = read_fields(path, times=[3, 1], every=2, entries=(0, 2))
    equal(part, a=PLANE[:2, ::2, ::2], u=FLOW[:2, [3, 1], ::2, ::2])
    np.testing.assert_array_equal(part.coordinates["t"], [4.0, 2.0])


@pytest.mark.parametrize("write", [scipy.io.savemat, mat73], ids=["v5", "v7.3"])
def test_one_trajectory(tmp_path, write):
    path, field = tmp_path / "a.mat", TRAJECTORIES[0]
    write(path, {"usol": field.T + 1e-9j, "x": LINE[None], "t": np.arange(T * 1.0)[:, None]})
    found = read_fields(path)
    equal(found, usol=field[None])
    assert found.layout == "trajectory"
    assert found.facts["usol: imaginary part left out, at most"] == 1e-9
    assert {name: v.shape for name, v in found.coordinates.items()} == {"x": (X,), "t": (T,)}
    # times first, another name of them, and values that are complex
    write(path, {"uu": field + 1j, "x": LINE[:, None], "tt": np.arange(T * 1.0)[None]})
    equal(read_fields(path), uu=(field + 1j)[None])


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_neuraloperator_files(tmp_path, kind):
    def write(**arrays):
        path = tmp_path / f"a.{kind}"
        if kind == "npz":
            np.savez(path, **arrays)
        else:
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        return path

    found = read_fields(write(x=PLANE > 0, y=PLANE.astype(np.float32)))
    equal(found, x=PLANE > 0, y=PLANE.astype(np.float32))
    assert found.layout == "neuraloperator"
    found = read_fields(write(x=TRAJECTORIES[:, 0], y=TRAJECTORIES, visc=np.full((1, 1), 0.01)), every=2, times=[0, -1])
    equal(found, x=TRAJECTORIES[:, 0, ::2], y=TRAJECTORIES[:, [0, -1], ::2])
    assert found.facts["visc"] == 0.01


def test_arrays_and_the_layout_by_name(tmp_path):
    np.save(tmp_path / "a.npy", FLOW)
    found = read_fields(tmp_path / "a.npy", every=2)
    equal(found, values=FLOW[:, ::2, ::2, ::2])
    assert found.layout == "arrays"
    torch.save(torch.from_numpy(PLANE), tmp_path / "a.pt")
    equal(read_fields(tmp_path / "a.pt"), values=PLANE)
    # names that say another layout
    np.savez(tmp_path / "b.npz", x=PLANE, y=TRAJECTORIES)
    equal(read_fields(tmp_path / "b.npz", layout="arrays", only=["y"]), y=TRAJECTORIES)
    # arrays without anything in common: one of them by name
    np.savez(tmp_path / "c.npz", p=PLANE, q=LINE)
    equal(read_fields(tmp_path / "c.npz", only=["p"]), p=PLANE)
    found = read_fields(hdf5(tmp_path / "d.h5", {"set/u": PLANE}, generator="g", fields="{}", done=3))
    assert (found.layout, found.facts["generator"]) == ("simulate", "g")
    equal(found, **{"set/u": PLANE})


def struct(path):
    scipy.io.savemat(path, {"a": PLANE, "u": {"values": PLANE}})


def cell(path):
    scipy.io.savemat(path, {"a": PLANE, "u": np.array([PLANE, "b"], object)})


def sparse(path):
    scipy.io.savemat(path, {"coeff": PLANE, "sol": scipy.sparse.csc_matrix(np.eye(3))})


def struct73(path):
    mat73(path, {"a": PLANE})
    with h5py.File(path, "r+") as file:
        file.create_group("u").attrs["MATLAB_class"] = np.bytes_("struct")


def text73(path):
    mat73(path, {"a": PLANE, "u": np.array([[104, 105]], np.uint16)}, {"u": "char"})


def pickled(path):
    path.write_bytes(pickle.dumps({"x": PLANE, "y": PLANE}))


@pytest.mark.parametrize(
    ("name", "write", "options", "error", "says"),
    [
        ("a.mat", struct, {}, DataError, "u is a struct, expected an array of numbers"),
        ("a.mat", struct, {"only": ["u"], "layout": "arrays"}, DataError, "u is a struct, expected an array of numbers"),
        ("a.mat", cell, {}, DataError, "u is a cell, expected an array of numbers"),
        ("a.mat", sparse, {}, DataError, "sol is a sparse, expected an array of numbers"),
        ("a.mat", struct73, {}, DataError, "u is a struct, expected an array of numbers"),
        ("a.mat", text73, {"layout": "fno"}, ConfigError, "layout fno needs u, there are a (3, 6, 4)"),
        ("a.mat", lambda p: p.write_bytes(b"MATLAB 5.0" * 20), {}, DataError, "a.mat: can't be read as .mat"),
        ("a.pt", lambda p: torch.save({"x": Path("x")}, p), {}, DataError, "nothing but tensors is unpickled (UnpicklingError"),
        (
            "a.pt",
            lambda p: torch.save([1, 2], p),
            {},
            DataError,
            "a dictionary of named tensors, got a list",
        ),
        ("a.pt", pickled, {}, DataError, "nothing but tensors is unpickled"),
        ("a.npz", pickled, {}, DataError, "not a zip archive"),
        ("a.npy", lambda p: np.save(p, np.array([{}])), {}, DataError, "Object arrays cannot be loaded"),
        ("a.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), {}, DataError, "a.h5: can't be read as .h5"),
        ("a.h5", lambda p: None, {}, DataError, "a.h5: no such file"),
        ("a.txt", lambda p: p.touch(), {}, ConfigError, "unknown suffix; expected one of .h5, .hdf5, .mat, .npz"),
        (
            "a.npz",
            lambda p: np.savez(p, p=PLANE, q=LINE),
            {},
            ConfigError,
            "can't tell the layout of p (3, 6, 4), q (6,)",
        ),
        ("a.npz", lambda p: np.savez(p), {}, ConfigError, "can't tell the layout of no arrays"),
        ("a.npz", lambda p: np.savez(p, x=PLANE, y=PLANE[1:]), {}, DataError, "entries in each field, got {'x': 3, 'y': 2}"),
        ("a.h5", lambda p: hdf5(p, {"u": PLANE}), {"layout": "pdebench"}, ConfigError, "layout pdebench needs x-coordinate"),
        (
            "a.h5",
            lambda p: hdf5(p, {"u": PLANE}),
            {"layout": "best"},
            ConfigError,
            "expected layout to be one of simulate",
        ),
        ("a.h5", lambda p: hdf5(p, {"u": PLANE}), {"only": ["v"]}, ConfigError, "can't tell the layout of u (3, 6, 4)"),
        ("a.npz", lambda p: np.savez(p, x=PLANE, y=PLANE), {"only": ["v"]}, ConfigError, "expected fields among x, y, got 'v'"),
        ("a.h5", lambda p: hdf5(p, {"u": PLANE}), {"entries": (1, 4)}, ConfigError, "u has entries 0 to 2, got entries 1 to 3"),
        ("a.h5", lambda p: hdf5(p, {"u": PLANE}), {"times": [0]}, ConfigError, "u have no times to choose"),
        ("a.h5", lambda p: hdf5(p, {"u": PLANE}), {"every": 0}, ConfigError, "expected every >= 1, got 0"),
        (
            "a.h5",
            lambda p: hdf5(p, {"tensor": TRAJECTORIES, **points("x", "t")}),
            {"times": [T]},
            ConfigError,
            "tensor has times 0 to 4, got [5]",
        ),
        (
            "a.h5",
            lambda p: hdf5(p, {"tensor": TRAJECTORIES[..., 1:], **points("x")}),
            {},
            DataError,
            "tensor is on a grid of (5,) points, the coordinates have (6,)",
        ),
        (
            "a.h5",
            lambda p: hdf5(p, {"tensor": TRAJECTORIES[:, 2:], **points("x", "t")}),
            {},
            DataError,
            "tensor has 3 frames, there are 6 times",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, name, write, options, error, says):
    write(tmp_path / name)
    with pytest.raises(error, match=re.escape(says)) as caught:
        read_fields(tmp_path / name, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def published():
    """The folder INVDIFF_DATA/pde."""
    folder = Path(os.environ.get("INVDIFF_DATA", "")) / "pde"
    if "INVDIFF_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("INVDIFF_DATA names no folder with pde")
    return folder


@pytest.mark.parametrize(
    ("name", "layout", "shapes"),
    [
        ("burgers_train_16.npz", "neuraloperator", {"x": (800, 16), "y": (800, 17, 16)}),
        ("darcy_train_16.npz", "neuraloperator", {"x": (1000, 16, 16), "y": (1000, 16, 16)}),
        ("hpm_KS.mat", "trajectory", {"usol": (1, 251, 512)}),
        ("hpm_burgers.mat", "trajectory", {"usol": (1, 101, 256)}),
    ],
)
def test_published_files(published, name, layout, shapes):
    found = read_fields(published / name)
    assert found.layout == layout
    assert {name: values.shape for name, values in found.values.items()} == shapes
    assert not any(np.iscomplexobj(values) for values in found.values.values())


def test_a_published_trajectory_satisfies_its_equation(published):
    """u_t = -u u_x + 0.1 u_xx, by central differences in time and in Fourier space: axes the right way round."""
    found = read_fields(published / "hpm_burgers.mat")
    u, x, t = found.one("usol")[0], found.coordinates["x"], found.coordinates["t"]
    k = 2j * np.pi * np.fft.fftfreq(x.size, x[1] - x[0])
    u_x, u_xx = (np.fft.ifft(k**order * np.fft.fft(u)).real for order in (1, 2))
    u_t = (u[2:] - u[:-2]) / (t[2] - t[0])
    rest = u_t + (u * u_x - 0.1 * u_xx)[1:-1]
    assert np.linalg.norm(rest[50:]) <= 0.01 * np.linalg.norm(u_t[50:])
