"""What must not pass for a face: things beside it, turned and spoilt faces, textures, animals."""

from __future__ import annotations

import cv2
import numpy as np

from .reader_data import SIZE, Heads, Sample
from .reader_look import hair_texture, look, polygon_alpha, texture


def no_face(heads: Heads, i: int, rng: np.random.Generator) -> Sample:
    """Something that must not pass for a framed face."""
    kind = rng.choice(
        ["off", "turned", "scrambled", "upended", "blank", "texture", "animal", "furry"],
        p=[0.26, 0.07, 0.10, 0.08, 0.09, 0.12, 0.18, 0.10],
    )
    if kind == "off":  # background, clothes, hair, half faces, wrong sizes
        if rng.random() < 0.6:
            away = rng.uniform(0, 2 * np.pi)
            far = rng.uniform(0.42, 1.1)
            image = heads.crop(
                i, (far * np.cos(away), far * np.sin(away)), np.exp(rng.uniform(-0.5, 0.8)), rng.normal() * 12
            ).image
        else:
            scale = rng.uniform(0.25, 0.42) if rng.random() < 0.4 else rng.uniform(2.3, 5)
            image = heads.crop(i, rng.uniform(-0.3, 0.3, 2) * scale, scale, rng.normal() * 12).image
    elif kind == "turned":
        image = heads.crop(i, rng.uniform(-0.1, 0.1, 2), rng.uniform(0.8, 1.3), rng.uniform(90, 270)).image
    elif kind == "texture":
        image = texture(rng)
    elif kind == "animal":
        background = heads.picture(i)[::2, ::2] if rng.random() < 0.3 else texture(rng)
        image = _animal(background, rng)
    else:
        sample = heads.crop(i, rng.uniform(-0.1, 0.1, 2), rng.uniform(0.8, 1.25), rng.normal() * 8, rng.random() < 0.5)
        image = {"scrambled": _scramble, "upended": _upend, "blank": _blank, "furry": _furry}[kind](sample, rng)
    if rng.random() < 0.5 and kind not in ("texture", "off"):
        image = _shift(image, rng)
    return Sample(look(image, rng), 0.0)


def _scramble(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    cells = int(rng.choice([3, 4, 5]))
    edge = SIZE // cells
    image, source, order = sample.image.copy(), sample.image, rng.permutation(cells * cells)
    for k, j in enumerate(order):
        (y, x), (v, u) = divmod(k, cells), divmod(int(j), cells)
        image[y * edge : (y + 1) * edge, x * edge : (x + 1) * edge] = source[
            v * edge : (v + 1) * edge, u * edge : (u + 1) * edge
        ]
    return image


def _upend(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """The inner face upside down in an upright head."""
    low, high = (sample.landmarks.min(0) * SIZE).astype(int), (sample.landmarks.max(0) * SIZE).astype(int)
    (x0, y0), (x1, y1) = np.clip(low, 0, SIZE - 8), np.clip(np.maximum(high, low + 8), 8, SIZE)
    image = sample.image.copy()
    inner = image[y0:y1, x0:x1]
    alpha = np.zeros(inner.shape[:2], np.float32)
    cv2.ellipse(
        alpha,
        (inner.shape[1] // 2, inner.shape[0] // 2),
        (inner.shape[1] // 2, inner.shape[0] // 2),
        0,
        0,
        360,
        1.0,
        -1,
    )
    alpha = cv2.GaussianBlur(alpha, (0, 0), 3)[..., None]
    image[y0:y1, x0:x1] = (inner[::-1] * alpha + inner * (1 - alpha)).astype(np.uint8)
    return image


def _blank(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """A head without eyes, or without mouth and nose, or without any of them."""
    p, which = sample.landmarks, int(rng.integers(3))
    groups = ([p[17:22], p[36:42]], [p[22:27], p[42:48]]) if which < 2 else ()
    groups = [np.concatenate(g) for g in groups] + ([p[48:68], p[29:36]] if which > 0 else [])
    alpha = np.zeros((SIZE, SIZE), np.float32)
    for points in groups:
        hull = cv2.convexHull(points.astype(np.float32))[:, 0]
        alpha = np.maximum(alpha, polygon_alpha(hull.mean(0) + (hull - hull.mean(0)) * 1.35, 1.5))
    cheeks = np.clip((p[[2, 14, 4, 12, 30]] * SIZE).astype(int), 0, SIZE - 1)
    skin = np.median(sample.image[cheeks[:, 1], cheeks[:, 0]].astype(np.float32), 0)
    smooth = cv2.GaussianBlur(sample.image, (0, 0), 9) * 0.4 + skin * 0.6
    return (sample.image * (1 - alpha[..., None]) + smooth * alpha[..., None]).astype(np.uint8)


def _fur(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    patches = cv2.resize(rng.standard_normal((5, 5)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    base = colour * np.exp(0.18 * patches)[..., None]
    return np.clip(hair_texture(rng, base), 0, 255)


def _snout(image: np.ndarray, at: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """A pale muzzle, dark nose and the line under it; `at` and `unit` in pixels."""
    x, y = at
    pale = rng.uniform(90, 250) * np.array([1, rng.uniform(0.8, 1), rng.uniform(0.6, 1)])
    mask = np.zeros((SIZE, SIZE), np.float32)
    cv2.ellipse(
        mask,
        (int(x), int(y + 0.35 * unit)),
        (int(max(2, unit * rng.uniform(0.5, 0.9))), int(max(2, unit * rng.uniform(0.5, 0.9)))),
        0,
        0,
        360,
        1.0,
        -1,
    )
    mask = (cv2.GaussianBlur(mask, (0, 0), rng.uniform(1, 4)) * rng.uniform(0.3, 1))[..., None]
    image = (image * (1 - mask) + _fur(rng, pale) * mask).astype(np.uint8)
    dark = rng.uniform(5, 60, 3).tolist() if rng.random() < 0.8 else rng.uniform(60, 200, 3).tolist()
    wide, high = unit * rng.uniform(0.15, 0.42), unit * rng.uniform(0.12, 0.3)
    if rng.random() < 0.6:
        cv2.ellipse(image, (int(x), int(y)), (int(max(1, wide)), int(max(1, high))), 0, 0, 360, dark, -1, cv2.LINE_AA)
    else:
        cv2.fillPoly(image, [np.int32([[x - wide, y - high], [x + wide, y - high], [x, y + high]])], dark, cv2.LINE_AA)
    if rng.random() < 0.8:
        low = int(y + unit * rng.uniform(0.3, 0.6))
        cv2.line(image, (int(x), int(y)), (int(x), low), dark, int(rng.integers(1, 3)), cv2.LINE_AA)
        for s in (-1, 1):
            cv2.ellipse(
                image,
                (int(x + s * 0.3 * unit), low),
                (int(max(1, 0.3 * unit)), int(max(1, unit * rng.uniform(0.05, 0.3)))),
                0,
                0,
                180,
                dark,
                int(rng.integers(1, 3)),
                cv2.LINE_AA,
            )
    return image


def _animal(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A drawn furry head: ears, two round eyes, a snout."""
    image = cv2.resize(background, (SIZE, SIZE)).copy()
    colour = rng.uniform(25, 245) * np.array([1, rng.uniform(0.65, 1), rng.uniform(0.4, 1)])
    centre = SIZE * rng.uniform([0.4, 0.42], [0.6, 0.6])
    wide, high = SIZE * rng.uniform(0.24, 0.5), SIZE * rng.uniform(0.24, 0.45)
    fur, mask = _fur(rng, colour), np.zeros((SIZE, SIZE), np.float32)
    pointed, out = rng.random() < 0.6, rng.uniform(0.4, 0.9)
    for s in (-1, 1):
        ear = centre + [s * wide * out, -high * rng.uniform(0.6, 0.95)]
        if pointed:
            tip = ear + [s * wide * rng.uniform(-0.1, 0.4), -high * rng.uniform(0.2, 0.7)]
            cv2.fillPoly(mask, [np.int32([ear + [-0.3 * wide, 0.3 * high], tip, ear + [0.3 * wide, 0.3 * high]])], 1.0)
        else:
            cv2.ellipse(
                mask,
                tuple(ear.astype(int).tolist()),
                (int(wide * 0.3), int(high * rng.uniform(0.25, 0.6))),
                s * rng.uniform(0, 40),
                0,
                360,
                1.0,
                -1,
            )
    cv2.ellipse(mask, tuple(centre.astype(int).tolist()), (int(wide), int(high)), 0, 0, 360, 1.0, -1)
    alpha = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.7, 2.5))[..., None]
    image = (image * (1 - alpha) + fur * alpha).astype(np.uint8)
    if rng.random() < 0.3:  # a blaze down the middle
        blaze = np.zeros((SIZE, SIZE), np.float32)
        cv2.ellipse(
            blaze,
            tuple(centre.astype(int).tolist()),
            (int(wide * rng.uniform(0.1, 0.35)), int(high)),
            0,
            0,
            360,
            1.0,
            -1,
        )
        blaze = cv2.GaussianBlur(blaze, (0, 0), 2)[..., None] * rng.uniform(0.4, 1)
        image = (image * (1 - blaze) + _fur(rng, rng.uniform(20, 250, 3)) * blaze).astype(np.uint8)
    apart, raised, radius = (
        wide * rng.uniform(0.28, 0.55),
        high * rng.uniform(0.02, 0.4),
        wide * rng.uniform(0.06, 0.17),
    )
    image = _snout(image, centre + [0, high * rng.uniform(0.15, 0.5)], wide * rng.uniform(0.4, 0.8), rng)
    iris = rng.uniform(5, 60, 3) if rng.random() < 0.65 else rng.uniform([90, 90, 20], [230, 220, 120])
    for s in (-1, 1):
        eye = tuple((centre + [s * apart, -raised]).astype(int).tolist())
        oval = (int(max(1, radius)), int(max(1, radius * rng.uniform(0.6, 1.1))))
        if rng.random() < 0.4:
            cv2.ellipse(
                image, eye, (oval[0] + 2, oval[1] + 1), 0, 0, 360, rng.uniform(5, 60, 3).tolist(), -1, cv2.LINE_AA
            )
        cv2.ellipse(image, eye, oval, s * rng.uniform(-20, 20), 0, 360, iris.tolist(), -1, cv2.LINE_AA)
        cv2.circle(image, eye, int(max(1, radius * 0.5)), (10, 10, 10), -1, cv2.LINE_AA)
        if rng.random() < 0.6:
            cv2.circle(image, (eye[0] - 1, eye[1] - 1), 1, (240, 240, 240), -1)
    return image


def _furry(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """A head's own shading under fur, with an animal's nose and eyes."""
    p = sample.landmarks * SIZE
    colour = rng.uniform(40, 235) * np.array([1, rng.uniform(0.65, 1), rng.uniform(0.4, 1)])
    hull = cv2.convexHull(sample.landmarks.astype(np.float32))[:, 0]
    alpha = polygon_alpha(hull.mean(0) + (hull - hull.mean(0)) * rng.uniform(1.1, 1.5), 2)[..., None]
    shade = cv2.GaussianBlur(cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY), (0, 0), 5)[..., None] / 140.0
    image = np.clip(sample.image * (1 - alpha) + _fur(rng, colour) * np.clip(shade, 0.4, 1.6) * alpha, 0, 255).astype(
        np.uint8
    )
    span = max(np.linalg.norm(p[45] - p[36]), 8)
    image = _snout(image, p[30] + [0, span * rng.uniform(-0.1, 0.3)], span * rng.uniform(0.5, 0.9), rng)
    iris, radius = rng.uniform(5, 60, 3).tolist(), max(1, int(span * rng.uniform(0.07, 0.15)))
    for eye in (p[36:42].mean(0), p[42:48].mean(0)):
        cv2.circle(image, tuple(eye.astype(int).tolist()), radius, iris, -1, cv2.LINE_AA)
        if rng.random() < 0.6:
            cv2.circle(image, tuple((eye - 1).astype(int).tolist()), 1, (240, 240, 240), -1)
    return image


def _shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = rng.uniform(0.8, 1.3)
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.normal() * 10, scale)
    matrix[:, 2] += rng.uniform(-0.1, 0.1, 2) * SIZE
    return cv2.warpAffine(image, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
