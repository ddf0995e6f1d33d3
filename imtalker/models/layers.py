"""Layers shared by the renderer's networks.

Shapes: B batch, C channels, H x W pixels or cells, D vector width.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01  # of the leaky ReLU inside batch-normalised blocks; elsewhere it is 0.2


def fused_leaky_relu(x: Tensor, bias: Tensor) -> Tensor:
    """leaky_relu(x + bias, 0.2) * sqrt(2), which keeps the variance of unit-variance inputs."""
    return F.leaky_relu(x + bias.view(1, -1, 1, 1), 0.2) * math.sqrt(2)


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """Depth-wise low-pass filter [1, 3, 3, 1] x [1, 3, 3, 1], of sum `gain`; the output is 2·padding - 3 larger."""
    return F.conv2d(x, blur_kernel(x, gain).expand(x.shape[1], 1, 4, 4), padding=padding, groups=x.shape[1])


def blur_kernel(like: Tensor, gain: float = 1.0) -> Tensor:
    """(4, 4) of sum `gain`."""
    taps = like.new_tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) * (gain / 64)


def fading(x: Tensor) -> Tensor:
    """e^-x of x of 0 and more; e^-60 where it would be less: that counts for nothing, and CPUs are slow at numbers that
    are smaller than the normal ones."""
    return x.clamp(max=60).neg_().exp_()


class EqualLinear(nn.Module):
    """Linear layer that stores unit-variance weights and scales them by 1/sqrt(fan_in) when used."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.full((outputs,), bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class EqualConv2d(nn.Module):
    """Convolution that stores unit-variance weights and scales them by 1/sqrt(fan_in) when used."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class EqualMLP(nn.Module):
    """Four hidden equalised layers with leaky ReLU 0.2, then a linear one: (B, inputs) to (B, outputs)."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.hidden = nn.ModuleList(EqualLinear(inputs if i == 0 else hidden, hidden) for i in range(4))
        self.out = EqualLinear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = F.leaky_relu(layer(x), 0.2)
        return self.out(x)


class ResidualBlock(nn.Module):
    """[3x3 convolution, batch norm] twice, a leaky ReLU between and one after the sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        return F.leaky_relu(self.norm2(self.conv2(y)) + x, SLOPE)


class ConvBlock(nn.Module):
    """Two convolutions and `residuals` residual blocks, at half ("down"), double ("up") or the same size.

    (B, inputs, H, W) to (B, outputs, H', W').
    """

    def __init__(self, inputs: int, outputs: int, residuals: int, resize: str = "none"):
        super().__init__()
        self.resize = resize
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.residuals = nn.Sequential(*(ResidualBlock(outputs) for _ in range(residuals)))

    def forward(self, x: Tensor) -> Tensor:
        if self.resize == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.leaky_relu(self.norm(self.conv1(x)), SLOPE)
        if self.resize == "down":
            x = F.avg_pool2d(x, 2)
        return self.residuals(self.conv2(x))


class ModulatedConv(nn.Module):
    """3x3 convolution whose input channels are scaled by a style and whose output is normalised back to unit variance.

    Scaling the input and the output instead of the weights is the same algebra, and lets a whole batch of styles share
    one convolution. Normalised, the output does not depend on the style's size either: its greatest number is made 1,
    so that float16 cannot overflow in between. With `up` the size doubles: transposed convolution, then blur.
    """

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.up = up

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        scale, demodulation = steering(style, self.modulation, energy(weight))
        x = x * scale[:, :, None, None].to(x.dtype)
        if self.up:
            x = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), padding=1, gain=4)
        else:
            x = F.conv2d(x, weight, padding=1)
        return fused_leaky_relu(x * demodulation[:, :, None, None].to(x.dtype), self.bias)


def energy(weight: Tensor) -> Tensor:
    """Squares of a kernel summed over its taps, float32 (outputs, inputs)."""
    return weight.float().square().sum((2, 3))


def steering(style: Tensor, modulation: nn.Module, energy: Tensor) -> tuple[Tensor, Tensor]:
    """What a style (B, style_dim) multiplies a modulated convolution's input (B, inputs) and output (B, outputs) by."""
    with torch.autocast(style.device.type, enabled=False):  # large numbers, and small ones squared
        scale = modulation(style.to(modulation.weight.dtype)).float()
        size = scale.abs().amax(1, keepdim=True).clamp_min(1e-4)
        scale = scale / size
        return scale, torch.rsqrt(F.linear(scale.square(), energy) + 1e-8 / size.square())


class AffineConv(nn.Module):
    """3x3 convolution whose input channels a style scales and shifts. With `up` the size doubles first.

    Learns where things are several times faster than a modulated convolution, which can only scale.
    """

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.style = nn.Linear(style_dim, 2 * inputs)
        nn.init.normal_(self.style.weight, std=0.05)
        nn.init.zeros_(self.style.bias)
        self.up = up

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        scale, shift = self.style(style).to(x.dtype)[:, :, None, None].chunk(2, 1)
        return F.leaky_relu_(self.conv(torch.addcmul(shift, x, 1 + scale)), 0.2)
