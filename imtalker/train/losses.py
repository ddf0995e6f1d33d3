"""Losses of the renderer, as pure functions of tensors. Means over a batch; lower is better."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.reader import EYES, MOUTH
from ..models.transfer import CrossAttention
from . import data

Features = Callable[[Tensor], list[Tensor]]  # pictures (B, 3, H, W) to maps (B, C, h, w), for perceptual losses

# background, skin, eyes, mouth, hair, brows and lashes, clothes, irises
PART_WEIGHTS = (0.3, 0.5, 5, 5, 1, 2, 1, 10)
SHOWN = (data.EYES, data.MOUTH, data.IRIS)  # parts that are seen in openings


def ellipses(centre: Tensor, radius: Tensor, size: int) -> Tensor:
    """The union of ellipses, centre and radius (B, n, 2) in fractions: (B, 1, size, size) of 0 and 1."""
    at = (torch.arange(size, device=centre.device) + 0.5) / size
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)
    distance = (grid - centre[:, :, None, None]) / radius[:, :, None, None]
    return (distance.square().sum(-1) < 1).any(1, keepdim=True).float()


def region_mask(landmarks: Tensor, size: int) -> Tensor:
    """Both eyes and the mouth with what is around them: landmarks (B, 68, 2) to (B, 1, size, size) of 0 and 1."""
    features = [landmarks[:, first:last] for first, last in (*EYES, MOUTH)]
    low, high = (torch.stack([extreme(x, 1) for x in features], 1) for extreme in (torch.amin, torch.amax))
    return ellipses((low + high) / 2, ((high - low) * 0.75).clamp_min(0.045), size)


def openings_mask(landmarks: Tensor, parts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where eyes are or would be if they were open, and the inside of the mouth; and which of that is not skin: both
    (B, 1, size, size), 0 to 1."""
    eyes = torch.stack([landmarks[:, first:last] for first, last in EYES], 1)
    width = (eyes[:, :, 0] - eyes[:, :, 3]).norm(dim=-1, keepdim=True)
    eyes = ellipses(eyes.mean(2), width * width.new_tensor([0.5, 0.25]), size)
    shown = torch.isin(parts, parts.new_tensor(SHOWN))[:, None].float()
    shown = F.interpolate(shown, size=(size, size), mode="bilinear")
    return eyes.maximum(shown), shown


def nearest(frames: Tensor, target: Tensor, reach: int) -> Tensor:
    """Mean absolute difference (B, 1, H, W) of the 5 x 5 pixels around every one of `target` from those of `frames`, at
    most `reach` pixels away, that are most like them. The mean of a pupil here or there is blurred and like neither; a
    pupil a pixel away is like it. Pixel by pixel, a pattern of dark and light would do."""
    height, width = target.shape[2:]
    around = F.pad(frames, (reach,) * 4, mode="replicate")
    shifts = range(2 * reach + 1)
    apart = lambda y, x: (around[..., y:y + height, x:x + width] - target).abs().mean(1, keepdim=True)  # noqa: E731
    return torch.stack([F.avg_pool2d(apart(y, x), 5, 1, 2) for y in shifts for x in shifts]).amin(0)


def pixel_loss(frames: Tensor, target: Tensor, mask: Tensor, openings: Tensor, shown: Tensor | None = None,
               reach: int = 0) -> dict[str, Tensor]:
    """Mean absolute difference over the picture, and over regions, each normalised by its area.

    Masks (B, 1, S, S): eyes and mouth, and their openings, few pixels that say most: without a loss of their own what
    is around them would outvote them. What is `shown` in openings may be `reach` off, see `nearest`; a lid may not, or
    no eye would ever shut.
    """
    difference = (frames - target).abs().mean(1, keepdim=True)
    inside = torch.lerp(difference, nearest(frames, target, reach), shown) if reach else difference
    over = lambda difference, region: (difference * region).sum() / region.sum().clamp_min(1)  # noqa: E731
    return {"pixel": difference.mean(), "region": over(difference, mask), "openings": over(inside, openings)}


def parts_loss(logits: Tensor, parts: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of logits (B, 8, G, G) against parts (B, G, G), in which small parts count for more per cell: over
    the picture, and once more over the mask (B, 1, G, G) of eyes and mouth, of whose cells there are few."""
    weight = logits.new_tensor(PART_WEIGHTS, dtype=torch.float32)
    entropy = F.cross_entropy(logits.float(), parts.long(), weight, reduction="none")
    counted = weight[parts.long()]
    over = lambda region: (entropy * region).sum() / (counted * region).sum().clamp_min(1)  # noqa: E731
    return over(torch.ones_like(entropy)) + over(mask[:, 0])


def perceptual_loss(features: Features, frames: Tensor, target: Tensor, mask: Tensor, scales: int) -> dict[str, Tensor]:
    """Mean absolute difference of `features` at scales 1, 1/2, 1/4, …, over the picture and over the masked region."""
    whole, region = frames.new_zeros(()), frames.new_zeros(())
    for scale in range(scales):
        if scale:
            frames, target = (F.interpolate(x, scale_factor=0.5, mode="area") for x in (frames, target))
        with torch.no_grad():
            wanted = features(target)
        for got, want in zip(features(frames), wanted):
            difference = (got - want).abs().mean(1, keepdim=True).float()
            cells = F.interpolate(mask, size=difference.shape[-2:], mode="area")
            whole = whole + difference.mean()
            region = region + (difference * cells).sum() / cells.sum().clamp_min(1e-3)
    return {"perceptual": whole, "perceptual_region": region}


def adapter_loss(motion: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Whoever's identity adapts a motion, the step away from it should be as long (IMTalker's identity-adapter loss).

    motion (B, D), adapted with the own and with another person's identity, (B, D) each.
    """
    return ((motion - own).norm(dim=1) - (motion - other).norm(dim=1)).abs().mean()


def true_places(driving_code: Tensor, source_code: Tensor, importance: Tensor, cells: int,
                rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where in the source things are, as rendered data knows: for `rows` target cells of each pair, drawn by
    `importance` (B, 1, S, S), since eyes and mouth are few cells and say most: their numbers (B, R), how likely every
    cell of the source shows what they show (B, R, N), and whether any does (B, R).

    Codes (B, G, G, 4) from `data.surface_code`, at least as fine as the maps' cells.
    """
    step = driving_code.shape[1] // cells
    pick = lambda code: code[:, step // 2::step, step // 2::step].flatten(1, 2)  # noqa: E731
    chance = F.adaptive_avg_pool2d(importance, cells).flatten(1)  # (B, N)
    chosen = torch.multinomial(chance, min(rows, cells * cells))
    wanted = pick(driving_code).take_along_dim(chosen[..., None], 1)
    distance = torch.cdist(wanted, pick(source_code)) * (cells / 192.0)  # in cells
    return chosen, (-2 * distance.square()).softmax(-1), distance.amin(-1) < 1.5


def correspondence_loss(attention: CrossAttention, driving_map: Tensor, keys: Tensor, driving_code: Tensor,
                        source_code: Tensor, importance: Tensor, rows: int) -> Tensor:
    """Cross-entropy of the mean attention weights against where the source truly shows what the driving cell shows, see
    `true_places`. Cells whose content the source does not show take no part."""
    chosen, target, seen = true_places(driving_code, source_code, importance, driving_map.shape[-1], rows)
    queries = attention.queries(driving_map)
    queries = queries.gather(2, chosen[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[-1]))
    weights = attention.weights(queries, keys).float().mean(1)
    entropy = -(target * weights.clamp_min(1e-7).log()).sum(-1)
    return (entropy * seen).sum() / seen.sum().clamp_min(1)


def flow_loss(place: Tensor, driving_code: Tensor, source_code: Tensor, importance: Tensor, rows: int) -> Tensor:
    """As `correspondence_loss`, of a flow: distance in cells of `place` (B, 2, G, G) to where it truly is."""
    cells = place.shape[-1]
    chosen, target, seen = true_places(driving_code, source_code, importance, cells, rows)
    own = torch.arange(cells * cells, device=place.device)
    true = target @ torch.stack([own % cells, own // cells], 1).float()  # (B, R, 2)
    found = place.flatten(2).transpose(1, 2).take_along_dim(chosen[..., None], 1)
    distance = F.smooth_l1_loss(found, true, reduction="none").sum(-1)
    return (distance * seen).sum() / seen.sum().clamp_min(1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Non-saturating GAN, the discriminator's side; any shape of logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating GAN, the renderer's side."""
    return F.softplus(-fake).mean()
