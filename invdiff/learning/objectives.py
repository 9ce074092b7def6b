"""What a denoiser is trained on: a distribution of noise levels, and a weight of the squared error at each.

    L = E_sigma  w(sigma) E |D(x0 + sigma n, sigma) - x0|^2

    "edm"   w = (sigma^2 + sigma_d^2) / (sigma sigma_d)^2     the target of the preconditioned network has unit variance
    "flow"  w = (sigma + sigma_d)^2 / (sigma sigma_d)^2       flow matching

Flow matching, in units of sigma_d: on the path x_tau = (1 - tau) x0 + tau eps a network predicts the velocity v* = eps - x0.
With s = sigma / sigma_d the path at tau = s / (1 + s) is x_tau = (x0 + s eps) / (1 + s), the denoiser's input scaled, and

    x_tau - x0 = tau (eps - x0),    D = x_tau - tau v    =>    |v - v*|^2 = |D - x0|^2 / tau^2 = |D - x0|^2 (1 + s)^2 / s^2.

Levels: ln sigma ~ N(p_mean, p_std^2), for tau the logit-normal distribution, because logit(tau) = ln(sigma / sigma_d); or tau
uniform between its values at the denoiser's sigma_min and sigma_max. The levels of a batch are stratified: with a uniform
number u that the batch shares, their quantiles are (u + i) / B, in an order that is drawn for each batch: a source that goes
round a finite collection would else show some of its items at low noise only, and others at high noise.

An autoencoder is trained by the same loop, on the negative evidence bound of `priors.autoencoder` per pixel, times
2 s^2 / sigma_d^2: about 1 at the start, and the relative squared error later. The noise of its latents is a part of the item's.
A reconstruction network is trained end to end, see `unrolled`, a regression network on its relative error, see
`priors.regression`, a despeckling network on the part of the speckled image that it has not seen, see `priors.despeckler`.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Table 1. Lipman, Chen, Ben-Hamu, Nickel, Le, Flow matching for generative modeling, 2023, arXiv:2210.02747.
Esser et al., Scaling rectified flow transformers, 2024, arXiv:2403.03206 (logit-normal). Kingma, Salimans, Poole, Ho,
Variational diffusion models, 2021, arXiv:2107.00630 (stratified levels).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError
from ..core.memory import Memory
from ..core.rng import Streams
from ..priors.autoencoder import Autoencoder
from ..priors.despeckler import Despeckler
from ..priors.network import EDMDenoiser
from ..priors.regression import Regression
from .settings import Training
from .unrolled import EndToEnd

if TYPE_CHECKING:
    from .batches import Batch

__all__ = ["Model", "item_losses", "noise_levels", "weight"]

Model = EDMDenoiser | Autoencoder | EndToEnd | Regression | Despeckler

KINDS: dict[type, str] = {
    Autoencoder: "an autoencoder",
    EndToEnd: "a reconstruction network",
    Regression: "a regression network",
    Despeckler: "a despeckler",
}
"""What messages call the models that are no denoisers."""


def noise_levels(training: Training, denoiser: Model, step: int, count: int) -> Tensor:
    """The noise levels of a batch of `count` items, (count,) float32, a function of seed and step."""
    streams = Streams(training.seed, (step,))
    order = streams.uniform(0, (count,), "order", torch.float64)[0].argsort()
    quantile = (streams.uniform(0, (), "sigma", torch.float64) + order) / count
    if training.levels == "lognormal":
        return (training.p_mean + training.p_std * torch.special.ndtri(quantile)).exp().float()
    assert isinstance(denoiser, EDMDenoiser)
    low, high = (s / (s + denoiser.sigma_data) for s in (denoiser.sigma_min, denoiser.sigma_max))
    tau = low + (high - low) * quantile
    return (denoiser.sigma_data * tau / (1.0 - tau)).float()


def weight(objective: str, sigma: Tensor, sigma_data: float) -> Tensor:
    """The weight of the squared error, (B,) -> (B,)."""
    total = sigma.square() + sigma_data**2 if objective == "edm" else (sigma + sigma_data).square()
    return total / (sigma * sigma_data).square()


def item_losses(model: Model, batch: Batch, *, objective: str = "edm", memory: str | Memory = "full") -> Tensor:
    """The weighted squared error of each item, a mean over its elements, (n,); of other models, their own loss.

    About 1 under "edm" for white data of rms sigma_data and a network that says zero.

    Args:
        memory: of the sampling steps of a model that has them; networks ask the policy in force.
    """
    clean, noisy, sigma, condition = batch[:4]
    if isinstance(model, EndToEnd):
        return model.losses(clean, batch.step, batch.streams, memory)
    if isinstance(model, Despeckler):
        return model.losses(clean, batch.streams)
    if isinstance(model, Regression):
        if condition is None or "concat" not in condition:
            raise ConfigError("fit: a regression network needs a source of (field, {concat: what is told})")
        return model.losses(clean, condition["concat"])
    if isinstance(model, Autoencoder):
        return _evidence(model, clean, (noisy - clean) / sigma[:, None, None, None])
    denoised = model(noisy, sigma) if condition is None else model(noisy, sigma, condition)
    return weight(objective, sigma, model.sigma_data) * (denoised - clean).square().flatten(1).mean(1)


def _evidence(autoencoder: Autoencoder, x: Tensor, noise: Tensor) -> Tensor:
    m, v = autoencoder.posterior(x)
    # blocks of factor x factor pixels hold factor^2 white numbers, of which the latents take the first
    white = F.pixel_unshuffle(noise, autoencoder.factor)
    if white.shape[1] < m.shape[1]:
        raise ConfigError(
            f"fit: {autoencoder.latent} latent channels are more than the {white.shape[1]} values of a block of pixels"
        )
    error = (x - autoencoder.decode(m + v * white[:, : m.shape[1]])).square().flatten(1).sum(1)
    divergence = 0.5 * (m.square() + v.square() - 1.0 - 2.0 * v.log()).flatten(1).sum(1)
    return (error + 2.0 * autoencoder.fidelity**2 * divergence) / (autoencoder.sigma_data**2 * x[0].numel())
