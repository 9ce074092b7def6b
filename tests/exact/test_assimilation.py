"""Windows against the Kalman filter and the smoother in closed form, derivatives of orbits, resuming."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from invdiff.core import (
    CapabilityError,
    ConfigError,
    Gaussian,
    Matrix,
    NumericalError,
    Problem,
    Samples,
    ShapeError,
    Stack,
    Streams,
)
from invdiff.core.algebra import dense
from invdiff.core.rng import derived
from invdiff.guidance import MMPS
from invdiff.operators.pde import AdvectionDiffusion, KuramotoSivashinsky, PointSensors
from invdiff.priors import GaussianPrior
from invdiff.samplers import Guided
from invdiff.tasks.assimilation import Assimilation, errors_in_time
from invdiff.tasks.watched import watched

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

N, TIMES, SIGMA = 12, 9, 0.3


@dataclass(frozen=True)
class Exact:
    """Draws whose mean and covariance are the posterior's to rounding, so that what is carried over is exact."""

    breaks_at: int = -1

    def __call__(self, problem, prior, n, *, seed):
        if seed == self.breaks_at:
            raise KeyboardInterrupt
        exact = prior.posterior(problem)
        z = Streams(seed, n).normal(0, (exact.mean.numel(),), dtype=torch.float64)
        z = torch.linalg.qr(z - z.mean(0)).Q * (n - 1) ** 0.5
        return Samples(exact.mean + (z @ (exact.basis * exact.variances.sqrt()).T).reshape(n, *exact.mean.shape))


@pytest.fixture(scope="module")
def flow():
    """A drifting, decaying wave on 12 points, three sensors, the prior that its first state is drawn from, and 9 data."""
    model = Matrix(dense(AdvectionDiffusion((N,), 2e-3, [0.37], time=0.4, steps=4)))
    sensors = Matrix(dense(PointSensors((1, N), [[0.1], [0.35], [0.8]], boundary="periodic")))
    distance = torch.arange(N)[:, None] - torch.arange(N)
    distance = distance - N * (distance / N).round()
    cov = torch.exp(-0.5 * (distance.double() / 1.3) ** 2) + 0.05 * torch.eye(N, dtype=torch.float64)
    prior = GaussianPrior(torch.linspace(-1.0, 1.0, N, dtype=torch.float64).sin(), cov)
    u, y = prior.sample(Streams(5)), []
    for t in range(TIMES):
        y.append(sensors(u)[0] + SIGMA * Streams(6).normal(t, (3,), dtype=torch.float64)[0])
        u = model(u)
    return model, sensors, prior, torch.stack(y)


def kalman(model, sensors, prior, y):
    """Mean and covariance of u_t given y_0 ... y_t."""
    m, h = dense(model).numpy(), dense(sensors).numpy()
    mean, cov, found = prior.mean.flatten().numpy(), prior.cov.numpy(), []
    for t, measured in enumerate(y.flatten(1).numpy()):
        if t:
            mean, cov = m @ mean, m @ cov @ m.T
        gain = cov @ h.T @ np.linalg.inv(h @ cov @ h.T + SIGMA**2 * np.eye(len(h)))
        mean, cov = mean + gain @ (measured - h @ mean), cov - gain @ h @ cov
        found.append((mean, cov))
    return found


def smoothed(model, sensors, prior, y, t, last):
    """Mean and covariance of u_t given y_0 ... y_last: those of u_0, carried on."""
    m, h = dense(model).numpy(), dense(sensors).numpy()
    a = np.concatenate([h @ np.linalg.matrix_power(m, s) for s in range(last + 1)])
    mean, cov, on = prior.mean.flatten().numpy(), prior.cov.numpy(), np.linalg.matrix_power(m, t)
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + SIGMA**2 * np.eye(len(a)))
    mean = mean + gain @ (y[: last + 1].flatten().numpy() - a @ mean)
    return on @ mean, on @ (cov - gain @ a @ cov) @ on.T


def run(flow, window, overlap, *, shrink=0.0, inflation=1.0, n=40, sampler=None, climate=True, **options):
    model, sensors, prior, y = flow
    windows = Assimilation(
        model=model,
        observe=sensors,
        noise=Gaussian(SIGMA),
        window=window,
        overlap=overlap,
        shrink=shrink,
        inflation=inflation,
        climate=(prior.mean, prior.cov) if climate else None,
    )
    return windows, windows(y, prior, sampler or Exact(), n, seed=0, **options)


def gaps(draws, t, mean, cov):
    """Of the mean, in standard deviations, and of the covariance, relative."""
    x = draws.x[:, t].flatten(1).numpy()
    std = np.sqrt(cov.diagonal())
    return np.abs((x.mean(0) - mean) / std).max(), np.abs((np.cov(x.T) - cov) / np.outer(std, std)).max()


def test_windows_of_one_time_are_the_kalman_filter(flow):
    _, draws = run(flow, 1, 0)
    for t, (mean, cov) in enumerate(kalman(*flow)):
        assert max(gaps(draws, t, mean, cov)) < 1e-8, t


@pytest.mark.parametrize(("window", "overlap"), [(3, 0), (4, 2), (3, 2), (20, 3)])
def test_windows_are_the_smoother_up_to_their_end(flow, window, overlap):
    windows, draws = run(flow, window, overlap)
    schedule = windows.windows(TIMES)
    assert sorted(t for _, new, b in schedule for t in range(new, b + 1)) == list(range(TIMES)), "each datum once"
    for t in range(TIMES):
        last = [b for a, _, b in schedule if a <= t][-1]
        assert max(gaps(draws, t, *smoothed(*flow, t, last))) < 1e-8, (t, last)


def test_the_comparison_sees_what_is_wrong(flow):
    """Inflated spread, and a prior that is counted in every window."""
    exact = smoothed(*flow, TIMES - 1, TIMES - 1)
    assert gaps(run(flow, 3, 0, inflation=1.1)[1], TIMES - 1, *exact)[1] > 1e-2
    assert gaps(run(flow, 3, 0, climate=False)[1], TIMES - 1, *exact)[1] > 1e-2


def test_variances_alone_are_an_approximation_worse_with_overlap(flow):
    """Root mean square distance of the mean over all times, in standard deviations of the smoother."""
    distance = {}
    for overlap in (0, 2, 3):
        windows, draws = run(flow, 4, overlap, shrink=1.0)
        schedule, total = windows.windows(TIMES), []
        for t in range(TIMES):
            mean, cov = smoothed(*flow, t, [b for a, _, b in schedule if a <= t][-1])
            total.append((draws.x[:, t].mean(0).flatten().numpy() - mean) / np.sqrt(cov.diagonal()))
        distance[overlap] = float(np.sqrt(np.mean(np.square(total))))
    assert distance == pytest.approx({0: 0.26, 2: 0.41, 3: 0.70}, abs=5e-3)


def test_draws_of_a_sampler(flow):
    """MMPS, exact for a Gaussian prior: within Monte-Carlo errors, which two windows add up at most."""
    n, sampler = 64, Guided(guidance=MMPS(cg_steps=N), steps=16)
    _, draws = run((*flow[:3], flow[3][:4]), 2, 0, n=n, sampler=sampler)
    for t in range(4):
        mean, cov = smoothed(*flow, t, 2 * (t // 2) + 1)
        off, spread = gaps(draws, t, mean, cov)
        assert off < 5.0 * (2 / n) ** 0.5 and spread < 5.0 * (2 * 2 / n) ** 0.5, (t, off, spread)
    assert draws.network_calls > 0 and [i["last"] for i in draws.info] == [1, 3]


def test_an_orbit_has_the_derivative_of_its_parts():
    """Dot test of J and J^T, J against torch.func through the whole, and a vjp, for a chaotic model seen now and then."""
    model = KuramotoSivashinsky(16, time=0.5, steps=5)
    seen = PointSensors((1, 16), [[0.3], [0.7]], boundary="periodic")
    flat = Matrix(dense(seen), (1, 16))
    operator = watched(model, [(1, flat), (1, Matrix(torch.eye(16, dtype=torch.float64), (1, 16))), (2, flat), (3, flat)])
    x, t = (Streams(s, 2).normal(0, (1, 16), dtype=torch.float64) for s in (0, 1))
    v = Streams(2, 2).normal(0, operator.out_shape, dtype=torch.float64)
    y, push, pull = operator.linearize(x)
    assert operator.out_shape == (22,) and torch.equal(y, operator(x))
    _, wanted = torch.func.jvp(operator.forward, (x,), (t,))
    torch.testing.assert_close(push(t), wanted, rtol=1e-11, atol=1e-12)
    left, right = (push(t) * v).sum(1), (t * pull(v)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.vjp(x)[1](v), pull(v), rtol=1e-12, atol=1e-12)


def test_a_linear_orbit_is_a_linear_operator(flow):
    model, sensors, *_ = flow
    h, m = sensors.matrix, model.matrix
    operator = watched(model, [(1, sensors), (3, sensors)])
    wanted = torch.cat([h @ m, h @ m @ m @ m])
    torch.testing.assert_close(dense(operator), wanted, rtol=0, atol=1e-13)
    torch.testing.assert_close(dense(operator.H).T, wanted, rtol=0, atol=1e-13)


def test_a_run_continues_after_the_last_window_that_was_done(flow, tmp_path):
    path = tmp_path / "run.pt"
    whole = run(flow, 3, 1)[1]
    with pytest.raises(KeyboardInterrupt):
        run(flow, 3, 1, sampler=Exact(breaks_at=derived(0, 2)), resume=path)
    assert path.exists()

    # another sampler is another run, so that it is told by its name; here the one that breaks must look the same
    class Mended(Exact):
        def __repr__(self):
            return repr(Exact(breaks_at=derived(0, 2)))

    with pytest.raises(OSError, match="another run"):
        run(flow, 3, 1, shrink=0.5, sampler=Mended(), resume=path)
    again = run(flow, 3, 1, sampler=Mended(), resume=path)[1]
    assert torch.equal(whole.x, again.x) and not path.exists() and len(again.info) == 4


def test_what_is_not_measured_does_not_count(flow):
    model = flow[0]
    both = Stack([Matrix(torch.eye(2, N, dtype=torch.float64))] * 2)
    both.measured = torch.tensor([True, True, False, False])
    windows = Assimilation(model=model, observe=both, noise=Gaussian(SIGMA), window=2)
    problem = windows.problem(torch.zeros(2, 4, dtype=torch.float64), 0, 0, 1)
    assert isinstance(problem, Problem) and problem.operator.count_measured() == 4


def test_errors_in_time_are_root_mean_squares():
    x = torch.tensor([[[[1.0, 3.0]]], [[[3.0, 5.0]]]])
    error, spread = errors_in_time(Samples(x), torch.tensor([[[1.0, 3.0]]]))
    torch.testing.assert_close((error, spread), (torch.tensor([1.0]), torch.tensor([2.0**0.5])))


def test_arguments_are_checked(flow):
    model, sensors, prior, y = flow
    given = {"model": model, "observe": sensors, "noise": Gaussian(SIGMA), "window": 3}
    for wrong in ({"overlap": 3}, {"window": 0}, {"inflation": 0.0}, {"shrink": 1.5}):
        with pytest.raises(ConfigError, match="overlap < window"):
            Assimilation(**given | wrong)
    with pytest.raises(ShapeError, match="model from"):
        Assimilation(**given | {"model": sensors})
    with pytest.raises(ShapeError, match="climate"):
        Assimilation(**given, climate=(prior.mean, torch.eye(3)))
    with pytest.raises(ShapeError, match="expected y"):
        Assimilation(**given)(y[:, :2], prior, Exact(), 20, seed=0)
    with pytest.raises(ConfigError, match="n >= 13"):
        Assimilation(**given, shrink=0.0)(y, prior, Exact(), 12, seed=0)

    def point(problem, prior, n, *, seed):
        return Samples(prior.mean.expand(n, N), kind="point", sampler="Point")

    with pytest.raises(CapabilityError, match="Point gives point estimates"):
        Assimilation(**given)(y, prior, point, 20, seed=0)


@pytest.mark.parametrize("shrink", [0.5, 1.0])
def test_a_value_without_spread_is_named(flow, shrink):
    model, sensors, prior, _ = flow
    draws = prior.sample(Streams(1, 20))
    draws[:, 3] = 0.7
    with pytest.raises(NumericalError, match=r"spread at each value of the state, that at \(3,\) has the variance 0"):
        Assimilation(model=model, observe=sensors, noise=Gaussian(SIGMA), window=3, shrink=shrink).carried(draws)


def test_windows_of_neighbouring_seeds_share_no_seed(flow):
    used = {}
    for seed in (0, 1):

        def sampler(problem, prior, n, *, seed, key=seed):
            used.setdefault(key, []).append(seed)
            return Exact()(problem, prior, n, seed=seed)

        model, sensors, prior, y = flow
        Assimilation(model=model, observe=sensors, noise=Gaussian(SIGMA), window=2)(y, prior, sampler, 20, seed=seed)
    assert used[0][0] == 0 and len({*used[0], *used[1]}) == len(used[0]) + len(used[1]) == 10


def test_masks_are_joined_on_their_device():
    """On the device without values, which stands for any other than the CPU."""
    masked, plain = Matrix(torch.eye(N)), Matrix(torch.eye(N)).to("meta")
    masked.measured = torch.ones(N, dtype=torch.bool)
    both = watched(plain, [(0, plain), (1, masked.to("meta"))])
    assert both.measured.shape == (2 * N,) and both.measured.device.type == "meta"
