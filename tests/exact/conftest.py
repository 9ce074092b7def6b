"""What several tests of operators in time share."""

from math import log2

import pytest
import torch

from invdiff.core import Streams, dot


@pytest.fixture
def derivatives_agree():
    """A check: values are those of vjp and jvp; the derivatives are each other's transposes and leave a remainder of second
    order at steps e and e / 2; every memory policy has the same gradient; vmap the same values."""

    def check(make, x, e):
        operator = make()
        t = Streams(1, len(x)).normal(0, operator.in_shape, "t", torch.float64)
        v = Streams(2, len(x)).normal(0, operator.out_shape, "v", torch.float64)
        y, pullback = operator.vjp(x)
        same, dy = operator.jvp(x, t)
        torch.testing.assert_close((y, same), (operator(x), operator(x)), rtol=0, atol=1e-13)
        left, right = dot(v, dy), dot(pullback(v), t)
        assert float(((left - right).abs() / left.abs()).max()) < 1e-12
        rests = [float((operator(x + s * t) - y - s * dy).norm()) for s in (e, e / 2)]
        assert log2(rests[0] / rests[1]) == pytest.approx(2.0, abs=0.1)
        for memory in ("full", "revolve(1)"):
            torch.testing.assert_close(make(memory=memory).vjp(x)[1](v), pullback(v), rtol=0, atol=1e-13)
        torch.testing.assert_close(torch.vmap(operator)(x[:, None])[:, 0], y, rtol=0, atol=1e-13)

    return check
