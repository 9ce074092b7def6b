"""Guidance by a condition, against the components of a mixture: Bayes' rule in closed form."""

import math

import pytest
import torch
from torch import nn

from invdiff.core import CapabilityError, ConfigError, Denoiser, Matrix, Problem, ShapeError, Streams
from invdiff.core.noise import Gaussian
from invdiff.guidance import MMPS
from invdiff.priors import EDMDenoiser, GaussianMixture, GaussianPrior, UNet
from invdiff.priors.affine import Affine
from invdiff.priors.conditional import ClassifierFree, ClassifierGuided, Given, Interval

F64 = torch.float64


def normal(*shape, seed=0):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=F64)


LEVELS = torch.tensor([0.05, 0.5, 3.0, 40.0], dtype=F64)
WEIGHTS, MEANS = torch.tensor([0.3, 0.7], dtype=F64), normal(2, 5, seed=1)
FACTORS = normal(2, 5, 5, seed=2)
COVS = FACTORS @ FACTORS.mT + 0.2 * torch.eye(5, dtype=F64)
BOTH = GaussianMixture(WEIGHTS, MEANS, COVS)
PARTS = [GaussianPrior(m, c, sigma_max=1000.0) for m, c in zip(MEANS, COVS, strict=True)]
X = 2.0 * normal(4, 5, seed=3)


def log_share(x, sigma):
    """log p(k = 1 | x, sigma), (B,)."""
    logs = []
    for weight, mean, cov in zip(WEIGHTS, MEANS, COVS, strict=True):
        total = cov + sigma[:, None, None] ** 2 * torch.eye(5, dtype=x.dtype)
        logs.append(torch.distributions.MultivariateNormal(mean, total).log_prob(x) + weight.log())
    return torch.stack(logs).log_softmax(0)[1]


class Conditional(Denoiser):
    """The component of the label, and the mixture for the null class 2 and for no condition."""

    def __init__(self):
        super().__init__((5,), 1e-3, 1000.0)
        self.calls = []

    def forward(self, x, sigma, condition=None):
        self.calls.append(len(x))
        labels = torch.tensor([2]) if condition is None else condition["label"]
        every = torch.stack([p(x, sigma) for p in (*PARTS, BOTH)])
        return every[labels.expand(len(x)), torch.arange(len(x))]


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_given_is_the_component():
    for k, part in enumerate(PARTS):
        close(Given(Conditional(), {"label": [k]})(X, LEVELS), part(X, LEVELS))
    mixed = Given(Conditional(), {"label": torch.tensor([0, 1, 2, 0])})
    close(mixed(X, LEVELS)[1], PARTS[1](X, LEVELS)[1])
    with pytest.raises(ShapeError, match="each of 2 items"):
        mixed(X[:2], LEVELS[:2])


@pytest.mark.parametrize("null", [None, {"label": [2]}])
def test_classifier_free_guidance_is_the_line_through_null_and_condition(null):
    prior = Conditional()
    for weight, expected in [(1.0, PARTS[1]), (0.0, BOTH)]:
        close(ClassifierFree(prior, {"label": [1]}, weight=weight, null=null)(X, LEVELS), expected(X, LEVELS))
    plain, told = BOTH(X, LEVELS), PARTS[1](X, LEVELS)
    close(ClassifierFree(prior, {"label": [1]}, weight=3.5, null=null)(X, LEVELS), plain + 3.5 * (told - plain))


def test_null_and_condition_are_one_call_and_none_where_the_weight_is_one():
    prior = Conditional()
    ClassifierFree(prior, {"label": [1]}, weight=3.0, null={"label": [2]})(X, LEVELS)
    ClassifierFree(prior, {"label": [1]}, weight=3.0)(X, LEVELS)
    ClassifierFree(prior, {"label": [1]}, weight=1.0, null={"label": [2]})(X, LEVELS)
    assert prior.calls == [8, 4, 4, 4]


def test_guidance_in_an_interval():
    guided = ClassifierFree(Conditional(), {"label": [1]}, weight=Interval(4.0, 0.1, 3.0), null={"label": [2]})
    plain, told = BOTH(X, LEVELS), PARTS[1](X, LEVELS)
    expected = torch.where((torch.arange(4)[:, None] == 1) | (torch.arange(4)[:, None] == 2), plain + 4 * (told - plain), told)
    close(guided(X, LEVELS), expected)
    assert Interval(2.0, 0.5, 3.0)(LEVELS).tolist() == [1.0, 1.0, 2.0, 1.0]
    with pytest.raises(ConfigError, match="0 <= low < high"):
        Interval(2.0, 3.0, 1.0)


def test_a_classifier_turns_the_mixture_into_its_component():
    """D_1 = D + sigma^2 grad log p(1 | x, sigma), at every level; at weight w the score is that of p p(1 | x)^w."""
    close(ClassifierGuided(BOTH, log_share)(X, LEVELS), PARTS[1](X, LEVELS), atol=1e-11)
    plain, told = BOTH(X, LEVELS), PARTS[1](X, LEVELS)
    close(ClassifierGuided(BOTH, log_share, weight=2.5)(X, LEVELS), plain + 2.5 * (told - plain), atol=1e-10)
    with torch.no_grad():
        close(ClassifierGuided(BOTH, log_share)(X, LEVELS), told, atol=1e-11)
    off = ClassifierGuided(BOTH, lambda x, sigma: log_share(x, 1.5 * sigma))
    assert float((off(X, LEVELS) - told).abs().max()) > 0.05


def test_the_jacobian_of_the_guided_denoiser_is_that_of_the_component():
    x, v = X.clone().requires_grad_(), normal(4, 5, seed=7)
    (guided,) = torch.autograd.grad(ClassifierGuided(BOTH, log_share)(x, LEVELS), x, v)
    (exact,) = torch.autograd.grad(PARTS[1](x, LEVELS), x, v)
    close(guided, exact, atol=1e-10)


def test_guided_priors_serve_a_guidance_by_measurements():
    """MMPS needs the Jacobian: with as many steps as measurements it is exact for the Gaussian component."""
    problem = Problem.simulate(Matrix(normal(3, 5, seed=8), (5,)), Gaussian(0.3), MEANS[1], seed=4)
    exact = MMPS(cg_steps=3)(PARTS[1], problem)(X, LEVELS)
    given = Given(Conditional(), {"label": [1]})
    free = ClassifierFree(Conditional(), {"label": [1]}, weight=1.0)
    for prior, atol in [(ClassifierGuided(BOTH, log_share), 1e-8), (given, 1e-12), (free, 1e-12)]:
        close(MMPS(cg_steps=3)(prior, problem)(X, LEVELS), exact, atol=atol)


def test_conditions_move_and_are_saved_with_the_prior():
    prior = Given(Conditional(), {"vector": [[0.5, 1.0]], "label": torch.tensor([1], dtype=torch.int32)}).double()
    held = prior.condition(4)
    assert held["vector"].dtype == F64 and held["label"].dtype == torch.int64
    assert set(prior.state_dict()) == {"condition.vector", "condition.label"}


def test_what_is_no_condition_is_refused():
    with pytest.raises(ConfigError, match="Given: expected a condition with keys of concat, vector, label, got class"):
        Given(Conditional(), {"class": [1]})
    with pytest.raises(ConfigError, match="got none"):
        Given(Conditional(), {})
    with pytest.raises(ConfigError, match=r"keys \('label',\) of the condition, got \('vector',\)"):
        ClassifierFree(Conditional(), {"label": [1]}, weight=2.0, null={"vector": [[0.0]]})


def test_a_classifier_that_gives_no_gradient_or_no_number_for_each_item_is_refused():
    with pytest.raises(ShapeError, match=r"log_prob of shape \(4,\), got \(\)"):
        ClassifierGuided(BOTH, lambda x, sigma: x.sum())(X, LEVELS)
    with pytest.raises(CapabilityError, match="carries none"):
        ClassifierGuided(BOTH, lambda x, sigma: sigma)(X, LEVELS)


def test_a_network_as_classifier():
    """A linear classifier: its gradient is its weight, at every x and level; the module belongs to the prior."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.arange(5.0, dtype=F64))

        def forward(self, x, sigma):
            return x @ self.weight / sigma.square()

    guided = ClassifierGuided(BOTH, Linear(), weight=math.pi)
    close(guided(X, LEVELS), BOTH(X, LEVELS) + math.pi * torch.arange(5.0, dtype=F64), atol=1e-11)
    assert "log_prob.weight" in dict(guided.named_parameters())


def test_a_network_of_ours_knows_its_null_condition():
    """Without `null`, guidance takes the null class and zeros that training drops to."""
    net = UNet(1, 1, widths=(32,), blocks=1, embedding=8, patch=1, classes=3, vector=2, concat_channels=1)
    with torch.no_grad():
        for k, weights in enumerate(net.parameters()):
            weights.copy_(0.1 * Streams(k, 1).normal(0, weights.shape)[0])
    prior = EDMDenoiser(net, sigma_data=0.5).double()
    x, image = (Streams(k, 2).normal(0, (1, 4, 4), dtype=torch.float64) for k in (0, 1))
    told = {"label": torch.tensor([1, 2]), "vector": torch.ones(2, 2, dtype=torch.float64), "concat": image}
    null = {"label": torch.tensor([3, 3]), "vector": 0 * told["vector"], "concat": 0 * image}
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    got = ClassifierFree(prior, told, weight=2.5)(x, sigma)
    want = prior(x, sigma, null) + 2.5 * (prior(x, sigma, told) - prior(x, sigma, null))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert (got - prior(x, sigma, told)).abs().max() > 1e-6


def test_adapters_hand_on_the_null_condition():
    """A network on [-1, 1] in other units: the null class is that of the network inside."""

    class Told(Conditional):
        def null(self, condition):
            return {"label": torch.full_like(condition["label"], 2)}

    affine = ClassifierFree(Affine(Told(), 2.0), {"label": [1]}, weight=3.0)
    close(affine(X, LEVELS), 2 * ClassifierFree(Told(), {"label": [1]}, weight=3.0, null={"label": [2]})(X / 2, LEVELS / 2))
    assert affine.null is not None


def test_a_prior_that_takes_no_condition_is_refused():
    for guide in (Given, lambda prior, told: ClassifierFree(prior, told, weight=2.0)):
        for prior in (BOTH, Given(Conditional(), {"label": [1]})):
            with pytest.raises(CapabilityError, match=f"{type(prior).__name__} is not conditional"):
                guide(prior, {"label": [1]})


def test_the_weight_of_an_interval_has_the_precision_of_the_level():
    assert Interval(1.1)(LEVELS).tolist() == [1.1] * 4
    assert "weight=log_share, " in repr(ClassifierFree(Conditional(), {"label": [1]}, weight=log_share))
