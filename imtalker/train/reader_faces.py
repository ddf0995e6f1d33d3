"""Faces to train the face reader on: a random framing and look, and changes under which a face stays a face.

What bends the picture bends the truth with it; beards, glasses, hats and what stands in front leave it as it is.
"""

from __future__ import annotations

import cv2
import numpy as np

from .reader_data import SIZE, Heads, Sample
from .reader_look import hair_texture, look, ordinary_light, polygon_alpha, texture

# what counts as framed by the crop policy, for the face score: shift (crop sides), scale, rotation (degrees)
FRAMED_SHIFT, FRAMED_SCALE, FRAMED_TURN = 0.17, (0.72, 1.38), 30


def face(heads: Heads, i: int, rng: np.random.Generator) -> Sample:
    """Frame i under a random framing and a random look."""
    wide = rng.random() < 0.15  # far off: to learn the way back, without an opinion on the score
    reach = 0.28 if wide else 0.15
    shift = rng.uniform(-reach, reach, 2)
    scale = np.exp(rng.uniform(np.log(0.55), np.log(1.6)) if wide else rng.uniform(np.log(0.75), np.log(1.35)))
    turn = float(rng.normal() * (22 if wide else 9))
    if not wide:
        turn = float(np.clip(turn, -25, 25))
    sample = heads.crop(i, shift, scale, turn, mirror=rng.random() < 0.5)
    framed = (
        np.abs(shift).max() <= FRAMED_SHIFT and FRAMED_SCALE[0] <= scale <= FRAMED_SCALE[1] and abs(turn) <= FRAMED_TURN
    )
    sample.framed = 1.0 if framed else None
    if rng.random() < 0.45:
        sample.image = _other_background(sample.image, sample.parts, heads, rng)
    if rng.random() < 0.35:
        _bend(sample, rng)
    if rng.random() < 0.12:
        _beard(sample, rng)
    if rng.random() < 0.10:
        _glasses(sample, rng)
    if rng.random() < 0.08:
        _hat(sample, rng)
    sample.image = look(sample.image, rng) if rng.random() < 0.5 else ordinary_light(sample.image, rng)
    if rng.random() < 0.10:
        sample.image = _occlude(sample.image, rng)
    return sample


def _other_background(image: np.ndarray, parts: np.ndarray, heads: Heads, rng: np.random.Generator) -> np.ndarray:
    behind = (
        texture(rng)
        if rng.random() < 0.6
        else np.ascontiguousarray(heads.picture(int(rng.integers(len(heads))))[:SIZE, -SIZE:])
    )
    if rng.random() < 0.5:
        behind = cv2.GaussianBlur(behind, (0, 0), rng.uniform(1, 6))
    alpha = cv2.resize((parts != 0).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    alpha = np.clip(alpha * 1.6 - 0.4, 0, 1)[..., None]
    return (image * alpha + behind * (1 - alpha)).astype(np.uint8)


def _bend(sample: Sample, rng: np.random.Generator) -> None:
    """Other proportions: a smooth random displacement, and sometimes large eyes, as in drawn figures."""
    coarse = rng.normal(size=(4, 4, 2)).astype(np.float32) * rng.uniform(0.005, 0.028)
    field = cv2.resize(
        coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC
    )  # where to fetch from, relative, in fractions
    at = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    if rng.random() < 0.4:
        eye_width = np.ptp(sample.landmarks[36:42, 0])
        strength, reach = rng.uniform(-0.15, 0.45), max(0.9 * eye_width, 0.02)
        for a, b in ((36, 42), (42, 48)):
            x, y = sample.landmarks[a:b].mean(0)
            dx, dy = at[None] - x, at[:, None] - y
            near = -strength * np.exp(-(dx**2 + dy**2) / (2 * reach**2))
            field[..., 0] += near * dx
            field[..., 1] += near * dy
    source_x, source_y = at[None] + field[..., 0], at[:, None] + field[..., 1]
    sample.image = cv2.remap(
        sample.image, source_x * SIZE - 0.5, source_y * SIZE - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    small = cv2.resize(field, (32, 32), interpolation=cv2.INTER_AREA)
    at = (np.arange(32, dtype=np.float32) + 0.5) / 32
    sample.parts = cv2.remap(
        sample.parts,
        (at[None] + small[..., 0]) * 32 - 0.5,
        (at[:, None] + small[..., 1]) * 32 - 0.5,
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_REPLICATE,
    )
    moved = sample.landmarks.copy()
    for _ in range(4):  # q + field(q) = p, for q
        index = np.clip((moved * SIZE).astype(int), 0, SIZE - 1)
        moved = sample.landmarks - field[index[:, 1], index[:, 0]]
    sample.landmarks = moved


def _beard(sample: Sample, rng: np.random.Generator) -> None:
    p = sample.landmarks
    hair = hair_texture(
        rng, rng.uniform(10, 110) * np.array([1, 0.85, 0.75]) if rng.random() < 0.8 else rng.uniform(150, 230, 3).mean()
    )
    alpha = np.zeros((SIZE, SIZE), np.float32)
    drop = (p[8] - p[57]) * rng.uniform(-0.1, 0.8)
    if rng.random() < 0.7:  # jaw and chin, without the mouth
        first = int(rng.integers(2, 6))
        jaw = p[first : 17 - first].copy()
        jaw[2:-2] += drop * rng.uniform(0, 1)
        alpha = np.maximum(
            alpha, polygon_alpha(np.concatenate([jaw, p[[54, 55, 56, 57, 58, 59, 48]] + 0.15 * (p[8] - p[57])]), 1.5)
        )
    if rng.random() < 0.7:  # moustache
        alpha = np.maximum(
            alpha, polygon_alpha(np.concatenate([p[48:55], (p[31:36] + p[[49, 50, 51, 52, 53]])[::-1] / 2]), 1.0)
        )
    alpha *= rng.uniform(0.3, 0.95)
    sample.image = np.clip(sample.image * (1 - alpha[..., None]) + hair * alpha[..., None], 0, 255).astype(np.uint8)


def _glasses(sample: Sample, rng: np.random.Generator) -> None:
    p, image = sample.landmarks * SIZE, sample.image.copy()
    colour, thick = rng.uniform(0, 90, 3).tolist(), int(rng.integers(1, 4))
    wide, high = rng.uniform(0.65, 1.0), rng.uniform(0.45, 0.85)
    centres = []
    for a, b in ((36, 42), (42, 48)):
        eye = p[a:b]
        width = max(np.linalg.norm(eye[3] - eye[0]), 4)
        centre = eye.mean(0) + [0, 0.1 * width]
        axes = (max(2, int(wide * width)), max(2, int(high * width)))
        level = np.degrees(np.arctan2(*(p[45] - p[36])[::-1]))
        if rng.random() < 0.2:  # tinted
            tinted = image.copy()
            cv2.ellipse(tinted, tuple(np.round(centre).astype(int).tolist()), axes, level, 0, 360, colour, -1)
            image = cv2.addWeighted(tinted, 0.35, image, 0.65, 0)
        cv2.ellipse(
            image, tuple(np.round(centre).astype(int).tolist()), axes, level, 0, 360, colour, thick, cv2.LINE_AA
        )
        centres.append((centre, axes[0]))
    (left, reach), (right, _) = centres
    step = (right - left) / max(np.linalg.norm(right - left), 1)
    for start, end in (
        (left + step * reach, right - step * reach),
        (left - step * reach, p[0] + 0.1 * (p[36] - p[0])),
        (right + step * reach, p[16] + 0.1 * (p[45] - p[16])),
    ):
        cv2.line(
            image,
            tuple(np.round(start).astype(int).tolist()),
            tuple(np.round(end).astype(int).tolist()),
            colour,
            thick,
            cv2.LINE_AA,
        )
    sample.image = image


def _hat(sample: Sample, rng: np.random.Generator) -> None:
    """A band, cap or scarf above the brows."""
    p = sample.landmarks
    up = p[27] - p[8]
    lift, tall, out = rng.uniform(0.15, 0.4), rng.uniform(0.3, 1.0), rng.uniform(0.05, 0.25) * (p[16] - p[0])
    low = np.array([p[0] + 0.2 * up - out, p[19] + lift * up, p[24] + lift * up, p[16] + 0.2 * up + out])
    high = np.array([p[16] + (0.4 + tall) * up + out, p[27] + (0.6 + tall) * up, p[0] + (0.4 + tall) * up - out])
    alpha = polygon_alpha(np.concatenate([low, high]), 0.8)[..., None]
    sample.image = (sample.image * (1 - alpha) + texture(rng) * alpha).astype(np.uint8)


def _occlude(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Something in front: at most a third of the side."""
    image, over = image.copy(), texture(rng)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        centre, axes = rng.integers(0, SIZE, 2).tolist(), rng.integers(6, 22, 2).tolist()
        cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 255, -1)
    image[mask > 0] = over[mask > 0]
    return image
