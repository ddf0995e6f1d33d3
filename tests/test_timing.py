"""Motion latents in time: other rates, and a head that is held steadier."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from imtalker.timing import followed, retime, retimed_count, steadied


def test_retimed_motion_is_where_it_was():
    line = torch.arange(100.0)[:, None].expand(-1, 32)
    for fps in (Fraction(50), Fraction(30), Fraction(25), Fraction(10), Fraction(30000, 1001)):
        for sizes in ([100], [1] * 100, [50, 50], [7, 60, 33]):
            motion = torch.cat(list(retime(line.split(sizes), fps)))
            places = np.minimum(np.arange(retimed_count(100, fps)) * 25 / float(fps), 99)
            assert motion.shape == (len(places), 32) and np.allclose(motion[:, 0], places, atol=1e-4)
    assert list(retime([], Fraction(30))) == []


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [2, 5, 33], [4, 4, 32]])
def test_a_head_is_averaged_over_time_and_nothing_else(sizes):
    motion = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    made = torch.cat(list(steadied(motion.split(sizes), 1.0)))
    expected = gaussian_filter1d(motion[:, :6].double(), 1.0, axis=0, mode="nearest", truncate=3)
    assert made.shape == motion.shape and np.allclose(made[:, :6], expected, atol=1e-5)
    assert torch.equal(made[:, 6:], motion[:, 6:])


def test_short_and_empty_motion_is_steadied_too():
    row = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(torch.cat(list(steadied([row], 1.0))), row, atol=1e-6)
    assert torch.cat(list(steadied([row, 0 * row], 1.0))).shape == (2, 32)
    assert list(steadied([], 1.0)) == []
    (same,) = steadied([row], 0)
    assert same is row


def test_a_head_is_followed_frame_by_frame():
    motion = torch.zeros(1, 32)
    last = followed(motion, None, 1.0)
    for _ in range(10):
        last = followed(motion + 1, last, 1.0)
        assert (last[:, 6:] == 1).all() and (last[:, :6] < 1 + 1e-6).all()
    assert torch.allclose(last, motion + 1, atol=1e-3)
    assert followed(motion, last, 0) is motion
