"""Seven networks that others trained, each a prior in a few lines, and the numbers that they are known to reach.

    python examples/foreign_networks.py --data FOLDER

FOLDER has eval/weights (safetensors with the tensor names of their authors), eval/natural_gray, eval/scikit_image and
eval/mnist; none of it is part of the package. Every prior here is called in the same way, prior(x, sigma), whatever its authors
called noise.
"""

import argparse
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from invdiff.metrics import psnr
from invdiff.priors.blind import Blind
from invdiff.priors.cnn import DnCNN
from invdiff.priors.multiscale import MultiScale
from invdiff.priors.sources import load_into, read_weights
from invdiff.priors.steps import DiscreteVP, cumulative_betas
from invdiff.priors.wrapped import Wrapped

GREY = {"shape": (1, None, None), "value_range": (0.0, 1.0)}


# plain denoisers, which are not told the noise level


def bias_free(weights):
    """Mohan et al. 2020, trained on photographs with noise of 0 to 55 grey levels."""

    def rename(name):
        if name.startswith("bn") and not name.endswith(("weight", "running_var")):
            return None  # its norm has neither mean nor bias
        name = re.sub(r"hidden_layer_list\.(\d+)", lambda m: f"convs.{int(m[1]) + 1}", name)
        name = name.replace("first_layer", "convs.0").replace("last_layer", "convs.19")
        return name.replace("bn_layer_list", "norms").replace("running_var", "running")

    tensors, _ = read_weights(weights / "bf_dncnn_gray_0to55.safetensors")
    net = load_into(DnCNN(kernels=(3,) * 20, bias=False, norm="variance"), tensors, rename=rename)
    return Blind(net, **GREY, sigma_min=2 / 255, sigma_max=55 / 255)  # below, it adds more than it removes


def dncnn25(weights):
    """Zhang et al. 2017, for noise of 25 grey levels and no other."""
    tensors, _ = read_weights(weights / "dncnn_gray_sigma25.safetensors")
    net = load_into(DnCNN(), tensors, rename=lambda name: re.sub(r"model\.(\d+)", lambda m: f"convs.{int(m[1]) // 2}", name))
    return Blind(net, **GREY, sigma_min=24.5 / 255, sigma_max=25.5 / 255)


def faces_cnn(path, channels_in=1, channels_out=1):
    """A network of Kadkhodaie et al. 2023; the size of each kernel is read from the file."""
    tensors, _ = read_weights(path)
    kernels = [tensors[f"module.conv_layers.{k}.weight"].shape[-1] for k in range(sum("conv" in name for name in tensors))]
    net = DnCNN(channels_in, channels_out, kernels=kernels, bias=False, norm="deviation", first_linear=True)
    names = {"conv_layers": "convs", "BN_layers": "norms", "gammas": "weight", "running_sd": "running"}
    return load_into(net, tensors, rename=lambda name: re.sub("|".join(names), lambda m: names[m[0]], name))


def faces(weights):
    """One network for all bands; below 10 grey levels it blurs what is no face more than it denoises it."""
    return Blind(faces_cnn(weights / "celeba160_flat_rf13.safetensors"), **GREY, sigma_min=10 / 255, sigma_max=1.0)


def faces_in_bands(weights):
    """The low band of two Haar levels, where noise is a quarter of itself; then details given it, the nets' first input."""
    limits = {"sigma_min": 2.5 / 255, "sigma_max": 1.0}
    low = faces_cnn(weights / "celeba160_wavelet_low_rf40.safetensors")
    details = [faces_cnn(weights / f"celeba160_wavelet_cond_rf9_scale{j}.safetensors", 4, 3) for j in (0, 1)]

    def call(net, x, condition):
        return net(torch.cat([condition["concat"], x], 1))

    bands = [Blind(net, shape=(3, None, None), **limits, call=call) for net in details]
    return MultiScale(Blind(low, **GREY, **limits), bands)


# a diffusion model: a class of your own, its schedule, and what it predicts


class Digits(nn.Module):
    """The network of github.com/sdaloglu/diffusion_with_entropy, for x_t (B, 1, 28, 28) and t in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 7, padding=3), nn.LayerNorm((b, 28, 28)), nn.GELU())
            for a, b in itertools.pairwise((1, 16, 32, 32, 16))
        )
        self.blocks.append(nn.Conv2d(16, 1, 3, padding=1))
        layers = [layer for a, b in itertools.pairwise((32, 128, 128, 128, 16)) for layer in (nn.Linear(a, b), nn.GELU())]
        self.time_embed = nn.Sequential(*layers[:-1])
        self.register_buffer("frequencies", torch.zeros(16))

    def forward(self, x, t):
        phases = t[:, None] * self.frequencies
        code = self.time_embed(torch.cat([phases.sin(), phases.cos() - 1], 1))[..., None, None]
        h = self.blocks[0](x) + code
        for block in self.blocks[1:-1]:
            h = block(h)
        return self.blocks[-1](h)


def digits(weights):
    """MNIST in [-0.5, 0.5]. The file's `alpha_t` is cumulative, steps count from 1, and the network is told step / 1000."""
    tensors, _ = read_weights(weights / "mnist_ddpm_linear_50ep.safetensors")

    def rename(name):
        return name.removeprefix("gt.").replace(".net.", ".") if name.startswith("gt.") else None

    net = load_into(Digits(), tensors, rename=rename)
    path = DiscreteVP(cumulative_betas(tensors["alpha_t"][1:]), first=1, factor=1 / 1000)
    return Wrapped(net, path, "noise", shape=(1, 28, 28), value_range=(-0.5, 0.5))


# what they reach: PSNR in dB, and the mean squared error of eps; the stated numbers are those of plain torch

PHOTOGRAPHS = {  # 15, 25, 50 grey levels; the last is of dncnn25 at 25
    "natural_gray/bsd68/test031": (27.18, 24.22, 20.74, 24.31),
    "natural_gray/bsd68/test032": (29.38, 26.73, 23.66, 26.83),
    "natural_gray/bsd68/test033": (30.95, 28.02, 24.63, 28.13),
    "natural_gray/bsd68/test034": (35.31, 34.02, 31.84, 34.06),
    "scikit_image/camera": (36.74, 34.14, 30.86, 34.08),
}
FACES = {  # noisy, faces, faces_in_bands
    10: (28.12, 31.78, 32.96),
    25: (20.16, 28.42, 28.78),
    50: (14.14, 25.77, 26.26),
    100: (8.12, 22.77, 23.99),
    200: (2.10, 19.32, 21.58),
}
DIGITS = {50: (0.0648,), 100: (0.0463,), 200: (0.0337,), 300: (0.0235,), 500: (0.0056,), 800: (0.0008,)}


def picture(path):
    return torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255)


def noise(x):
    """The noise that the stated numbers were measured with; the package itself never touches the global generator."""
    torch.manual_seed(0)
    return torch.randn_like(x)


@torch.no_grad()
def photographs(data, rows=PHOTOGRAPHS):
    """For each image (row, ours, stated)."""
    blind, single = bias_free(data / "weights"), dncnn25(data / "weights")
    for name in rows:
        clean = picture(data / f"{name}.png")[None, None, :256, :256]
        calls = [(blind, 15), (blind, 25), (blind, 50), (single, 25)]
        noisy = [clean + level / 255 * noise(clean) for _, level in calls]
        found = [prior(x, torch.tensor([level / 255])) for (prior, level), x in zip(calls, noisy, strict=True)]
        yield name, [float(psnr(x.clamp(0, 1), clean, 1.0)) for x in found], rows[name]


@torch.no_grad()
def portrait(data, rows=FACES):
    """For each noise level (row, ours, stated)."""
    priors = faces(data / "weights"), faces_in_bands(data / "weights")
    clean = picture(data / "scikit_image/astronaut.png").mean(-1)[None, None, 0:160, 144:304]
    for level in rows:
        noisy = clean + level / 255 * noise(clean)
        found = [noisy, *(prior(noisy, torch.tensor([level / 255])) for prior in priors)]
        yield f"{level} / 255", [float(psnr(x, clean, 1.0)) for x in found], rows[level]


@torch.no_grad()
def numbers(data, rows=DIGITS):
    """For each step (row, ours, stated): eps = (x - D) / sigma."""
    prior = digits(data / "weights")
    clean = torch.from_numpy(np.load(data / "mnist/t10k_images_0000_4999.npy")[:64, None].astype(np.float32) / 255 - 0.5)
    for step in rows:
        time, eps = torch.tensor(float(step), dtype=torch.float64), noise(clean)
        sigma = float(prior.path.sigma(time) / prior.path.alpha(time))
        noisy = clean + sigma * eps
        found = (noisy - prior(noisy, torch.full((64,), sigma))) / sigma
        yield f"step {step}", [float((found - eps).square().mean())], rows[step]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has eval/weights")
    data = parser.parse_args().data / "eval"
    if not (data / "weights").is_dir():
        sys.exit(f"foreign_networks: no networks in {data / 'weights'}: give --data the folder that has eval/weights")
    for table, places in ((photographs, 2), (portrait, 2), (numbers, 4)):
        print(f"{table.__name__}: ours (stated)")
        for row, ours, stated in table(data):
            pairs = (f"{a:.{places}f} ({b:.{places}f})" for a, b in zip(ours, stated, strict=True))
            print(f"  {row:28}" + "  ".join(pairs))


if __name__ == "__main__":
    main()
