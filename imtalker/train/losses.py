"""Losses of the renderer, as pure functions of tensors. Means over a batch; lower is better."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.transfer import CrossAttention

Features = Callable[[Tensor], list[Tensor]]  # pictures (B, 3, H, W) to maps (B, C, h, w), for perceptual losses

EYES_AND_MOUTH = ((36, 42), (42, 48), (48, 68))  # landmark ranges


def region_mask(landmarks: Tensor, size: int) -> Tensor:
    """Ellipses over both eyes and the mouth: landmarks (B, 68, 2) in fractions to (B, 1, size, size) of 0 and 1."""
    at = (torch.arange(size, device=landmarks.device) + 0.5) / size
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)
    mask = torch.zeros(len(landmarks), size, size, dtype=torch.bool, device=landmarks.device)
    for first, last in EYES_AND_MOUTH:
        points = landmarks[:, first:last]
        low, high = points.amin(1), points.amax(1)
        radius = ((high - low) * 0.75).clamp_min(0.045)
        distance = (grid - ((low + high) / 2)[:, None, None]) / radius[:, None, None]
        mask |= distance.square().sum(-1) < 1
    return mask[:, None].float()


def pixel_loss(frames: Tensor, target: Tensor, mask: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Mean absolute difference over the picture, and over regions, each normalised by its area.

    mask (B, 1, S, S): eyes and mouth. inside (B, G, G) bool: the inside of the mouth, few pixels and all there is to
    see of an open one; without a loss of its own the lips around it outvote it.
    """
    difference = (frames - target).abs()
    inside = F.interpolate(inside[:, None].float(), size=frames.shape[-2:], mode="bilinear")
    over = lambda region: (difference * region).sum() / (3 * region.sum()).clamp_min(1)  # noqa: E731
    return {"pixel": difference.mean(), "region": over(mask), "inside": over(inside)}


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


def correspondence_loss(attention: CrossAttention, driving_map: Tensor, keys: Tensor, driving_code: Tensor,
                        source_code: Tensor, importance: Tensor, rows: int) -> Tensor:
    """Cross-entropy of the mean attention weights against where the source truly shows what the driving cell shows.

    Rendered data knows it: codes (B, G, G, 4) from `data.surface_code`, at least as fine as the map. Looks at `rows`
    target cells of each pair, drawn by `importance` (B, 1, S, S): eyes and mouth are few cells and say most. Cells
    whose content the source does not show take no part.
    """
    cells = driving_map.shape[-1]
    step = driving_code.shape[1] // cells
    pick = lambda code: code[:, step // 2::step, step // 2::step].flatten(1, 2)  # noqa: E731
    chance = F.adaptive_avg_pool2d(importance, cells).flatten(1)  # (B, N)
    chosen = torch.multinomial(chance, min(rows, cells * cells))
    take = lambda x: x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))  # noqa: E731
    distance = torch.cdist(take(pick(driving_code)), pick(source_code)) * (cells / 192.0)  # in cells
    target = (-2 * distance.square()).softmax(-1)
    seen = distance.amin(-1) < 1.5
    queries = attention.queries(driving_map)
    queries = queries.gather(2, chosen[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[-1]))
    weights = attention.weights(queries, keys).float().mean(1)
    entropy = -(target * weights.clamp_min(1e-7).log()).sum(-1)
    return (entropy * seen).sum() / seen.sum().clamp_min(1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Non-saturating GAN, the discriminator's side; any shape of logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating GAN, the renderer's side."""
    return F.softplus(-fake).mean()
