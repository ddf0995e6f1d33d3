"""People whom no network has met, saying something: rendered, so that all about them is known exactly."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..media import FPS, SAMPLE_RATE
from ..synth.motion import Motion, steered, talking
from ..synth.pack import load_pack
from ..synth.scene import Scene
from ..synth.speech import Speech, clip, in_turn, read_corpus

PEOPLE_SEED = 7919  # evaluation's people are not those of any data set that `imtalker synth` makes by default


@dataclass(frozen=True)
class Performance:
    """T frames at 25 a second of one person, and the truth about them."""

    frames: np.ndarray  # (T, S, S, 3) uint8 RGB, framed by the crop policy
    landmarks: np.ndarray  # (T, 68, 2) float32, fractions of the frame
    mouth: np.ndarray  # (T,) float32, gap of the inner lips over the distance of the outer eye corners
    motion: Motion
    speech: Speech


def perform(pack: Path, person: int, motion: Motion, speech: Speech, size: int) -> Performance:
    """Held-out person number `person` doing `motion`, which belongs to `speech`."""
    scene = Scene(load_pack(str(pack)), "heldout", [PEOPLE_SEED, person], size)
    shots = [scene.render(*row) for row in zip(motion.pose, motion.cam, motion.gaze, motion.expression)]
    mouth = np.array([shot.mouth for shot in shots], np.float32)
    return Performance(np.stack([shot.image for shot in shots]), np.stack([shot.landmarks for shot in shots]), mouth,
                       motion, speech)


def speeches(count: int, seconds: float, corpus: Path | None) -> Iterator[Speech]:
    """`count` clips of voices that nothing trained on, cut to `seconds`; from a file of `imtalker synth --speech`, or
    spoken now by whatever synthesizers are installed. Raises InputError when there are none."""
    rng = np.random.default_rng(PEOPLE_SEED)
    stored = iter([speech for speech in read_corpus(corpus) if speech.segments] if corpus else [])
    for _ in range(count):
        parts = []
        while sum(len(part.waveform) for part in parts) < seconds * SAMPLE_RATE:
            part = next(stored, None) if corpus else clip(rng, held_out=True)
            if part is None:
                raise InputError(f"{str(corpus)!r} has too little speech for {count} people of {seconds:g} s: take "
                                 "fewer, or make more with `imtalker synth --speech`")
            if part.segments:
                parts.append(part)
        yield first_seconds(in_turn(parts), seconds)


def first_seconds(speech: Speech, seconds: float) -> Speech:
    samples = round(seconds * FPS) * SAMPLE_RATE // FPS
    rows = [(a, min(b, seconds), name) for a, b, name in speech.segments if a < seconds]
    return Speech(speech.waveform[:samples], rows, speech.voice)


def spoken_motion(speech: Speech, seed: int) -> Motion:
    """Natural motion of a person who says `speech`."""
    return talking(np.random.default_rng([PEOPLE_SEED, seed]), speech.curves(), speech.energy())


def silence(seconds: float) -> Speech:
    return Speech(np.zeros(round(seconds * FPS) * SAMPLE_RATE // FPS, np.float32), [(0.0, seconds, "sil")], "nobody")


def resting_motion(quiet: Speech, start: Motion, seed: int) -> Motion:
    """Natural motion of a person who listens, from the first frame of `start` on."""
    return talking(np.random.default_rng([PEOPLE_SEED, seed, 1]), quiet.curves(), quiet.energy(), base=start)


def asked_pose(motion: Motion) -> Motion:
    """`motion` with its head turned through the whole range: 25 degrees left and right, 15 up and down, 10 of roll."""
    return steered(motion, pose=_waves(len(motion), (15, 25, 10), (2.3, 3.1, 4.0)))


def asked_gaze(motion: Motion) -> Motion:
    """`motion` with its eyes going 20 degrees left and right, up and down."""
    return steered(motion, gaze=_waves(len(motion), (20, 20), (3.1, 2.3)))


def _waves(frames: int, degrees: tuple[float, ...], periods: tuple[float, ...]) -> np.ndarray:
    """(frames, columns) sines from 0 on, radians; periods in seconds."""
    time = np.arange(frames)[:, None] / FPS
    return np.float32(np.radians(degrees) * np.sin(2 * np.pi * time / np.array(periods)))
