"""The measure of mouth against sound: on curves with a known answer, and on video that we rendered."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import imtalker
from imtalker.evaluate.mouth import against_loudness, correlation_and_lag, measure_video

ASSETS = Path(imtalker.__file__).parent / "assets"


def syllables(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A level per frame, on and off, and a waveform that has it."""
    rng = np.random.default_rng(0)
    level = np.repeat(rng.random(frames // 5) > 0.5, 5) * np.repeat(rng.uniform(0.3, 1, frames // 5), 5)
    return level, (np.repeat(level, 640) * 0.3 * rng.standard_normal(frames * 640)).astype(np.float32)


def test_lag_is_found():
    level, _ = syllables(200)
    assert correlation_and_lag(level, level) == (pytest.approx(1), 0)
    assert correlation_and_lag(np.roll(level, 3), level)[1] == 3
    assert correlation_and_lag(np.roll(level, -2), level)[1] == -2
    assert correlation_and_lag(np.zeros(200), level) == (0.0, -8)


def test_a_mouth_that_follows_and_one_that_does_not():
    level, waveform = syllables(300)
    good = against_loudness(0.2 * (level > 0), waveform)
    assert good["mouth_correlation"] > 0.9 and good["mouth_lag_frames"] == 0
    assert good["mouth_shut_in_silence"] > 0.9 and good["mouth_opening_when_loud"] > 0.15
    late = against_loudness(0.2 * np.roll(level > 0, 4), waveform)
    assert late["mouth_lag_frames"] == 4 and late["mouth_correlation"] < 0.6
    assert against_loudness(np.full(300, 0.1), waveform)["mouth_shut_in_silence"] == 0


@pytest.mark.slow
def test_rendered_speech_scores_well():
    """The bundled driving video is a rendering: mouth and lids have the truth of the pack behind them."""
    measured = measure_video(ASSETS / "sample.mp4")
    assert measured["mouth_correlation"] > 0.4 and abs(measured["mouth_lag_frames"]) <= 2
    assert 8 <= measured["blinks_per_minute"] <= 60
