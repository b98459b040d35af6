"""The form of CCD that is exported to ONNX, against the definition; the export itself is in tests/deployment."""

import pytest
import torch

from mmccd.ops import onnx as ccd_onnx
from mmccd.ops import reference


def test_pooling_matrix_by_hand():
    # 6 positions, 4 cells: [0, 1.5), [1.5, 3), [3, 4.5), [4.5, 6), borders taken in.
    assert ccd_onnx.pooling_matrix(6, 4).tolist() == [
        [0.5, 0.5, 0, 0, 0, 0],
        [0, 0.5, 0.5, 0, 0, 0],
        [0, 0, 0, 0.5, 0.5, 0],
        [0, 0, 0, 0, 0.5, 0.5],
    ]
    # 2 positions, 4 cells: each is in two of them.
    assert ccd_onnx.pooling_matrix(2, 4).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize('scales', [(1, 2, 4), (1,), (1, 4, 8), (3,), (2, 3)])
def test_context_is_that_of_the_definition(scales):
    # 82, 94, 110: where F.interpolate would read the neighbouring cell.
    for height in (*range(1, 14), 82, 94, 110):
        for width in (1, 2, 3, 6, 7, 82):
            z = torch.randn(1, 2, height, width, dtype=torch.float64)
            torch.testing.assert_close(
                ccd_onnx.pooled_context(z, scales), reference._pooled_context(z, scales), rtol=0, atol=1e-14
            )


@pytest.mark.parametrize('normalize', ['zscore', 'minmax', None])
@pytest.mark.parametrize('size', [(1, 1), (1, 2), (2, 3), (7, 7)])
def test_normalisation_is_that_of_the_definition(normalize, size):
    d = torch.randn(2, 3, *size, dtype=torch.float64)
    d[0, 1] = 0.7  # flat
    got = ccd_onnx.normalize_over_space(d, normalize, 1e-7)
    torch.testing.assert_close(got, reference._normalize_over_space(d, normalize, 1e-7), rtol=0, atol=1e-12)
    if normalize is not None:
        assert got[0, 1].eq(0).all()
    if normalize is not None and size == (1, 1):
        assert got.eq(0).all()
