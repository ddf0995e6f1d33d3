"""The renderer's networks: shapes, exact forms."""
from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from imtalker.models import transfer
from imtalker.models.eyes import eyeballs, gaze_change, look
from imtalker.models.layers import ModulatedConv, blur
from imtalker.models.places import grid_of, sample_at
from imtalker.models.renderer import MINI_RENDERER, Renderer, RendererConfig
from imtalker.models.transfer import CrossAttention, MotionTransfer
from imtalker.models.warping import FlowTransfer

TINY = RendererConfig(
    size=64, stem=4, widths=(16, 16, 8, 8), encoder_residuals=1, identity_dim=16, motion_stem=4,
    motion_widths=(8, 16), adapter_hidden=16, const_channels=4, map_convs=2, attention_levels=2, heads=2,
    synthesis_residuals=((0, 1), (1, 1), (0, 0)), synthesis_attention=("global", "window", "window"))


def tiny(**changes) -> Renderer:
    torch.manual_seed(0)
    return Renderer(replace(TINY, **changes)).eval().requires_grad_(False)


@pytest.mark.parametrize("ours", [{}, {"fine": "sample"}, {"fine": "sample", "copy": True, "hints": True},
                                  {"fine": "sample", "motion_encoder": "landmarks", "eyes": 0.3},
                                  {"modulation": "affine"}])
def test_one_source_many_frames(ours):
    renderer, picture, driving = tiny(**ours), torch.rand(1, 3, 64, 64), torch.rand(3, 3, 64, 64)
    source = renderer.encode_source(picture)
    motion = renderer.encode_motion(driving)
    frames = renderer.render(source, motion)
    assert frames.shape == (3, 3, 64, 64) and motion.shape == (3, 32)
    assert 0 <= frames.min() and frames.max() <= 1
    one_by_one = torch.cat([renderer.render(source, m[None]) for m in motion])
    torch.testing.assert_close(frames, one_by_one, rtol=0, atol=5e-5)


def test_config_survives_json():
    assert RendererConfig(**json.loads(json.dumps(asdict(MINI_RENDERER)))) == MINI_RENDERER


@pytest.mark.parametrize("name", ["modulation", "fine", "motion_encoder"])
def test_unknown_choices_are_named(name):
    with pytest.raises(ValueError, match=f"{name} 'other'"):
        replace(TINY, **{name: "other"})


def test_modulated_convolution_equals_modulated_weights():
    torch.manual_seed(1)
    x, style = torch.randn(2, 6, 5, 5), torch.randn(2, 4)
    for up in (False, True):
        conv = ModulatedConv(6, 8, 4, up)
        for i in range(2):
            scale = conv.modulation(style[i:i + 1])
            weight = conv.weight / (9 * 6) ** 0.5 * scale[0, None, :, None, None]
            weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
            want = (blur(F.conv_transpose2d(x[i:i + 1], weight.transpose(0, 1), stride=2), 1, 4) if up
                    else F.conv2d(x[i:i + 1], weight, padding=1))
            want = F.leaky_relu(want + conv.bias.view(1, -1, 1, 1), 0.2) * 2 ** 0.5
            torch.testing.assert_close(conv(x, style)[i:i + 1], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_modulated_convolution_stays_in_the_range_of_float16(size):
    torch.manual_seed(2)
    conv, x = ModulatedConv(64, 16, 4).requires_grad_(False), torch.randn(1, 64, 8, 8)
    conv.modulation.weight.mul_(size)
    conv.modulation.bias.mul_(size)
    style = torch.randn(1, 4)
    exact = conv(x, style)
    scale, weight = conv.modulation(style).double(), conv.weight.double() / (9 * 64) ** 0.5
    weight = weight * scale[0, None, :, None, None]
    weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
    plain = F.leaky_relu(F.conv2d(x.double(), weight, padding=1) + conv.bias.view(1, -1, 1, 1), 0.2) * 2 ** 0.5
    torch.testing.assert_close(exact.double(), plain, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.float16):
        assert (conv(x, style) - exact).norm() < 3e-3 * exact.norm()


def test_mean_fetches_the_most_attended_cell():
    torch.manual_seed(2)
    block = MotionTransfer((8, 8), 2, "mean", hints=False)
    maps = [torch.randn(2, 8, 4, 4), torch.randn(2, 8, 8, 8)]
    driving = [torch.randn(2, 8, 4, 4), torch.randn(2, 8, 8, 8)]
    level = torch.randn(2, 5, 32, 32)
    source = block.encode_source(maps, [*maps, torch.randn(2, 5, 16, 16), level])
    fetched = block(driving, source)[3]
    finest = block.levels[1]
    best = finest.weights(finest.queries(driving[1]), source.keys[1]).mean(1).argmax(-1)
    for b, cell in ((0, 0), (1, 37)):
        y, x = divmod(cell, 8)
        from_y, from_x = divmod(int(best[b, cell]), 8)
        got = fetched[b, :, 4 * y:4 * y + 4, 4 * x:4 * x + 4]
        want = level[b, :, 4 * from_y:4 * from_y + 4, 4 * from_x:4 * from_x + 4]
        torch.testing.assert_close(got, want.mean((1, 2), keepdim=True).expand_as(want))


def test_standing_still_samples_every_pixel_and_moving_moves_them():
    level, cells = torch.rand(1, 3, 32, 32), torch.arange(8.0)
    still = torch.stack(torch.meshgrid(cells, cells, indexing="xy"))[None]
    torch.testing.assert_close(sample_at(level, still), level)
    # Looks half a cell to the left
    right = sample_at(level, still - torch.tensor([0.5, 0.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(right[..., 2:], level[..., :-2])


def face(x: float = 0.5, open: float = 0.03) -> torch.Tensor:
    """Landmarks (1, 68, 2) with an eye of half width 0.05 around (x, 0.4), and the other one shut."""
    landmarks = torch.zeros(1, 68, 2)
    for first, middle, lid in ((36, x, open), (42, x + 0.2, 0.002)):
        landmarks[0, first:first + 6] = torch.tensor([
            [middle + 0.05 * u, 0.4 + lid * v] for u, v in ((-1, 0), (-.5, -1), (.5, -1), (1, 0), (.5, 1), (-.5, 1))])
    return landmarks


def test_an_open_eyes_pixels_move_with_the_gaze_and_nothing_else_does():
    field, motion, own = eyeballs(face(), 128), torch.zeros(3, 32), torch.zeros(1, 32)
    motion[1, 6], motion[2, 7] = 1.0, 1.0  # to the own left, which is the picture's right; down
    change = gaze_change(motion, own, 0.3)
    torch.testing.assert_close(change, torch.tensor([[0, 0], [0.2955, 0], [0, 0.2955]]), atol=1e-4, rtol=0)
    picture = torch.rand(1, 3, 256, 256)
    still = grid_of(torch.zeros(1, 2, 32, 32))[None].expand(3, -1, -1, -1)
    moved = sample_at(picture, look(still, field, change))
    torch.testing.assert_close(moved[:1], picture, atol=1e-4, rtol=0)
    away = 0.05 * 0.2955 * 256  # pixels, of half the eye's width: 3.8
    whole = moved[1, :, 98:106, 124:132], moved[2, :, 98:106, 124:132]
    shifted = F.grid_sample(picture, torch.stack(torch.meshgrid(
        *[(torch.arange(256.0) * 2 + 1) / 256 - 1] * 2, indexing="xy"), -1)[None] - torch.tensor([2 * away / 256, 0]),
        align_corners=False)[0, :, 98:106, 124:132]
    torch.testing.assert_close(whole[0], shifted, atol=0.02, rtol=0)
    assert (whole[1] - picture[0, :, 98:106, 124:132]).abs().mean() > 0.1
    far = (field[0, 0] == 0).repeat_interleave(2, 0).repeat_interleave(2, 1)
    far = -F.max_pool2d(-far[None].float(), 5, 1, 2)[0] > 0  # a shut eye is far, too
    assert far[102, 179] and (moved - picture)[..., far].abs().max() < 1e-4
    with pytest.raises(ValueError, match="eyes"):
        tiny(eyes=0.3)


def test_a_turned_head_looks_along_its_own_axes():
    own, motion = torch.zeros(1, 32), torch.zeros(1, 32)
    own[0, 2] = motion[0, 2] = 0.5  # rolled: the own left side up
    motion[0, 6] = 0.5  # to the own left
    right, down = gaze_change(motion, own, 0.3)[0]
    assert right > 0.1 and down < -0.01


def test_an_explicit_flow_begins_by_standing_still_and_follows_what_it_says():
    flow = FlowTransfer((8, 8), hints=True).requires_grad_(False)
    maps = [torch.randn(1, 8, side, side) for side in (8, 16)]
    picture = torch.rand(1, 3, 64, 64)
    source = flow.encode_source(maps, [*maps, picture])
    *_, fetched = flow([x.flip(0) for x in maps], source)
    torch.testing.assert_close(fetched, picture, atol=0.02, rtol=0)
    flow.levels[0].flow.bias[0] = 0.5  # cells of the coarse map: four pixels
    *_, fetched = flow(maps, source)
    torch.testing.assert_close(fetched[..., :-4], picture[..., 4:], atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="flow"):
        tiny(transfer="flow", fine="mean")


def test_place_is_where_attention_looks():
    torch.manual_seed(2)
    block = CrossAttention(16, 2)
    for layer in (block.q_proj, block.k_proj):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    source = torch.randn(1, 16, 8, 8) * 6  # every cell unlike every other
    driving = source.roll((1, 2), (2, 3))
    keys = block.keys(source)
    _, place = block.forward_and_match(driving, keys, keys, placed=True)
    torch.testing.assert_close(place[0, :, 5, 6], torch.tensor([4.0, 4.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(place[0, :, 1, 2], torch.tensor([0.0, 0.0]), atol=0.01, rtol=0)


def test_trusted_pixels_are_the_sources_own():
    renderer, picture = tiny(fine="sample", copy=True), torch.rand(1, 3, 64, 64)
    renderer.synthesis.to_rgb.weight.zero_()
    renderer.synthesis.to_rgb.bias.copy_(torch.tensor([0.0] * 12 + [100.0] * 4))  # the mask: trust everything
    source = renderer.encode_source(picture)
    *aligned, last = renderer.align(source, source.motion)
    torch.testing.assert_close(renderer.synthesis([*aligned, last[:, :3]]), last[:, :3])


def test_what_the_sources_own_frame_lacks_is_put_back_where_the_frame_shows_the_same():
    synthesis, (painted, picture, own) = tiny(fine="sample", copy=True).synthesis, torch.rand(3, 1, 3, 64, 64)
    nowhere, everywhere = torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
    unmoved = torch.cat([picture, own], 1)
    torch.testing.assert_close(synthesis.blend(own, nowhere, [unmoved]), picture)
    elsewhere = torch.cat([picture, (painted + 0.5) % 1], 1)
    torch.testing.assert_close(synthesis.blend(painted, nowhere, [elsewhere]), painted)
    assert torch.equal(synthesis.blend(painted, everywhere, [picture]), picture)


def test_attention_with_its_match_in_pieces_is_the_same(monkeypatch):
    torch.manual_seed(3)
    block = MotionTransfer((8,), 2, "mean", hints=False).levels[0]
    driving, source = torch.randn(2, 8, 8, 8), torch.randn(1, 8, 8, 8)
    inputs = driving, block.keys(source), block.values(source)
    whole, match = block.forward_and_match(*inputs, placed=False)
    torch.testing.assert_close(whole, block(*inputs))
    monkeypatch.setitem(transfer.MAX_WEIGHTS, "cpu", 1000)
    pieces, match_of_pieces = block.forward_and_match(*inputs, placed=False)
    assert torch.equal(match, match_of_pieces)
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize("cells", [64, 60])
def test_the_greatest_is_found_as_argmax_finds_it(cells):
    few = torch.randint(0, 3, (2, 50, cells), generator=torch.Generator().manual_seed(4)).float()  # ties: the first
    assert torch.equal(transfer.greatest(few), torch.from_numpy(few.numpy().argmax(-1)))


def test_weights_are_no_denormal_numbers_and_nothing_else_changes():
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(5)) * 100
    logits.requires_grad_()
    weights, plain = transfer.weights_of(logits), logits.softmax(-1)
    assert plain.min() < 1e-38 < 1e-30 < weights.min()
    torch.testing.assert_close(weights, plain, atol=1e-24, rtol=1e-6)
    gradients = [torch.autograd.grad(x[:, :100].sum(), logits)[0] for x in (weights, plain)]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-5)
    for size in (1e3, 1e7, 1e9, 1e16):
        huge = logits.detach() * size
        torch.testing.assert_close(transfer.weights_of(huge), huge.softmax(-1), atol=1e-24, rtol=1e-6)


def test_base_has_the_published_size():
    with torch.device("meta"):
        renderer = Renderer(RendererConfig()).eval().requires_grad_(False)
    assert sum(p.numel() for p in renderer.parameters()) == pytest.approx(124.1e6 - 2.4e6, rel=0.01)
