"""The field's three protocols on people that nothing trained on, each beside a ceiling and a floor.

Self-reenactment: a person's first frame, driven by the person's own video. Cross-reenactment: driven by another's; here
the truth is known, too, because the other's motion can be rendered on the person. Audio-driven: the first frame and the
sound; what face and head do beside speaking is free, so only lips, lids and steadiness are measured.

Ceiling: the true frames, measured the same way: what the measuring itself gets wrong. Floor: the source stands still.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..face import Reader
from ..media import SAMPLE_RATE
from ..pipeline import IMTalker, Source
from .metrics import behaviour, copied_motion, mouth_motion, pictures, read_faces
from .performance import Performance, perform, speeches, spoken_motion

PROTOCOLS = ("self_reenactment", "cross_reenactment", "audio_driven")
ROWS = ("model", "ceiling", "floor")


@dataclass
class Result:
    """One protocol on one person: metrics by row of ROWS; some frames and the mouth's opening, for the report."""

    protocol: str
    person: int
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    frames: dict[str, np.ndarray] = field(default_factory=dict)  # row -> (n, S, S, 3)
    mouths: dict[str, np.ndarray] = field(default_factory=dict)  # row -> (T,)


def evaluate(talker: IMTalker, pack: Path, reader: Reader, people: int, seconds: float, *, corpus: Path | None = None,
             keep: int = 8, nfe: int | None = None, guidance_scale: float | None = None,
             progress: Callable[[], None] = lambda: None) -> Iterator[Result]:
    """Every protocol on `people` rendered people who talk for `seconds`. keep: frames that a result holds.
    `progress` is called after each protocol of each person."""
    size = talker.config.size
    said = list(speeches(people, seconds, corpus))
    motions = [spoken_motion(speech, person) for person, speech in enumerate(said)]
    true = first = perform(pack, 0, motions[0], said[0], size)
    for person in range(people):
        source, still = talker.encode_source(true.frames[0], crop=False), true.frames[:1]
        made = reenacted(talker, source, true.frames)
        yield compare("self_reenactment", person, made, still, true, reader, keep)
        progress()
        speech = (said[person].waveform, SAMPLE_RATE)
        made = np.stack(list(talker.animate(source, speech, nfe=nfe, guidance_scale=guidance_scale)))
        yield compare("audio_driven", person, made, still, true, reader, keep)
        progress()
        if people > 1:
            other = (person + 1) % people
            driving = perform(pack, other, motions[other], said[other], size) if other else first
            goal = perform(pack, person, motions[other], said[other], size)
            made = reenacted(talker, source, driving.frames)
            yield compare("cross_reenactment", person, made, still, goal, reader, keep)
            progress()
            true = driving  # the next person


def reenacted(talker: IMTalker, source: Source, driving: np.ndarray) -> np.ndarray:
    """Frames of the source moved as in frames (T, S, S, 3) that are framed by the crop policy already."""
    return np.stack(list(talker.reenact(source, driving, crop=False)))


def compare(protocol: str, person: int, made: np.ndarray, still: np.ndarray, true: Performance, reader: Reader,
            keep: int) -> Result:
    """Measure made frames beside the true ones and beside the source's one frame `still` (1, S, S, 3)."""
    clips = {"model": made, "ceiling": true.frames, "floor": np.broadcast_to(still, true.frames.shape)}
    result = Result(protocol, person)
    length = min(map(len, clips.values()))
    shown = np.linspace(0, length - 1, min(keep, length)).round().astype(int)
    for row, frames in clips.items():
        read = read_faces(frames[:length], reader)
        measured = {**mouth_motion(read, true), **behaviour(read, true)}
        if protocol != "audio_driven":
            measured = {**pictures(frames[:length], true.frames), **copied_motion(read, true), **measured}
        result.metrics[row], result.frames[row], result.mouths[row] = measured, frames[shown], read.mouth
    return result


def averages(results: list[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """row -> protocol -> metric: means over people. Lags are medians; where nobody was silent a metric is NaN."""
    table: dict[str, dict[str, dict[str, float]]] = {row: {} for row in ROWS}
    for row in ROWS:
        for protocol in PROTOCOLS:
            measured = [result.metrics[row] for result in results if result.protocol == protocol]
            if measured:
                table[row][protocol] = {name: middle(name, [m[name] for m in measured]) for name in measured[0]}
    return table


def middle(name: str, values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float((np.median if name.endswith("lag_frames") else np.mean)(known)) if known else float("nan")
