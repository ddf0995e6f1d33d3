"""The field's protocols on people that nothing trained on, each beside a ceiling and a floor.

Self-reenactment: a person's first frame, driven by the person's own video. Cross-reenactment: driven by another's; here
the truth is known, too, because the other's motion can be rendered on the person. Audio-driven: the first frame and the
sound; what face and head do beside speaking is free, so only lips, lids and steadiness are measured. Pose- and
gaze-controlled: the sound, and a head or eyes that are asked to go through their whole range. Silence: no sound at all.

Ceiling: the true frames, measured the same way: what the measuring itself gets wrong. Floor: the source stands still.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..face import Reader, Reading
from ..media import FPS, SAMPLE_RATE
from ..pipeline import IMTalker
from ..synth.motion import Motion
from ..synth.speech import Speech
from . import PROTOCOLS
from .field import Networks, frechet
from .identity import Recogniser, aligned_faces
from .metrics import behaviour, copied_motion, gaze_error, mouth_motion, pictures, pose_error
from .observer import Observer, observe
from .performance import (
    Performance,
    asked_gaze,
    asked_pose,
    perform,
    resting_motion,
    silence,
    speeches,
    spoken_motion,
)

COMPARED_AS_SETS = PROTOCOLS[:3]  # by the Frechet distances of FID and FVD
MODEL, CEILING, FLOOR = "model", "ceiling", "floor"


@dataclass(frozen=True)
class Task:
    """One protocol on one person: what is given to a model, and what should come out."""

    protocol: str
    person: int
    still: np.ndarray  # (1, S, S, 3), the source
    true: Performance
    driving: np.ndarray | None = None  # (T, S, S, 3); without, the truth's speech drives


@dataclass(frozen=True)
class Judges:
    """What measures."""

    reader: Reader
    observer: Observer
    recogniser: Recogniser
    networks: Networks

    def see(self, frames: np.ndarray) -> Reading:
        """What faces in frames (T, S, S, 3) do."""
        return observe(frames, self.reader, self.observer)

    def recognise(self, frames: np.ndarray, read: Reading) -> np.ndarray:
        """(T, 64) unit vectors that tell people apart."""
        return self.recogniser(aligned_faces(frames, read.landmarks))


@dataclass
class Result:
    """One protocol on one person, by row: metrics, and what report and distances of sets need."""

    protocol: str
    person: int
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    frames: dict[str, np.ndarray] = field(default_factory=dict)  # some, (n, S, S, 3)
    mouths: dict[str, np.ndarray] = field(default_factory=dict)  # opening, (T,)
    features: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # by metric, (n, D)


def evaluate(talkers: dict[str, IMTalker], pack: Path, judges: Judges, people: int, seconds: float, *,
             corpus: Path | None = None, protocols: Sequence[str] = PROTOCOLS, others: int = 92, keep: int = 8,
             nfe: int | None = None, guidance_scale: float | None = None,
             progress: Callable[[], None] = lambda: None) -> Iterator[Result]:
    """Each of `protocols` on `people` rendered people who talk for `seconds`, with each of `talkers`. One is named
    "model" and sampled with `nfe` and `guidance_scale`, the others as they are best sampled.

    others: how many people the source may be mistaken for. keep: frames that a result holds. `progress` is called after
    each result, of which there are `count_results`.
    """
    if not count_results(people, protocols):
        raise InputError("cross_reenactment needs two people, one is given: take --people 2 or more")
    size = talkers[MODEL].config.size
    said = list(speeches(people, seconds, corpus))
    motions = [spoken_motion(speech, person) for person, speech in enumerate(said)]
    known = []
    for person in range(people + others):
        speech = said[person % people]
        motion = motions[person] if person < people else spoken_motion(speech, person)
        still = perform(pack, person, motion[:1], speech, size).frames
        known.append(judges.recognise(still, judges.see(still)))
    known = np.concatenate(known)
    for task in tasks(pack, said, motions, size, protocols):
        made, pace = {}, {}
        for name, talker in talkers.items():
            sampling = {"nfe": nfe, "guidance_scale": guidance_scale} if name == MODEL else {}
            begun = time.perf_counter()
            made[name] = make(talker, task, **sampling)
            pace[name] = len(made[name]) / (time.perf_counter() - begun)
        yield compare(task, made, pace, judges, known, keep)
        progress()


def count_results(people: int, protocols: Sequence[str] = PROTOCOLS) -> int:
    return people * len(protocols) - (people == 1 and "cross_reenactment" in protocols)


def tasks(pack: Path, said: list[Speech], motions: list[Motion], size: int,
          protocols: Sequence[str] = PROTOCOLS) -> Iterator[Task]:
    """All tasks, person by person; every motion of every person is rendered once."""
    people = len(said)
    true = first = perform(pack, 0, motions[0], said[0], size)
    for person, (speech, motion) in enumerate(zip(said, motions)):
        still = true.frames[:1]
        if "self_reenactment" in protocols:
            yield Task("self_reenactment", person, still, true, driving=true.frames)
        if "audio_driven" in protocols:
            yield Task("audio_driven", person, still, true)
        for protocol, asked in (("pose_controlled", asked_pose), ("gaze_controlled", asked_gaze)):
            if protocol in protocols:
                yield Task(protocol, person, still, perform(pack, person, asked(motion), speech, size))
        if "silence" in protocols:
            quiet = silence(len(motion) / FPS)
            resting = resting_motion(quiet, motion[:1], person)
            yield Task("silence", person, still, perform(pack, person, resting, quiet, size))
        if people > 1:
            other = (person + 1) % people
            driving = perform(pack, other, motions[other], said[other], size) if other else first
            if "cross_reenactment" in protocols:
                goal = perform(pack, person, motions[other], said[other], size)
                yield Task("cross_reenactment", person, still, goal, driving=driving.frames)
            true = driving  # the next person


def make(talker: IMTalker, task: Task, **sampling) -> np.ndarray:
    """Frames (T, S, S, 3) of what a model makes of a task, scaled to the size of the truth."""
    source = talker.encode_source(task.still[0], crop=False)
    if task.driving is not None:
        clip = talker.reenact(source, task.driving, crop=False)
    else:
        motion = task.true.motion
        asked = {"pose_controlled": {"pose": motion.pose}, "gaze_controlled": {"gaze": motion.gaze}}
        clip = talker.animate(source, (task.true.speech.waveform, SAMPLE_RATE), **asked.get(task.protocol, {}),
                              **sampling)
    size = task.still.shape[1:3]
    return np.stack([x if x.shape[:2] == size else cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in clip])


def compare(task: Task, made: dict[str, np.ndarray], pace: dict[str, float], judges: Judges, known: np.ndarray,
            keep: int) -> Result:
    """Measure made frames, by row, beside the true ones and beside the source standing still. pace: frames a second;
    known: the recogniser's codes (n, 64) of everybody's source, the person's own at its number."""
    clips = {**made, CEILING: task.true.frames, FLOOR: np.broadcast_to(task.still, task.true.frames.shape)}
    result = Result(task.protocol, task.person)
    length = len(task.true.frames)
    shown = np.linspace(0, length - 1, min(keep, length)).round().astype(int)
    marks = judges.see(task.still).landmarks
    for row, frames in clips.items():
        read = judges.see(frames)
        result.metrics[row] = measure(task, frames, read, judges, known, marks)
        result.metrics[row]["fps"] = pace.get(row, float("nan"))
        result.frames[row], result.mouths[row] = frames[shown], read.mouth
        if task.protocol in COMPARED_AS_SETS:
            result.features[row] = judges.networks.features(frames)
    steady = result.metrics[CEILING]["landmark_jitter"]
    for measured in result.metrics.values():
        measured["jitter_ratio"] = measured["landmark_jitter"] / steady if steady else float("nan")
    return result


def measure(task: Task, frames: np.ndarray, read: Reading, judges: Judges, known: np.ndarray,
            marks: np.ndarray) -> dict[str, float]:
    """The metrics of one clip (T, S, S, 3), of which `read` is what is seen; known: see `compare`; marks: landmarks
    (1, 68, 2) of the source. identity_kept: share of frames to which, of all sources, the person's own is nearest."""
    true, networks, measured = task.true, judges.networks, {}
    if task.driving is not None:
        measured = {**pictures(frames, true.frames), "lpips": networks.lpips(frames, true.frames),
                    **copied_motion(read, true)}
    elif task.protocol == "pose_controlled":
        measured = pose_error(read, true)
    elif task.protocol == "gaze_controlled":
        measured = gaze_error(read, true, read.blink)
    if task.protocol != "silence":
        measured |= mouth_motion(read, true)
    nearest = (judges.recognise(frames, read) @ known.T).argmax(1)
    measured |= {**behaviour(read, true), "identity_kept": float((nearest == task.person).mean()),
                 "csim": networks.csim(frames, read.landmarks, task.still, marks)}
    if task.protocol == "audio_driven":
        measured |= networks.sync(frames, true.speech.waveform)
    return measured


# ------------------------------------------------------------------------------------------------------------ averages


def averages(results: list[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """row -> protocol -> metric: means over people. Lags are medians; where nobody was silent a metric is NaN."""
    return _over_people(results, middle, distances=True)


def spreads(results: list[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """row -> protocol -> metric: standard errors of the means over people; NaN for less than two people."""
    return _over_people(results, lambda name, values: standard_error(values))


def _over_people(results: list[Result], reduce: Callable, distances: bool = False) -> dict:
    table: dict[str, dict[str, dict[str, float]]] = {row: {} for row in (results[0].metrics if results else ())}
    for row, protocol in ((row, protocol) for row in table for protocol in PROTOCOLS):
        those = [result for result in results if result.protocol == protocol]
        if those:
            measured = [result.metrics[row] for result in those]
            table[row][protocol] = {name: reduce(name, [m[name] for m in measured]) for name in measured[0]}
            if distances and protocol in COMPARED_AS_SETS:
                table[row][protocol] |= {name: _distance(those, row, name) for name in ("fid", "fvd")}
    return table


def _distance(results: list[Result], row: str, name: str) -> float:
    """Of a row's features from those of the truth, all people together; NaN where there are none."""
    made, true = ([r.features[which][name] for r in results if name in r.features[which]] for which in (row, CEILING))
    return frechet(np.concatenate(made), np.concatenate(true)) if made else float("nan")


def middle(name: str, values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float((np.median if name.endswith("lag_frames") else np.mean)(known)) if known else float("nan")


def standard_error(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.std(known, ddof=1) / len(known) ** 0.5) if len(known) > 1 else float("nan")
