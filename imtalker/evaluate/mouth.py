"""Does the mouth go with the sound? Measured on finished video, by the face reader and the sound track alone.

    python -m imtalker.evaluate.mouth VIDEO…
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

from ..face import driving_crop, read_controls
from ..media import FPS, VideoReader, load_audio, loudness
from ..options import OptionParser

REACH = 8  # frames to either side at which a lag is looked for
RANGE = 35.0  # decibels below the loud frames that still count as sound
SHUT = 0.03  # an inner-lip gap below this share of the eye distance looks shut


def correlation_and_lag(made: np.ndarray, truth: np.ndarray, reach: int = REACH) -> tuple[float, int]:
    """Correlation of two curves (T,) at no lag, and the lag where it is greatest; frames, positive: `made` is late."""
    def at(lag: int) -> float:
        a, b = (made[lag:], truth[:len(truth) - lag]) if lag >= 0 else (made[:lag], truth[-lag:])
        return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and a.std() > 1e-9 and b.std() > 1e-9 else 0.0

    scores = [at(lag) for lag in range(-reach, reach + 1)]
    return at(0), int(np.argmax(scores)) - reach


def against_loudness(opening: np.ndarray, waveform: np.ndarray) -> dict[str, float]:
    """How an opening (T,) at 25 frames a second follows the loudness of a waveform (samples,) at 16 kHz.

    mouth_correlation, mouth_lag_frames; mouth_shut_in_silence: share of shut frames where the sound is 35 dB below its
    loud frames (NaN if it never is); mouth_opening_when_loud: mean over frames within 12 dB of the loudest.
    """
    level = loudness(waveform)[:len(opening)]
    opening = opening[:len(level)]
    floor = np.percentile(level, 95) - RANGE
    level = np.maximum(level, floor)
    # A syllable is longer than a frame: a light smoothing compares what is seen, not single frames.
    smooth = [np.convolve(np.pad(x, 2, "edge"), np.hanning(7)[1:-1] / 3, "valid") for x in (opening, level)]
    correlation, lag = correlation_and_lag(*smooth)
    # A mouth closes in time: only the inside of a pause counts.
    quiet = np.convolve(level <= floor + 3, np.ones(7), "same") >= 6.5
    loud = level > level.max() - 12
    return {"mouth_correlation": correlation, "mouth_lag_frames": lag,
            "mouth_shut_in_silence": float((opening[quiet] < SHUT).mean()) if quiet.any() else float("nan"),
            "mouth_opening_when_loud": float(opening[loud].mean())}


def measure_video(path: str | Path) -> dict[str, float]:
    """`against_loudness` of the mouth in a video with sound; also blinks a minute and how steady the head is.

    Raises InputError when the video has no face or no sound.
    """
    video = VideoReader(path)
    controls = read_controls(video, driving_crop(video))
    return {**against_loudness(controls.mouth, load_audio(path)),
            "blinks_per_minute": blinks_per_minute(controls.blink.mean(1)),
            "head_jitter_deg": jitter(np.degrees(controls.pose))}


def blinks_per_minute(lids: np.ndarray) -> float:
    """Closings a minute of lids (T,), 0 open to 1 closed, at 25 frames a second."""
    return float((np.diff((lids > 0.5).astype(int)) == 1).sum() / (len(lids) / FPS / 60))


def jitter(pose: np.ndarray) -> float:
    """Mean size of the second difference of a pose (T, 3), in its own unit."""
    return float(np.linalg.norm(np.diff(pose, 2, axis=0), axis=1).mean())


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="python -m imtalker.evaluate.mouth", description=__doc__.split("\n")[0])
    parser.add_argument("videos", nargs="+", type=Path, help="videos with sound")
    for video in parser.parse_args(arguments).videos:
        print(video.name, "  ".join(f"{name} {value:.3f}" for name, value in measure_video(video).items()))


if __name__ == "__main__":
    main()
