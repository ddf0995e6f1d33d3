"""Eyes that look elsewhere than the source's: what is fetched for an eyeball is fetched from beside it.

A pupil goes three of 256 pixels in 17 degrees. Maps of cells eight pixels wide hardly tell that, but a latent that is
anchored, whose first numbers are known to be pose, place and gaze, says it outright, and landmarks say where the eyes
are: so an eyeball's motion is put in, not learnt. (Ganin et al., DeepWarp, arXiv 1607.07215, learn such a field.)
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .latent import GAZE, POSE
from .places import grid_of, values_at
from .reader import EYES

RIM, SOFT = 1.0, 0.4  # of the eye's half axes: where nothing moves any more, and how far inside of it everything does
LIDS = 2.2  # half heights that move as one: the rims of the lids go along
FARTHER = 1.4  # what is painted over an eyeball goes along in part, so it is fetched from so many times as far away
SHUT = 0.1  # half height over half width of an eye that shows no eyeball


def eyeballs(landmarks: Tensor, size: int) -> Tensor:
    """How far a point of the picture moves with the gaze: landmarks (B, 68, 2), fractions of the side, to
    (B, 1, size, size) in sides for a change by 1 of the direction of gaze. An eyeball's pupil moves by as much as half
    the eye is wide (fitted to rendered heads; explains 92 % sideways, 77 % upright)."""
    corner, above, above2, corner2, below2, below = torch.stack(
        [landmarks[:, first:last] for first, last in EYES], 1).unbind(2)  # (B, 2, 2) each
    across = corner2 - corner
    width = across.norm(dim=-1).clamp_min(2e-3) / 2
    height = ((above - below).norm(dim=-1) + (above2 - below2).norm(dim=-1)).clamp_min(4e-3) / 4
    middle = (2 * (corner + corner2) + above + above2 + below + below2) / 8
    axes = torch.stack([across, torch.stack([-across[..., 1], across[..., 0]], -1)], -1) / (2 * width)[..., None, None]
    axes = axes / torch.stack([width, LIDS * height], -1)[..., None, :]  # columns along the eye and across it
    at = (torch.arange(size, device=landmarks.device, dtype=landmarks.dtype) + 0.5) / size
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).flatten(0, 1)  # (size², 2)
    away = ((grid - middle[:, :, None]) @ axes).norm(dim=-1)  # (B, 2, size²) from the middle, in half axes
    shown = width * ((height / width - SHUT) / SHUT).clamp(0, 1)
    field = (((RIM - away) / SOFT).clamp(0, 1) * shown[..., None]).sum(1)
    return field.view(-1, 1, size, size)


def gaze_change(motion: Tensor, own: Tensor, unit: float) -> Tensor:
    """How the direction of gaze differs from the source's, (B, 2) to the picture's right and downwards, for a head
    posed as the source's. Anchored latents (B, D) and (B or 1, D), in which pose and gaze are in `unit` radians."""
    x, y, z = (direction(motion[:, GAZE] * unit) - direction(own[:, GAZE] * unit)).unbind(1)
    pitch, yaw, roll = (own[:, POSE] * unit).unbind(1)
    return torch.stack([x + yaw * z - roll * y, pitch * z - roll * x - y], 1)  # turned, to the first order


def direction(gaze: Tensor) -> Tensor:
    """Unit vectors (B, 3), x to the person's own left, y up, z ahead, of yaw to the own left and pitch down (B, 2)."""
    (sin_yaw, sin_pitch), (cos_yaw, cos_pitch) = gaze.sin().unbind(1), gaze.cos().unbind(1)
    return torch.stack([sin_yaw * cos_pitch, -sin_pitch, cos_yaw * cos_pitch], 1)


def look(place: Tensor, field: Tensor, change: Tensor) -> Tensor:
    """Where target cells look, corrected for the gaze: places (B, 2, G, G) in cells, see `Surroundings.place`, to
    places (B, 2, H, H) in points of `field` (B or 1, 1, H, H), see `eyeballs`; `change` (B, 2), see `gaze_change`."""
    points, cells = field.shape[-1], place.shape[-1]
    offset = F.interpolate(place - grid_of(place), size=(points, points), mode="bilinear") * (points / cells)
    place = offset + grid_of(offset)
    return place - points * values_at(field, place) * change[:, :, None, None]
