"""Priors: everything that becomes a Denoiser.

    a network of ours            network, shipped; unet, dit, fno (layers); autoencoder and latent
    a network of someone else    wrapped and its paths (paths, flows, steps), mean_reverting, blind, multiscale; foreign
                                 (diffusers, deepinv, azula); sources (weights in files), cnn
    closed forms                 gaussian, field and spectra, mixture, lowrank, empirical, energy
    adapters of another prior    affine, tiles, volumes, subspace, coarse, mapped, wavelet, conditional, told, ensemble, level,
                                 cycle
    space-time fields            wdno (packed, bands, refine), regression
    radar images                 speckled; despeckler and merlin, which are trained without clean images and are no priors
    one evaluation to a draw     consistency, a function of its own kind: for the sampler `Multistep` alone

`prior.check(data)` says whether one is wired up right.
"""

from .affine import Affine
from .autoencoder import Autoencoder, Decoder, load_autoencoder
from .blind import Blind
from .cnn import DnCNN
from .coarse import Coarse
from .conditional import ClassifierFree, ClassifierGuided, Given, Interval
from .consistency import ConsistencyModel, load_consistency
from .cycle import CycleSpun
from .despeckler import Despeckler, load_despeckler, load_merlin
from .dit import DiT
from .empirical import Empirical
from .energy import Energy, EnergyPrior, Quadratic, Sparse, Sum, TotalVariation
from .ensemble import Alternating, Average, Experts, Mixture
from .field import GaussianField, SpectralGaussian, StationaryGaussian
from .flows import Cosine, Interpolant, RectifiedFlow
from .fno import FNO
from .foreign import DiffusersVAE, from_azula, from_deepinv, from_diffusers, from_diffusers_vae
from .gaussian import GaussianPrior
from .independent import Independent, normal_parameters
from .latent import LatentPrior
from .level import AnyLevel
from .lowrank import LowRankMixture
from .lowrank_fit import LowRankFit, fit_lowrank
from .mapped import Mapped
from .mean_reverting import MeanReverting, reverting_betas
from .mixture import GaussianMixture
from .multiscale import MultiScale, haar_merge, haar_split
from .network import EDMDenoiser, denoising_error, load_network
from .packed import PackedSynthesis
from .paths import EDM, VE, ContinuousVP, PFGMpp
from .refine import coarsen, refine, upsample
from .regression import Regression, load_regression
from .shipped import shipped, shipped_autoencoder, shipped_consistency, shipped_regression
from .solution import Solution, field_prior
from .sources import load_into, read_weights
from .speckled import SpeckledPrior
from .spectra import Laplacian, Matern, PowerLaw, SquaredExponential, Tabulated, fit_spectrum, radial_spectrum
from .steps import DiscreteVP, cosine_betas, cumulative_betas, linear_betas, scaled_linear_betas
from .subspace import Subspace, fit_subspace
from .tiles import Tiles
from .told import Named
from .unet import UNet
from .volumes import ChannelWise, Slices
from .wavelet import CoefficientDomain, WaveletDomain, WaveletPrior, denoise_coloured, synthesized_noise
from .wdno import FieldCode, FieldPrior, field_network, load_fields
from .wrapped import Wrapped

__all__ = [
    "EDM",
    "FNO",
    "VE",
    "Affine",
    "Alternating",
    "AnyLevel",
    "Autoencoder",
    "Average",
    "Blind",
    "ChannelWise",
    "ClassifierFree",
    "ClassifierGuided",
    "Coarse",
    "CoefficientDomain",
    "ConsistencyModel",
    "ContinuousVP",
    "Cosine",
    "CycleSpun",
    "Decoder",
    "Despeckler",
    "DiT",
    "DiffusersVAE",
    "DiscreteVP",
    "DnCNN",
    "EDMDenoiser",
    "Empirical",
    "Energy",
    "EnergyPrior",
    "Experts",
    "FieldCode",
    "FieldPrior",
    "GaussianField",
    "GaussianMixture",
    "GaussianPrior",
    "Given",
    "Independent",
    "Interpolant",
    "Interval",
    "Laplacian",
    "LatentPrior",
    "LowRankFit",
    "LowRankMixture",
    "Mapped",
    "Matern",
    "MeanReverting",
    "Mixture",
    "MultiScale",
    "Named",
    "PFGMpp",
    "PackedSynthesis",
    "PowerLaw",
    "Quadratic",
    "RectifiedFlow",
    "Regression",
    "Slices",
    "Solution",
    "Sparse",
    "SpeckledPrior",
    "SpectralGaussian",
    "SquaredExponential",
    "StationaryGaussian",
    "Subspace",
    "Sum",
    "Tabulated",
    "Tiles",
    "TotalVariation",
    "UNet",
    "WaveletDomain",
    "WaveletPrior",
    "Wrapped",
    "coarsen",
    "cosine_betas",
    "cumulative_betas",
    "denoise_coloured",
    "denoising_error",
    "field_network",
    "field_prior",
    "fit_lowrank",
    "fit_spectrum",
    "fit_subspace",
    "from_azula",
    "from_deepinv",
    "from_diffusers",
    "from_diffusers_vae",
    "haar_merge",
    "haar_split",
    "linear_betas",
    "load_autoencoder",
    "load_consistency",
    "load_despeckler",
    "load_fields",
    "load_into",
    "load_merlin",
    "load_network",
    "load_regression",
    "normal_parameters",
    "radial_spectrum",
    "read_weights",
    "refine",
    "reverting_betas",
    "scaled_linear_betas",
    "shipped",
    "shipped_autoencoder",
    "shipped_consistency",
    "shipped_regression",
    "synthesized_noise",
    "upsample",
]
