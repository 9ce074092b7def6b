"""The networks that come with the package."""

from __future__ import annotations

from importlib import resources

from .autoencoder import Autoencoder, load_autoencoder
from .consistency import ConsistencyModel, load_consistency
from .network import EDMDenoiser, load_network
from .regression import Regression, load_regression

__all__ = ["shipped", "shipped_autoencoder", "shipped_consistency", "shipped_file", "shipped_regression"]


def shipped(file: str, sha256: str, *, bf16: bool = False) -> EDMDenoiser:
    """A packaged network; its model card lies beside the weights, and what it says is in `.facts`.

    Args:
        file: name of the safetensors file in `invdiff/priors/weights`.
        sha256: its hash; another file is refused.
        bf16: evaluate the network in bfloat16, about twice as fast on processors that have it.

    Raises:
        DataError: the file is missing or not the one that was shipped.
    """
    return load_network(shipped_file(file), sha256=sha256, bf16=bf16)


def shipped_autoencoder(file: str, sha256: str) -> Autoencoder:
    """A packaged autoencoder, as `shipped` for networks."""
    return load_autoencoder(shipped_file(file), sha256=sha256)


def shipped_consistency(file: str, sha256: str, *, bf16: bool = False) -> ConsistencyModel:
    """A packaged consistency function, as `shipped` for denoisers."""
    return load_consistency(shipped_file(file), sha256=sha256, bf16=bf16)


def shipped_regression(file: str, sha256: str) -> Regression:
    """A packaged regression network, as `shipped` for denoisers."""
    return load_regression(shipped_file(file), sha256=sha256)


def shipped_file(file: str) -> str:
    """Where the packaged weights of that name are."""
    return str(resources.files("invdiff.priors") / "weights" / file)
