"""Generated fields solve their equations, each is a function of (seed, index), and stored ones keep to their symmetries."""

import math

import numpy as np
import pytest
import torch

from invdiff.core import ConfigError, DataError, Streams
from invdiff.generators import BurgersFlow, DarcyFlow, Drawn, KolmogorovFlow, NavierStokesPairs, SourceFields, Stored
from invdiff.operators.pde import Burgers, Darcy, NavierStokes2D, kolmogorov
from invdiff.priors.field import GaussianField

F64 = torch.float64
SMALL = {
    "darcy": lambda seed=0: DarcyFlow(seed=seed, size=6),
    "source": lambda seed=0: SourceFields(seed=seed, size=6),
    "helmholtz": lambda seed=0: SourceFields(seed=seed, size=6, wavenumber=2.0),
    "kolmogorov": lambda seed=0: KolmogorovFlow(seed=seed, size=16, spinup=0.2, interval=0.1, frames=3, steps=40),
    "pairs": lambda seed=0: NavierStokesPairs(seed=seed, size=8, time=0.1, steps=4),
    "burgers": lambda seed=0: BurgersFlow(seed=seed, size=16, frames=4, time=0.1, steps=40),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_sample_is_a_function_of_seed_and_index(name):
    every = SMALL[name]()([0, 1, 5], dtype=F64)
    alone, other = SMALL[name]()([5], dtype=F64), SMALL[name](seed=1)([0, 1, 5], dtype=F64)
    for field, values in every.items():
        torch.testing.assert_close(alone[field], values[2:], rtol=1e-10, atol=1e-12)
        assert float((values[0] - values[1]).abs().max()) > 1e-3 * float(values.abs().max())
        assert not torch.equal(other[field], values)
        single = SMALL[name]()([5])[field]
        assert single.dtype == torch.float32 and values.dtype == F64
        torch.testing.assert_close(single, values[2:].float(), rtol=1e-3, atol=1e-4 * float(values.abs().max()))


def test_a_chaotic_sample_is_the_same_in_every_batch():
    """In float32 too: integrated in it, the rounding of another batch or start would grow to another flow."""
    flow = KolmogorovFlow(size=16, spinup=2.0, interval=1.0, frames=2, steps=24)
    together = flow([0, 1, 2])["w"]
    torch.testing.assert_close(flow([2])["w"], together[2:], rtol=1e-6, atol=1e-6)
    assert torch.equal(together, flow([0, 1, 2], dtype=F64)["w"].float())
    pairs = NavierStokesPairs(size=8, time=0.1, steps=4)
    for name, values in pairs([0, 1, 2], dtype=F64).items():
        assert torch.equal(pairs([0, 1, 2])[name], values.float())


def test_a_rare_state_of_burgers_is_within_the_default_steps():
    """Sample 9627 of seed 0 reaches 5 standard deviations of a point."""
    flow = BurgersFlow()
    start = BurgersFlow(solve=False)([9627], dtype=F64)["u"]
    assert float(flow.solver().courant(start)) < 2.8 < float(flow.solver().courant(start)) * 762 / 508


@pytest.mark.parametrize("faces", ["harmonic", "arithmetic"])
def test_darcy_pressures_solve_the_equation_of_their_permeabilities(faces):
    made = DarcyFlow(size=12, low=2.0, high=7.0, faces=faces)(range(4), dtype=F64)
    a, u = made["a"], made["u"]
    assert a.unique().tolist() == [2.0, 7.0]
    assert float(Darcy(12, faces=faces).residual(a, u).abs().max()) < 1e-9
    # -div(a grad u) = 1 with the flux out of all four walls equal to the source in the square
    flux = sum(2.0 * (w * v).sum((1, 2)) for w, v in zip(sides(a), sides(u), strict=True))
    torch.testing.assert_close(flux, torch.ones_like(flux), rtol=1e-10, atol=0)
    assert set(DarcyFlow(size=12, solve=False)([0])) == {"a"}


def sides(x):
    return x[..., 0], x[..., -1], x[..., 0, :], x[..., -1, :]


def test_darcy_cuts_the_field_of_the_paper_at_zero():
    """N(0, (-Laplace + 9)^-2), whose mean mode is of standard deviation 1/9: both values, at any one point, half the time."""
    a = DarcyFlow(size=8, solve=False)(range(400))["a"]
    z = GaussianField.laplacian((1, 8, 8), scale=1.0, tau=3.0, alpha=2.0, spacing=1 / 8).sample(Streams(0, 400), F64)
    assert torch.equal(a == 12.0, z >= 0.0)
    assert abs(float((a[:, 0, 3, 3] == 12.0).double().mean()) - 0.5) < 5 * 0.5 / 20.0


def test_sources_and_fields_satisfy_their_equation():
    """-lap u - k^2 u = f by five points, with zeros behind the outer ring."""
    for k in (0.0, 2.0):
        made = SourceFields(size=9, wavenumber=k)(range(3), dtype=F64)
        f, u, h = made["f"], made["u"], 1.0 / 10.0
        around = torch.nn.functional.pad(u, (1, 1, 1, 1))
        laplacian = around[..., 2:, 1:-1] + around[..., :-2, 1:-1] + around[..., 1:-1, 2:] + around[..., 1:-1, :-2] - 4.0 * u
        torch.testing.assert_close(-laplacian / h**2 - k**2 * u, f, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(f.mean((1, 2, 3)), torch.zeros(3, dtype=F64), rtol=0, atol=1e-14)
    assert set(SourceFields(size=6, solve=False)([0])) == {"f"}


def test_kolmogorov_frames_are_the_solver_applied_again():
    flow = KolmogorovFlow(size=16, spinup=0.3, interval=0.2, frames=3, steps=40)
    w, after = flow(range(2), dtype=F64)["w"], flow.solver(0.2)
    for frame in (1, 2):
        torch.testing.assert_close(after(w[:, frame - 1 : frame]), w[:, frame : frame + 1], rtol=1e-12, atol=1e-12)
    (twice,) = [KolmogorovFlow(size=16, spinup=0.5, frames=1, steps=40)(range(2), dtype=F64)["w"]]
    torch.testing.assert_close(twice, w[:, 1:2], rtol=1e-5, atol=1e-5)  # 20 steps in place of 12 + 8 of the same length


def test_kolmogorov_starts_from_unit_variance_and_is_forced_as_it_says():
    flow = KolmogorovFlow(size=16, spinup=1e-6, frames=1, reynolds=50.0, wave=2, amplitude=3.0)
    start = flow(range(300), dtype=F64)["w"]
    assert float(start.square().mean()) == pytest.approx(1.0, abs=0.1)
    # from rest dw/dt = -amplitude cos(wave y), the same at every x
    y = 2 * math.pi * torch.arange(16, dtype=F64) / 16
    change = flow.solver(1e-6)(torch.zeros(1, 1, 16, 16, dtype=F64))[0, 0] / 1e-6
    torch.testing.assert_close(change, (-3.0 * torch.cos(2 * y))[:, None].expand(16, 16), rtol=1e-3, atol=1e-6)
    # and a shear decays with nu wave^2 / Re
    assert flow.solver(1.0).viscosity == 0.02 and flow.solver(0.31).steps == 20


def test_pairs_are_the_published_equation():
    """On the unit torus, forced by 0.1 (sin + cos)(2 pi (x + y)), nu = 1e-3."""
    made = NavierStokesPairs(size=16, time=0.25, steps=16)
    w = made(range(2), dtype=F64)
    axis = torch.arange(16, dtype=F64) / 16
    s = 2 * math.pi * (axis[:, None] + axis)
    solver = NavierStokes2D((16, 16), 1e-3, forcing=0.1 * (s.sin() + s.cos()), length=(1.0, 1.0), time=0.25, steps=16)
    torch.testing.assert_close(w["w1"], solver(w["w0"]), rtol=1e-12, atol=1e-12)
    # 7^1.5 (4 pi^2 |k|^2 + 49)^-2.5 summed over the modes is the variance of a point
    k = torch.fft.fftfreq(16, 1 / 16, dtype=F64)
    variance = float((7**1.5 * (4 * math.pi**2 * (k[:, None] ** 2 + k**2) + 49) ** -2.5).sum())
    found = float(made(range(400), dtype=F64)["w0"].square().mean())
    assert found == pytest.approx(variance, rel=0.25)


def test_burgers_frames_are_the_solution_of_the_first():
    flow = BurgersFlow(size=32, viscosity=0.02, time=0.2, frames=5, steps=50)
    u = flow(range(3), dtype=F64)["u"]
    assert u.shape == (3, 6, 32)
    solver = Burgers(32, 0.02, time=0.2, steps=50, save=5)
    torch.testing.assert_close(u[:, 1:], solver(u[:, :1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(u.mean(2), u[:, :1].mean(2).expand(3, 6), rtol=0, atol=1e-12)
    first = BurgersFlow(size=32, solve=False)(range(3), dtype=F64)["u"]
    torch.testing.assert_close(first, u[:, :1], rtol=0, atol=0)
    k = torch.fft.fftfreq(32, 1 / 32, dtype=F64)
    variance = float((625 * (4 * math.pi**2 * k**2 + 25) ** -2).sum())
    found = float(BurgersFlow(size=32, solve=False)(range(2000), dtype=F64)["u"].square().mean())
    assert found == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DarcyFlow(size=3), "DarcyFlow: expected size >= 4, got 3"),
        (lambda: DarcyFlow(low=0.0), "low"),
        (lambda: SourceFields(tau=-1.0), "tau"),
        (lambda: KolmogorovFlow(frames=0), "frames >= 1"),
        (lambda: KolmogorovFlow(interval=0.0), "interval"),
        (lambda: NavierStokesPairs(size=4), "size >= 8"),
        (lambda: SourceFields(wavenumber=math.nan), "finite wavenumber >= 0, got nan"),
        (lambda: SourceFields(wavenumber=-1.0), "finite wavenumber >= 0, got -1"),
        (lambda: BurgersFlow(frames=3, steps=10), "frames >= 1 that divide steps"),
        (lambda: BurgersFlow(steps=0), "BurgersFlow: expected steps > 0, got 0"),
        (lambda: BurgersFlow(viscosity=math.nan), "BurgersFlow: expected a finite viscosity >= 0, got nan"),
        (lambda: BurgersFlow(time=-1.0), "BurgersFlow: expected time > 0, got -1"),
        (lambda: BurgersFlow(steps=508), "BurgersFlow: expected steps >= 658, which are stable up to 6 standard deviations"),
    ],
)
def test_sets_that_can_not_be(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


# as training sources


class Counted:
    """A generator that counts its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, indices, *, dtype=torch.float32, device="cpu"):
        self.calls.append(list(indices))
        return SourceFields(seed=3, size=5)(indices, dtype=dtype, device=device)


def test_drawn_fields_are_those_of_the_generator_in_blocks():
    made = Counted()
    source = Drawn(made, "u", block=3)
    expected = SourceFields(seed=3, size=5)(range(7))["u"]
    for index in (0, 1, 2, 5, 4, 0, 6):
        found = source(index)
        assert found.shape == (1, 5, 5) and found.dtype == torch.float32
        torch.testing.assert_close(found, expected[index], rtol=1e-6, atol=1e-9)
    assert made.calls == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [6, 7, 8]]
    with pytest.raises(ConfigError, match="Drawn: Counted makes f, u, expected a field 'w'"):
        Drawn(made, "w")(0)
    with pytest.raises(ConfigError, match="index >= 0, got -1"):
        source(-1)
    with pytest.raises(ConfigError, match="block >= 1, got 0"):
        Drawn(made, "u", block=0)


def stored(tmp_path, **arrays):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    return path


def test_stored_fields_are_the_entries_in_turn(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    path = stored(tmp_path, w=values, other=values[:, 0])
    source = Stored(path, "w")
    for index in range(14):
        np.testing.assert_array_equal(source(index)[0], values.reshape(6, 4, 5)[index % 6].astype(np.float32))
    np.testing.assert_array_equal(Stored(path, "other", dims=1)(7)[0], values[1, 0, 3].astype(np.float32))
    rolled, found = Stored(path, "other", roll=(2, 0), seed=1), set()
    for index in range(12):
        field = values[index % 3, 0].astype(np.float32)
        (shift,) = [s for s in (0, 2) if np.array_equal(rolled(index)[0], np.roll(field, s, 0))]
        found.add(shift)
        assert torch.equal(rolled(index), Stored(path, "other", roll=(2, 0), seed=1)(index))
    assert found == {0, 2}
    with pytest.raises(ConfigError, match=r"roll to have 2 steps >= 0, got \(1,\)"):
        Stored(path, "w", roll=(1,))
    with pytest.raises(ConfigError, match="index >= 0"):
        source(-1)
    with pytest.raises(DataError, match="entries and a grid of 4 axes"):
        Stored(path, "w", dims=4)
    with pytest.raises(ConfigError, match=r"steps of roll of at most the \(4, 5\) points of the grid, got \(5, 1\)"):
        Stored(path, "w", roll=(5, 1))
    broken = values.copy()
    broken[1, 0, 2, 2] = np.inf
    path = stored(tmp_path, broken=broken, turning=values + 1j, other=values)
    with pytest.raises(DataError, match="1 of the 120 values are NaN or infinite"):
        Stored(path, "broken")
    with pytest.raises(DataError, match="expected real values, got complex128"):
        Stored(path, "turning")


def test_a_half_turn_is_about_the_first_point(tmp_path):
    """x -> -x on a periodic grid, whose first point is 0: even functions of both coordinates stay."""
    x = 2 * np.pi * np.arange(8) / 8
    even, odd = np.cos(2 * x)[:, None] + np.cos(x), np.sin(x)[:, None] + np.sin(3 * x)
    path = stored(tmp_path, even=even[None], odd=odd[None])
    signs = [
        np.sign(float((Stored(path, "odd", half_turn=True)(k)[0].double() * torch.from_numpy(odd)).sum())) for k in range(20)
    ]
    assert set(signs) == {-1.0, 1.0}
    for k in range(20):
        torch.testing.assert_close(
            Stored(path, "even", half_turn=True)(k)[0].double(), torch.from_numpy(even), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(
            Stored(path, "odd", half_turn=True)(k)[0].double(), signs[k] * torch.from_numpy(odd), rtol=0, atol=1e-6
        )


def test_rolls_and_half_turns_are_symmetries_of_the_forced_flow(tmp_path):
    """A stored state, rolled and turned, evolves into what it evolved into, rolled and turned; the forcing has wave periods."""
    flow = KolmogorovFlow(size=16, spinup=0.5, interval=0.5, frames=2, steps=40)
    w, after = flow(range(2), dtype=F64)["w"], flow.solver(0.5)
    path = stored(tmp_path, before=w[:, 0].numpy(), after=w[:, 1].numpy())
    allowed = {"roll": (4, 1), "half_turn": True}
    before, wanted = (Stored(path, name, **allowed) for name in ("before", "after"))
    states = torch.stack([before(k) for k in range(16)]).double()
    assert len({s.numpy().tobytes() for s in states}) > 10
    found = after(states)
    torch.testing.assert_close(found, torch.stack([wanted(k) for k in range(16)]).double(), rtol=0, atol=1e-4)
    # other rolls along y are none
    shifted = after(w[:, :1].roll(1, 2)) - w[:, 1:].roll(1, 2)
    assert float(shifted.abs().max()) > 0.1


def test_forcing_of_the_set_and_of_the_operator_agree():
    flow = KolmogorovFlow(size=8, frames=1)
    wanted = NavierStokes2D((8, 8), 1 / 200, forcing=kolmogorov((8, 8), 4, -4.0), time=0.1, steps=7)
    x = Streams(0, 1).normal(0, (1, 8, 8), dtype=F64)
    torch.testing.assert_close(flow.solver(0.1)(x), wanted(x), rtol=1e-13, atol=1e-13)
