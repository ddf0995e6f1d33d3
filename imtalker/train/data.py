"""Rendered heads for training: the folder that `imtalker synth` writes, as batches.

Shapes: S people in a batch, D driving frames of each, B = S·D pairs.
"""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..files import readable
from .people import ADVICE, LABELS, people_in, read_person

# Parts as `synth.dataset` numbers them, and one more, which only the renderer's training tells from the eye around it
EYES, MOUTH, IRIS = 2, 3, 7
IRIS_PLACE, IRIS_RADIUS = (19, 40, 68), 5  # of the left eye on the template head, in the units of `surface`


@dataclass(frozen=True)
class Views:
    """Frames with their ground truth, leading dimensions (S, n)."""

    pictures: Tensor  # (S, n, 3, H, W) float32 in [0, 1]
    latent: Tensor  # (S, n, 32)
    landmarks: Tensor  # (S, n, 68, 2) fractions of the picture's side
    surface: Tensor  # (S, n, 64, 64, 4), see `surface_code`
    parts: Tensor  # (S, n, 64, 64) uint8, see `synth.dataset`; irises are a part of their own

    def flat(self, first: int, last: int | None = None) -> Views:
        """Frames first…last of every person, flattened to (S·(last - first), …)."""
        return Views(*(getattr(self, k)[:, first:last].flatten(0, 1) for k in self.__dataclass_fields__))


def surface_code(surface: Tensor, parts: Tensor) -> Tensor:
    """What a cell shows, as a point: cells that show the same thing are near, whatever the motion.

    Foreground: the point's place on the template head. Background, which stands still: the cell's place in the picture,
    far from all foreground. surface (…, H, W, 3) int8 and parts (…, H, W) uint8 to (…, H, W, 4) float32, in the units
    of `surface`, of which about 3 are a cell of a 64 x 64 map.
    """
    h, w = parts.shape[-2:]
    own = lambda n: torch.arange(n, device=parts.device) * (192.0 / n)  # noqa: E731
    y, x = torch.meshgrid(own(h), own(w), indexing="ij")
    place = torch.stack([x, y, torch.zeros_like(x), torch.full_like(x, 1e4)], -1)
    return torch.where((parts == 0)[..., None], place, F.pad(surface.float(), (0, 1)))


def mark_irises(parts: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """`parts` (…, H, W) uint8 with IRIS where the eyes' surface (…, H, W, 3) int8 is the front of an eyeball."""
    place = surface.astype(np.int16)
    place[..., 0] = np.abs(place[..., 0])  # both eyes as one
    near = np.square(place - np.int16(IRIS_PLACE)).sum(-1) < IRIS_RADIUS ** 2
    return np.where((parts == EYES) & near, np.uint8(IRIS), parts)


def draw(rng: np.random.Generator, weight: np.ndarray, count: int) -> np.ndarray:
    """`count` different indices: the first evenly, the others in proportion to `weight`."""
    first = rng.integers(len(weight))
    weight = weight.astype(np.float64)
    weight[first] = 0
    return np.append(first, rng.choice(len(weight), count - 1, replace=False, p=weight / weight.sum()))


class HeadData:
    """All frames of a data folder in a device's memory: `pictures` (I, K, H, W, 3) uint8 and the labels of every frame.

    A person of 20 frames takes 4 MB. On a GPU batches are then made as fast as they are trained on.
    """

    def __init__(self, folder: str | Path, limit: int | None = None, device: str = "cpu"):
        self.folder = Path(folder)
        files = people_in(folder, limit)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            loaded = list(pool.map(self._load, files))
        first = loaded[0][0].shape
        for file, (pictures, _) in zip(files, loaded):
            if pictures.shape != first:
                raise InputError(f"{str(file)!r} holds {_shown(pictures.shape)}, {files[0].name} {_shown(first)}: keep "
                                 "people of one kind in a folder")
        stack = lambda arrays: torch.from_numpy(np.stack(arrays))  # noqa: E731
        self.pictures = stack([pictures for pictures, _ in loaded]).to(device)
        labels = {k: stack([labels[k] for _, labels in loaded]) for k in LABELS}
        # how much there is to see in a frame: how wide the mouth, how closed the eyes, how far they look away
        away = labels["gaze"].norm(dim=-1)
        self.activity = (labels["mouth"] + 0.1 * labels["blink"].mean(-1) + 0.2 * away).numpy()
        self.labels = {k: x.to(device) for k, x in labels.items()}

    @staticmethod
    def _load(file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        jpegs, labels = read_person(file)
        with readable(file, ADVICE):
            pictures = np.stack([np.asarray(Image.open(BytesIO(jpeg))) for jpeg in jpegs])
            if pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2]:
                raise ValueError(f"its pictures are {pictures.shape[1:]}, square colour expected")
        return pictures, {**labels, "parts": mark_irises(labels["parts"], labels["surface"])}

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def frames(self) -> int:
        """Of each person."""
        return self.pictures.shape[1]

    def expect(self, frames: int, why: str) -> None:
        if self.frames < frames:
            raise InputError(f"{str(self.folder)!r} has too few frames of each person: {self.frames} given, {frames} "
                             f"expected by {why}: make more with `imtalker synth --frames`")

    def sample(self, rng: np.random.Generator, people: int, frames: int, size: int | None = None,
               focus: float = 0.0) -> Views:
        """`frames` different random frames of each of `people` random people; size 0 leaves their pictures out.

        With `focus`, frames after the first are drawn more often the wider the mouth, the more closed the
        eyes and the farther they look away."""
        who = rng.choice(len(self), people, replace=people > len(self))[:, None]
        which = np.stack([draw(rng, chance, frames) for chance in 1 + focus * self.activity[who[:, 0]]])
        return self.views(who, which, size)

    def views(self, who: np.ndarray, which: np.ndarray, size: int | None = None) -> Views:
        rows = tuple(torch.from_numpy(x).to(self.pictures.device) for x in (who, which))
        chosen = self.pictures[rows] if size != 0 else self.pictures.new_empty(*which.shape, 0, 0, 3)
        pictures = chosen.permute(0, 1, 4, 2, 3).float() / 255
        if size and size != pictures.shape[-1]:
            pictures = F.interpolate(pictures.flatten(0, 1), size=(size, size), mode="area").unflatten(0, which.shape)
        pick = {k: self.labels[k][rows] for k in ("latent", "landmarks", "surface", "parts")}
        return Views(pictures, pick["latent"], pick["landmarks"], surface_code(pick["surface"], pick["parts"]),
                     pick["parts"])


def _shown(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} frames of {shape[1]} x {shape[2]}"


def recolour(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Random colours, the same for all frames of a person: pictures (S, n, 3, H, W) to the same.

    Rendered skin, cloth and light cover little of what photographs and paintings hold; what is learnt must not
    depend on them. `rng` is of the pictures' device.
    """
    people, device = len(pictures), pictures.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(people, *shape, generator=rng, device=device) * (high - low) + low

    def chance(p: float) -> Tensor:
        return uniform(0, 1, 1, 1) < p

    mix = torch.eye(3, device=device).expand(people, 3, 3)
    mix = mix + chance(0.6) * uniform(-0.18, 0.18, 3, 3)
    grey = torch.full((3, 3), 1 / 3, device=device)
    mix = torch.where(chance(0.12), grey, mix + uniform(-0.3, 0.2, 1, 1) * (grey - mix))
    mix = mix / mix.sum(-1, keepdim=True) * uniform(0.75, 1.2, 1, 1)
    gamma = torch.exp(uniform(-0.4, 0.4, 1, 1, 1, 1))
    x = torch.einsum("sij,snjhw->snihw", mix, pictures.clamp_min(1e-4) ** gamma)
    contrast, pivot = uniform(0.7, 1.25, 1, 1, 1, 1), uniform(0.3, 0.6, 1, 1, 1, 1)
    return ((x - pivot) * contrast + pivot).clamp(0, 1)


def degrade(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """What cameras and codecs do, drawn anew for every picture: blur and noise. (B, 3, H, W) to the same.

    `rng` is of the pictures' device."""
    b, _, h, w = pictures.shape
    small = F.interpolate(F.interpolate(pictures, size=(h // 3, w // 3), mode="area"), size=(h, w), mode="bilinear")
    each = lambda: torch.rand(b, 1, 1, 1, generator=rng, device=pictures.device)  # noqa: E731
    blur = (each() - 0.5).clamp_min(0) * 1.6
    noise = torch.randn(pictures.shape, generator=rng, device=pictures.device) * each() * 0.05
    return (torch.lerp(pictures, small, blur) + noise).clamp(0, 1)
