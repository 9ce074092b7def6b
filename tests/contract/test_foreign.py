"""Priors of other libraries against formulas written out here: diffusers folders, deepinv's and azula's interfaces.

What needs the library itself is skipped without it.
"""

import json
import math
import shutil
import sys
import warnings

import pytest
import torch
from torch import nn

from invdiff.core.errors import ConfigError, DataError, ShapeError
from invdiff.core.rng import Streams
from invdiff.priors.affine import Affine
from invdiff.priors.autoencoder import Decoder
from invdiff.priors.blind import Blind
from invdiff.priors.foreign import from_azula, from_deepinv, from_diffusers, from_diffusers_vae
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.latent import LatentPrior

F64 = torch.float64
SHAPE = (1, 2, 3)


def normal(*shape, seed=0, dtype=F64):
    return Streams(seed, 1).normal(0, shape, dtype=dtype)[0]


@pytest.fixture(scope="module")
def gaussian():
    a = normal(6, 6)
    return GaussianPrior(normal(*SHAPE, seed=1), a @ a.T + 0.1 * torch.eye(6, dtype=F64))


# azula: denoiser(x_t, t) -> posterior with a mean, denoiser.schedule(t) -> alpha_t, sigma_t


class Posterior:
    def __init__(self, mean):
        self.mean = mean


class LikeAzula(nn.Module):
    """The ideal denoiser of Gaussian data in azula's interface: E[x0 | x_t = alpha_t x0 + sigma_t eps]."""

    def __init__(self, gaussian, schedule):
        super().__init__()
        self.gaussian, self.schedule = gaussian, schedule

    def forward(self, x_t, t):
        alpha, sigma = self.schedule(t)
        return Posterior(self.gaussian(x_t / alpha[:, None, None, None], sigma / alpha))


def vp(t):
    alpha = torch.exp(math.log(1e-3) * t**2)
    return alpha, (1 - alpha**2 + 1e-6).sqrt()


def rectified(t):
    return t * 1e-3 + (1 - t), t + (1 - t) * 1e-3


@pytest.mark.parametrize("schedule", [vp, rectified])
def test_an_azula_denoiser_is_the_same_prior(gaussian, schedule):
    prior = from_azula(LikeAzula(gaussian, schedule), shape=SHAPE, sigma_max=50.0)
    first = torch.zeros((), dtype=F64)
    assert prior.sigma_min == pytest.approx(float(schedule(first)[1] / schedule(first)[0]))
    sigma = torch.tensor([prior.sigma_min, 0.02, 0.7, 9.0, 50.0], dtype=F64)
    x = normal(5, *SHAPE, seed=2)
    torch.testing.assert_close(prior(x, sigma), gaussian(x, sigma), rtol=1e-8, atol=1e-8)


def test_a_schedule_that_runs_backwards_is_refused(gaussian):
    with pytest.raises(ConfigError, match="increasing"):
        from_azula(LikeAzula(gaussian, lambda t: rectified(1 - t)), shape=SHAPE)
    prior = from_azula(LikeAzula(gaussian, vp), shape=SHAPE, sigma_max=50.0)
    with pytest.raises(ConfigError, match="from_azula: expected no condition, got label"):
        prior(normal(1, *SHAPE), torch.ones(1, dtype=F64), {"label": torch.zeros(1, dtype=torch.int64)})


@pytest.mark.parametrize("name", ["VESchedule", "VPSchedule", "CosineSchedule", "RectifiedSchedule"])
def test_the_gaussian_denoiser_of_azula(name):
    denoise, noise = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.noise")
    from azula.linalg.covariance import DiagonalCovariance

    mean, variances = normal(*SHAPE), 0.5 + normal(*SHAPE, seed=1) ** 2
    schedule = getattr(noise, name)()
    theirs = denoise.GaussianDenoiser(mean, DiagonalCovariance(variances), schedule)
    prior = from_azula(theirs, shape=SHAPE, batched=False)
    exact = GaussianPrior(mean, variances)
    sigma, x = torch.tensor([0.01, 0.5, 20.0], dtype=F64), normal(3, *SHAPE, seed=2)
    torch.testing.assert_close(prior(x, sigma), exact(x, sigma), rtol=1e-6, atol=1e-6)


# deepinv: denoiser(x, sigma)


class LikeDeepinv(nn.Module):
    def __init__(self, gaussian, batched):
        super().__init__()
        self.gaussian, self.batched = gaussian, batched

    def forward(self, x, sigma):
        if self.batched:
            return self.gaussian(x, sigma)
        assert type(sigma) is float
        return self.gaussian(x, x.new_full((len(x),), sigma))


@pytest.mark.parametrize("batched", [True, False])
def test_a_deepinv_denoiser_is_the_same_prior(gaussian, batched):
    prior = from_deepinv(LikeDeepinv(gaussian, batched), shape=SHAPE, sigma_min=0.01, sigma_max=2.0, batched=batched)
    sigma, x = torch.tensor([0.01, 0.3, 2.0], dtype=F64), normal(3, *SHAPE, seed=2)
    torch.testing.assert_close(prior(x, sigma), gaussian(x, sigma), rtol=1e-12, atol=1e-12)
    assert (prior.sigma_min, prior.sigma_max, prior.value_range) == (0.01, 2.0, (0.0, 1.0))


def test_the_base_class_of_deepinv(gaussian):
    try:
        from deepinv.models.base import Denoiser
    except (ImportError, RuntimeError) as error:  # RuntimeError: its torchvision is for another torch
        pytest.skip(f"deepinv can't be imported: {error}")

    class Theirs(Denoiser):
        def forward(self, x, sigma):
            level = self._handle_sigma(sigma, batch_size=len(x), reference_tensor=x)
            return gaussian(x, level.reshape(len(x)))

    prior = from_deepinv(Theirs(), shape=SHAPE, sigma_min=0.01, sigma_max=2.0)
    sigma, x = torch.tensor([0.01, 0.3, 2.0], dtype=F64), normal(3, *SHAPE, seed=2)
    torch.testing.assert_close(prior(x, sigma), gaussian(x, sigma), rtol=1e-12, atol=1e-12)


# diffusers


@pytest.fixture(scope="module")
def diffusers():
    """The library, without its torchvision if that is for another build of torch: the models need none."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError):
            patch.setitem(sys.modules, "torchvision", None)
        library = pytest.importorskip("diffusers")
        try:
            for name in ("AutoencoderKL", "DDPMScheduler", "EulerDiscreteScheduler", "UNet2DModel"):
                getattr(library, name)
        except RuntimeError as error:
            pytest.skip(f"diffusers can't be imported: {error}")
        yield library


@pytest.fixture(scope="module")
def unet(diffusers):
    """A folder with a network of random weights, and the network."""

    def build(folder, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = diffusers.UNet2DModel(
                **{"sample_size": 8, "in_channels": 1, "out_channels": 1} | options,
                block_out_channels=(8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
            )
        net.save_pretrained(folder)
        return net.eval().requires_grad_(False)

    return build


@pytest.fixture
def folder(tmp_path, unet, diffusers):
    net = unet(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    return tmp_path, net


def reconfigure(folder, **changes):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SCHEDULES = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 500},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01, 0.02, 0.05, 0.1, 0.2]},
]


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["DDPMScheduler", "EulerDiscreteScheduler"])
def test_a_diffusers_folder_is_the_formula_of_ddpm(folder, diffusers, predicts, schedule, kind):
    """At the training steps, in [0, 1]; the rounding of float32, a few units of 1e-6, amplified by 1 / sqrt(abar)."""
    path, net = folder
    scheduler = getattr(diffusers, kind)(**schedule, prediction_type=predicts)
    scheduler.save_pretrained(path / "scheduler")
    prior = from_diffusers(path)
    assert (prior.shape, prior.divisor) == ((1, 8, 8), 1)
    u0 = normal(2, 1, 8, 8, dtype=torch.float32)
    for step in (0, 1, len(scheduler.betas) // 2, len(scheduler.betas) - 2):
        abar = float(scheduler.alphas_cumprod[step].double())
        if abar < 1e-4:
            continue
        x_t = math.sqrt(abar) * u0 + math.sqrt(1 - abar) * normal(2, 1, 8, 8, seed=1, dtype=torch.float32)
        out = net(x_t, torch.tensor(step)).sample
        want = {
            "epsilon": (x_t - math.sqrt(1 - abar) * out) / math.sqrt(abar),
            "sample": out,
            "v_prediction": math.sqrt(abar) * x_t - math.sqrt(1 - abar) * out,
        }[predicts]
        sigma = torch.full((2,), 0.5 * math.sqrt(1 / abar - 1))
        got = prior(0.5 * x_t / math.sqrt(abar) + 0.5, sigma)
        torch.testing.assert_close(got, 0.5 * want + 0.5, rtol=2e-5, atol=2e-5 / math.sqrt(abar))


def test_a_table_of_time_embeddings_is_told_whole_steps(tmp_path, unet, diffusers):
    net = unet(tmp_path / "unet", time_embedding_type="learned", num_train_timesteps=1000)
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    prior, x = from_diffusers(tmp_path, value_range=None), normal(1, 1, 8, 8, dtype=torch.float32)
    abar = diffusers.DDPMScheduler().alphas_cumprod.double()
    level = (0.6 * (1 / abar[300] - 1).log() + 0.4 * (1 / abar[301] - 1).log()).mul(0.5).exp()  # nearer to step 300
    eps = net((x / (1 + level**2).sqrt()).float(), torch.tensor(300)).sample
    torch.testing.assert_close(prior(x, level[None].float()), (x - level * eps).float(), rtol=1e-5, atol=1e-5)


def test_units_and_limits_are_those_of_the_range(folder):
    own, unit, byte = (from_diffusers(folder[0], value_range=r) for r in (None, (0.0, 1.0), (0.0, 255.0)))
    assert own.value_range is None
    assert isinstance(unit, Affine) and unit.value_range == (0.0, 1.0) and unit.sigma_max == pytest.approx(own.sigma_max / 2)
    assert own.sigma_min == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)))
    x, sigma = normal(2, 1, 8, 8, dtype=torch.float32), torch.tensor([0.1, 1.0])
    torch.testing.assert_close(byte(255 * x, 255 * sigma), 255 * unit(x, sigma), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(own(2 * x - 1, 2 * sigma), 2 * unit(x, sigma) - 1, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="low < high"):
        from_diffusers(folder[0], value_range=(1.0, 0.0))


def test_the_older_layout_has_no_folders(folder, tmp_path_factory):
    flat = tmp_path_factory.mktemp("flat")
    for part in ("unet", "scheduler"):
        shutil.copytree(folder[0] / part, flat, dirs_exist_ok=True)
    x, sigma = normal(1, 1, 8, 8, dtype=torch.float32), torch.ones(1)
    assert torch.equal(from_diffusers(flat)(x, sigma), from_diffusers(folder[0])(x, sigma))


def test_learned_variances_and_classes(tmp_path, unet, diffusers):
    net = unet(tmp_path / "unet", out_channels=2, num_class_embeds=3)
    diffusers.DDPMScheduler(variance_type="learned_range").save_pretrained(tmp_path / "scheduler")
    prior, x = from_diffusers(tmp_path, value_range=None), normal(2, 1, 8, 8, dtype=torch.float32)
    abar = float(diffusers.DDPMScheduler().alphas_cumprod[200].double())
    level = math.sqrt(1 / abar - 1)
    got = prior(x, torch.full((2,), level), {"label": torch.tensor([2])})
    eps = net(math.sqrt(abar) * x, torch.tensor(200), class_labels=torch.tensor([2, 2])).sample[:, :1]
    torch.testing.assert_close(got, x - level * eps, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="expected a condition of label, got nothing"):
        prior(x, torch.ones(2))
    reconfigure(tmp_path, variance_type="fixed_small")
    with pytest.raises(ShapeError, match="learned_variance=True"):
        from_diffusers(tmp_path, value_range=None)(x, torch.ones(2), {"label": torch.tensor([2])})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prediction_type": "flow"}, "expected prediction_type to be one of epsilon, sample, v_prediction, got 'flow'"),
        ({"beta_schedule": "sigmoid"}, "expected beta_schedule to be one of linear, scaled_linear, squaredcos_cap_v2"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True: use Wrapped"),
        ({"timestep_type": "continuous"}, "timestep_type = 'continuous': use Wrapped"),
        ({"trained_betas": [0.1, 1.0]}, "expected 2 or more betas in"),
    ],
)
def test_schedulers_that_can_not_be_wrapped_are_refused(folder, change, reason):
    reconfigure(folder[0], **change)
    with pytest.raises(ConfigError, match=reason):
        from_diffusers(folder[0])


def test_folders_that_are_incomplete_are_refused(folder):
    path, _ = folder
    with pytest.raises(DataError, match="no folder nobody/nothing: download the model into one, or say download=True"):
        from_diffusers("nobody/nothing")
    with pytest.raises(ConfigError, match="expected a AutoencoderKL, got a UNet2DModel"):
        from_diffusers_vae(path / "unet")
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(path / "elsewhere")
    torch.save({}, weights.with_suffix(".bin"))  # a pickle is not read instead
    with pytest.raises(DataError, match="holds no weights that can be read") as caught:
        from_diffusers(path)
    assert "\n" not in str(caught.value)
    (path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(DataError, match=r"can't read .*scheduler_config.json: No such file"):
        from_diffusers(path)


def test_a_download_asks_for_safetensors_only(folder, monkeypatch):
    asked = {}

    def snapshot_download(repo, allow_patterns):
        asked[repo] = allow_patterns
        return str(folder[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    x, sigma = normal(1, 1, 8, 8, dtype=torch.float32), torch.ones(1)
    got = from_diffusers("google/ddpm", download=True)(x, sigma)
    assert asked == {"google/ddpm": ["*.json", "*.safetensors"]}
    assert torch.equal(got, from_diffusers(folder[0])(x, sigma))


def test_the_autoencoder_of_a_pipeline_serves_a_latent_prior(diffusers, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.3,
            shift_factor=0.1,
        )
    vae.save_pretrained(tmp_path / "vae")
    ours, images = from_diffusers_vae(tmp_path), normal(2, 3, 16, 24, dtype=torch.float32)
    z = ours.encode(images)
    torch.testing.assert_close(z, (vae.encode(2 * images - 1).latent_dist.mean - 0.1) * 0.3, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.decode(z), vae.decode(z / 0.3 + 0.1).sample / 2 + 0.5, rtol=1e-5, atol=1e-6)
    assert (ours.channels, ours.latent, ours.factor) == (3, 4, 2)
    prior = LatentPrior(Blind(torch.zeros_like, shape=(4, None, None), sigma_min=0.01, sigma_max=1.0), ours)
    assert prior.image_shape == (3, None, None) and prior.image_divisor == 2
    decoder = prior.synthesis((3, 16, 24))
    assert isinstance(decoder, Decoder) and decoder.in_shape == (4, 8, 12)
    assert torch.equal(decoder(prior.analyse(images)), ours.decode(z))
    with pytest.raises(ShapeError, match=r"expected an image shape \(3, H, W\), multiples of 2, got \(3, 15, 24\)"):
        ours.encode(images[:, :, :15])
    with pytest.raises(ShapeError, match="expected latents"):
        ours.decode(images)


def test_without_diffusers_the_extra_is_named(monkeypatch, tmp_path):
    (tmp_path / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"needs diffusers \(.*\): pip install 'invdiff\[diffusers\]'"):
        from_diffusers(tmp_path)
