"""The renderer as it runs when nothing is trained: the same numbers from fewer and larger operations.

`prepare` does once what the trained modules do for every frame: scales and batch norms go into the convolutions'
weights, layer norms into the projections after them, gains into biases, tables of positions are looked up. What it
makes has no state of its own on disk, runs under autocast, and keeps every map in channels-last memory.

Shapes as in `layers`: B batch, C channels, H x W pixels or cells.
"""
from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .appearance import AppearanceEncoder
from .cpu import MinimalConv, attend_and_match, attend_in_windows, compiles
from .layers import (
    SLOPE,
    ConvBlock,
    EqualConv2d,
    EqualLinear,
    ModulatedConv,
    ResidualBlock,
    blur_kernel,
    energy,
    steering,
)
from .motion import DownBlock
from .synthesis import WINDOW, GlobalAttention, WindowAttention
from .transfer import CrossAttention


@torch.no_grad()
def prepare(module: nn.Module) -> nn.Module:
    """A module equal to `module`, which must be in evaluation mode and is left as it is. They share no memory, so that
    mapped weights can be let go.

    Every network differs by less than 1e-5 in float32. Prepare where it shall run: on its device, in its type.
    """
    if module.training:
        raise ValueError(f"{type(module).__name__} is being trained; call eval() before prepare()")
    if type(module) in PREPARED:
        return PREPARED[type(module)](module)
    if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
        return nn.Sequential(Conv.of(module[0], module[1]), *(prepare(layer) for layer in module[2:]))
    return twin_of(module)


def twin_of(module: nn.Module) -> nn.Module:
    """The same kind of module with prepared children."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):  # parameters, buffers, hooks: each module has its own
            setattr(twin, name, copy.copy(value))
    for name, parameter in module.named_parameters(recurse=False):
        twin._parameters[name] = constant(parameter)
    for name, child in module.named_children():
        twin._modules[name] = prepare(child)
    return twin


def constant(x: Tensor) -> nn.Parameter:
    """What is computed once, as a parameter, so that it follows the module to devices and into exported graphs."""
    x = x.detach().clone(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)
    return nn.Parameter(x, requires_grad=False)


# ------------------------------------------------------------------------------------------------------- convolutions


class Conv(nn.Module):
    """Convolution and bias, then a leaky ReLU of `slope`; 1 is none."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 1, slope: float = 1.0,
                 groups: int = 1):
        super().__init__()
        self.weight, self.bias = constant(weight), None if bias is None else constant(bias)
        self.stride, self.padding, self.slope, self.groups = stride, padding, slope, groups

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, slope: float = 1.0) -> Conv:
        """A convolution with the batch norm after it."""
        weight, bias = conv.weight, conv.bias
        if norm is not None:
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            bias = norm.bias + ((0 if bias is None else bias) - norm.running_mean) * scale
            weight = weight * scale[:, None, None, None]
        return cls(weight, bias, conv.stride[0], conv.padding[0], slope)

    @classmethod
    def equal(cls, conv: EqualConv2d, bias: Tensor | None = None) -> Conv:
        """An equalised convolution; with a bias, `fused_leaky_relu` follows: its gain passes through the leaky ReLU."""
        weight = conv.weight / math.sqrt(conv.weight[0].numel())
        if bias is None:
            return cls(weight, conv.bias, conv.stride, conv.padding)
        return cls(weight * math.sqrt(2), bias * math.sqrt(2), conv.stride, conv.padding, 0.2)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """`add` is added before the leaky ReLU."""
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        x = x if add is None else x.add_(add)
        return x if self.slope == 1 else F.leaky_relu_(x, self.slope)


WIDE = 128  # channels; with fewer, transforms cost what they save
WIDEST = 512  # from here on kernels, not maps, are what fills the memory


def fastest(conv: Conv, large: bool = False) -> Conv | MinimalConv:
    """A 3 x 3 convolution in its fastest form that is worth its memory; large: on a map of many cells."""
    outputs, inputs = conv.weight.shape[:2]
    wide, widest = min(inputs, outputs) >= (WIDE // 2 if large else WIDE), max(inputs, outputs) >= WIDEST
    if not wide or (widest and conv.stride > 1) or not compiles(conv.weight):
        return conv
    outputs_a_tile = 2 if widest and not large else 4
    return MinimalConv(conv.weight, conv.bias, conv.stride, conv.padding, conv.slope, outputs_a_tile)


class DoublingConv(nn.Module):
    """Nearest x2, a 3x3 convolution and a leaky ReLU, as one 2x2 convolution that makes all four phases of the output.

    An output pixel sees only 2 x 2 different pixels of the small map; the kernel's taps that fall on one add up:
    2.25 times fewer operations.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, slope: float):
        super().__init__()
        whole = Conv.of(conv, norm)
        # taps -1, 0, 1 of an even pixel fall on the cells before, its own, its own; of an odd one on own, own, next
        taps = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).to(whole.weight)
        phases = torch.einsum("apk,bql,oikl->aboipq", taps, taps, whole.weight).flatten(0, 2)
        self.conv = Conv(phases, whole.bias.repeat(4), slope=slope)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = self.conv(x).permute(0, 2, 3, 1)  # (B, H + 1, W + 1, 4 C): phase (a, b) of cell (y, x) is at (y + a, x + b)
        phases = [x[:, k // 2:k // 2 + height, k % 2:k % 2 + width].chunk(4, -1)[k] for k in range(4)]
        rows = [torch.stack(pair, 3) for pair in (phases[:2], phases[2:])]  # (B, H, W, 2, C)
        return torch.stack(rows, 2).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class PreparedResidualBlock(nn.Module):
    def __init__(self, block: ResidualBlock):
        super().__init__()
        self.conv1 = fastest(Conv.of(block.conv1, block.norm1, SLOPE))
        self.conv2 = fastest(Conv.of(block.conv2, block.norm2, SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x), x)


class PreparedConvBlock(nn.Module):
    def __init__(self, block: ConvBlock):
        super().__init__()
        self.conv1 = (DoublingConv(block.conv1, block.norm, SLOPE) if block.resize == "up"
                      else fastest(Conv.of(block.conv1, block.norm, SLOPE)))
        self.down = block.resize == "down"
        self.conv2 = fastest(Conv.of(block.conv2))
        self.residuals = prepare(block.residuals)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.residuals(self.conv2(F.avg_pool2d(x, 2) if self.down else x))


class PreparedDownBlock(nn.Module):
    def __init__(self, block: DownBlock):
        super().__init__()
        channels = block.conv1.weight.shape[1]
        self.conv1 = fastest(Conv.equal(block.conv1, block.bias1), large=True)
        self.conv2 = fastest(Conv.equal(block.conv2, block.bias2))
        self.skip = fastest(Conv.equal(block.skip, block.bias_skip))
        self.blur = Conv(blur_kernel(block.skip.weight).expand(channels, 1, 4, 4), None, padding=2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.blur(self.conv1(x))).add_(self.skip(self.blur(x)))


class PreparedModulatedConv(nn.Module):
    def __init__(self, conv: ModulatedConv):
        super().__init__()
        weight = conv.weight / math.sqrt(conv.weight[0].numel())
        self.modulation = prepare(conv.modulation)
        self.energy = constant(energy(weight))
        self.up = conv.up
        if conv.up:
            outputs = len(weight)
            self.weight = constant(weight.transpose(0, 1))
            self.blur = Conv(blur_kernel(weight, 4).expand(outputs, 1, 4, 4), None, padding=1, groups=outputs)
        else:
            self.conv = Conv(weight, None)
            if len(weight) < WIDEST:  # the widest are of the smallest maps
                self.conv = fastest(self.conv)
        self.bias = constant(conv.bias.view(1, -1, 1, 1) * math.sqrt(2))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, demodulation = steering(style, self.modulation, self.energy)
        x = x * scale[:, :, None, None].to(x.dtype)
        x = self.blur(F.conv_transpose2d(x, self.weight, stride=2)) if self.up else self.conv(x)
        gain = (demodulation * math.sqrt(2))[:, :, None, None].to(x.dtype)
        return F.leaky_relu_(torch.addcmul(self.bias.to(x.dtype), x, gain), 0.2)


# ---------------------------------------------------------------------------------------------------------- attention


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.shape[::-1], device="meta")
    layer.weight, layer.bias = constant(weight), constant(bias)
    return layer


def prepared_linear(layer: EqualLinear) -> nn.Linear:
    return linear(layer.weight / math.sqrt(layer.weight.shape[1]), layer.bias)


def after_norm(norm: nn.LayerNorm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection that take in the norm's own: what precedes need only be normalised."""
    return layer.weight * norm.weight, layer.bias + layer.weight @ norm.bias


def normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


class PreparedAttention(nn.Module):
    """What both kinds of self-attention end with: the projection of what was attended, and the feed-forward network."""

    def __init__(self, block: GlobalAttention | WindowAttention):
        super().__init__()
        self.heads = block.heads
        self.proj = prepare(block.proj)
        self.inner, self.outer = linear(*after_norm(block.norm_ffn, block.ffn[0])), prepare(block.ffn[2])

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x: (n, N, C), attended: (n, h, N, d)."""
        x = self.proj(attended.transpose(1, 2).flatten(2)).add_(x)
        return self.outer(F.gelu(self.inner(normalised(x)))).add_(x)


class PreparedGlobalAttention(PreparedAttention):
    def __init__(self, block: GlobalAttention):
        super().__init__(block)
        self.q_position, self.k_position = constant(block.q_position), constant(block.k_position)
        self.q_proj = linear(*after_norm(block.norm_q, block.q_proj))
        self.k_proj = linear(*after_norm(block.norm_kv, block.k_proj))
        self.v_proj = linear(*after_norm(block.norm_kv, block.v_proj))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (
            self.q_proj(normalised(x + self.q_position)), self.k_proj(normalised(x + self.k_position)),
            self.v_proj(normalised(x))))
        x = self.finish(x, F.scaled_dot_product_attention(q, k, v))
        return x.transpose(1, 2).unflatten(2, shape[2:])


class PreparedWindowAttention(PreparedAttention):
    """Cells are brought into windows, the shift included, by one look-up, and back by another.

    Of a shifted map only the windows at its border hold cells that are no neighbours; they come last, with a mask.
    """

    def __init__(self, block: WindowAttention):
        super().__init__(block)
        weights, biases = zip(*(after_norm(norm, layer) for norm, layer in (
            (block.norm_q, block.q_proj), (block.norm_kv, block.k_proj), (block.norm_kv, block.v_proj))))
        self.qkv = linear(torch.cat(weights), torch.cat(biases))
        bias = block.relative_bias[block.bias_row].permute(2, 0, 1)[None]  # (1, h, 64, 64)
        cells = torch.arange(block.size ** 2, device=bias.device).view(1, block.size, block.size, 1)
        order = block.partition(cells)[..., 0]  # (windows, 64): the cells of each
        masked = block.mask.flatten(1).any(1) if block.shift else bias.new_zeros(len(order), dtype=torch.bool)
        order = torch.cat([order[~masked], order[masked]]).flatten()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.windows = [n for n in ((~masked).sum().item(), masked.sum().item()) if n]
        biases = [bias, bias + block.mask[masked]] if block.shift else [bias]
        self.biases = nn.ParameterList(constant(x) for x in biases)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """(B, windows, h, 64, d) with the bias of every or of all windows."""
        if len(bias) > 1:
            bias = bias.repeat(q.shape[0], 1, 1, 1)
        shape, (q, k, v) = q.shape, (x.flatten(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.flatten(2).transpose(1, 2).index_select(1, self.order).view(-1, WINDOW ** 2, shape[1])
        qkv = self.qkv(normalised(x)).view(shape[0], -1, WINDOW ** 2, 3, self.heads, shape[1] // self.heads)
        parts = [self.attend(*part.permute(3, 0, 1, 4, 2, 5), bias)
                 for part, bias in zip(qkv.split(self.windows, 1), self.biases)]
        x = self.finish(x, torch.cat(parts, 1).flatten(0, 1))
        x = x.view(shape[0], -1, shape[1]).index_select(1, self.back)
        return x.transpose(1, 2).unflatten(2, shape[2:])


class CompiledWindowAttention(PreparedAttention):
    """On a CPU cells stay where they are; attention looks for those of a window itself."""

    def __init__(self, block: PreparedWindowAttention):
        nn.Module.__init__(self)
        self.heads, self.qkv, self.proj, self.inner, self.outer = (
            block.heads, block.qkv, block.proj, block.inner, block.outer)
        self.register_buffer("order", block.order.view(-1, WINDOW ** 2), persistent=False)
        # of the masks only three differ: right border, lower border, corner
        biases = torch.cat(list(block.biases)).transpose(2, 3)
        biases, which = biases.unique(dim=0, return_inverse=True)
        which = torch.cat([which[:1].expand(block.windows[0]), which[1:]])
        self.register_buffer("biases", biases.contiguous(), persistent=False)
        self.register_buffer("which", which.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(normalised(x)).unflatten(2, (3, self.heads, -1))
        attended = attend_in_windows(qkv.float(), self.order, self.biases.float(), self.which)
        x = self.finish(x, attended.to(qkv.dtype).transpose(1, 2))
        return x.transpose(1, 2).unflatten(2, shape[2:])


def prepared_window_attention(block: WindowAttention) -> PreparedWindowAttention | CompiledWindowAttention:
    prepared = PreparedWindowAttention(block)
    width = prepared.qkv.in_features // block.heads
    compiled = width % 4 == 0 and compiles(block.relative_bias)
    return CompiledWindowAttention(prepared) if compiled else prepared


class PreparedCrossAttention(CrossAttention):
    """On a CPU weights are neither kept nor written down where only the best cell is asked for."""

    def __init__(self, block: CrossAttention):
        nn.Module.__init__(self)
        self.heads = block.heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = map(
            prepare, (block.q_proj, block.k_proj, block.v_proj, block.proj))

    def attend_and_look(self, table: Tensor, keys: Tensor, values: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
        if width is not None or table.shape[2] % 4 or table.shape[3] % 4 or not compiles(table):
            return super().attend_and_look(table, keys, values, width)
        attended, match = zip(*map(attend_and_match, table, keys, values))
        return torch.stack(attended), torch.stack(match)


PREPARED = {
    AppearanceEncoder: copy.deepcopy,  # runs once for each picture: not worth the memory
    ConvBlock: PreparedConvBlock,
    CrossAttention: PreparedCrossAttention,
    ResidualBlock: PreparedResidualBlock,
    DownBlock: PreparedDownBlock,
    EqualConv2d: Conv.equal,
    EqualLinear: prepared_linear,
    ModulatedConv: PreparedModulatedConv,
    GlobalAttention: PreparedGlobalAttention,
    WindowAttention: prepared_window_attention,
}
