"""Train the recogniser of rendered people, by which evaluation tells whether a made clip still shows its source.

Light and colour are changed at random, so that the person counts and less the light that falls on them.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

from ..evaluate.identity import Recogniser, aligned_faces, fit
from .judge import command
from .reader_data import Heads


def faces_of(heads: Heads, rng: np.random.Generator | None = None) -> np.ndarray:
    """(N, 112, 112, 3) uint8 aligned faces of all frames; with `rng`, as read, in any light."""
    faces = []
    for i in range(len(heads)):
        picture, marks = heads.picture(i), heads.truth["landmarks"][i]
        if rng is not None:
            marks = marks + rng.normal(0, 0.004, marks.shape) + rng.normal(0, 0.003, 2)
        face = aligned_faces(picture[None], marks[None])[0]
        if rng is not None:
            gain = np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.04, 3))
            face = np.clip(face * gain, 0, 255).astype(np.uint8)
        faces.append(face)
    return np.stack(faces)


def train(data: Path, out: Path, seed: int = 0) -> Recogniser:
    """Fit a recogniser to the people in `data`, a folder of `imtalker synth`, and write it to `out`."""
    heads = Heads(data)
    recogniser = fit(faces_of(heads, np.random.default_rng(seed)), np.array(heads.identity))
    recogniser.save(out)
    return recogniser


def measure(weights: Path, data: Path) -> None:
    """Print how often, of all people in `data`, the one nearest to a picture is its own; each is known by one picture,
    the one whose head is turned least."""
    recogniser, heads = Recogniser.load(weights), Heads(data)
    codes, identity = recogniser(faces_of(heads)), np.array(heads.identity)
    turned = np.linalg.norm(heads.truth["pose"], axis=1)
    people = range(identity[-1] + 1)
    known = np.array([min(np.flatnonzero(identity == person), key=turned.__getitem__) for person in people])
    asked = np.setdiff1d(np.arange(len(heads)), known)
    found = (codes[asked] @ codes[known].T).argmax(1)
    print(f"{(found == identity[asked]).mean():.3f} of {len(asked)} pictures recognised among {len(known)} people")


def main(arguments: list[str] | None = None) -> None:
    command("recogniser", __doc__.split("\n")[0], train, measure, arguments)


if __name__ == "__main__":
    main()
