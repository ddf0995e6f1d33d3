"""Feature networks for perceptual losses. Each is pictures (B, 3, H, W) in [0, 1] to a list of maps (B, C, h, w)."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from .losses import Features


class ReaderFeatures(nn.Module):
    """Features of the face reader, which knows the parts of a face because it learned to find them."""

    def __init__(self):
        super().__init__()
        from ..face.reader import load_reader

        self.reader = load_reader().eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return self.reader.features(pictures)


class VGGFeatures(nn.Module):
    """relu1_1, 2_1, 3_1, 4_1 and 5_1 of torchvision's ImageNet VGG-19, as in the published training."""

    TAPS = (1, 6, 11, 20, 29)

    def __init__(self):
        super().__init__()
        try:
            from torchvision.models import VGG19_Weights, vgg19
        except ImportError as error:
            raise InputError("perceptual network vgg19: torchvision is not installed; install it with the weights of "
                             "VGG19_Weights.IMAGENET1K_V1, or use --perceptual reader") from error
        layers = vgg19(weights=VGG19_Weights.IMAGENET1K_V1).features[:max(self.TAPS) + 1]
        self.layers = layers.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x, maps = (pictures - self.mean) / self.std, []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.TAPS:
                maps.append(x)
        return maps


NETWORKS = {"reader": ReaderFeatures, "vgg19": VGGFeatures}


def perceptual_network(name: str) -> Features | None:
    """The feature network called `name`, or None for "none"."""
    if name == "none":
        return None
    if name not in NETWORKS:
        raise InputError(f"perceptual network {name!r}: expected one of none, {', '.join(NETWORKS)}")
    return NETWORKS[name]()
