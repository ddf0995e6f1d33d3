"""The bundled model at work: what anyone sees who types `make demo`."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import imtalker
from imtalker import IMTalker
from imtalker.evaluate.mouth import blinks_per_minute
from imtalker.face.reader import load_reader

ASSETS = Path(imtalker.__file__).parent / "assets"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def talker():
    return IMTalker.from_pretrained("mini", device="cpu")


@torch.inference_mode()
def seen(clip) -> tuple[np.ndarray, np.ndarray]:
    """Of every frame: how dark the darkest of the mouth is, 0 as the rest of it to 1 black, and how closed the lids."""
    frames = np.stack(list(clip))
    pictures = torch.from_numpy(frames[:, ::2, ::2].copy()).permute(0, 3, 1, 2).float() / 255
    read = load_reader()(pictures)
    dark = []
    for frame, mouth in zip(frames, (read.landmarks[:, 48:68] * frames.shape[1]).numpy()):
        (left, top), (right, bottom) = mouth.min(0).astype(int), mouth.max(0).astype(int) + 6
        inside = frame[top:bottom, left:right].mean(-1)
        dark.append(1 - np.percentile(inside, 4) / np.median(inside))
    return np.array(dark), read.blink.mean(1).numpy()


def test_speech_opens_the_mouth_and_lids_blink(talker):
    source = talker.encode_source(ASSETS / "sample.png")
    dark, lids = seen(talker.animate(source, ASSETS / "sample.wav"))
    shut, opened = np.percentile(dark, [5, 95])
    assert opened - shut > 0.25  # 0.02 for a mouth that never opens
    assert np.median(dark) < (shut + opened) / 2  # and it closes again
    assert 5 < blinks_per_minute(lids) < 60


def test_silence_keeps_it_shut(talker):
    source = talker.encode_source(ASSETS / "sample.png")
    dark, _ = seen(talker.animate(source, (np.zeros(3 * 16000, np.float32), 16000)))
    assert np.percentile(dark, 95) - np.percentile(dark, 5) < 0.15
