"""What must hold on a GPU; collected everywhere, run where there is one (`make gpu`)."""

import pytest
import torch

import invdiff
from invdiff.catalogue import load, names
from invdiff.core import Karras, Streams
from invdiff.priors import EDMDenoiser, UNet
from invdiff.priors.refine import refine
from invdiff.priors.wdno import FieldCode, field_network
from invdiff.samplers import Guided, Heun

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_streams_give_the_same_noise_on_the_gpu():
    cpu, gpu = Streams(3, 4).normal(5, (1000,)), Streams(3, 4).normal(5, (1000,), device="cuda")
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", names("operator"))
def test_operators_give_the_same_result_on_the_gpu(name):
    operator = invdiff.operator(name, **load("operator", name).get("_test_", {}))
    dtype = torch.complex64 if operator.in_complex else torch.float32
    x = Streams(0, 2).normal(0, operator.in_shape, dtype=dtype)
    y = operator(x)
    moved = operator.to("cuda")
    torch.testing.assert_close(moved(x.cuda()).cpu(), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.adjoint(y.cuda()).cpu(), operator.to("cpu").adjoint(y), rtol=1e-4, atol=1e-5)


def test_a_sampler_gives_the_same_draws_on_the_gpu():
    operator = invdiff.operator("parallel_beam_ct", size=32, angles=8)
    truth = invdiff.tasks.phantoms.Phantoms(seed=1_000_000, size=32, pool=1)(0)
    problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(0.5), truth, seed=0)
    prior, sampler = invdiff.prior("ct128"), invdiff.sampler("mmps", steps=4)
    on_cpu = sampler(problem, prior, n=2, seed=0).x
    moved = invdiff.Problem(operator.to("cuda"), problem.noise.to("cuda"), problem.y.cuda())
    on_gpu = sampler(moved, prior.to("cuda"), n=2, seed=0).x
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-2)


def test_refinement_runs_where_its_network_is():
    code = FieldCode(unknown=("r",), slices=("u0",), fields=("f", "coarse"), wavelet="haar", scales={"r": [1e-3] * 4})
    unet = UNet(4, 4, widths=(32,), blocks=1, concat_channels=code.concat_channels(2), patch=1)
    network = field_network(EDMDenoiser(unet, sigma_data=1.0), code)
    streams, sampler = Streams(0, 2), Guided(None, Heun(), Karras(0.01, 10.0), steps=2)
    u0, f, coarse = (streams.normal(0, (1, *grid), name) for name, grid in (("u0", (16,)), ("f", (8, 16)), ("u", (4, 8))))
    (on_cpu,) = refine(network, code, coarse, u0, f, sampler, seed=3)
    (on_gpu,) = refine(network.to("cuda"), code, coarse.cuda(), u0.cuda(), f.cuda(), sampler, seed=3)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-4)
