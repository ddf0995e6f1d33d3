"""Finding faces in our own renders: which one, and what is said when there is none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from imtalker.errors import InputError
from imtalker.face import crop_from_landmarks, driving_crop, find_faces, source_crop

HEADS = np.load(Path(__file__).parent / "data" / "heads.npz")


def head(i: int) -> np.ndarray:
    """(256, 256, 3) uint8 RGB: a rendered head that the reader was not trained on."""
    jpeg = HEADS["jpeg"][HEADS["offsets"][i] : HEADS["offsets"][i + 1]]
    return cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def scene(*placed) -> np.ndarray:
    """(360, 640, 3) with (head, x, y, size) pasted in."""
    picture = np.full((360, 640, 3), (120, 135, 150), np.uint8)
    for i, x, y, size in placed:
        picture[y : y + size, x : x + size] = cv2.resize(head(i), (size, size), interpolation=cv2.INTER_AREA)
    return picture


def apart(crop, truth) -> float:
    """Between two crops' centres, and of their sides, in sides of the true one."""
    return max(np.hypot(*np.subtract(crop.centre, truth.centre)), abs(crop.side - truth.side)) / truth.side


def test_finds_every_head():
    for i in range(len(HEADS["pose"])):
        faces = find_faces(head(i))
        assert len(faces) == 1, i
        assert apart(faces[0].crop, crop_from_landmarks(HEADS["landmarks"][i] * 256, 256, 256)) < 0.1, i


def test_several_faces_are_numbered_by_size():
    picture = scene((1, 20, 60, 160), (5, 300, 20, 300))
    large, small = (source_crop(picture, face) for face in (0, 1))
    assert large.side > small.side
    assert apart(large, crop_from_landmarks(HEADS["landmarks"][5] * 300 + [300, 20], 360, 640)) < 0.1
    assert apart(small, crop_from_landmarks(HEADS["landmarks"][1] * 160 + [20, 60], 360, 640)) < 0.1


def test_a_face_too_many_is_an_error_that_says_how_many():
    with pytest.raises(InputError, match=r"face 3 asked for, but me\.png has 1 face: choose 0"):
        source_crop(head(1), 3, "me.png")


def test_no_face_is_an_error_that_shows_the_ways_out():
    with pytest.raises(InputError, match=r"no face found in wall\.png.*another picture.*--no-crop") as error:
        source_crop(scene(), name="wall.png")
    assert "\n" not in str(error.value)


def test_upside_down_is_no_face():
    with pytest.raises(InputError, match="no face"):
        source_crop(np.ascontiguousarray(head(1)[::-1]))


def test_many_threads_find_what_one_does():
    """A server looks for faces in several pictures at once."""
    pictures = [scene((1, 200 + 10 * i, 50, 256)) for i in range(8)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(source_crop, pictures)) == [source_crop(picture) for picture in pictures]


def test_driving_crop_is_one_for_all_and_survives_frames_without_a_face():
    clip = [scene()] * 10 + [scene((1, 200 + 2 * i, 50, 256)) for i in range(20)]
    crop = driving_crop(iter(clip))
    middle = crop_from_landmarks(HEADS["landmarks"][1] * 256 + [217, 50], 360, 640)
    assert apart(crop, middle) < 0.1


def test_driving_crop_of_a_clip_without_faces():
    with pytest.raises(InputError, match=r"no face found in clip\.mp4"):
        driving_crop([scene()] * 3, name="clip.mp4")
