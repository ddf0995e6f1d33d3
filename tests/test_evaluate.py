"""Evaluation: each measure on cases with a known answer, and the whole with a tiny model on two rendered people."""
from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="needs the extra imtalker[evaluate]")
pytest.importorskip("torchmetrics", reason="needs the extra imtalker[evaluate]")
from imtalker.cli import main
from imtalker.errors import InputError
from imtalker.evaluate.metrics import aligned, behaviour, copied_motion, mouth_motion, pictures
from imtalker.evaluate.performance import Performance, first_seconds, speeches
from imtalker.evaluate.protocols import middle
from imtalker.face import Reading
from imtalker.face.reader import turn_between
from imtalker.synth.motion import BLINK, EXPRESSIONS, Motion
from imtalker.synth.speech import Speech, in_turn

PACK = Path(os.environ.get("IMTALKER_SYNTHPACK") or Path(__file__).parents[2] / "shared" / "synthpack")


def speech(seconds: float = 2.0) -> Speech:
    rows = [(0, 0.4, "sil"), (0.4, 0.6, "PP"), (0.6, 1.1, "aa"), (1.1, seconds, "sil")]
    waveform = np.zeros(round(seconds * 16000), np.float32)
    waveform[6400:17600] = 0.2 * np.random.default_rng(0).standard_normal(11200)
    return Speech(waveform, rows, "noise")


def performance(frames: int = 50) -> Performance:
    rng = np.random.default_rng(1)
    expression = np.zeros((frames, len(EXPRESSIONS)), np.float32)
    expression[20:24, BLINK] = 1
    motion = Motion(0.1 * rng.standard_normal((frames, 3)).astype(np.float32), np.zeros((frames, 3), np.float32),
                    0.1 * rng.standard_normal((frames, 2)).astype(np.float32), expression)
    landmarks = np.broadcast_to(rng.uniform(0.2, 0.8, (68, 2)), (frames, 68, 2)).astype(np.float32)
    mouth = np.maximum(np.sin(np.arange(frames) / 3), 0).astype(np.float32) * 0.2
    return Performance(np.zeros((frames, 8, 8, 3), np.uint8), landmarks, mouth, motion, speech())


def read_as(true: Performance, **changes) -> Reading:
    truth = dict(landmarks=true.landmarks, pose=true.motion.pose, gaze=true.motion.gaze,
                 blink=true.motion.expression[:, BLINK], mouth=true.mouth, score=np.ones(len(true.mouth)))
    return Reading(**truth | changes)


def test_pictures():
    true = np.random.default_rng(0).integers(20, 230, (2, 32, 32, 3)).astype(np.uint8)
    assert pictures(true, true) == {"psnr": 60, "ssim": pytest.approx(1)}
    off = pictures(true + np.uint8(10), true)
    assert off["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3) and 0.8 < off["ssim"] < 1


def test_a_perfect_copy_and_known_errors():
    true = performance()
    perfect = copied_motion(read_as(true), true) | mouth_motion(read_as(true), true)
    assert perfect.pop("mouth_correlation") == pytest.approx(1) and all(abs(v) < 1e-3 for v in perfect.values())

    eyes = np.linalg.norm(true.landmarks[0, 36] - true.landmarks[0, 45])
    moved = copied_motion(read_as(true, landmarks=true.landmarks + 0.05), true)
    assert moved["landmark_distance"] == pytest.approx(100 * 0.05 * 2 ** 0.5 / eyes, rel=1e-3)
    assert moved["expression_error"] < 1e-3  # a head elsewhere has the same expression
    gazing = copied_motion(read_as(true, gaze=true.motion.gaze + [0.1, 0]), true)
    assert gazing["gaze_error_deg"] == pytest.approx(np.degrees(0.1), rel=1e-3)
    late = mouth_motion(read_as(true, mouth=np.roll(true.mouth, 2)), true)
    assert late["mouth_lag_frames"] == 2 and late["mouth_correlation"] < 0.9


def test_behaviour():
    true = performance()
    calm = behaviour(read_as(true, pose=np.zeros((50, 3)), mouth=np.zeros(50)), true)
    assert calm["mouth_shut_in_silence"] == 1 and calm["blinks_per_minute"] == 30 and calm["head_jitter_deg"] == 0
    assert behaviour(read_as(true, mouth=np.full(50, 0.1)), true)["mouth_shut_in_silence"] == 0
    shaking = true.landmarks + 0.01 * np.random.default_rng(0).standard_normal(true.landmarks.shape)
    assert behaviour(read_as(true, landmarks=shaking), true)["landmark_jitter"] > calm["landmark_jitter"] + 1


def test_turns_and_alignment():
    assert turn_between(np.zeros(3), np.array([0, 0.3, 0])) == pytest.approx(0.3)
    assert turn_between(np.array([0.2, 0, 0]), np.array([0.2, 0, 0])) == pytest.approx(0, abs=1e-6)
    points = np.random.default_rng(0).standard_normal((20, 2))
    turn = np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    np.testing.assert_allclose(aligned(points, 2 * points @ turn.T + [3, 4]), 2 * points @ turn.T + [3, 4], atol=1e-9)
    mirrored = points * [-1, 1]  # a mirror image is no similarity
    assert np.abs(aligned(points, mirrored) - mirrored).max() > 0.1


def test_speech_is_joined_and_cut():
    both = in_turn([speech(), speech()])
    assert both.segments[4] == (2.0, 2.4, "sil") and len(both.waveform) == 64000
    cut = first_seconds(both, 2.2)
    assert cut.frames == 55 and cut.segments[-1] == (2.0, 2.2, "sil")


def test_means_leave_out_what_is_unknown():
    assert middle("psnr", [20, 30, float("nan")]) == 25 and middle("mouth_lag_frames", [0, 1, 8]) == 1
    assert np.isnan(middle("psnr", [float("nan")]))


@pytest.fixture
def corpus(tmp_path) -> Path:
    one = speech(1.3)
    path = tmp_path / "test.npz"
    np.savez(path, waveform=np.concatenate([(one.waveform * 32767).astype(np.int16)] * 3),
             offsets=len(one.waveform) * np.arange(4), segments=json.dumps([one.segments] * 3),
             voices=json.dumps(["noise"] * 3))
    return path


def test_too_little_speech_is_said(corpus):
    with pytest.raises(InputError, match="too little speech"):
        list(speeches(4, 1.0, corpus))


@pytest.mark.slow
@pytest.mark.skipif(not (PACK / "heads.npz").is_file(), reason="no head pack at ../shared/synthpack")
def test_the_command(tiny_model, corpus, tmp_path, capsys):
    command = ["evaluate", "--pack", str(PACK), "--model", str(tiny_model), "--people", "2", "--seconds", "1",
               "--corpus", str(corpus)]
    report = tmp_path / "report.html"
    assert main([*command, "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "self reenactment" in shown and "mouth_correlation" in shown
    page = report.read_text()
    assert page.count("<figure>") == 6 and page.count("data:image/jpeg") == 6 and "http" not in page
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for protocol in ("self_reenactment", "cross_reenactment", "audio_driven"):
        assert told[protocol].keys() == told["ceiling"][protocol].keys() == told["floor"][protocol].keys()
    assert told["ceiling"]["self_reenactment"]["psnr"] == 60 > told["self_reenactment"]["psnr"]
    assert told["floor"]["audio_driven"]["blinks_per_minute"] == 0
    assert main([*command, "--report", str(tmp_path / "nowhere" / "x.html")]) == 2
    assert "nowhere" in capsys.readouterr().err
