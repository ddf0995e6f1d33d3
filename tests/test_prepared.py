"""The prepared renderer gives the trained one's numbers, whatever its architecture, and costs less."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_renderer import TINY
from torch._subclasses.fake_tensor import FakeTensorMode

from imtalker.bench.counts import cost
from imtalker.models import cpu
from imtalker.models.prepared import prepare
from imtalker.models.renderer import Renderer, RendererConfig
from imtalker.weights import load_model

OURS = {"fine": "sample", "eyes": 0.3, "copy": True, "hints": True, "modulation": "affine",
        "motion_encoder": "landmarks"}


def trained(config: RendererConfig) -> Renderer:
    """Weights, statistics and positions that all matter: as they begin, norms do nothing and biases are zero."""
    torch.manual_seed(0)
    renderer = Renderer(config).eval().requires_grad_(False)
    for name, x in renderer.state_dict().items():
        if name.endswith("running_var"):
            x.uniform_(0.5, 2)
        elif x.is_floating_point() and x.abs().max() in (0, 1):
            x.add_(torch.randn_like(x) * 0.3)
    return renderer


def outputs(renderer: Renderer, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    size = renderer.config.size
    picture, driving = torch.rand(1, 3, size, size, dtype=dtype), torch.rand(2, 3, size, size, dtype=dtype)
    source = renderer.encode_source(picture)
    motion = renderer.encode_motion(driving)
    aligned = renderer.align(source, motion)
    return {"identity": source.identity, "motion": motion, "frames": renderer.synthesis(aligned),
            **{f"aligned {i}": x for i, x in enumerate(aligned)}}


@pytest.mark.parametrize("changes, dtype, tolerance", [
    ({}, torch.float64, 1e-6), ({}, torch.float32, 1e-5), (OURS, torch.float32, 1e-5)])
def test_prepared_is_equal(changes, dtype, tolerance):
    renderer = trained(replace(TINY, **changes)).to(dtype)
    before = {name: x.clone() for name, x in renderer.state_dict().items()}
    plain, quick = outputs(renderer, dtype), outputs(prepare(renderer), dtype)
    for name, x in plain.items():
        assert (quick[name] - x).norm() < tolerance * x.norm(), name
    assert all(torch.equal(x, before[name]) for name, x in renderer.state_dict().items())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("outputs, stride, padding", [(4, 1, 1), (2, 1, 1), (4, 2, 0)])
@pytest.mark.parametrize("channels, size", [(24, (19, 33)), (24, (5, 64)), (128, (10, 7)), (512, (16, 16))])
def test_minimal_convolution_is_the_same_convolution(outputs, stride, padding, channels, size, threads, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(cpu, "THREADS", threads)
    weight, bias = torch.randn(40, channels, 3, 3) / channels ** 0.5, torch.randn(40)
    x = torch.randn(2, channels, *size)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    add = torch.randn(exact.shape)
    minimal = cpu.MinimalConv(weight, bias, stride, padding, 0.2, outputs)
    for more, sum_ in ((None, exact), (add, exact + add)):
        expected = F.leaky_relu(sum_, 0.2)
        found = minimal(x, more)
        assert found.shape == expected.shape and found.is_contiguous(memory_format=torch.channels_last)
        assert (found - expected).norm() < 3e-6 * expected.norm()
    small = x[:1, :, :4]  # another number of tiles: the kernel is arranged anew
    expected = F.leaky_relu(F.conv2d(small, weight, bias, stride, padding), 0.2)
    torch.testing.assert_close(minimal(small), expected, rtol=1e-5, atol=5e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(minimal(x), minimal(x.clone()))
        assert (minimal(x) - F.leaky_relu(exact, 0.2)).norm() < 3e-6 * exact.norm()


def test_minimal_convolution_without_onednn(monkeypatch):
    torch.manual_seed(0)
    weight, x = torch.randn(16, 24, 3, 3) / 24 ** 0.5, torch.randn(1, 24, 12, 12)
    with_it = cpu.MinimalConv(weight, None, 1, 1, 1.0)(x)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch.testing.assert_close(cpu.MinimalConv(weight, None, 1, 1, 1.0)(x), with_it)


def test_attention_that_tells_where_it_looks():
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 136, 8) * 4, torch.randn(3, 200, 8), torch.randn(3, 200, 8)
    weights = (queries.double() @ keys.double().transpose(1, 2)).softmax(-1)
    attended, match = cpu.attend_and_match(queries, keys, values)
    assert (attended - weights @ values.double()).norm() < 1e-6 * attended.norm()
    assert torch.equal(match, weights.mean(0).argmax(-1))


@pytest.mark.parametrize("far", [0.0, 200.0])
def test_attention_in_windows(far):
    torch.manual_seed(0)
    qkv, order = torch.randn(2, 64, 3, 2, 4) * 3, torch.randperm(64).view(4, 16)
    qkv[:, :, 0] += far  # logits far from zero, where e to their power is none that float32 has
    biases, which = torch.randn(2, 2, 16, 16), torch.tensor([0, 1, 1, 0])
    found = cpu.attend_in_windows(qkv, order, biases, which)
    q, k, v = (x[:, order].transpose(2, 3) for x in qkv.unbind(2))  # (B, n, h, T, d)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(),
                                              attn_mask=biases[which].transpose(2, 3).double())
    expected = torch.zeros(2, 64, 2, 4).index_copy_(1, order.flatten(), expected.transpose(2, 3).flatten(1, 2).float())
    assert (found - expected).norm() < 2e-6 * expected.norm() * (1 + far)


def test_operators_are_followed():
    """Without numbers, for whoever counts costs, they have the shapes that they have with them."""
    conv = cpu.MinimalConv(torch.randn(16, 8, 3, 3), None, 2, 0, 1.0)
    x, qkv, order = torch.randn(2, 8, 11, 13), torch.randn(2, 16, 3, 2, 4), torch.arange(16).view(2, 8)
    biases, which = torch.randn(1, 2, 8, 8), torch.zeros(2, dtype=torch.long)
    real = conv(x), cpu.attend_in_windows(qkv, order, biases, which), *cpu.attend_and_match(*torch.randn(3, 2, 8, 4))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = (conv(mode.from_tensor(x)), cpu.attend_in_windows(mode.from_tensor(qkv), order, biases, which),
                *cpu.attend_and_match(*mode.from_tensor(torch.randn(3, 2, 8, 4))))
    assert [(t.shape, t.stride(), t.dtype) for t in real] == [(t.shape, t.stride(), t.dtype) for t in fake]
    assert cost(lambda: conv(x)).gflop == 2 * 2 * 2 * 2 * 81 * 8 * 16 / 1e9


def test_without_numba_stock_operators_do_it(monkeypatch):
    renderer = trained(replace(TINY, widths=(128, 128, *TINY.widths[2:])))
    compiled = prepare(renderer)
    monkeypatch.setattr(cpu, "_numba", lambda: False)
    stock = prepare(renderer)
    kinds = [{type(module).__name__ for module in form.modules()} for form in (compiled, stock)]
    assert "MinimalConv" in kinds[0] and "MinimalConv" not in kinds[1]
    assert "CompiledWindowAttention" in kinds[0] and "CompiledWindowAttention" not in kinds[1]
    ours, theirs = outputs(compiled, torch.float32), outputs(stock, torch.float32)
    for name, x in theirs.items():
        assert (ours[name] - x).norm() < 1e-5 * x.norm(), name


@pytest.mark.parametrize("changes", [{}, OURS])
def test_painting_in_half_precision_suits_every_form(changes):
    """Wide convolutions and windows, which a CPU has loops of its own for, too."""
    renderer = trained(replace(TINY, widths=(128, 128, *TINY.widths[2:]), **changes))
    exact = outputs(prepare(renderer), torch.float32)["frames"]
    painting = prepare(renderer)
    painting.synthesis.paint_as(torch.bfloat16)
    found = outputs(painting, torch.float32)["frames"]
    assert 0 < (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.slow
def test_mini_is_equal():
    renderer = load_model("mini").renderer
    plain, quick = (outputs(form, torch.float32) for form in (renderer, prepare(renderer)))
    for name in ("identity", "motion"):
        assert (quick[name] - plain[name]).norm() < 1e-5 * plain[name].norm(), name
    assert (quick["frames"] - plain["frames"]).norm() < 1e-4 * plain["frames"].norm()  # noise as pictures: no faces
