"""The measure of mouth against sound: on curves with a known answer, and on video that we rendered."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import imtalker
from imtalker.evaluate.mouth import against_loudness, against_phones, correlation_and_lag, main, measure_video
from imtalker.synth.speech import Speech
from imtalker.synth.visemes import VISEMES

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
    assert correlation_and_lag(np.zeros(200), level) == (0.0, 0)


def test_a_mouth_that_follows_and_one_that_does_not():
    level, waveform = syllables(300)
    good = against_loudness(0.2 * (level > 0), waveform)
    assert good["loudness_correlation"] > 0.9 and good["loudness_lag_frames"] == 0
    assert good["shut_when_quiet"] > 0.9 and good["opening_when_loud"] > 0.15
    late = against_loudness(0.2 * np.roll(level > 0, 4), waveform)
    assert late["loudness_lag_frames"] == 4 and late["loudness_correlation"] < 0.6
    assert against_loudness(np.full(300, 0.1), waveform)["shut_when_quiet"] == 0


@pytest.mark.slow
def test_rendered_speech_scores_well():
    """The bundled driving video is a rendering: mouth and lids have the truth of the pack behind them."""
    measured = measure_video(ASSETS / "sample.mp4")
    assert measured["loudness_correlation"] > 0.4 and abs(measured["loudness_lag_frames"]) <= 2
    assert 8 <= measured["blinks_per_minute"] <= 60


def said(seconds: float = 6.0) -> Speech:
    """Noise while a vowel is said, silence between."""
    rows, waveform = [], np.zeros(int(seconds * 16000), np.float32)
    for k, start in enumerate(np.arange(0.5, seconds - 1, 0.9)):
        rows += [(start, start + 0.1, "PP"), (start + 0.1, start + 0.4 + 0.05 * (k % 3), "aa"),
                 (start + 0.4 + 0.05 * (k % 3), start + 0.9, "sil")]
        waveform[int(rows[-2][0] * 16000):int(rows[-2][1] * 16000)] = 0.2
    waveform *= np.random.default_rng(0).standard_normal(len(waveform)).astype(np.float32)
    return Speech(waveform, [(0, 0.5, "sil"), *rows], "noise")


def test_phones_tell_a_mouth_that_follows():
    speech = said()
    visemes = speech.curves()
    right = 0.3 * visemes[:, VISEMES.index("aa")]
    good = against_phones(right, speech)
    assert good["phone_correlation"] > 0.9 and good["phone_lag_frames"] == 0
    assert good["opening_at_aa"] > 0.2 > 0.05 > max(good["opening_at_sil"], good["opening_at_PP"])
    assert against_phones(np.roll(right, 3), speech)["phone_lag_frames"] == 3
    assert np.isnan(against_phones(right, Speech(speech.waveform, [(0, 6, "aa")]))["opening_at_PP"])


@pytest.mark.slow
def test_a_model_is_measured_through_a_finished_video(tmp_path, capsys):
    speech = said(3.0)
    np.savez(tmp_path / "test.npz", waveform=(speech.waveform * 32767).clip(-32767, 32767).astype(np.int16),
             offsets=[0, len(speech.waveform)], segments=json.dumps([speech.segments]), voices=json.dumps(["noise"]))
    main(["--corpus", str(tmp_path / "test.npz"), "--clips", "1"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("voice noise") and shown[1].startswith("median")
    assert "phone_correlation" in shown[1] and "loudness_lag_frames" in shown[1]
