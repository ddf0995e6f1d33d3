"""The crop policy, the way back into the picture, one steady crop for a clip."""

import numpy as np
import pytest

from imtalker.face import Crop, crop_from_landmarks, no_crop
from imtalker.face.select import steady


def landmarks(x0=100.0, y0=80.0, width=60.0, height=90.0):
    """(68, 2) with these bounds."""
    points = np.random.default_rng(0).uniform(0, 1, (68, 2))
    points[:4] = [[0, 0.5], [1, 0.5], [0.5, 0], [0.5, 1]]
    return points * [width, height] + [x0, y0]


def gradient(height=200, width=300):
    """A smooth picture in which every pixel tells where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 90.0)], -1).round().astype(np.uint8)


def test_policy_numbers():
    crop = crop_from_landmarks(landmarks(), 400, 500)
    face_side = 1.3 * 90
    assert crop.side == pytest.approx(1.6 * face_side)
    assert crop.centre == pytest.approx((130, 125 - 0.08 * face_side))
    assert (crop.height, crop.width) == (400, 500)


def test_crop_knows_where_things_are():
    crop = Crop((150.0, 100.0), 80.0, 200, 300)
    picture = gradient()
    drawn = crop.apply(picture, 160)
    assert drawn.shape == (160, 160, 3) and drawn.dtype == np.uint8
    spot = np.array([[131.3, 88.6]])
    x, y = (crop.to_fractions(spot)[0] * 160).astype(int)
    assert np.abs(drawn[y, x].astype(int) - picture[88, 131]).max() <= 2
    assert crop.to_picture(crop.to_fractions(spot)) == pytest.approx(spot)
    assert (crop.matrix(160) @ [131.3, 88.6, 1]) == pytest.approx(crop.to_fractions(spot)[0] * 160)


def test_whole_picture_at_its_own_size_is_unchanged():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(no_crop(64, 64).apply(picture, 64), picture)


def test_shrinking_averages():
    """Fine stripes become grey, they do not alias."""
    picture = np.zeros((512, 512, 3), np.uint8)
    picture[:, ::2] = 255
    drawn = Crop((256.0, 256.0), 300.0, 512, 512).apply(picture, 50)
    assert np.abs(drawn.astype(int) - 127).max() < 12


def test_beyond_the_edge_the_picture_goes_on():
    drawn = Crop((0.0, 0.0), 100.0, 200, 300).apply(np.full((200, 300, 3), 77, np.uint8), 64)
    assert np.all(drawn == 77)


def test_no_crop_is_the_centred_square():
    crop = no_crop(200, 300)
    assert (crop.centre, crop.side) == ((150.0, 100.0), 200.0)


@pytest.mark.parametrize(("centre", "side"), [((150.0, 100.0), 90.0), ((40.0, 30.0), 120.0), ((150.0, 100.0), 400.0)])
def test_paste_is_the_way_back(centre, side):
    picture = gradient()
    crop = Crop(centre, side, 200, 300)
    pasted = crop.paste(crop.apply(picture, 128), picture)
    assert np.abs(pasted.astype(int) - picture).max() <= 4


def test_paste_changes_the_crop_and_nothing_else():
    picture = gradient()
    crop = Crop((150.0, 100.0), 90.0, 200, 300)
    pasted = crop.paste(np.full((64, 64, 3), 255, np.uint8), picture)
    assert np.all(pasted[95:105, 145:155] == 255)
    outside = np.ones((200, 300), bool)
    outside[55:145, 105:195] = False
    assert np.array_equal(pasted[outside], picture[outside])
    step = np.abs(np.diff(pasted[100, 100:150].astype(int), axis=0)).max()
    assert step < 100, "the border is not soft"


def test_steady_crop_ignores_a_stray_frame():
    crops = [Crop((100.0 + i % 3, 100.0), 80.0 + i % 2, 200, 300) for i in range(30)] + [
        Crop((280.0, 20.0), 15.0, 200, 300)
    ]
    crop = steady(crops)
    assert crop.centre == pytest.approx((101, 100), abs=1.5)
    assert crop.side == pytest.approx(80.5, abs=1)


def test_steady_crop_keeps_a_walking_face_inside():
    crops = [Crop((float(x), 100.0), 80.0, 200, 400) for x in np.linspace(60, 260, 40)]
    crop = steady(crops)
    assert crop.corner[0] <= 60 + 10 - 25 + 5 and crop.corner[0] + crop.side >= 260 - 10 + 25 - 5
