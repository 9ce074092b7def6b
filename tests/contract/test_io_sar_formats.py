"""CPHD and SICD written by sarkit and read back: geometry, sign, scale factors and pixel types."""

import sys
import warnings

import numpy as np
import pytest

from invdiff.core import CapabilityError, ConfigError, DataError
from invdiff.io.sar_formats import read_cphd, read_sicd

etree = pytest.importorskip("lxml.etree")
cphd = pytest.importorskip("sarkit.cphd")
sicd = pytest.importorskip("sarkit.sicd")

C = 299_792_458.0
P, K = 24, 20
CENTRE = np.array([6_378_137.0, 1000.0, -2000.0])
TARGET = np.array([0.0, 3.0, -5.0])


def geometry():
    """Antennas 300 km above, which move by some metres between sending and receiving, and a point that creeps."""
    along = np.linspace(-6000.0, 6000.0, P)
    sent = CENTRE + np.stack([np.full(P, 3e5), along, np.full(P, 2e5)], 1)
    point = CENTRE + np.outer(np.linspace(-1, 1, P), [0, 0.2, 0.1])
    vectors = {"TxPos": sent, "RcvPos": sent + np.array([0.0, 15.0, 0.0]), "SRPPos": point}
    return vectors | {"SC0": np.full(P, 9.5e9), "SCSS": np.full(P, 5e6), "AmpSF": np.full(P, 0.5), "SIGNAL": np.ones(P, int)}


def echo(vectors, sign):
    """The signal of TARGET by the two ranges of CPHD."""
    path = sum(
        np.linalg.norm(vectors[a] - CENTRE - TARGET, axis=1) - np.linalg.norm(vectors[a] - vectors["SRPPos"], axis=1)
        for a in ("TxPos", "RcvPos")
    )
    frequencies = vectors["SC0"][:, None] + vectors["SCSS"][:, None] * np.arange(K)
    return (np.exp(sign * 2j * np.pi * frequencies * path[:, None] / C) / vectors["AmpSF"][:, None]).astype(np.complex64)


def written(path, vectors, signal, *, sign=-1, domain="FX", channels=("one",), kind="CF8"):
    plain = {"SIGNAL": "I8", **dict.fromkeys(("TxPos", "RcvPos", "SRPPos"), "X=F8;Y=F8;Z=F8;")}
    formats = {name: plain.get(name, "F8") for name in vectors}
    words = {name: 3 if form[0] == "X" else 1 for name, form in formats.items()}
    size = 8 * sum(words.values())
    item = cphd.binary_format_string_to_dtype(kind).itemsize
    parameters, offset = "", 0
    for name, form in formats.items():
        parameters += f"<{name}><Offset>{offset}</Offset><Size>{words[name]}</Size><Format>{form}</Format></{name}>"
        offset += words[name]
    data = "".join(
        f"<Channel><Identifier>{name}</Identifier><NumVectors>{P}</NumVectors><NumSamples>{K}</NumSamples>"
        f"<SignalArrayByteOffset>{n * P * K * item}</SignalArrayByteOffset>"
        f"<PVPArrayByteOffset>{n * P * size}</PVPArrayByteOffset></Channel>"
        for n, name in enumerate(channels)
    )
    tree = etree.ElementTree(
        etree.fromstring(
            f'<CPHD xmlns="{list(cphd.VERSION_INFO)[-1]}"><CollectionID><CollectorName>test</CollectorName>'
            "<Classification>UNCLASSIFIED</Classification><ReleaseInfo>none</ReleaseInfo></CollectionID>"
            f"<Global><DomainType>{domain}</DomainType><SGN>{sign:+d}</SGN></Global>"
            f"<Data><SignalArrayFormat>{kind}</SignalArrayFormat><NumBytesPVP>{size}</NumBytesPVP>{data}</Data>"
            f"<PVP>{parameters}</PVP></CPHD>"
        )
    )
    table = np.zeros(P, cphd.get_pvp_dtype(tree))
    for name, values in vectors.items():
        table[name] = values
    with path.open("wb") as file, cphd.Writer(file, cphd.Metadata(xmltree=tree)) as writer:
        for name in channels:
            writer.write_signal(name, signal)
            writer.write_pvp(name, table)
    return path


@pytest.mark.parametrize("sign", [-1, 1])
def test_cphd_has_the_phase_of_a_known_target(tmp_path, sign):
    """The model of one antenna, 4 pi f (|q - r| - R) / c, against the signal of two: their bistatic angle is 4e-5."""
    vectors = geometry()
    data = read_cphd(written(tmp_path / "a.cphd", vectors, echo(vectors, sign), sign=sign))
    assert data.sign == sign and data.signal.dtype == np.complex64
    np.testing.assert_array_equal(data.facts["scene_centre"], vectors["SRPPos"][P // 2])
    np.testing.assert_allclose(data.frequencies, 9.5e9 + 5e6 * np.arange(K), rtol=1e-15)
    two = [np.linalg.norm(vectors[a] - vectors["SRPPos"], axis=1) for a in ("TxPos", "RcvPos")]
    np.testing.assert_allclose(data.reference, 0.5 * sum(two), rtol=1e-15)
    middle = 0.5 * (vectors["TxPos"] + vectors["RcvPos"]) - vectors["SRPPos"][P // 2]
    np.testing.assert_allclose(data.positions, middle, atol=1e-3)
    assert data.facts["bistatic_angle"] == pytest.approx(15.0 / 360e3, rel=0.01)
    target = TARGET + CENTRE - np.array(data.facts["scene_centre"])
    ranges = np.linalg.norm(data.positions - target, axis=1) - data.reference
    expected = np.exp(data.sign * 4j * np.pi * data.frequencies * ranges[:, None] / C)
    # AmpSF is applied; phases to float32 and the rounding of the ranges, 1e-10 m
    np.testing.assert_allclose(data.signal, expected, atol=1e-5)
    assert np.abs(data.signal - expected.conj()).max() > 1.0


def test_cphd_vectors_without_a_signal_are_left_out(tmp_path):
    vectors = geometry()
    vectors["SIGNAL"][[3, 7]] = 0
    vectors["SC0"] = vectors["SC0"] + 1e3 * np.arange(P)
    signal = echo(vectors, -1)
    data = read_cphd(written(tmp_path / "a.cphd", vectors, signal))
    kept = np.delete(np.arange(P), [3, 7])
    np.testing.assert_array_equal(data.signal, signal[kept] * np.float32(0.5))
    np.testing.assert_allclose(data.frequencies[:, 0], vectors["SC0"][kept], rtol=1e-15)
    assert data.facts["left_out"] == 2 and data.frequencies.shape == (P - 2, K)
    vectors["SIGNAL"][:] = 0
    with pytest.raises(DataError, match=r"b\.cphd: SIGNAL is 0 for all 24 vectors of one"):
        read_cphd(written(tmp_path / "b.cphd", vectors, signal))


def test_cphd_integers_are_numbers(tmp_path):
    vectors = geometry()
    del vectors["AmpSF"], vectors["SIGNAL"]
    signal = np.zeros((P, K), [("real", "i2"), ("imag", "i2")])
    signal["real"], signal["imag"] = np.arange(P)[:, None], -np.arange(K)
    data = read_cphd(written(tmp_path / "a.cphd", vectors, signal, kind="CI4"))
    np.testing.assert_array_equal(data.signal, (np.arange(P)[:, None] - 1j * np.arange(K)).astype(np.complex64), strict=True)


def test_a_channel_of_cphd_has_to_be_chosen(tmp_path):
    vectors = geometry()
    path = written(tmp_path / "two.cphd", vectors, echo(vectors, -1), channels=("HH", "VV"))
    assert read_cphd(path, "VV").facts["channel"] == "VV"
    for channel in (None, "HV"):
        with pytest.raises(ConfigError, match=r"two\.cphd: expected channel to be one of HH, VV"):
            read_cphd(path, channel)


def test_cphd_that_can_not_be_read_says_why(tmp_path):
    vectors = geometry()
    signal = echo(vectors, -1)
    with pytest.raises(DataError, match=r"a\.cphd: DomainType is TOA, expected FX"):
        read_cphd(written(tmp_path / "a.cphd", vectors, signal, domain="TOA"))
    with pytest.raises(DataError, match=r"b\.cphd: SGN is \+2"):
        read_cphd(written(tmp_path / "b.cphd", vectors, signal, sign=2))
    with pytest.raises(DataError, match=r"c\.cphd: the bistatic angle is 0\.\d+ rad"):
        read_cphd(written(tmp_path / "c.cphd", vectors | {"RcvPos": vectors["RcvPos"] + [0.0, 1e4, 0.0]}, signal))
    with pytest.raises(DataError, match=r"d\.cphd: .* found no SRPPos"):
        read_cphd(written(tmp_path / "d.cphd", {k: v for k, v in vectors.items() if k != "SRPPos"}, signal))
    with pytest.raises(DataError, match=r"e\.cphd: TxPos: 72 of the 72 values are NaN"):
        read_cphd(written(tmp_path / "e.cphd", vectors | {"TxPos": vectors["TxPos"] * np.nan}, signal))
    with pytest.raises(DataError, match=r"f\.cphd: .*480 of the 480 values of signal are NaN"):
        read_cphd(written(tmp_path / "f.cphd", vectors, signal * np.float32(np.nan)))
    path = written(tmp_path / "cut.cphd", vectors, signal)
    content = path.read_bytes()
    for size in (len(content) - 10, 1000, 40, 0):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"cut\.cphd: can't be read as CPHD"):
            read_cphd(path)
    with pytest.raises(DataError, match=r"none\.cphd: no such file"):
        read_cphd(tmp_path / "none.cphd")


def xyz(x, y, z):
    return f"<X>{x}</X><Y>{y}</Y><Z>{z}</Z>"


def stored(path, pixels, kind, table=None):
    amplitudes = "".join(f'<Amplitude index="{i}">{a}</Amplitude>' for i, a in enumerate(() if table is None else table))
    amplitudes = amplitudes and f'<AmpTable size="{len(table)}">{amplitudes}</AmpTable>'
    corners = "".join(f'<ICP index="{n}:C"><Lat>1.0</Lat><Lon>1.0</Lon></ICP>' for n in range(1, 5))
    axes = "".join(
        f"<{axis}><UVectECF>{xyz(*unit)}</UVectECF><SS>{step}</SS><ImpRespBW>{band}</ImpRespBW><Sgn>-1</Sgn>"
        f"<WgtType><WindowName>TAYLOR</WindowName></WgtType></{axis}>"
        for axis, unit, step, band in (("Row", (0, 1, 0), 0.6, 1.5), ("Col", (0, 0, 1), 0.4, 2.0))
    )
    place = f"<SCP><ECF>{xyz(*CENTRE)}</ECF><LLH><Lat>0.0</Lat><Lon>0.0</Lon><HAE>0.0</HAE></LLH></SCP>"
    antenna = f"<ARPPos>{xyz(7e6, -5e5, 0)}</ARPPos><ARPVel>{xyz(0, 0, 7e3)}</ARPVel><SideOfTrack>L</SideOfTrack>"
    tree = etree.ElementTree(
        etree.fromstring(
            f'<SICD xmlns="urn:SICD:1.4.0"><CollectionInfo><CollectorName>test</CollectorName>'
            "<Classification>UNCLASSIFIED</Classification></CollectionInfo>"
            f"<ImageData><PixelType>{kind}</PixelType>{amplitudes}<NumRows>{pixels.shape[0]}</NumRows>"
            f"<NumCols>{pixels.shape[1]}</NumCols><FirstRow>0</FirstRow><FirstCol>0</FirstCol>"
            "<SCPPixel><Row>2</Row><Col>3</Col></SCPPixel></ImageData>"
            f"<GeoData>{place}<ImageCorners>{corners}</ImageCorners></GeoData>"
            f"<Grid><ImagePlane>SLANT</ImagePlane>{axes}</Grid><SCPCOA>{antenna}</SCPCOA>"
            "<Timeline><CollectStart>2020-01-01T00:00:00Z</CollectStart></Timeline></SICD>"
        )
    )
    secure = {"security": {"clas": "U"}}
    parts = {"file_header_part": {"ostaid": "none"} | secure, "im_subheader_part": {"isorce": "none"} | secure}
    metadata = sicd.NitfMetadata(xmltree=tree, **parts, de_subheader_part=secure)
    with path.open("wb") as file, warnings.catch_warnings():
        # the schema wants more than is read here
        warnings.simplefilter("ignore")
        writer = sicd.NitfWriter(file, metadata)
        writer.write_image(pixels)
    return path


def test_sicd_pixels_come_as_complex_numbers(tmp_path):
    rng = np.random.default_rng(0)
    pixels = (rng.normal(size=(5, 7)) + 1j * rng.normal(size=(5, 7))).astype(np.complex64)
    image = read_sicd(stored(tmp_path / "a.nitf", pixels, "RE32F_IM32F"))
    np.testing.assert_array_equal(image.pixels, pixels, strict=True)
    assert image.spacing == (0.6, 0.4)
    assert image.facts["sign"] == (-1, -1) and image.facts["bandwidth"] == (1.5, 2.0)
    assert image.facts["weighting"] == ("TAYLOR", "TAYLOR") and image.facts["plane"] == "SLANT"
    integers = np.zeros((5, 7), [("real", "i2"), ("imag", "i2")])
    integers["real"], integers["imag"] = 300, np.arange(-3, 4)
    image = read_sicd(stored(tmp_path / "b.nitf", integers, "RE16I_IM16I"))
    np.testing.assert_array_equal(image.pixels, np.broadcast_to(300 + 1j * np.arange(-3, 4), (5, 7)).astype(np.complex64))


@pytest.mark.parametrize("table", [None, np.arange(256) ** 2.0], ids=["linear", "table"])
def test_sicd_amplitude_and_phase_bytes(tmp_path, table):
    pixels = np.zeros((4, 3), [("amp", "u1"), ("phase", "u1")])
    pixels["amp"], pixels["phase"] = np.arange(20, 32).reshape(4, 3), np.array([0, 64, 192])
    image = read_sicd(stored(tmp_path / "a.nitf", pixels, "AMP8I_PHS8I", table))
    amplitude = pixels["amp"].astype(float) ** (1 if table is None else 2)
    np.testing.assert_allclose(image.pixels, amplitude * np.array([1, 1j, -1j]), rtol=1e-6, atol=1e-4)


def test_sicd_that_can_not_be_read_says_why(tmp_path):
    pixels = np.full((5, 7), np.nan + 0j, np.complex64)
    with pytest.raises(DataError, match=r"nan\.nitf: the image: 35 of the 35 values"):
        read_sicd(stored(tmp_path / "nan.nitf", pixels, "RE32F_IM32F"))
    path = stored(tmp_path / "cut.nitf", np.nan_to_num(pixels), "RE32F_IM32F")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.nitf: can't be read as SICD"):
        read_sicd(path)
    with pytest.raises(DataError, match=r"none\.nitf: no such file"):
        read_sicd(tmp_path / "none.nitf")


@pytest.mark.parametrize(("read", "module"), [(read_cphd, "sarkit.cphd"), (read_sicd, "sarkit.sicd")])
def test_without_sarkit_it_is_said_what_to_install(tmp_path, monkeypatch, read, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CapabilityError, match="needs the package sarkit"):
        read(tmp_path / "a")
