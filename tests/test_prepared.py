"""The prepared renderer gives the trained one's numbers, whatever its architecture, and costs less."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_renderer import TINY

from imtalker.models import prepared
from imtalker.models.prepared import prepare
from imtalker.models.renderer import Renderer, RendererConfig
from imtalker.weights import load_model

OURS = {"fine": "sample", "copy": True, "hints": True, "modulation": "affine", "motion_encoder": "landmarks"}


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


@pytest.mark.parametrize("size", [(16, 16), (10, 7)])
@pytest.mark.parametrize("channels", [128, 512])
def test_winograd_is_the_same_convolution(channels, size, monkeypatch):
    torch.manual_seed(0)
    conv = prepared.Conv(torch.randn(128, channels, 3, 3) / channels ** 0.5, torch.randn(128), slope=0.2)
    x = torch.randn(2, channels, *size)
    exact = torch.nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    exact = torch.nn.functional.leaky_relu(exact, 0.2)
    winograd = prepared.WinogradConv(conv)
    whole = winograd(x)
    assert whole.shape == exact.shape and (whole - exact).norm() < 3e-6 * exact.norm()
    monkeypatch.setattr(prepared, "STRIP", 1)
    assert (winograd(x) - exact).norm() < 3e-6 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert (winograd(x) - exact).norm() < 3e-6 * exact.norm()


@pytest.mark.slow
def test_mini_is_equal():
    renderer = load_model("mini").renderer
    plain, quick = (outputs(form, torch.float32) for form in (renderer, prepare(renderer)))
    for name in ("identity", "motion"):
        assert (quick[name] - plain[name]).norm() < 1e-5 * plain[name].norm(), name
    assert (quick["frames"] - plain["frames"]).norm() < 1e-4 * plain["frames"].norm()  # noise as pictures: no faces
