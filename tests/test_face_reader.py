"""What the bundled reader reads from our own renders, and the shapes of its network."""

import cv2
import numpy as np
import pytest
import torch
from test_face_detect import HEADS, head

from imtalker.bundled import ASSETS
from imtalker.errors import InputError
from imtalker.face import crop_from_landmarks, read_curves
from imtalker.face.reader import camera, default_reader, load_reader
from imtalker.models.reader import MIRROR, PARTS, POINTS, FaceReader


def test_shapes():
    network = FaceReader().eval()
    read = network(torch.rand(2, 3, 128, 128))
    assert read.landmarks.shape == (2, POINTS, 2) and read.heat.shape == (2, POINTS, 32, 32)
    assert (read.pose.shape, read.gaze.shape, read.blink.shape) == ((2, 3), (2, 2), (2, 2))
    assert read.mouth.shape == read.score.shape == (2,)
    assert read.parts.shape == (2, PARTS, 32, 32)
    maps = network.features(torch.rand(1, 3, 256, 256))
    assert [m.shape[-1] for m in maps] == [128, 64, 32, 16]
    assert sum(p.numel() for p in network.parameters()) < 0.85e6


def test_mirror_is_its_own_inverse():
    assert [MIRROR[i] for i in MIRROR] == list(range(68))
    assert (MIRROR[0], MIRROR[36], MIRROR[48], MIRROR[8]) == (16, 45, 54, 8)


@pytest.fixture(scope="module")
def reading():
    crops = []
    for i in range(len(HEADS["pose"])):
        crop = crop_from_landmarks(HEADS["landmarks"][i] * 256, 256, 256)
        crops.append((crop, crop.apply(head(i), 200)))
    return [crop for crop, _ in crops], default_reader()([picture for _, picture in crops])


def test_landmarks(reading):
    crops, read = reading
    for crop, points, truth in zip(crops, read.landmarks, HEADS["landmarks"]):
        assert np.linalg.norm(crop.to_picture(points) / 256 - truth, axis=1).mean() < 0.02


def test_pose_and_gaze(reading):
    _, read = reading
    assert np.degrees(np.abs(read.pose - HEADS["pose"]).mean()) < 5
    open_eyes = HEADS["blink"].max(1) < 0.3
    assert np.degrees(np.abs(read.gaze - HEADS["gaze"])[open_eyes].mean()) < 13  # the weakest of its readings


def test_mouth_and_lids(reading):
    _, read = reading
    assert np.corrcoef(read.mouth, HEADS["mouth"])[0, 1] > 0.8
    assert np.abs(read.blink - HEADS["blink"]).mean() < 0.3


def test_a_face_and_not_a_face(reading):
    _, read = reading
    assert np.all(read.score > 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
    assert default_reader()(noise).score[0] < 0.5
    assert len(default_reader()(np.zeros((0, 128, 128, 3), np.uint8))) == 0


def test_curves_follow_the_head():
    """A head that wanders and grows: camera numbers say by how much; lost frames are bridged."""
    picture, empty = head(1), np.full((256, 256, 3), 128, np.uint8)
    crop = crop_from_landmarks(HEADS["landmarks"][1] * 256, 256, 256)
    frames = []
    for t in range(12):
        matrix = np.float32([[1 + 0.01 * t, 0, 2 * t - 1.28 * t], [0, 1 + 0.01 * t, -1.28 * t]])
        frames.append(cv2.warpAffine(picture, matrix, (256, 256), borderMode=cv2.BORDER_REPLICATE))
    frames[5] = empty
    curves = read_curves(iter(frames), crop)
    assert len(curves) == 12 and curves.pose.shape == curves.cam.shape == (12, 3)
    grown, right = curves.cam[-2, 0] - curves.cam[1, 0], curves.cam[-2, 1] - curves.cam[1, 1]
    assert grown == pytest.approx(np.log(1.10 / 1.01), abs=0.04)
    assert right == pytest.approx(9 * 2 / crop.side, abs=0.03)
    assert abs(curves.pose[5] - curves.pose[7]).max() < 0.2
    with pytest.raises(InputError, match="no face"):
        read_curves([empty] * 3, crop)


def test_camera_of_the_nominal_face_is_zero():
    points = np.random.default_rng(0).uniform(0, 1, (1, 68, 2))
    points[0, :4] = [[0, 0.5], [1, 0.5], [0.5, 0], [0.5, 1]]
    side = 1 / 1.6 / 1.3
    nominal = (points - 0.5) * side + [0.5, 0.5 + 0.08 / 1.6]
    assert camera(nominal, np.zeros((1, 3))) == pytest.approx(np.zeros((1, 3)), abs=1e-6)


def test_what_holds_no_weights_of_a_reader_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("Dear Sir or Madam")
    for file in (tmp_path / "text.safetensors", ASSETS / "observer.safetensors"):
        with pytest.raises(InputError, match="imtalker train reader") as caught:
            load_reader(file)
        assert file.name in str(caught.value) and "\n" not in str(caught.value)
