"""The rival of adversarial distillation: does a clean image belong to a noisy one, as data do?

    logits = head([e(c_in x, sigma), e(c_in' u, sigma_min)]),    e: the encoder of the teacher's network, trainable,

for a noisy image x at sigma and a candidate u, each with its own scale, noise level and the same condition. The features of the
coarsest scale are joined and pass two convolutions; there is a logit for each of their positions, and a loss is a mean over
them. With t the logits of the real images and f those of the student's:

    softplus    discriminator softplus(f) + softplus(-t)         student softplus(-f)
    hinge       relu(1 + f) + relu(1 - t)                        -f
    wgan        f - t                                            -f

The last needs the penalty E |grad_u logit|^2 / 2 on real images, without which it has no minimum.

References: Goodfellow et al., Generative adversarial nets, NeurIPS 2014. Bai, Xu, Accelerating diffusion for SAR-to-optical
image translation via adversarial consistency distillation, 2024, arXiv:2407.06095. Mescheder, Geiger, Nowozin, Which training
methods for GANs do actually converge?, ICML 2018, arXiv:1801.04406 (the penalty).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..core.errors import CapabilityError
from ..priors.consistency import ConsistencyModel
from ..priors.layers import conv, initialise, norm_silu, over, unshuffle
from ..priors.reversible import ReversibleChain
from ..priors.unet import UNet

__all__ = ["FORMS", "Discriminator", "rival_loss", "student_loss"]

FORMS = ("softplus", "hinge", "wgan")


class Discriminator(nn.Module):
    """Logits of candidates beside the noisy images that they are said to belong to.

    Args:
        model: of whose network, a UNet, the encoder is copied, with its weights; and whose units are taken.
        seed: of the head's weights; the last layer starts at zero, as undecided.

    Raises:
        CapabilityError: the network is no UNet.
    """

    def __init__(self, model: ConsistencyModel, *, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(model.net, UNet):
            raise CapabilityError(
                f"Discriminator: expected a UNet, whose encoder it is, got {type(model.net).__name__}: give a discriminator of "
                "your own, or adversarial=0"
            )
        # the way down and the code; the rest is dropped
        self.trunk = copy.deepcopy(model.net)
        self.trunk.decoder, self.trunk.up = nn.ModuleList(), nn.ModuleList()
        self.trunk.norm = self.trunk.exit = nn.Identity()  # type: ignore[assignment]
        self.trunk.requires_grad_(True)
        width, dims = self.trunk.architecture["widths"][-1], self.trunk.dims
        self.join, self.logit = conv(dims, 2 * width, width, 3), conv(dims, width, 1, 1)
        self.norm = nn.GroupNorm(width // 16, width)
        head = nn.ModuleList([self.join, self.norm, self.logit])
        initialise(head, torch.Generator().manual_seed(seed), zero=[self.logit])
        self.sigma_data, self.sigma_min, self.mean, self.bf16 = model.sigma_data, model.sigma_min, model.mean, model.bf16
        self.to(memory_format=self.trunk.memory_format)

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition | None, *candidates: Tensor) -> tuple[Tensor, ...]:
        """The logits (B, positions) of each candidate, (B, C, *spatial), for noisy (B, C, *spatial) at sigma (B,).

        The noisy images are looked at once for all candidates.
        """
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.bf16):
            seen = self.encode(noisy, sigma, condition)
            clean = torch.full_like(sigma, self.sigma_min)
            pairs = [torch.cat([seen, self.encode(u, clean, condition)], 1) for u in candidates]
            logits = [self.logit(norm_silu(self.norm, self.join(pair))) for pair in pairs]
        return tuple(out.flatten(1).float() for out in logits)

    def encode(self, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        """The features of images (B, C, *spatial) at sigma (B,), on the coarsest scale."""
        net, scale = self.trunk, (sigma.square() + self.sigma_data**2).rsqrt()
        h, code = net.prepare((x - self.mean) * over(scale, x.ndim - 1), sigma.log() / 4, condition)
        h = net.enter(unshuffle(h, net.patch))
        for level, blocks in enumerate(net.encoder):
            if isinstance(blocks, ReversibleChain):
                h = blocks(h, code)
            else:
                for block in blocks:
                    h = block(h, code)
            if level < len(net.down):
                h = net.down[level](h)
        return h


def student_loss(form: str, fake: Tensor) -> Tensor:
    """What the student lowers, from the logits of its images."""
    return F.softplus(-fake).mean() if form == "softplus" else -fake.mean()


def rival_loss(form: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator lowers."""
    if form == "softplus":
        return F.softplus(fake).mean() + F.softplus(-real).mean()
    if form == "hinge":
        return F.relu(1.0 + fake).mean() + F.relu(1.0 - real).mean()
    return fake.mean() - real.mean()
