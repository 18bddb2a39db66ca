"""Real Clebsch-Gordan coefficients against e3nn, and what defines them."""

import numpy as np
import pytest
import torch
from e3nn import o3

from mlsemi.harmonics import wigner_d
from mlsemi.nn.coupling import clebsch_gordan

TRIPLES = [(a, b, c) for a in range(4) for b in range(4) for c in range(abs(a - b), a + b + 1)]


@pytest.mark.parametrize("triple", TRIPLES)
def test_equal_to_e3nn_with_its_sign(triple):
    expected = o3.wigner_3j(*triple, dtype=torch.float64)
    torch.testing.assert_close(clebsch_gordan(*triple), expected, atol=1e-13, rtol=0)


def test_invariance(random_rotation):
    d = [torch.as_tensor(x) for x in wigner_d(6, torch.from_numpy(random_rotation()))]
    for a, b, c in TRIPLES:
        tensor = clebsch_gordan(a, b, c)
        turned = torch.einsum("ai,bj,ck,ijk->abc", d[a], d[b], d[c], tensor)
        np.testing.assert_allclose(turned, tensor, atol=1e-12)


def test_triangle():
    with pytest.raises(ValueError, match="l1=1 and l2=1 couple to 0..2, not to l3=3"):
        clebsch_gordan(1, 1, 3)
