"""How the same content may look: photograph, old print, painting, drawing, poor video; and textures to paint with.

Pictures are (128, 128, 3) uint8 RGB.
"""

from __future__ import annotations

import cv2
import numpy as np

from .reader_data import SIZE


def look(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photograph, old print, painting, drawing or poor video of the same content."""
    if rng.random() < 0.15:
        image = _painted(image, rng)
    if rng.random() < 0.07:
        image = _drawn(image, rng)
    x = image.astype(np.float32) / 255
    if rng.random() < 0.35:  # light from one side
        angle, at = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, SIZE, dtype=np.float32)
        x = (
            x
            * (1 + rng.uniform(0, 0.7) * np.tanh(2 * (np.cos(angle) * at[None] + np.sin(angle) * at[:, None])))[
                ..., None
            ]
        )
    if rng.random() < 0.7:
        x = np.clip(x, 0, 1) ** np.exp(rng.normal() * 0.3)
        x = x * (1 + rng.normal(size=3) * 0.10).astype(np.float32) + rng.normal() * 0.06
    colour = rng.random()
    if colour < 0.22:  # grey, or one tint: photograph, stone, bronze, sepia
        grey = x @ np.float32([0.3, 0.59, 0.11])
        low, high = rng.uniform(0, 0.3, 3), rng.uniform(0.6, 1.1, 3)
        if rng.random() < 0.55:
            low, high = low[:1].repeat(3), high[:1].repeat(3)
        x = grey[..., None] * (high - low).astype(np.float32) + low.astype(np.float32)
    elif colour < 0.45:
        hsv = cv2.cvtColor(np.clip(x, 0, 1).astype(np.float32), cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + rng.normal() * (60 if rng.random() < 0.15 else 10)) % 360
        hsv[..., 1] = np.clip(hsv[..., 1] * np.exp(rng.normal() * 0.5), 0, 1)
        x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.random() < 0.3:
        middle = x.mean()
        x = (x - middle) * rng.uniform(0.25, 1.6) + middle
    if rng.random() < 0.06:
        levels = rng.integers(3, 8)
        x = np.round(x * levels) / levels
    if rng.random() < 0.22:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.8))
    elif rng.random() < 0.12:
        length, angle = rng.integers(3, 8), rng.uniform(0, np.pi)
        kernel = np.zeros((9, 9), np.float32)
        step = length / 2 * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(
            kernel, tuple(np.round(4 - step).astype(int).tolist()), tuple(np.round(4 + step).astype(int).tolist()), 1.0
        )
        x = cv2.filter2D(x, -1, kernel / kernel.sum())
    if rng.random() < 0.2:
        small = int(SIZE / rng.uniform(1.3, 4))
        x = cv2.resize(
            cv2.resize(x, (small, small), interpolation=cv2.INTER_AREA),
            (SIZE, SIZE),
            interpolation=cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR,
        )
    if rng.random() < 0.35:
        noise = rng.standard_normal((SIZE, SIZE, 3 if rng.random() < 0.5 else 1), dtype=np.float32)
        if rng.random() < 0.3:
            noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.6, 1.5)).reshape(SIZE, SIZE, -1) * 2
        x = x + noise * rng.uniform(0.01, 0.09)
    image = np.clip(x * 255, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = int(rng.integers(12, 75))
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return image


def ordinary_light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another exposure, white balance and sharpness: what an ordinary camera may do."""
    values = np.arange(256, dtype=np.float32) / 255
    gain = 1 + rng.normal(size=(1, 3)).astype(np.float32) * 0.06
    table = np.clip(values[:, None] ** np.exp(rng.normal() * 0.2) * gain * 255, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table[None])
    if rng.random() < 0.15:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9)) if rng.random() < 0.3 else image


def _painted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kind = rng.random()
    if kind < 0.4:
        image = cv2.medianBlur(image, int(rng.choice([3, 5, 7])))
    elif kind < 0.8:
        image = cv2.bilateralFilter(image, 7, rng.uniform(20, 90), rng.uniform(2, 5))
    else:
        image = cv2.dilate(cv2.erode(image, np.ones((3, 3))), np.ones((3, 3)))
    if rng.random() < 0.5:  # canvas or brush strokes
        grain = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
        kernel = np.zeros((7, 7), np.float32)
        cv2.line(kernel, (0, int(rng.integers(7))), (6, int(rng.integers(7))), 1.0)
        grain = cv2.filter2D(grain, -1, kernel / kernel.sum())
        image = np.clip(image + grain[..., None] * rng.uniform(10, 50), 0, 255).astype(np.uint8)
    return image


def _drawn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pencil: what is darker than its surroundings, on paper."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    ratio = np.clip(grey / (cv2.GaussianBlur(grey, (0, 0), rng.uniform(2, 10)) + 1), 0, 1)
    share = rng.uniform(0, 0.5)
    drawing = np.clip(ratio ** rng.uniform(1, 4) * (1 - share) + share * grey / max(grey.max(), 1), 0, 1)
    return (drawing[..., None] * rng.uniform(190, 255, 3) * [1, 1, 1]).astype(np.uint8)


def texture(rng: np.random.Generator) -> np.ndarray:
    """Noise of several sizes, stripes, gradients, blobs: walls, cloth, leaves, anything."""
    x = np.zeros((SIZE, SIZE, 3), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        shape = rng.integers(2, 40, 2)
        noise = rng.standard_normal((*shape, 3 if rng.random() < 0.4 else 1)).astype(np.float32)
        way = cv2.INTER_NEAREST if rng.random() < 0.15 else cv2.INTER_CUBIC
        x += cv2.resize(noise, (SIZE, SIZE), interpolation=way).reshape(SIZE, SIZE, -1) * rng.uniform(5, 45)
    if rng.random() < 0.3:
        at = np.arange(SIZE) / SIZE
        angle = rng.uniform(0, np.pi)
        wave = np.sin(
            2 * np.pi * rng.uniform(2, 25) * (np.cos(angle) * at[None] + np.sin(angle) * at[:, None])
            + rng.uniform(0, 6)
        )
        x += (np.sign(wave) if rng.random() < 0.4 else wave)[..., None] * rng.uniform(5, 50)
    x = np.clip(x + rng.uniform(20, 235, 3), 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(0, 12)) if rng.random() < 0.5 else 0):
        centre, axes = rng.integers(0, SIZE, 2).tolist(), rng.integers(2, 40, 2).tolist()
        if rng.random() < 0.5:
            cv2.ellipse(
                x,
                centre,
                axes,
                rng.uniform(0, 180),
                0,
                360,
                rng.uniform(0, 255, 3).tolist(),
                -1 if rng.random() < 0.6 else 2,
            )
        else:
            cv2.line(
                x, centre, rng.integers(0, SIZE, 2).tolist(), rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 12))
            )
    return x


def polygon_alpha(points: np.ndarray, soft: float) -> np.ndarray:
    alpha = np.zeros((SIZE, SIZE), np.float32)
    cv2.fillPoly(alpha, [np.round(points * SIZE * 16).astype(np.int32)], 1.0, lineType=cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(alpha, (0, 0), soft)


def hair_texture(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    grain = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    kernel = np.zeros((7, 7), np.float32)
    cv2.line(kernel, (3 + int(rng.integers(-2, 3)), 0), (3 + int(rng.integers(-2, 3)), 6), 1.0)
    return colour + cv2.filter2D(grain, -1, kernel)[..., None] / 3 * rng.uniform(5, 35)
