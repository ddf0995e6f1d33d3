"""What the networks cost, counted on tensors without numbers: a guard that does not depend on the machine."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from imtalker import flow
from imtalker.bench.counts import Cost, cost
from imtalker.models.generator import Generator, GeneratorConfig
from imtalker.models.prepared import prepare
from imtalker.models.renderer import MINI_RENDERER, Renderer, RendererConfig

CONFIGS = {"mini": (MINI_RENDERER, GeneratorConfig.mini()), "base": (RendererConfig(), GeneratorConfig())}

# At most GFLOP, megabytes read and written, and operators called (views not counted), for one picture or frame, or for
# a window of 50 frames at nfe 10, guided; on a CPU, with numba. A little above what is counted: tighten them when
# something becomes cheaper.
MOST = {
    ("mini", "encode_source"): Cost(4.71, 502, 1005),
    ("mini", "encode_motion"): Cost(0.254, 20.7, 138),
    ("mini", "render"): Cost(2.25, 248, 462),
    ("mini", "window"): Cost(4.31, 371, 1270),
    ("base", "encode_source"): Cost(144, 3350, 485),
    ("base", "encode_motion"): Cost(87, 1800, 52),
    ("base", "render"): Cost(85, 2250, 475),
    ("base", "window"): Cost(93.5, 3180, 2160),
}


@cache
def costs(model: str) -> dict[str, Cost]:
    config, sampler = CONFIGS[model]
    renderer = prepare(Renderer(config).eval().requires_grad_(False))  # looks at numbers: of masks and positions
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        generator = Generator(sampler).eval().requires_grad_(False)
        picture = torch.rand(1, 3, config.size, config.size)
        source = renderer.encode_source(picture)
        features, times = torch.rand(1, sampler.window, sampler.audio_dim), flow.time_grid(10)
        noise = torch.rand(1, sampler.window, sampler.motion_dim)
        return {
            "encode_source": cost(lambda: renderer.encode_source(picture)),
            "encode_motion": cost(lambda: renderer.encode_motion(picture)),
            "render": cost(lambda: renderer.render(source, source.motion)),
            "window": cost(lambda: generator.step(
                generator.begin(), generator.project(features), source.motion, noise, times=times, guidance_scale=2)),
        }


@pytest.mark.parametrize("model, network", [
    pytest.param(*key, marks=pytest.mark.slow if key[0] == "base" else ()) for key in MOST])
def test_networks_do_not_become_dearer(model, network):
    counted, most = costs(model)[network], MOST[model, network]
    told = f"{counted}, at most {most} expected"
    assert counted.gflop <= most.gflop, told
    assert counted.megabytes <= most.megabytes, told
    assert counted.operators <= most.operators, told
