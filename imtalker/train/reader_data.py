"""Crops to train the face reader on: synthetic heads, heavily changed, and things that are not faces.

A crop is (128, 128, 3) uint8 RGB; positions are fractions 0..1 of it. The synthetic heads know their landmarks, pose,
gaze, lids, mouth and parts; everything that bends or mirrors the picture here bends the truth with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from imtalker.face.crop import CROP_RISE, CROP_SCALE, face_square
from imtalker.models.reader import MIRROR

SIZE = 128
# what counts as framed by the crop policy, for the face score: shift (crop sides), scale, rotation (degrees)
FRAMED_SHIFT, FRAMED_SCALE, FRAMED_TURN = 0.17, (0.72, 1.38), 30


@dataclass
class Sample:
    """One crop and its truth; `framed` None means: no opinion on whether it is a face."""

    image: np.ndarray  # (128, 128, 3) uint8
    framed: float | None  # 1 a framed face, 0 none
    landmarks: np.ndarray | None = None  # (68, 2) fractions; None for what is not a face
    pose: np.ndarray | None = None  # (3,) as in models.reader.Reading
    gaze: np.ndarray | None = None  # (2,)
    blink: np.ndarray | None = None  # (2,)
    mouth: float = 0.0
    parts: np.ndarray | None = None  # (32, 32) uint8


class Heads:
    """Frames of a folder of synthetic identities, kept as JPEG in memory."""

    def __init__(self, folder: Path, most: int | None = None, surplus: int = 24):
        self.jpegs: list[np.ndarray] = []
        truth: dict[str, list[np.ndarray]] = {k: [] for k in ("landmarks", "pose", "gaze", "blink", "mouth", "parts")}
        self.identity: list[int] = []
        for number, path in enumerate(sorted(Path(folder).glob("identity-*.npz"))[:most]):
            with np.load(path) as data:
                jpeg, offsets = data["jpeg"], data["offsets"]
                count = min(len(offsets) - 1, surplus)
                self.jpegs += [jpeg[a:b] for a, b in zip(offsets[:count], offsets[1 : count + 1])]
                for key, values in truth.items():
                    values.append(data[key][:count])
                self.identity += [number] * count
        if not self.jpegs:
            raise FileNotFoundError(f"no identity-*.npz in {folder}")
        self.truth = {key: np.concatenate(values) for key, values in truth.items()}

    def __len__(self) -> int:
        return len(self.jpegs)

    def picture(self, i: int) -> np.ndarray:
        """(256, 256, 3) uint8 RGB."""
        return cv2.cvtColor(cv2.imdecode(self.jpegs[i], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def crop(self, i: int, shift=(0.0, 0.0), scale: float = 1.0, turn: float = 0.0, mirror: bool = False) -> Sample:
        """Frame i in its crop, moved by `shift` (crop sides), enlarged, turned anticlockwise (degrees), mirrored."""
        landmarks = self.truth["landmarks"][i]
        (x, y), face = face_square(landmarks)
        y -= CROP_RISE * face
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        linear = np.array([[cos, sin], [-sin, cos]]) * scale / (CROP_SCALE * face)  # y down: anticlockwise to the eye
        if mirror:
            linear[0] *= -1
        offset = 0.5 + np.asarray(shift) - linear @ [x, y]
        picture = self.picture(i)
        image = cv2.warpAffine(
            picture,
            _by_index(linear, offset, picture.shape[0], SIZE),
            (SIZE, SIZE),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        parts = self.truth["parts"][i]
        parts = cv2.warpAffine(
            parts,
            _by_index(linear, offset, parts.shape[0], SIZE // 4),
            (SIZE // 4, SIZE // 4),
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REPLICATE,
        )
        landmarks = landmarks @ linear.T + offset
        pose, gaze, blink = (self.truth[key][i].astype(np.float64) for key in ("pose", "gaze", "blink"))
        if mirror:
            landmarks, pose, gaze, blink = landmarks[MIRROR], pose * [1, -1, -1], gaze * [-1, 1], blink[::-1]
        turned = np.radians(turn)
        if turned:
            pose = cv2.Rodrigues(cv2.Rodrigues(np.array([0, 0, turned]))[0] @ cv2.Rodrigues(pose)[0])[0][:, 0]
        return Sample(
            image,
            1.0,
            landmarks.astype(np.float32),
            pose.astype(np.float32),
            gaze.astype(np.float32),
            np.ascontiguousarray(blink, np.float32),
            float(self.truth["mouth"][i]),
            parts,
        )


def _by_index(linear: np.ndarray, offset: np.ndarray, before: int, after: int) -> np.ndarray:
    """(2, 3) for OpenCV, from a map of fractions to fractions, between pictures of `before` and `after` pixels."""
    matrix = np.empty((2, 3))
    matrix[:, :2] = linear * after / before
    matrix[:, 2] = offset * after + matrix[:, :2].sum(1) * 0.5 - 0.5
    return matrix


def draw(heads: Heads, rng: np.random.Generator, faces: float = 0.78) -> Sample:
    """One random training sample."""
    i = int(rng.integers(len(heads)))
    if rng.random() < faces:
        return face(heads, i, rng)
    return no_face(heads, i, rng)


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
    sample.image = look(sample.image, rng) if rng.random() < 0.5 else _light(sample.image, rng)
    if rng.random() < 0.10:
        sample.image = _occlude(sample.image, rng)
    return sample


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
        image = _texture(rng)
    elif kind == "animal":
        background = heads.picture(i)[::2, ::2] if rng.random() < 0.3 else _texture(rng)
        image = _animal(background, rng)
    else:
        sample = heads.crop(i, rng.uniform(-0.1, 0.1, 2), rng.uniform(0.8, 1.25), rng.normal() * 8, rng.random() < 0.5)
        image = {"scrambled": _scramble, "upended": _upend, "blank": _blank, "furry": _furry}[kind](sample, rng)
    if rng.random() < 0.5 and kind not in ("texture", "off"):
        image = _shift(image, rng)
    return Sample(look(image, rng), 0.0)


# ---- the look of a picture -------------------------------------------------------------------------


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


def _light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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


def _texture(rng: np.random.Generator) -> np.ndarray:
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


# ---- changes of a face that stay a face ------------------------------------------------------------


def _other_background(image: np.ndarray, parts: np.ndarray, heads: Heads, rng: np.random.Generator) -> np.ndarray:
    behind = (
        _texture(rng)
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


def _polygon_alpha(points: np.ndarray, soft: float) -> np.ndarray:
    alpha = np.zeros((SIZE, SIZE), np.float32)
    cv2.fillPoly(alpha, [np.round(points * SIZE * 16).astype(np.int32)], 1.0, lineType=cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(alpha, (0, 0), soft)


def _hair_texture(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    grain = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    kernel = np.zeros((7, 7), np.float32)
    cv2.line(kernel, (3 + int(rng.integers(-2, 3)), 0), (3 + int(rng.integers(-2, 3)), 6), 1.0)
    return colour + cv2.filter2D(grain, -1, kernel)[..., None] / 3 * rng.uniform(5, 35)


def _beard(sample: Sample, rng: np.random.Generator) -> None:
    p = sample.landmarks
    hair = _hair_texture(
        rng, rng.uniform(10, 110) * np.array([1, 0.85, 0.75]) if rng.random() < 0.8 else rng.uniform(150, 230, 3).mean()
    )
    alpha = np.zeros((SIZE, SIZE), np.float32)
    drop = (p[8] - p[57]) * rng.uniform(-0.1, 0.8)
    if rng.random() < 0.7:  # jaw and chin, without the mouth
        first = int(rng.integers(2, 6))
        jaw = p[first : 17 - first].copy()
        jaw[2:-2] += drop * rng.uniform(0, 1)
        alpha = np.maximum(
            alpha, _polygon_alpha(np.concatenate([jaw, p[[54, 55, 56, 57, 58, 59, 48]] + 0.15 * (p[8] - p[57])]), 1.5)
        )
    if rng.random() < 0.7:  # moustache
        alpha = np.maximum(
            alpha, _polygon_alpha(np.concatenate([p[48:55], (p[31:36] + p[[49, 50, 51, 52, 53]])[::-1] / 2]), 1.0)
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
    alpha = _polygon_alpha(np.concatenate([low, high]), 0.8)[..., None]
    sample.image = (sample.image * (1 - alpha) + _texture(rng) * alpha).astype(np.uint8)


def _occlude(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Something in front: at most a third of the side."""
    image, over = image.copy(), _texture(rng)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        centre, axes = rng.integers(0, SIZE, 2).tolist(), rng.integers(6, 22, 2).tolist()
        cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 255, -1)
    image[mask > 0] = over[mask > 0]
    return image


# ---- things that are not faces ---------------------------------------------------------------------


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
        alpha = np.maximum(alpha, _polygon_alpha(hull.mean(0) + (hull - hull.mean(0)) * 1.35, 1.5))
    cheeks = np.clip((p[[2, 14, 4, 12, 30]] * SIZE).astype(int), 0, SIZE - 1)
    skin = np.median(sample.image[cheeks[:, 1], cheeks[:, 0]].astype(np.float32), 0)
    smooth = cv2.GaussianBlur(sample.image, (0, 0), 9) * 0.4 + skin * 0.6
    return (sample.image * (1 - alpha[..., None]) + smooth * alpha[..., None]).astype(np.uint8)


def _fur(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    patches = cv2.resize(rng.standard_normal((5, 5)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    base = colour * np.exp(0.18 * patches)[..., None]
    return np.clip(_hair_texture(rng, base), 0, 255)


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
    alpha = _polygon_alpha(hull.mean(0) + (hull - hull.mean(0)) * rng.uniform(1.1, 1.5), 2)[..., None]
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
