"""Phase histories in files: what is read is what was written, and what is wrong is said with the names of file and field."""

import h5py
import numpy as np
import pytest
import scipy.io

from invdiff.core import ConfigError, DataError, ShapeError
from invdiff.io.sar import PhaseData, read_gotcha, read_phase_history

K, P = 5, 4
RNG = np.random.default_rng(0)


def gotcha(azimuth, **changes):
    """The fields of a file, float32 as published; None leaves a field out."""
    azimuth = np.radians(np.asarray(azimuth, float))
    rng = np.random.default_rng(len(azimuth))
    place = 7100.0 * np.cos(azimuth), 7100.0 * np.sin(azimuth), np.full(azimuth.size, 7300.0)
    fields = {name: values.astype(np.float32)[None] for name, values in zip("xyz", place, strict=True)}
    fields["fp"] = (rng.normal(size=(K, azimuth.size)) + 1j * rng.normal(size=(K, azimuth.size))).astype(np.complex64)
    fields["freq"] = np.linspace(9.3e9, 9.9e9, K).astype(np.float32)[:, None]
    fields["r0"] = np.full((1, azimuth.size), 10183.0, np.float32)
    fields |= {"th": np.degrees(azimuth)[None], "phi": 45.0, "af": {"r_correct": np.ones((1, azimuth.size))}, **changes}
    return {name: value for name, value in fields.items() if value is not None}


def saved(path, fields):
    scipy.io.savemat(path, {"data": fields})
    return path


def saved73(path, fields):
    """As MATLAB writes version 7.3: a header of 512 bytes, axes reversed, complex numbers as pairs."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in fields.items():
            if name == "af":
                file["data/af/r_correct"] = values["r_correct"].T
                continue
            values = np.asarray(values).T
            if np.iscomplexobj(values):
                pairs = np.empty(values.shape, [("real", "f4"), ("imag", "f4")])
                pairs["real"], pairs["imag"] = values.real, values.imag
                values = pairs
            file[f"data/{name}"] = values
    return path


@pytest.mark.parametrize("save", [saved, saved73])
def test_gotcha_comes_pulse_by_pulse_in_float64(tmp_path, save):
    fields = gotcha([1.0, 1.01, 1.02, 1.03])
    data = read_gotcha(save(tmp_path / "data_3dsar_pass1_az002_HH.mat", fields))
    np.testing.assert_array_equal(data.signal, fields["fp"].T, strict=True)
    np.testing.assert_array_equal(data.positions, np.concatenate([fields[n] for n in "xyz"]).T.astype(np.float64), strict=True)
    np.testing.assert_array_equal(data.reference, fields["r0"][0].astype(np.float64), strict=True)
    np.testing.assert_array_equal(data.frequencies, fields["freq"][:, 0].astype(np.float64), strict=True)
    assert data.sign == -1
    assert data.facts["polarisation"] == "HH" and data.facts["format"] == "gotcha"


@pytest.mark.parametrize("degrees", [([0.5, 0.6], [359.5, 359.6, 359.7]), ([3.0, 3.1, 3.4, 3.5], [3.2, 3.3])])
def test_files_join_in_the_order_of_azimuth_across_north(tmp_path, degrees):
    parts = [gotcha(angles) for angles in degrees]
    data = read_gotcha(*(saved(tmp_path / f"{number}.mat", part) for number, part in enumerate(parts)))
    found = np.degrees(np.arctan2(data.positions[:, 1], data.positions[:, 0]))
    np.testing.assert_allclose(found, sorted((a + 180.0) % 360.0 - 180.0 for angles in degrees for a in angles), atol=1e-5)
    assert len(data.facts["files"]) == 2
    where = {tuple(np.concatenate([p[n] for n in "xyz"])[:, i]): p["fp"][:, i] for p in parts for i in range(p["x"].size)}
    for position, row in zip(data.positions.astype(np.float32), data.signal, strict=True):
        np.testing.assert_array_equal(row, where[tuple(position)])


def test_a_full_circle_begins_at_north(tmp_path):
    angles = np.delete(np.arange(0.25, 360.0, 0.5), 300)
    data = read_gotcha(saved(tmp_path / "circle.mat", gotcha(angles)))
    np.testing.assert_allclose(np.degrees(np.arctan2(*data.positions[:, 1::-1].T)) % 360.0, angles, atol=1e-4)


def test_files_that_do_not_fit_together_are_named(tmp_path):
    first = saved(tmp_path / "first_HH.mat", gotcha([1.0, 1.1]))
    other = saved(tmp_path / "other_HH.mat", gotcha([2.0, 2.1], freq=np.linspace(9.3e9, 9.8e9, K)))
    with pytest.raises(DataError, match=r"other_HH\.mat: freq is not that of .*first_HH\.mat"):
        read_gotcha(first, other)
    cross = saved(tmp_path / "cross_HV.mat", gotcha([2.0, 2.1]))
    with pytest.raises(DataError, match=r"cross_HV\.mat: the polarisation is HV, that of .*first_HH\.mat is HH"):
        read_gotcha(first, cross)
    with pytest.raises(DataError, match="equal positions"):
        read_gotcha(first, first)
    with pytest.raises(ConfigError, match="one file or more"):
        read_gotcha()


@pytest.mark.parametrize("save", [saved, saved73])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp": None}, "data has no field fp"),
        ({"r0": None}, "data has no field r0"),
        ({"fp": np.ones((K, P))}, "expected complex fp, found float64"),
        ({"freq": np.linspace(9.3e9, 9.9e9, K)[:, None] * (1 + 1j)}, "expected real freq, found complex"),
        ({"fp": np.full((K, P), np.nan + 1j)}, "fp: 20 of the 20 values are NaN or infinite"),
        ({"z": np.array([[1.0, np.inf, 3.0, 4.0]])}, "z: 1 of the 4 values"),
        ({"fp": np.ones((P, K)) * (1 + 1j)}, r"expected fp \(frequencies, pulses\).*'fp': \(4, 5\)"),
        ({"y": np.ones((1, P - 1))}, r"a value of x, y, z, r0 for each pulse.*'y': \(1, 3\)"),
        ({"freq": np.linspace(9.9e9, 9.3e9, K)[:, None]}, "expected positive, increasing frequencies"),
    ],
)
def test_a_wrong_field_of_gotcha_is_named(tmp_path, save, changes, message):
    path = save(tmp_path / "bad.mat", gotcha([1.0, 1.1, 1.2, 1.3], **changes))
    with pytest.raises(DataError, match=rf"bad\.mat: .*{message}"):
        read_gotcha(path)


@pytest.mark.parametrize("save", [saved, saved73])
def test_a_broken_mat_file_is_named(tmp_path, save):
    path = save(tmp_path / "cut.mat", gotcha([1.0, 1.1, 1.2, 1.3]))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"cut\.mat: "):
        read_gotcha(path)
    with pytest.raises(DataError, match=r"none\.mat: no such file"):
        read_gotcha(tmp_path / "none.mat")
    scipy.io.savemat(tmp_path / "flat.mat", {"data": np.ones(3)})
    with pytest.raises(DataError, match=r"flat\.mat: expected a struct 'data', found \(1, 3\)"):
        read_gotcha(tmp_path / "flat.mat")
    scipy.io.savemat(tmp_path / "other.mat", {"x": np.ones(3)})
    with pytest.raises(DataError, match=r"other\.mat: expected a struct 'data'$"):
        read_gotcha(tmp_path / "other.mat")


def history(**changes):
    arrays = {
        "signal": RNG.normal(size=(P, K)) + 1j * RNG.normal(size=(P, K)),
        "positions": RNG.normal(size=(P, 3)) + np.array([1000.0, 0.0, 500.0]),
        "frequencies": np.linspace(1e9, 2e9, K),
        "sign": 1,
        **changes,
    }
    return {name: np.asarray(values) for name, values in arrays.items() if values is not None}


def stored(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                if name == "sign":
                    file.attrs[name] = values
                else:
                    file[name] = values
    return path


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".mat"])
@pytest.mark.parametrize("each", [False, True], ids=["one-waveform", "a-waveform-each"])
def test_named_arrays_make_a_phase_history(tmp_path, suffix, each):
    frequencies = np.linspace(1e9, 2e9, K) + (1e3 * np.arange(P)[:, None] if each else 0.0)
    arrays = history(frequencies=frequencies, reference=np.arange(P) + 900.0)
    data = read_phase_history(stored(tmp_path / f"data{suffix}", arrays))
    np.testing.assert_array_equal(data.signal, arrays["signal"].astype(np.complex64), strict=True)
    for name in ("positions", "reference", "frequencies"):
        np.testing.assert_array_equal(getattr(data, name), arrays[name].astype(np.float64), strict=True)
    assert data.sign == 1


def test_without_a_reference_the_data_are_deramped_to_the_scene_centre(tmp_path):
    arrays = history(sign=None, positions=(RNG.normal(size=(P, 3)) * 1e4).astype(np.float32))
    data = read_phase_history(stored(tmp_path / "data.npz", arrays), sign=-1)
    np.testing.assert_array_equal(data.reference, np.linalg.norm(arrays["positions"].astype(np.float64), axis=1))
    assert data.sign == -1


def test_the_sign_is_never_guessed(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.npz: does not say the sign"):
        read_phase_history(stored(tmp_path / "data.npz", history(sign=None)))
    with pytest.raises(ConfigError, match=r"read_phase_history: expected sign -1 or \+1, got 0"):
        read_phase_history(tmp_path / "data.npz", sign=0)
    path = stored(tmp_path / "signed.npz", history(sign=-1))
    with pytest.raises(ConfigError, match=r"signed\.npz: the file says sign -1, got sign=1"):
        read_phase_history(path, sign=1)
    assert read_phase_history(path, sign=-1).sign == -1
    with pytest.raises(DataError, match=r"bad\.npz: expected sign -1 or \+1, found 2"):
        read_phase_history(stored(tmp_path / "bad.npz", history(sign=2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": None}, "expected an array 'positions', found signal, frequencies"),
        ({"signal": np.ones((P, K))}, "expected a complex signal, found float64"),
        ({"signal": np.full((P, K), 1j * np.nan)}, "20 of the 20 values of signal"),
        ({"signal": np.full((P, K), 1e39 + 0j)}, "20 of the 20 values of signal"),
        ({"positions": np.full((P, 3), np.nan), "reference": np.ones(P)}, "12 of the 12 values of positions"),
        ({"positions": np.ones((P, 2))}, r"expected positions \(4, 3\), found \(4, 2\)"),
        ({"positions": np.float64(1.0)}, "positions"),
        ({"reference": np.ones(P + 1)}, r"expected reference \(4,\), found \(5,\)"),
        ({"frequencies": np.ones(K)}, "expected positive, increasing frequencies"),
        ({"frequencies": np.linspace(0.0, 1.0, K)}, "expected positive, increasing frequencies"),
        ({"frequencies": np.array(["a"] * K)}, r"expected an array 'frequencies', found .*frequencies \(<U1\)"),
    ],
)
def test_a_wrong_array_is_named(tmp_path, changes, message):
    with pytest.raises(DataError, match=rf"bad\.npz: .*{message}"):
        read_phase_history(stored(tmp_path / "bad.npz", history(**changes)))


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "bad.npz", **history(signal=None), signal=np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"bad\.npz: "):
        read_phase_history(tmp_path / "bad.npz")


def test_phase_data_checks_its_sign():
    arrays = history(sign=None)
    for sign in (0, 2, True):
        with pytest.raises(ConfigError, match=r"PhaseData: expected sign -1 or \+1"):
            PhaseData(**arrays, reference=np.ones(P), sign=sign)
    with pytest.raises(ShapeError, match=r"PhaseData: expected a signal \(pulses, frequencies\), found \(5,\)"):
        PhaseData(**{**arrays, "signal": arrays["signal"][0]}, reference=np.ones(P), sign=1)
