"""Speed and cost: the plain path draws the same pictures, the command tells all that it promises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_renderer import TINY
from torch import nn

from imtalker.bench.counts import cost
from imtalker.bench.plain import PlainRenderer
from imtalker.bundled import ASSETS
from imtalker.cli import main
from imtalker.media import VideoReader, load_picture
from imtalker.models.renderer import Renderer
from imtalker.models.synthesis import GlobalAttention, WindowAttention
from imtalker.models.transfer import CrossAttention
from imtalker.weights import load_model


def distance(ours: torch.Tensor, plain: torch.Tensor) -> float:
    return ((ours - plain).norm() / plain.norm()).item()


@pytest.mark.parametrize("changes", [
    {},  # as published
    {"modulation": "affine", "adapter_residual": True, "motion_encoder": "landmarks"},
    {"fine": "sample", "hints": True, "copy": True},
    {"fine": "sample", "motion_encoder": "landmarks", "eyes": 0.003, "copy": True}],  # latents are large
    ids=["published", "affine, landmarks", "sample, copy, hints", "sample, eyes"])
def test_plain_path_makes_the_same_frames(changes):
    torch.manual_seed(0)
    renderer = Renderer(replace(TINY, **changes)).eval().requires_grad_(False)
    for module in renderer.modules():  # new networks damp what goes through them, and some parts begin at nothing
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.normal_(std=1.5 * module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, CrossAttention):
            module.q_proj.weight.mul_(8)
        elif isinstance(module, WindowAttention):
            module.relative_bias.normal_()
        elif isinstance(module, GlobalAttention):
            module.q_position.normal_()
    renderer.adapter.head.out.weight.normal_()
    picture, driving = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    compare(renderer, picture, driving)


def test_plain_path_of_mini():
    picture, driving = load_picture(ASSETS / "sample.png"), next(iter(VideoReader(ASSETS / "sample.mp4")))
    renderer = load_model("mini").renderer
    picture, driving = (nn.functional.interpolate(torch.tensor(x)[None].permute(0, 3, 1, 2) / 255, 256)
                        for x in (picture, driving))
    compare(renderer, picture, driving)


@torch.no_grad()
def compare(renderer: Renderer, picture: torch.Tensor, driving: torch.Tensor) -> None:
    plain = PlainRenderer(renderer)
    source, plain_source = renderer.encode_source(picture), plain.encode_source(picture)
    motion = renderer.encode_motion(driving)
    assert distance(motion, plain.encode_motion(driving)) < 1e-5
    assert distance(source.motion, plain_source.motion) < 1e-5
    assert distance(source.identity, plain_source.identity) < 1e-5
    motion = motion + 3 * torch.randn(1, 32)  # far enough for any weights to show it
    frame = renderer.render(source, motion)
    assert distance(frame, plain.frame(plain_source, motion)) < 1e-5
    assert distance(frame, renderer.render(source, source.motion)) > 1e-3  # motion matters


REQUIRED = ("model", "device", "animate_fps", "reenact_fps", "animate_network_fps", "reenact_network_fps",
            "animate_network_ratio", "reenact_network_ratio", "live_first_frame_ms", "live_frame_ms",
            "start_first_frame_s", "real_time_factor", "peak_memory_mb", "gflop_per_frame", "achieved_gflops",
            "matrix_gflops")  # fmt: skip


@pytest.mark.slow
def test_benchmark_command(tiny_model, tmp_path, capsys):
    report = tmp_path / "performance.md"
    report.write_text("# Speed\n\nOurs.\n\n## `tiny` on cpu\n\nold\n\n## `other` on cpu\n\nkept\n")
    command = ["benchmark", "--model", str(tiny_model), "--device", "cpu", "--runs", "1", "--seconds", "0.2", "--json"]
    assert main([*command, "--report", str(report)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["device"], told["size"]) == ("tiny", "cpu", 64)
    for name in REQUIRED[2:]:
        assert told[name] > 0, name
    assert told["peak_memory_mb"] < 2000 and told["matrix_share"] < 1.2
    # networks alone are quicker than all together, and all stages are told
    assert told["animate_network_fps"] > told["animate_fps"] and len(told["stages"]) == 11
    page = report.read_text()
    assert page.startswith("# Speed\n\nOurs.\n\n## `tiny` on cpu\n\n20")
    assert page.endswith("\n\n## `other` on cpu\n\nkept\n")
    assert "old" not in page and f"{told['animate_network_ratio']:.2f} ×" in page


def test_costs_are_counted():
    a, b = torch.rand(30, 40), torch.rand(40, 50)
    counted = cost(lambda: (a @ b).view(-1))
    assert counted.gflop == 2 * 30 * 40 * 50 / 1e9 and counted.operators == 1
    assert counted.megabytes == pytest.approx(4 * (30 * 40 + 40 * 50 + 30 * 50) / 1e6)
