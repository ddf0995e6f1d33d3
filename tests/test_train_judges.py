"""Training of evaluation's own judges on next to nothing: they learn, are written, and print what they are worth."""
from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorboard", reason="needs the extra imtalker[train]")
from imtalker.cli import main
from imtalker.evaluate.identity import Recogniser
from imtalker.evaluate.observer import load_observer
from imtalker.train import observer as train_observer
from imtalker.train.reader_data import Heads


def marks_of_a_face() -> np.ndarray:
    marks = np.full((68, 2), .5, np.float32)
    for start, middle in ((36, .38), (42, .62)):
        marks[start:start + 6] = [(middle - .05, .42), (middle - .02, .40), (middle + .02, .40),
                                  (middle + .05, .42), (middle + .02, .44), (middle - .02, .44)]
    marks[8], marks[19], marks[30], marks[48], marks[54] = (.5, .8), (.4, .3), (.5, .55), (.42, .66), (.58, .66)
    return marks


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Twelve people of one colour each, whose brows of light rise with their gaze."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    y, x = np.mgrid[:256, :256] / 256
    for person in range(12):
        colour, jpegs, rows = rng.uniform(60, 190, 3), [], []
        for _ in range(5):
            gaze = rng.uniform(-.4, .4, 2)
            marks = marks_of_a_face()
            picture = np.ones((256, 256, 3)) * colour
            for middle in (.38, .62):
                there = np.exp(-((x - middle - .1 * gaze[0]) ** 2 + (y - .42 - .1 * gaze[1]) ** 2) / .0006)
                picture = picture * (1 - there[..., None])
            file = io.BytesIO()
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
            jpegs.append(np.frombuffer(file.getvalue(), np.uint8))
            rows.append((marks, np.zeros(3), gaze, np.zeros(2), 0., np.zeros((64, 64), np.uint8)))
        names = ("landmarks", "pose", "gaze", "blink", "mouth", "parts")
        arrays = {name: np.stack(column) for name, column in zip(names, zip(*rows))}
        np.savez(folder / f"identity-{person:06d}.npz", jpeg=np.concatenate(jpegs), meta=json.dumps({}),
                 offsets=np.cumsum([0, *map(len, jpegs)]), **arrays)
    return folder


def test_an_observer_learns_to_see(people, tmp_path, capsys, monkeypatch):
    def read(pictures, crop, reader):  # these faces are none to the real one
        return SimpleNamespace(landmarks=np.broadcast_to(marks_of_a_face(), (len(pictures), 68, 2)))

    out = tmp_path / "observer.safetensors"
    monkeypatch.setattr(train_observer, "look_closer", read)
    monkeypatch.setattr(train_observer, "BATCH", 32)
    assert main(["train", "observer", str(people), str(out), "--steps", "200"]) == 0
    patches, marks, truth = train_observer.examples(Heads(people), np.random.default_rng(1), None)
    seen = load_observer(out)(patches.float() / 255, marks)
    assert np.corrcoef(seen[:, 3], truth[:, 3])[0, 1] > 0.9 and np.corrcoef(seen[:, 4], truth[:, 4])[0, 1] > 0.9
    assert main(["train", "observer", str(people), str(out), "--measure"]) == 0
    assert "gaze_error_deg" in capsys.readouterr().out


def test_a_recogniser_learns_who_is_who(people, tmp_path, capsys):
    out = tmp_path / "new" / "recogniser.safetensors"
    assert main(["train", "recogniser", str(people), str(out)]) == 0
    assert Recogniser.load(out).mean.shape == (4800,)
    assert main(["train", "recogniser", str(people), str(out), "--measure"]) == 0
    assert "among 12 people" in capsys.readouterr().out
