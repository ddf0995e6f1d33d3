"""Kernels and graphs of a CUDA device give the numbers of stock operators. What needs no device is at the end."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from test_prepared import trained
from test_renderer import TINY

from imtalker.models import gpu
from imtalker.models.compiled import Graphs, batch_sizes, portions
from imtalker.models.cpu import attend_and_match
from imtalker.models.layers import blur
from imtalker.models.prepared import DoublingConv, keep_halved, prepare, prepared_window_attention
from imtalker.models.synthesis import WindowAttention

on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("triton") is None, reason="needs a CUDA device and triton"
)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
types = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(autouse=True)
def exact():
    """Convolutions and products in all of float32's bits; the same numbers every time."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    yield
    torch.backends.cudnn.allow_tf32 = before


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return (found.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@on_gpu
@types
@pytest.mark.parametrize("sources, heads, rows, cells, width", [(1, 8, 512, 256, 16), (2, 3, 101, 70, 24)])
def test_attention_that_tells_where_it_looks(dtype, sources, heads, rows, cells, width):
    queries, keys, values = (torch.randn(sources, heads, n, width, device="cuda").to(dtype) for n in (rows, cells, cells))
    weights = (queries.double() @ keys.double().transpose(2, 3)).softmax(-1)
    attended, match = attend_and_match(queries, keys, values)
    assert attended.dtype == dtype and close(attended, weights @ values.double(), TOLERANCE[dtype])
    assert (match == weights.sum(1).argmax(-1)).double().mean() > 0.99  # of float32 sums, near ties may differ


@on_gpu
@types
@pytest.mark.parametrize("heads, width, shift", [(8, 64, 0), (8, 64, 4), (8, 32, 4)])
def test_windows(dtype, heads, width, shift):
    block = WindowAttention(width, heads, 32, shift).eval().requires_grad_(False)
    block.relative_bias.normal_()
    x = torch.randn(5, width, 32, 32).to(memory_format=torch.channels_last).cuda()
    expected = block.cuda()(x)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        found = prepared_window_attention(block)(x.to(dtype))
    assert close(found, expected, TOLERANCE[dtype])


@on_gpu
@types
def test_maps_are_filtered_and_activated(dtype):
    x, gain, bias = torch.randn(2, 24, 11, 13), torch.randn(2, 24), torch.randn(24)
    x, gain, bias = x.cuda().to(dtype), gain.cuda(), bias.cuda()
    for padding, total in ((2, 1.0), (1, 4.0)):
        expected = blur(x.double(), padding, total)
        assert close(gpu.blur(x, padding, total), expected, TOLERANCE[dtype])
        expected = F.leaky_relu(expected * gain[:, :, None, None] + bias[:, None, None], 0.2)
        assert close(gpu.blur(x, padding, total, gain, bias, 0.2), expected, TOLERANCE[dtype])
    expected = F.leaky_relu(x.double() * gain[:, :, None, None] + bias[:, None, None] + x, 0.2)
    assert close(gpu.activate(x, gain, bias, x, 0.2), expected, TOLERANCE[dtype])


@on_gpu
def test_doubling():
    conv, norm = torch.nn.Conv2d(6, 5, 3, padding=1, bias=False).cuda(), torch.nn.BatchNorm2d(5).cuda().eval()
    norm.running_mean.normal_()
    x = torch.randn(2, 6, 7, 9, device="cuda")
    with torch.no_grad():
        expected = F.leaky_relu(norm(conv(F.interpolate(x, scale_factor=2))), 0.01)
        assert close(DoublingConv(conv, norm, 0.01)(x), expected, 1e-5)


@on_gpu
@torch.no_grad()
def test_graphs_give_the_frames_of_the_trained_renderer():
    renderer = trained(TINY).cuda()
    sources = [renderer.encode_source(torch.rand(1, 3, TINY.size, TINY.size, device="cuda")) for _ in range(2)]
    quick, most = prepare(renderer), 8
    graphs = Graphs(quick.render, most)
    for count in (8, 3, 1, 5, 8):
        for source in sources:
            motion = torch.randn(count, TINY.motion_dim, device="cuda")
            assert close(graphs(source, motion), renderer.render(source, motion), 1e-4)
    assert graphs.captured == [1, 4, 8]
    graphs_made = dict(graphs._captured)
    graphs(sources[0], torch.randn(7, TINY.motion_dim, device="cuda"))
    assert graphs._captured == graphs_made, "captured again"


@on_gpu
@torch.no_grad()
def test_halved_weights_give_what_autocast_gives():
    renderer = prepare(trained(TINY).cuda())
    halved = prepare(trained(TINY).cuda())
    keep_halved(halved, torch.float16)
    picture, motion = torch.rand(1, 3, TINY.size, TINY.size).cuda(), torch.randn(2, TINY.motion_dim).cuda()
    with torch.autocast("cuda", torch.float16):
        frames = [form.render(form.encode_source(picture), motion) for form in (renderer, halved)]
    assert (frames[0] - frames[1]).abs().mean() < 2e-3


@pytest.mark.parametrize("most", [1, 4, 32, 50])
def test_any_batch_is_made_of_few_sizes(most):
    sizes = batch_sizes(most)
    assert sizes[0] == 1 and sizes[-1] == most
    for count in range(1, 2 * most + 1):
        parts = portions(count, sizes)
        assert sum(rows for rows, _ in parts) == count
        assert all(0 < rows <= size and size in sizes for rows, size in parts)
        assert sum(size for _, size in parts) <= 4 / 3 * count
