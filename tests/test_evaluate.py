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
from imtalker.evaluate.metrics import aligned, behaviour, copied_motion, gaze_error, mouth_motion, pictures, pose_error
from imtalker.evaluate.performance import (
    Performance,
    asked_gaze,
    asked_pose,
    first_seconds,
    resting_motion,
    silence,
    speeches,
)
from imtalker.evaluate.protocols import CEILING, FLOOR, MODEL, PROTOCOLS, Result, middle, standard_error
from imtalker.evaluate.report import Report
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
    blind = gaze_error(read_as(true), true, np.ones((50, 2)))
    assert np.isnan(blind["gaze_error_deg"])  # closed eyes look nowhere
    assert pose_error(read_as(true, pose=true.motion.pose * 0), true)["pose_error_deg"] > 3
    still = mouth_motion(read_as(true, mouth=np.zeros(50)), true)
    assert still == {"mouth_correlation": 0, "mouth_lag_frames": 0}
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


def test_the_command_line_knows_the_protocols():
    from imtalker import cli

    assert cli.PROTOCOLS == PROTOCOLS


def test_means_leave_out_what_is_unknown():
    assert middle("psnr", [20, 30, float("nan")]) == 25 and middle("mouth_lag_frames", [0, 1, 8]) == 1
    assert np.isnan(middle("psnr", [float("nan")]))


def test_what_is_asked_goes_through_the_whole_range():
    motion = performance(150).motion
    posed, looking = asked_pose(motion), asked_gaze(motion)
    np.testing.assert_allclose(np.degrees(np.abs(posed.pose).max(0)), (15, 25, 10), atol=0.3)
    np.testing.assert_allclose(np.degrees(np.abs(looking.gaze).max(0)), (20, 20), atol=0.3)
    np.testing.assert_array_equal(posed.gaze, motion.gaze)
    np.testing.assert_array_equal(looking.pose, motion.pose)
    right = posed.pose[:, 1].argmax()  # a head turned to its own left goes to the picture's right
    assert posed.cam[right, 1] > motion.cam[right, 1] + 0.03


def test_nobody_speaks_in_silence():
    quiet = silence(2.0)
    motion = resting_motion(quiet, performance().motion[:1], 0)
    assert len(motion) == quiet.frames == 50 and not quiet.waveform.any()
    visemes = [i for i, name in enumerate(EXPRESSIONS) if name.startswith(("viseme", "jaw"))]
    assert motion.expression[:, visemes[:-1]].max() < 0.02
    assert np.abs(motion.pose[0] - performance().motion.pose[0]).max() < 0.1
    assert not quiet.energy().any()  # who listens moves less than who speaks


def result(person: int, psnr: float, row: str = MODEL) -> Result:
    one = Result("self_reenactment", person)
    for name in (CEILING, FLOOR, "other", MODEL):
        one.metrics[name] = {"psnr": psnr if name == row else 10.0, "lpips": float("nan")}
        one.frames[name] = np.full((2, 8, 8, 3), 100, np.uint8)
        one.mouths[name], one.features[name] = np.linspace(0, 0.1, 20), {}
    return one


def test_the_report_tells_means_errors_and_what_is_missing(tmp_path):
    settings, missing = {"model": "a <model>", "people": 2, "seconds": 1}, {"lpips": "put lpips.pt into DIR"}
    report = Report(settings, [result(0, 20.0), result(1, 24.0)], missing)
    assert report.rows[-2:] == [CEILING, FLOOR] and set(report.rows) == {CEILING, FLOOR, "other", MODEL}
    shown = report.text()
    assert "22.000 ± 2.000" in shown and "lpips: not measured: put lpips.pt into DIR" in shown
    told = json.loads(report.json())
    assert told["self_reenactment"]["psnr"] == 22 and told["standard_error"]["self_reenactment"]["psnr"] == 2
    assert [clip["rows"]["model"]["psnr"] for clip in told["clips"]] == [20, 24] and told["settings"]["people"] == 2
    assert told["self_reenactment"]["lpips"] is None and told["not_measured"]["lpips"].startswith("put lpips.pt")
    assert told["compared"] == {"other": {"self_reenactment": {"psnr": 10, "lpips": None, "fid": None, "fvd": None}}}
    report.write_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;model&gt;" in page and "22.000 ± 2.000" in page and "put lpips.pt" in page


def test_one_person_has_no_spread():
    assert np.isnan(standard_error([3.0])) and standard_error([1.0, 3.0, float("nan")]) == 1
    assert "±" not in Report({}, [result(0, 20.0)], {}).text()


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
               "--corpus", str(corpus), "--others", "3"]
    report = tmp_path / "report.html"
    assert main([*command, "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "self reenactment" in shown and "mouth_correlation" in shown
    page = report.read_text()
    assert page.count("<figure>") == 12 and page.count("data:image/jpeg") == 12 and "http" not in page
    assert main([*command, "--compare", str(tiny_model), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for protocol in PROTOCOLS:
        assert told[protocol].keys() == told["ceiling"][protocol].keys() == told["floor"][protocol].keys()
        assert told["compared"][str(tiny_model)].keys() == told.keys() & set(PROTOCOLS)
        assert told["ceiling"][protocol]["identity_kept"] > 0.6 and told["ceiling"][protocol]["jitter_ratio"] == 1
        assert told[protocol]["fps"] > 0
    assert told["ceiling"]["pose_controlled"]["pose_error_deg"] < 6
    assert told["not_measured"].keys() == {"lpips", "fid", "fvd", "csim", "sync_c", "sync_d"}
    assert told["ceiling"]["self_reenactment"]["psnr"] == 60 > told["self_reenactment"]["psnr"]
    assert told["floor"]["audio_driven"]["blinks_per_minute"] == 0
    assert main([*command, "--report", str(tmp_path / "nowhere" / "x.html")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main([*command, "--protocols", "silence", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() & set(PROTOCOLS) == {"silence"}
    assert main([*command, "--compare", "model"]) == 2
    assert "what the first row is called" in capsys.readouterr().err
