"""Every packaged sampler on every packaged task: it draws, or its error names what is missing, as docs/matrix.md says."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from invdiff.configs import names
from invdiff.core import CapabilityError, ConfigError, InvdiffError, Sampler
from invdiff.validation.matrix import column, outcome, page, parse, tiny_problem

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

TEXT = (Path(__file__).parents[2] / "docs" / "matrix.md").read_text("utf-8")
# Laplace's dense factors, and equations that are solved again and again
SLOW = {
    "burgers_sensors",
    "cs_image",
    "deblur",
    "full_waveform",
    "inpaint",
    "navier_stokes_128",
    "navier_stokes_initial",
    "smoke_control",
}


@dataclass(frozen=True)
class Refuses(Sampler):
    """A sampler that raises an error of the given text."""

    says: str = field(kw_only=False)
    error: type[InvdiffError] = field(kw_only=False, default=CapabilityError)

    def init(self, problem, prior, streams):
        raise self.error(self.says)


@pytest.mark.parametrize("task", [pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in names("task")])
def test_every_sampler_runs_or_says_what_is_missing(task):
    assert column(task) == parse(TEXT)[task]


def test_the_page_has_every_sampler_and_every_task():
    columns = parse(TEXT)
    assert list(columns) == names("task")
    assert all(list(column) == names("sampler") for column in columns.values())
    assert page(columns) == TEXT


@pytest.mark.parametrize("says", ["TDS needs spectral of the operator", "it needs Gaussian noise"])
def test_a_reason_is_what_the_message_says(says):
    assert outcome(*tiny_problem("sar_to_optical"), Refuses(says)) in ("a spectrum of the operator", "Gaussian noise")


@pytest.mark.parametrize("error", [CapabilityError, ConfigError, InvdiffError])
def test_a_message_that_names_nothing_is_an_error(error):
    with pytest.raises(error, match="no"):
        outcome(*tiny_problem("sar_to_optical"), Refuses("no", error))
