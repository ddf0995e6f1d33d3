"""The bundled model at work: what anyone sees who types `make demo`."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import imtalker
from imtalker import IMTalker
from imtalker.evaluate.mouth import SHUT, blinks_per_minute
from imtalker.evaluate.observer import load_observer, observe
from imtalker.face import default_reader, no_crop
from imtalker.face.reader import load_reader
from imtalker.media import VideoReader, load_audio
from imtalker.models.latent import GAZE, HEAD

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
    assert opened - shut > 0.2  # 0.02 for a mouth that never opens
    assert np.median(dark) < (shut + opened) / 2  # and it closes again
    assert 5 < blinks_per_minute(lids) < 60


def test_silence_keeps_it_shut(talker):
    source = talker.encode_source(ASSETS / "sample.png")
    dark, _ = seen(talker.animate(source, (np.zeros(3 * 16000, np.float32), 16000)))
    assert np.percentile(dark, 95) - np.percentile(dark, 5) < 0.15


def test_a_picture_that_does_not_move_is_itself(talker):
    source = talker.encode_source(ASSETS / "sample.png")
    still = next(talker.render(source, [source.features.motion.float()]))
    error = np.square(still.astype(float) - source.picture).mean()
    assert 10 * np.log10(255**2 / error) > 36  # 29 as it is painted


def test_eyes_look_where_they_are_asked_to(talker):
    source, sound = talker.encode_source(ASSETS / "sample.png"), np.zeros(2 * 16000, np.float32)
    asked = np.radians([[20, 0]] * 25 + [[-20, 0]] * 25).astype(np.float32)
    frames = np.stack(list(talker.animate(source, (sound, 16000), gaze=asked)))
    seen = observe(frames, default_reader(), load_observer())
    left, right = (np.median(seen.gaze[part][seen.blink[part].mean(1) < 0.3, 0]) for part in (slice(25), slice(25, 50)))
    assert left - right > np.radians(12)  # of 40; two before eyes were moved


def test_two_readers_say_where_a_picture_looks(talker):
    source = talker.encode_source(ASSETS / "sample.png")
    picture = torch.from_numpy(source.picture).permute(2, 0, 1)[None] / 255
    seen = [talker.renderer.encode_motion(picture)[0, GAZE].numpy() * talker.renderer.config.eyes,
            default_reader()(source.picture[None]).gaze[0]]
    assert np.abs(seen[0] - seen[1]).max() > 1e-3
    used = source.features.motion[0, GAZE].numpy() * talker.renderer.config.eyes
    assert np.allclose(used, np.mean(seen, 0), atol=1e-4)


def test_a_copied_head_trembles_less_than_it_is_read(talker):
    pictures = np.stack(list(VideoReader(ASSETS / "sample.mp4")))[:50]
    source = talker.encode_source(ASSETS / "sample.png")
    copied = talker.reenact(source, pictures, crop=False).motion
    square = no_crop(*pictures.shape[1:3])
    with torch.inference_mode():
        read = torch.cat([talker.renderer.encode_motion(talker._tensor(square.apply(picture, 256)[None]))
                          for picture in pictures]).numpy()
    trembling = [np.abs(np.diff(motion[:, HEAD], 2, axis=0)).mean() for motion in (copied, read)]
    assert trembling[0] < 0.6 * trembling[1]
    assert np.abs(copied - read)[:, HEAD].max() < 0.1  # 2 degrees
    assert np.allclose(copied[:, HEAD.stop:], read[:, HEAD.stop:], atol=1e-4)


@pytest.mark.parametrize("windows", [(5,), (5, 5, 10, 15, 20, 25)])
def test_live_windows_join_without_a_jump(talker, windows):
    source = talker.encode_source(ASSETS / "sample.png")
    inside, across = [], []
    for seed in range(2):
        motion = talker.animate(source, ASSETS / "sample.wav", seed=seed, windows=windows).motion
        ends = {0, *np.cumsum(windows + 100 * windows[-1:])}
        for k, step in enumerate(np.linalg.norm(np.diff(motion, axis=0), axis=1), 1):
            (across if k in ends else inside).append(step)
    assert np.mean(across) < 1.5 * np.mean(inside)


def test_an_interrupted_face_closes_its_mouth_within_200_ms(talker):
    """It speaks a sentence, is interrupted where its mouth is open, idles, and answers again."""
    sound, source = load_audio(ASSETS / "sample.wav"), talker.encode_source(ASSETS / "sample.png")
    session = talker.session(source, windows=(5,))
    spoken = default_reader()(list(session.push(sound[:40_000]))).mouth
    shown = 10 + int(np.argmax(spoken[10:]))
    assert spoken[shown] > 2 * SHUT
    session.interrupt(shown + 1)
    after = default_reader()(list(session.idle(20))).mouth
    assert (after[5:] < SHUT).all()
    assert default_reader()(list(session.push(sound[:32_000]))).mouth.max() > SHUT
