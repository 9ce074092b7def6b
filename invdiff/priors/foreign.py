"""Priors that other libraries hold: diffusers, deepinv, azula.

    library    coordinate                                         what it answers                      units
    diffusers  the index t = 0 ... T-1 of a table of betas        eps, x0 or v, by the scheduler       [-1, 1]
    deepinv    sigma                                              the denoised image                   [0, 1]
    azula      t in [0, 1], its schedule gives alpha_t, sigma_t   a posterior with a mean              any

All of them become `Wrapped`. deepinv and azula are not imported: the object is called as its library says. diffusers and its
weights are: safetensors only, from a local folder unless `download=True`. A diffusers scheduler is used for its betas and for
what the network predicts; the rest of its configuration (spacing and offset of steps, clipping, variances) is about sampling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError, DataError, ShapeError
from .affine import Affine
from .flows import Interpolant
from .paths import VE
from .steps import DiscreteVP, cosine_betas, linear_betas, scaled_linear_betas
from .wrapped import Wrapped

__all__ = ["DiffusersVAE", "from_azula", "from_deepinv", "from_diffusers", "from_diffusers_vae"]

_PREDICTS = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
# options that change the levels, the network's time or the scale of the latents, unless they are this or missing
_PLAIN = {"rescale_betas_zero_snr": False, "timestep_type": "discrete", "latents_mean": None, "latents_std": None}


def from_diffusers(
    folder: str | Path, *, value_range: tuple[float, float] | None = (0.0, 1.0), download: bool = False
) -> Denoiser:
    """The pixel-space prior of a diffusers pipeline: a `UNet2DModel` and the schedule that it was trained with.

    Args:
        folder: with `unet/` and `scheduler/`, or with both configurations in it, as the older ones have; with `download`, the
            id of a model on the hub, or a folder.
        value_range: of the data that the prior is for, to which the network's [-1, 1] is mapped; None for the network's own
            units, those of latents.
        download: fetch what is not on this machine.

    Returns:
        A denoiser of (C, H, W), the network's size, in float32; with `label` as its condition if the network has classes.

    Raises:
        DataError: a file is missing or not readable, or there are weights only as pickles.
        ConfigError: diffusers is not installed, or the network or the scheduler is none of those that can be wrapped.
    """
    folder = _local(folder, download)
    config, where = _config(folder, "scheduler", "scheduler_config.json")
    if "beta_schedule" not in config:
        raise ConfigError(
            f"from_diffusers: {where}: {config.get('_class_name')} has no table of betas: use Wrapped with its path"
        )
    _require_plain(config, where)
    predicts = _known(_PREDICTS, config.get("prediction_type", "epsilon"), "prediction_type", where)
    net = _load("UNet2DModel", folder, "unet")
    embedding, size = net.config.time_embedding_type, net.config.sample_size
    if embedding not in ("positional", "learned") or size is None:
        raise ConfigError(
            f"from_diffusers: expected a network of fixed size that is told the step, got sample_size {size} and "
            f"time_embedding_type {embedding!r}: use Wrapped"
        )
    prior = Wrapped(
        net,
        DiscreteVP(_betas(config, where), nearest=embedding == "learned"),
        predicts,
        shape=(net.config.in_channels, *((size, size) if isinstance(size, int) else size)),
        learned_variance=str(config.get("variance_type", "")).startswith("learned"),
        value_range=None if value_range is None else (-1.0, 1.0),
        call=_unet,
    )
    if value_range is None:
        return prior
    scale, shift = _units(value_range, "from_diffusers")
    return Affine(prior, scale=scale, shift=shift)


def from_diffusers_vae(
    folder: str | Path, *, value_range: tuple[float, float] = (0.0, 1.0), download: bool = False
) -> DiffusersVAE:
    """The autoencoder of a latent diffusers pipeline, for `LatentPrior`.

    Args:
        folder: of the pipeline (its `vae/` is read) or of the autoencoder itself; with `download`, the id of a model, or a
            folder.
        value_range: of the images, which is mapped to the [-1, 1] of the network.
        download: fetch what is not on this machine.

    Raises:
        DataError, ConfigError: as `from_diffusers`.
    """
    vae = _load("AutoencoderKL", _local(folder, download), "vae")
    _require_plain(vae.config, folder)
    return DiffusersVAE(vae, value_range=value_range)


class DiffusersVAE(nn.Module):
    """z = (mean of the encoder((x - b) / a) - shift_factor) scaling_factor, and back: what diffusers' pipelines call latents.

    Args:
        vae: an `AutoencoderKL`; frozen.
        value_range: of the images, [b - a, b + a].

    Shapes: images (B, channels, H, W), multiples of `factor` <-> (B, latent, H / factor, W / factor).
    """

    def __init__(self, vae: nn.Module, *, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.vae, config = vae.eval().requires_grad_(False), vae.config
        self.channels, self.latent = config.in_channels, config.latent_channels
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.scaling_factor, self.shift_factor = config.scaling_factor, config.shift_factor or 0.0
        self.scale, self.shift = _units(value_range, "DiffusersVAE")

    def encode(self, x: Tensor) -> Tensor:
        """The latents of images, the encoder's mean."""
        self.latent_shape(tuple(x.shape[1:]))
        posterior = self.vae.encode((x - self.shift) / self.scale).latent_dist
        return (posterior.mean - self.shift_factor) * self.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents."""
        if z.ndim != 4 or z.shape[1] != self.latent:
            raise ShapeError(f"DiffusersVAE: expected latents (B, {self.latent}, h, w), got {tuple(z.shape)}")
        return self.shift + self.scale * self.vae.decode(z / self.scaling_factor + self.shift_factor).sample

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Shape of the latents of images of a shape (C, H, W)."""
        if len(shape) != 3 or shape[0] != self.channels or shape[1] % self.factor or shape[2] % self.factor:
            raise ShapeError(
                f"DiffusersVAE: expected an image shape ({self.channels}, H, W), multiples of {self.factor}, got {tuple(shape)}"
            )
        return self.latent, shape[1] // self.factor, shape[2] // self.factor


def from_deepinv(
    denoiser: nn.Module, *, shape: tuple[int | None, ...], sigma_min: float, sigma_max: float, batched: bool = True
) -> Wrapped:
    """A denoiser of deepinv, denoiser(x, sigma), as a prior of images in [0, 1].

    Args:
        shape: of one unknown, (C, H, W), None where free.
        sigma_min, sigma_max: noise levels of its training.
        batched: it takes sigma of shape (B,); False for one that takes a number: it is then called item by item.
    """

    def call(net: Any, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        _no_condition(condition, "from_deepinv")
        if batched:
            return net(x, sigma)
        return torch.cat([net(item[None], s) for item, s in zip(x, sigma.tolist(), strict=True)])

    path = VE(sigma_min, sigma_max, tells="sigma")
    return Wrapped(denoiser, path, "data", shape=shape, value_range=(0.0, 1.0), call=call)


def from_azula(
    denoiser: nn.Module,
    *,
    shape: tuple[int | None, ...],
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    value_range: tuple[float, float] | None = None,
    batched: bool = True,
) -> Wrapped:
    """A denoiser of azula, denoiser(x_t, t).mean, as a prior in the units in which it was trained.

    Its `schedule` is inverted for the t of a sigma = sigma_t / alpha_t. Schedules compute in the dtype that they are given; in
    float32 those of azula lose digits of sigma_t below about 0.01.

    Args:
        shape: of one unknown, None where free.
        sigma_min, sigma_max: noise levels inside those of the schedule; None takes its own.
        value_range: smallest and largest value of the training data, for `Denoiser.check`.
        batched: it takes t of shape (B,); False for one that takes one number (`GaussianDenoiser`): it is then called item by
            item.

    Raises:
        ConfigError: the noise of the schedule does not increase with t.
    """

    def call(net: Any, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        _no_condition(condition, "from_azula")
        if batched:
            return net(x, t).mean
        return torch.cat([net(item[None], s).mean for item, s in zip(x, t, strict=True)])

    path = Interpolant(lambda t: denoiser.schedule(t)[0], lambda t: denoiser.schedule(t)[1], near=0.0, far=1.0)
    limits = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    return Wrapped(denoiser, path, "data", shape=shape, value_range=value_range, call=call, **limits)


def _unet(net: Any, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
    given, wanted = sorted(condition or {}), [] if net.class_embedding is None else ["label"]
    if given != wanted:
        want, got = (", ".join(keys) or "nothing" for keys in (wanted, given))
        raise ConfigError(f"from_diffusers: expected a condition of {want}, got {got}")
    return net(x, time, class_labels=condition["label"].expand(len(x)) if condition else None).sample


def _no_condition(condition: Condition | None, who: str) -> None:
    if condition is not None:
        raise ConfigError(f"{who}: expected no condition, got {', '.join(condition) or 'an empty one'}")


def _units(value_range: tuple[float, float], who: str) -> tuple[float, float]:
    """a and b of x = a u + b for u in [-1, 1]."""
    low, high = value_range
    if not low < high:
        raise ConfigError(f"{who}: expected value_range (low, high) with low < high, got {value_range}")
    return (high - low) / 2, (high + low) / 2


def _betas(config: dict[str, Any], where: Path) -> tuple[float, ...]:
    if config.get("trained_betas") is not None:
        return tuple(config["trained_betas"])
    steps, start, end = (config.get(k, v) for k, v in (("num_train_timesteps", 1000), ("beta_start", 1e-4), ("beta_end", 0.02)))
    tables: dict[str, Callable[[], tuple[float, ...]]] = {
        "linear": lambda: linear_betas(steps, start, end),
        "scaled_linear": lambda: scaled_linear_betas(steps, start, end),
        "squaredcos_cap_v2": lambda: cosine_betas(steps),
    }
    return _known(tables, config["beta_schedule"], "beta_schedule", where)()


def _known(table: dict[str, Any], value: str, name: str, where: Path) -> Any:
    if value not in table:
        raise ConfigError(f"from_diffusers: {where}: expected {name} to be one of {', '.join(table)}, got {value!r}")
    return table[value]


def _require_plain(config: Any, where: Any) -> None:
    for name, value in _PLAIN.items():
        if config.get(name) not in (value, None):
            raise ConfigError(f"from_diffusers: {where} has {name} = {config[name]!r}: use Wrapped with a path of your own")


def _config(folder: Path, part: str, file: str) -> tuple[dict[str, Any], Path]:
    path = next((p for p in (folder / part / file, folder / file) if p.is_file()), folder / part / file)
    try:
        return json.loads(path.read_text(encoding="utf-8")), path
    except OSError as error:
        raise DataError(f"from_diffusers: can't read {path}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"from_diffusers: {path} is no JSON") from None


def _local(folder: str | Path, download: bool) -> Path:
    """The folder, after fetching configurations and safetensors if it is the id of a model and that is allowed."""
    path = Path(folder)
    if path.is_dir():
        return path
    if not download:
        raise DataError(f"from_diffusers: no folder {folder}: download the model into one, or say download=True")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError("from_diffusers: a download needs diffusers: pip install 'invdiff[diffusers]'") from None
    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise DataError(f"from_diffusers: {folder} can't be downloaded ({str(error).splitlines()[0]})") from None


def _load(kind: str, folder: Path, part: str) -> nn.Module:
    """A model of diffusers from `folder/part`, or from the folder itself if it is the model's."""
    try:
        import diffusers

        model = getattr(diffusers, kind)
    except (ImportError, RuntimeError) as error:  # a part of diffusers that can't be imported is a RuntimeError
        reason = str(error).splitlines()[-1]
        raise ConfigError(f"from_diffusers: needs diffusers ({reason}): pip install 'invdiff[diffusers]'") from None
    config, path = _config(folder, part, "config.json")
    if config.get("_class_name") != kind:
        raise ConfigError(f"from_diffusers: {path}: expected a {kind}, got a {config.get('_class_name')}")
    try:
        net = model.from_pretrained(path.parent, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"from_diffusers: {path.parent} holds no weights that can be read ({reason})") from None
    return net.eval().requires_grad_(False)
