"""Numbers of one made clip against the truth. What a face does is read off pictures by the observer; how well that can
be read at all is seen when the true pictures are measured the same way.

Shapes: T frames, (T, S, S, 3) uint8 RGB.
"""
from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ..face import Reading
from ..face.reader import turn_between
from ..synth.motion import BLINK
from ..synth.visemes import VISEMES
from .identity import similarity
from .mouth import SHUT, blinks_per_minute, correlation_and_lag, jitter
from .performance import Performance

STILL = slice(17, 68)  # landmarks that are not the outline, which no point of the skin follows


def pictures(made: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """psnr (dB) and ssim (11x11 Gaussian window, sigma 1.5), means over frames; equal frames count as 60 dB."""
    rows = []
    for a, b in zip(made, true):
        a, b = (torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255 for x in (a, b))
        rows.append((float(peak_signal_noise_ratio(a, b, data_range=1.0).clamp(max=60)),
                     float(structural_similarity_index_measure(a, b, data_range=1.0))))
    return dict(zip(("psnr", "ssim"), np.mean(rows, 0).tolist()))


def copied_motion(read: Reading, true: Performance) -> dict[str, float]:
    """How well what was read off a clip matches what was to be copied, frame by frame.

    blink_error: of the lids, 0 to 1; landmark_distance and expression_error: mean distance of landmarks, percent of the
    distance of the outer eye corners, as they are and after moving, turning and scaling one set onto the other.
    """
    eyes = np.linalg.norm(true.landmarks[:, 36] - true.landmarks[:, 45], axis=-1)
    apart = np.linalg.norm(read.landmarks - true.landmarks, axis=-1)[:, STILL].mean(1) / eyes
    shapes = [np.linalg.norm(aligned(a[STILL], b[STILL]) - b[STILL], axis=-1).mean() / eye
              for a, b, eye in zip(read.landmarks, true.landmarks, eyes)]
    lids = true.motion.expression[:, BLINK]
    return {**pose_error(read, true), **gaze_error(read, true, lids),
            "blink_error": float(np.abs(read.blink - lids).mean()),
            "landmark_distance": 100 * float(apart.mean()), "expression_error": 100 * float(np.mean(shapes))}


def pose_error(read: Reading, true: Performance) -> dict[str, float]:
    """pose_error_deg: mean angle between head rotations."""
    turns = [turn_between(a, b) for a, b in zip(read.pose, true.motion.pose)]
    return {"pose_error_deg": float(np.degrees(turns).mean())}


def gaze_error(read: Reading, true: Performance, lids: np.ndarray) -> dict[str, float]:
    """gaze_error_deg: mean angle between gazes while lids (T, 2) are open; NaN if they never are."""
    looking = lids.max(1) < 0.4
    apart = np.linalg.norm(read.gaze - true.motion.gaze, axis=1)[looking]
    return {"gaze_error_deg": float(np.degrees(apart).mean()) if len(apart) else float("nan")}


def mouth_motion(read: Reading, true: Performance) -> dict[str, float]:
    """mouth_correlation and mouth_lag_frames of the opening against the true one, positive when late."""
    correlation, lag = correlation_and_lag(read.mouth, true.mouth)
    return {"mouth_correlation": correlation, "mouth_lag_frames": lag}


def behaviour(read: Reading, true: Performance) -> dict[str, float]:
    """mouth_shut_in_silence: share of frames; blinks_per_minute; head_jitter_deg and landmark_jitter (percent of the
    eye distance): mean size of second differences."""
    quiet = true.speech.curves()[:len(read), VISEMES.index("sil")] > 0.97
    eyes = np.linalg.norm(read.landmarks[:, 36] - read.landmarks[:, 45], axis=-1).mean()
    steps = np.diff(read.landmarks[:, STILL], 2, axis=0)
    return {"mouth_shut_in_silence": float((read.mouth[quiet] < SHUT).mean()) if quiet.any() else float("nan"),
            "blinks_per_minute": blinks_per_minute(read.blink.mean(1)),
            "head_jitter_deg": jitter(np.degrees(read.pose)),
            "landmark_jitter": 100 * float(np.linalg.norm(steps, axis=-1).mean() / eyes)}


def aligned(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Points (N, 2) after the similarity (move, turn, scale) that brings them nearest to `onto` (N, 2)."""
    matrix = similarity(points, onto)
    return points @ matrix[:, :2].T + matrix[:, 2]
