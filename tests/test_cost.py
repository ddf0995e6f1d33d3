"""What the networks cost, counted on tensors without numbers: a guard that does not depend on the machine."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from imtalker import flow
from imtalker.bench.counts import Cost, cost
from imtalker.models.generator import Generator, GeneratorConfig, window_noise
from imtalker.models.renderer import MINI_RENDERER, Renderer, RendererConfig

CONFIGS = {"mini": (MINI_RENDERER, GeneratorConfig.mini()), "base": (RendererConfig(), GeneratorConfig())}

# At most GFLOP, megabytes read and written, and operators called (views not counted), for one picture or frame, or for
# a window of 50 frames at nfe 10, guided. A little above what is counted: tighten them when something becomes cheaper.
MOST = {
    ("mini", "encode_source"): Cost(2.26, 150, 350),
    ("mini", "encode_motion"): Cost(0.254, 23.5, 172),
    ("mini", "render"): Cost(2.45, 218, 280),
    ("mini", "window"): Cost(4.31, 371, 1270),
    ("base", "encode_source"): Cost(217, 5350, 650),
    ("base", "encode_motion"): Cost(157, 3370, 133),
    ("base", "render"): Cost(123, 8300, 765),
    ("base", "window"): Cost(93.5, 3180, 2160),
}


@pytest.fixture(scope="module")
def costs() -> dict[tuple[str, str], Cost]:
    found = {}
    with FakeTensorMode(), torch.no_grad():
        for name, (config, sampler) in CONFIGS.items():
            renderer, generator = (x.eval().requires_grad_(False) for x in (Renderer(config), Generator(sampler)))
            picture = torch.rand(1, 3, config.size, config.size)
            source = renderer.encode_source(picture)
            features, times = torch.rand(1, sampler.window, sampler.audio_dim), flow.time_grid(10)
            noise = torch.rand(1, sampler.window, sampler.motion_dim)
            found[name, "encode_source"] = cost(lambda: renderer.encode_source(picture))  # noqa: B023
            found[name, "encode_motion"] = cost(lambda: renderer.encode_motion(picture))  # noqa: B023
            found[name, "render"] = cost(lambda: renderer.render(source, source.motion))  # noqa: B023
            found[name, "window"] = cost(lambda: generator.step(  # noqa: B023
                generator.begin(), generator.project(features), source.motion, noise, times=times))  # noqa: B023
    return found


@pytest.mark.parametrize("network", MOST, ids=" ".join)
def test_networks_do_not_become_dearer(costs, network):
    counted, most = costs[network], MOST[network]
    assert counted.gflop <= most.gflop and counted.megabytes <= most.megabytes and counted.operators <= most.operators, (
        f"{counted}, at most {most} expected"
    )
