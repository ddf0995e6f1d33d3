"""Does the mouth go with the sound? Measured on finished video, by the face reader.

    python -m imtalker.evaluate.mouth VIDEO…
    python -m imtalker.evaluate.mouth --corpus data/speech/test.npz

The first compares the mouth with the sound track's loudness. The second lets a picture speak sentences of synthetic
voices, whose phones are known to the millisecond, and compares the mouth with them too.
"""
from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..bundled import ASSETS
from ..errors import InputError
from ..face import driving_crop, read_curves
from ..media import FPS, SAMPLE_RATE, VideoReader, load_audio, loudness
from ..options import OptionParser, count_to

if TYPE_CHECKING:
    from ..pipeline import IMTalker, Source
    from ..synth.speech import Speech

REACH = 8  # frames to either side at which a lag is looked for
RANGE = 35.0  # decibels below the loud frames that still count as sound
SHUT = 0.03  # an inner-lip gap below this share of the eye distance looks shut


def correlation_and_lag(made: np.ndarray, truth: np.ndarray, reach: int = REACH) -> tuple[float, int]:
    """Correlation of two curves (T,) at no lag, and the lag where it is greatest; frames, positive: `made` is late.
    Both are 0 where a curve stands still."""
    def at(lag: int) -> float:
        a, b = (made[lag:], truth[:len(truth) - lag]) if lag >= 0 else (made[:lag], truth[-lag:])
        return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and a.std() > 1e-9 and b.std() > 1e-9 else 0.0

    scores = [at(lag) for lag in range(-reach, reach + 1)]
    return at(0), int(np.argmax(scores)) - reach if any(scores) else 0


def against_loudness(opening: np.ndarray, waveform: np.ndarray) -> dict[str, float]:
    """How an opening (T,) at 25 frames a second follows the loudness of a waveform (samples,) at 16 kHz.

    loudness_correlation, loudness_lag_frames; shut_when_quiet: share of shut frames where the sound is 35 dB below its
    loud frames (NaN if it never is); opening_when_loud: mean over frames within 12 dB of the loudest.
    """
    level = loudness(waveform)[:len(opening)]
    opening = opening[:len(level)]
    floor = np.percentile(level, 95) - RANGE
    level = np.maximum(level, floor)
    correlation, lag = correlation_and_lag(_syllables(opening), _syllables(level))
    # A mouth closes in time: only the inside of a pause counts.
    quiet = np.convolve(level <= floor + 3, np.ones(7), "same") >= 6.5
    loud = level > level.max() - 12
    return {"loudness_correlation": correlation, "loudness_lag_frames": lag,
            "shut_when_quiet": float((opening[quiet] < SHUT).mean()) if quiet.any() else float("nan"),
            "opening_when_loud": float(opening[loud].mean())}


def against_phones(opening: np.ndarray, speech: Speech) -> dict[str, float]:
    """How an opening (T,) follows the phones of `speech`.

    phone_correlation, phone_lag_frames: against the opening that coarticulated visemes want. opening_at_*: mean where
    the phones say silence (sil), closed lips (PP: p, b, m) or an open vowel (aa); NaN where none of them is.
    """
    from ..synth.visemes import OPENING, VISEMES

    visemes = speech.curves()[:len(opening)]
    correlation, lag = correlation_and_lag(_syllables(opening), _syllables(visemes @ OPENING))
    said = {name: opening[visemes[:, VISEMES.index(name)] > 0.6] for name in ("sil", "PP", "aa")}
    return {"phone_correlation": correlation, "phone_lag_frames": lag,
            **{f"opening_at_{name}": float(x.mean()) if len(x) else float("nan") for name, x in said.items()}}


def _syllables(curve: np.ndarray) -> np.ndarray:
    """A syllable is longer than a frame: a light smoothing, so that what is seen is compared and not single frames."""
    return np.convolve(np.pad(curve, 2, "edge"), np.hanning(7)[1:-1] / 3, "valid")


def measure_video(path: str | Path, speech: Speech | None = None) -> dict[str, float]:
    """`against_loudness` of the mouth in a video with sound; also blinks a minute and how steady the head is; and
    `against_phones` where it is known what the sound says.

    Raises InputError when the video has no face or no sound.
    """
    video = VideoReader(path)
    curves = read_curves(video, driving_crop(video))
    return {**against_loudness(curves.mouth, load_audio(path)),
            **(against_phones(curves.mouth, speech) if speech else {}),
            "blinks_per_minute": blinks_per_minute(curves.blink.mean(1)),
            "head_jitter_deg": jitter(np.degrees(curves.pose))}


def measure_model(talker: IMTalker, source: Source, speech: Speech) -> dict[str, float]:
    """`measure_video` of `source` made to say `speech`, through a video file as a user would get it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.mp4"
        talker.animate(source, (speech.waveform, SAMPLE_RATE)).save(path)
        return measure_video(path, speech)


def blinks_per_minute(lids: np.ndarray) -> float:
    """Closings a minute of lids (T,), 0 open to 1 closed, at 25 frames a second."""
    return float((np.diff((lids > 0.5).astype(int)) == 1).sum() / (len(lids) / FPS / 60))


def jitter(pose: np.ndarray) -> float:
    """Mean size of the second difference of a pose (T, 3), in its own unit."""
    return float(np.linalg.norm(np.diff(pose, 2, axis=0), axis=1).mean())


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="python -m imtalker.evaluate.mouth", description=__doc__.split("\n")[0])
    parser.add_argument("videos", nargs="*", type=Path, help="videos with sound")
    parser.add_argument("--corpus", type=Path, metavar="FILE",
                        help="speech made by `imtalker synth --speech`: let a picture say its clips, measure that")
    parser.add_argument("--source", type=Path, metavar="PICTURE", help="who says it (default: the bundled picture)")
    parser.add_argument("--model", default="mini", metavar="NAME|DIR", help="(default: mini)")
    parser.add_argument("--clips", type=count_to(10**6), default=4, metavar="N", help="how many (default: 4)")
    options = parser.parse_args(arguments)
    if not options.videos and not options.corpus:
        parser.error("nothing to measure: give videos, or --corpus")
    try:
        _measure(options)
    except InputError as error:
        parser.error(str(error))


def _measure(options: Namespace) -> None:
    for video in options.videos:
        _show(video.name, measure_video(video))
    if options.corpus:
        from ..pipeline import IMTalker
        from ..synth.speech import read_corpus

        talker, rows = IMTalker.from_pretrained(options.model), []
        source = talker.encode_source(options.source or ASSETS / "sample.png")
        for speech in [clip for clip in read_corpus(options.corpus) if clip.segments][:options.clips]:
            rows.append(measure_model(talker, source, speech))
            _show(f"voice {speech.voice}", rows[-1])
        _show("median", {name: float(np.nanmedian([row[name] for row in rows])) for name in rows[0]})


def _show(what: str, measured: dict[str, float]) -> None:
    print(what, "  ".join(f"{name} {value:.3f}" for name, value in measured.items()))


if __name__ == "__main__":
    main()
