"""Training of the face reader: truth that moves with the picture, samples of every kind, a run, its options."""

import shutil
from io import BytesIO

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from imtalker.errors import InputError
from imtalker.face.reader import load_reader
from imtalker.models.reader import MIRROR
from imtalker.train import reader as train_reader
from imtalker.train.reader_data import Heads
from imtalker.train.reader_faces import face
from imtalker.train.reader_negatives import no_face


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two people of three frames: a red dot at the place of landmark 30, on grey."""
    folder, rng = tmp_path_factory.mktemp("heads"), np.random.default_rng(0)
    for person in range(2):
        landmarks = rng.uniform(0.35, 0.65, (3, 68, 2)).astype(np.float32)
        files = []
        for points in landmarks:
            picture = np.full((256, 256, 3), 128, np.uint8)
            cv2.circle(picture, tuple(int(v) for v in points[30] * 256), 5, (255, 0, 0), -1)
            out = BytesIO()
            Image.fromarray(picture).save(out, "JPEG", quality=95, subsampling=0)
            files.append(np.frombuffer(out.getvalue(), np.uint8))
        np.savez(
            folder / f"identity-{person:06d}.npz",
            jpeg=np.concatenate(files),
            offsets=np.cumsum([0, *map(len, files)]),
            landmarks=landmarks,
            pose=rng.normal(0, 0.1, (3, 3)).astype(np.float32),
            gaze=rng.normal(0, 0.1, (3, 2)).astype(np.float32),
            blink=rng.random((3, 2), np.float32),
            mouth=rng.random(3, np.float32),
            parts=rng.integers(0, 7, (3, 64, 64)).astype(np.uint8),
        )
    return folder


@pytest.mark.parametrize("mirror", [False, True])
def test_truth_moves_with_the_picture(folder, mirror):
    sample = Heads(folder).crop(0, (0.05, -0.1), 1.2, 20, mirror)
    red = sample.image[..., 0].astype(int) - sample.image[..., 1]
    y, x = np.argwhere(red > 100).mean(0)
    assert sample.landmarks[MIRROR[30]] * 128 == pytest.approx([x + 0.5, y + 0.5], abs=1.5)


def test_samples_of_every_kind_are_whole(folder):
    heads, rng = Heads(folder), np.random.default_rng(0)
    for k in range(60):
        sample = face(heads, k % 6, rng)
        assert sample.image.shape == (128, 128, 3) and sample.image.dtype == np.uint8
        assert sample.parts.shape == (32, 32) and np.isfinite(sample.landmarks).all()
        other = no_face(heads, k % 6, rng)
        assert other.image.shape == (128, 128, 3) and other.image.dtype == np.uint8
        assert other.framed == 0 and other.landmarks is None


def test_a_run_writes_weights_that_load_and_are_measured(folder, tmp_path):
    out = tmp_path / "reader.safetensors"
    train_reader.train_reader(folder, out, minutes=0.02, batch=4, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert all(torch.isfinite(x).all() for x in load_reader(out).state_dict().values())
    measured = train_reader.measure_reader(load_reader(out), Heads(folder), count=6)
    assert measured["pose_deg"] >= 0 and 0 <= measured["false"] <= 1


def test_damaged_people_are_named(folder, tmp_path):
    (tmp_path / "identity-000000.npz").write_bytes((folder / "identity-000000.npz").read_bytes()[:-500])
    with pytest.raises(InputError, match="identity-000000.npz.*imtalker synth"):
        Heads(tmp_path)
    small = BytesIO()
    Image.new("RGB", (64, 64)).save(small, "JPEG")
    jpeg = np.frombuffer(small.getvalue(), np.uint8)
    np.savez(tmp_path / "identity-000000.npz", jpeg=jpeg, offsets=np.array([0, len(jpeg)]))
    with pytest.raises(InputError, match="landmarks.*imtalker synth"):
        Heads(tmp_path)
    (tmp_path / "identity-000000.npz").unlink()
    with np.load(folder / "identity-000001.npz") as data:
        kept = {name: data[name][:1] for name in data.files if name not in ("jpeg", "offsets")}
    np.savez(tmp_path / "identity-000001.npz", jpeg=jpeg, offsets=np.array([0, len(jpeg)]), **kept)
    shutil.copy(folder / "identity-000000.npz", tmp_path)
    with pytest.raises(InputError, match=r"identity-000001.npz.*\(64, 64\).*\(256, 256\)"):
        Heads(tmp_path)


def test_an_empty_folder_and_missing_weights_are_the_users_errors(folder, tmp_path):
    with pytest.raises(InputError, match="imtalker synth"):
        Heads(tmp_path)
    with pytest.raises(InputError, match="imtalker train reader"):
        train_reader.main([str(folder), str(tmp_path / "none.safetensors"), "--measure"])
