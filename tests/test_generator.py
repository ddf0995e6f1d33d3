import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imtalker import flow
from imtalker.errors import InputError
from imtalker.models.audio import KnownFeatures
from imtalker.models.generator import CONDITIONS, CONTROLS, SETTLE, Generator, GeneratorConfig, window_noise
from imtalker.models.latent import CAM, GAZE, POSE
from imtalker.stream import MotionStream, held, plan
from imtalker.synth.motion import SCALE

TINY = GeneratorConfig(audio_dim=6, condition_dim=8, width=32, depth=2, heads=2, mlp_ratio=2, time_dim=16,
                       window=10, context=4)


def filled(config):
    """A generator whose every weight is drawn from its own name: the same everywhere, and nothing is zero."""
    generator = Generator(config).eval().requires_grad_(False)
    for name, x in generator.named_parameters():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(x.shape)
        x.copy_(torch.from_numpy(noise / math.sqrt(x.shape[-1]) if x.ndim > 1 else 0.1 * noise))
    return generator


@pytest.fixture(scope="module")
def generator():
    return filled(TINY)


@pytest.fixture(scope="module")
def audio():
    return track(27, 6, 1)


def track(frames, dim, seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((frames, dim)).astype(np.float32))


REFERENCE = torch.linspace(-1, 1, 32)


def windows_of(generator, audio, nfe=3, guidance_scale=2, **options):
    curves = {name: options.pop(name) for name in CONTROLS if name in options}
    stream = MotionStream(KnownFeatures(audio), generator, REFERENCE[None], nfe=nfe, guidance_scale=guidance_scale,
                          controls=held(curves), **options)
    return list(stream.rest())


def step(generator, state, conditions, noise, nfe, **options):
    return generator.step(state, conditions, REFERENCE[None], noise, times=flow.time_grid(nfe), guidance_scale=2,
                          **options)


def motion(generator, audio, **options):
    return torch.cat(windows_of(generator, audio, **options))


# ---------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("frames", [1, 9, 10, 11, 27])
def test_every_audio_frame_gets_motion(generator, audio, frames):
    windows = windows_of(generator, audio[:frames], nfe=2)
    assert [len(window) for window in windows] == [10] * (frames // 10) + [frames % 10] * (frames % 10 > 0)
    assert all(window.shape[1] == 32 and window.dtype == torch.float32 for window in windows)


def test_no_audio_no_motion(generator, audio):
    assert windows_of(generator, audio[:0]) == []


def test_seed_decides(generator, audio):
    once = motion(generator, audio, seed=3)
    assert torch.equal(once, motion(generator, audio, seed=3))
    assert not torch.allclose(once, motion(generator, audio, seed=4))


def test_noise_is_as_wide_as_the_configuration_says(audio):
    """Without any velocity, what comes out is the noise."""
    spread = tuple(np.linspace(0.1, 2, 32).tolist())
    generator = Generator(replace(TINY, noise=spread)).requires_grad_(False)
    generator.out.weight.zero_()
    generator.out.bias.zero_()
    made = motion(generator, audio[:10], seed=5)
    torch.testing.assert_close(made, window_noise(5, 0, (1, 10, 32))[0] * torch.tensor(spread))


def test_future_audio_does_not_change_made_windows(generator, audio):
    torch.testing.assert_close(motion(generator, audio)[:20], motion(generator, audio[:20]))


def test_memory_does_not_grow(generator):
    state = generator.begin()
    sizes = set()
    for k in range(4):
        _, state = step(generator, state, generator.project(track(7, 6, k)[None]),
                        window_noise(0, 10 * k, (1, 10, 32)), nfe=1)
        sizes.add((state.motion.shape, len(state.conditions)))
    assert sizes == {((1, 4, 32), 4)}


def test_each_window_sees_the_end_of_the_one_before(generator, audio):
    made = motion(generator, audio)
    state = generator.begin()
    for k, features in enumerate(audio.split(10)):
        before = made[: k * 10][-4:]
        assert torch.equal(state.motion[0, 4 - len(before):], before)
        out, state = step(generator, state, generator.project(features[None]),
                          window_noise(0, 10 * k, (1, 10, 32)), nfe=3)
        assert torch.equal(out, made[k * 10: k * 10 + 10])
    unaware = step(generator, generator.begin(), generator.project(audio[None, 10:20]),
                   window_noise(0, 10, (1, 10, 32)), nfe=3)[0]
    assert not torch.allclose(unaware, made[10:20])


def test_windows_shorter_than_the_longest_answer_sooner(generator, audio):
    assert [len(window) for window in windows_of(generator, audio, windows=(3,))] == [3] * 9
    assert [len(window) for window in windows_of(generator, audio, windows=(1, 4))] == [1, 4, 4, 4, 4, 4, 4, 2]


@pytest.mark.parametrize("windows, look_ahead", [
    ((11,), 0), ((0,), 0), ((), 0), (5, 0), ((5.5,), 0), ("ab", 0), ((8,), 3), (None, 10), (None, -1), (None, 1.5)])
def test_windows_that_cannot_be_made_are_refused(windows, look_ahead):
    with pytest.raises(InputError, match="windows=|look_ahead="):
        plan(windows, look_ahead, longest=10)


def test_a_window_and_what_it_knows_ahead_are_made_at_once(generator, audio):
    assert [len(window) for window in windows_of(generator, audio, look_ahead=4)] == [6, 6, 6, 6, 3]


def test_look_ahead_may_be_left_to_the_next_step(generator, audio):
    conditions = generator.project(audio[None, :8])
    noise = window_noise(0, 0, (1, 10, 32))
    kept, state = step(generator, generator.begin(), conditions, noise, nfe=2, keep=3)
    whole, _ = step(generator, generator.begin(), conditions, noise, nfe=2)
    assert torch.equal(kept, whole[:3]) and torch.equal(state.motion[0, 1:], kept)


@pytest.mark.parametrize("guidance_scale, branches", [(2, 2), (1, 1)])
def test_nfe_evaluations_per_window_whatever_the_guidance(generator, audio, monkeypatch, guidance_scale, branches):
    batches = []
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, x, *rest: batches.append(len(x)) or forward(self, x, *rest))
    motion(generator, audio[:10], nfe=5, guidance_scale=guidance_scale)
    assert batches == [branches] * 5


def test_guidance_weighs_the_audio(generator, audio):
    # with one step the result is linear in the velocity, so guided motion lies on the line through two others
    off, on, twice = (motion(generator, audio[:10], nfe=1, guidance_scale=s) for s in (0, 1, 2))
    torch.testing.assert_close(twice - on, on - off, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(on, off)
    silent = filled(TINY)
    silent.projections["audio"][0].weight.zero_()
    torch.testing.assert_close(*(motion(silent, x, guidance_scale=1) for x in (audio[:10], audio[:10] * 9)))


# ---------------------------------------------------------------------------------------------------------- controls


def test_controls_change_the_motion_and_hold_their_last_value(generator, audio):
    pose = track(27, 3, 5)
    free, led = motion(generator, audio), motion(generator, audio, pose=pose)
    assert not torch.allclose(free, led)
    held = torch.cat([pose[:12], pose[11:12].expand(15, 3)])
    assert torch.equal(motion(generator, audio, pose=pose[:12]), motion(generator, audio, pose=held))
    longer = torch.cat([pose, torch.ones(50, 3)])
    assert torch.equal(motion(generator, audio, pose=longer), led)
    ahead, at_all_times = (motion(generator, audio, gaze=torch.zeros(frames, 2)) for frames in (1, 27))
    assert torch.equal(ahead, at_all_times)


def test_absent_is_not_the_same_as_zero(generator, audio):
    assert not torch.allclose(motion(generator, audio), motion(generator, audio, gaze=torch.zeros(27, 2)))


def test_controls_are_kept_exactly_where_the_latent_is_known(audio):
    scale = (.3, .3, .3, .15, .08, .08, .3, .3)
    generator = filled(replace(TINY, control_scale=scale))
    pose, gaze = track(27, 3, 5), track(5, 2, 6)
    made = motion(generator, audio, pose=pose, gaze=gaze)
    torch.testing.assert_close(made[:, :3] * 0.3, pose)
    torch.testing.assert_close(made[:, 6:8] * 0.3, torch.cat([gaze, gaze[-1:].expand(22, 2)]))
    # what is not asked for is made to suit it, by the network
    free = motion(generator, audio)
    assert not torch.allclose(made[:, 8:], free[:, 8:]) and not torch.allclose(made[:, 3:6], free[:, 3:6])
    assert torch.equal(motion(filled(TINY), audio), free)


def test_inertia_is_two_filters_that_go_on_across_windows():
    follow, sampled = torch.tensor([0.6, 0.3, 1.0]), torch.randn(1, 12, 3)
    once = twice = before = sampled[0, 0]
    windows, expected = ((0, 5), (5, 6), (6, 12)), []
    for first, last in windows:
        # A window begins as the one before was about to go on; what it would have begun with instead comes in slowly.
        ahead = 1 + 2 * (1 - follow) / follow
        beside = twice + ahead * (twice - before) - sampled[0, first] if first else torch.zeros(3)
        for t, row in enumerate(sampled[0, first:last]):
            before = twice
            row = torch.where(follow < 1, row + beside * SETTLE ** t, row)
            once = once + follow * (row - once)
            twice = twice + follow * (once - twice)
            expected.append(twice)
    generator = Generator(replace(TINY, motion_dim=3, follow=tuple(follow.tolist()), noise=()))
    state, made = generator.begin(), []
    nothing = generator.project(torch.zeros(1, 12, TINY.audio_dim))
    for first, last in windows:
        rows = F.pad(sampled[:, first:last], (0, 0, 0, TINY.window - last + first))
        made.append(generator.steady(rows, state, None)[0, :last - first])
        state = state.after(made[-1], nothing[first:last])
    torch.testing.assert_close(torch.cat(made), torch.stack(expected))
    torch.testing.assert_close(torch.cat(made)[:, 2], sampled[0, :, 2])


def test_a_head_that_turns_evenly_goes_on_turning_into_a_window_that_begins_elsewhere():
    generator = Generator(replace(TINY, window=50, motion_dim=1, follow=(0.6,), noise=()))
    nothing = generator.project(torch.zeros(1, 50, TINY.audio_dim))
    turning = torch.arange(50.0)[None, :, None]
    state = generator.begin()
    state = state.after(generator.steady(turning, state, None)[0], nothing)
    after = generator.steady(turning + 150, state, None)[0, :, 0]  # it would have jumped by a hundred
    speed = torch.cat([state.motion[0, -1], after]).diff()
    torch.testing.assert_close(speed[0], torch.tensor(1.0))
    assert speed.diff().abs().max() < 4 and abs(after[-1] - (turning[0, -1, 0] + 150)) < 10


def test_short_windows_mean_the_same_motion():
    """Every frame has noise of its own, whichever window looks at it."""
    shape = (1, 10, 32)
    whole = torch.cat([window_noise(7, first, shape) for first in (0, 10, 20)], 1)
    for first in (0, 3, 9, 10, 17):
        assert torch.equal(window_noise(7, first, shape), whole[:, first:first + 10])


def test_what_is_asked_for_has_no_inertia(audio):
    generator = filled(replace(TINY, control_scale=(.3,) * 8, follow=(.5,) * 32))
    pose = track(27, 3, 5)
    torch.testing.assert_close(motion(generator, audio, pose=pose)[:, :3] * 0.3, pose)


def test_a_control_comes_in_gradually(audio):
    generator = filled(replace(TINY, control_scale=(.5,) * 8))
    conditions, noise = generator.project(audio[None, :10]), window_noise(0, 0, (1, 10, 32))

    def made(share):
        held = generator.hold({"gaze": (torch.ones(10, 2), share)})
        return step(generator, generator.begin(), conditions, noise, nfe=3, held=held)[0]

    free, part = made(torch.zeros(10)), made(torch.linspace(0, 0.9, 10))
    torch.testing.assert_close(part[:, 6:8], free[:, 6:8].lerp(torch.tensor(2.0), torch.linspace(0, 0.9, 10)[:, None]))
    assert torch.equal(part[:, :6], free[:, :6]) and torch.equal(part[:, 8:], free[:, 8:])


def test_mini_is_anchored_as_its_training_data_is():
    config = GeneratorConfig.mini()
    assert config.control_scale == pytest.approx(SCALE[:8].tolist())
    assert (POSE, CAM, GAZE) == (slice(0, 3), slice(3, 6), slice(6, 8))


# ----------------------------------------------------------------------------------------------------------- network


def test_projection_and_dropping(generator, audio):
    conditions = generator.project(audio[None].expand(2, -1, -1), pose=track(27, 3, 2)[None].expand(2, -1, -1))
    assert len(conditions) == 27 and conditions.gaze.abs().sum() == 0 and conditions.pose.abs().sum() > 0
    torch.testing.assert_close(conditions.sum(), sum(getattr(conditions, name) for name in CONDITIONS))
    part = torch.ones(2, 27)
    part[1, 4:] = 0
    dropped = conditions.keep(audio=torch.tensor([0.0, 1.0]), pose=part)
    assert dropped.audio[0].abs().sum() == 0 and torch.equal(dropped.audio[1], conditions.audio[1])
    assert torch.equal(dropped.pose[0], conditions.pose[0]) and dropped.pose[1, 4:].abs().sum() == 0
    assert torch.equal(dropped.pose[1, :4], conditions.pose[1, :4])
    with pytest.raises(ValueError, match="smell"):
        conditions.keep(smell=part)


def test_positions_are_relative(generator):
    """Attention of tokens depends on the distance between their positions only."""
    attention = generator.blocks[0].attention
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    scores = attention.rotate(query.expand(1, 1, 14, 16)) @ attention.rotate(key.expand(1, 1, 14, 16)).transpose(-1, -2)
    for offset in (-3, 0, 5):
        diagonal = scores[0, 0].diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


def test_untrained_network_is_the_zero_field_but_learns():
    generator = Generator(TINY)
    x, t, context = torch.randn(3, 10, 32), torch.rand(3), torch.randn(3, 4, 32)
    conditions = generator.project(torch.randn(3, 14, 6), gaze=torch.randn(3, 14, 2))
    velocity = generator.velocity(x, t, conditions, torch.randn(3, 32), context)
    assert velocity.shape == (3, 10, 32)
    velocity.square().sum().backward()
    assert generator.out.weight.grad.abs().sum() > 0 and generator.blocks[0].modulation.linear.weight.grad is not None


def test_training_fits_a_simple_relation():
    """Motion that is a linear function of the audio is learnt in a few steps, and sampling then follows the audio."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=2, condition_dim=16, width=32, depth=2, heads=2, mlp_ratio=2,
                                          time_dim=16, window=10, context=4, modulation_rank=16))
    mixing = torch.randn(2, 32)
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    for _ in range(200):
        audio = torch.randn(32, 14, 2)
        data = audio @ mixing
        x_0, t = torch.randn(32, 10, 32), torch.rand(32)
        x_t = flow.interpolate(x_0, data[:, 4:], t)
        v = generator.velocity(x_t, t, generator.project(audio), REFERENCE.expand(32, -1), data[:, :4])
        loss = (v - flow.target_velocity(x_0, data[:, 4:])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    audio = torch.randn(30, 2)
    made = motion(generator, audio, nfe=10, guidance_scale=1)
    assert np.corrcoef(made.flatten(), (audio @ mixing).flatten())[0, 1] > 0.9


def test_numbers_stay(generator, audio):
    """What this network computed when its parity with the published one was established."""
    made = motion(generator, audio, pose=track(27, 3, 5), nfe=4)
    torch.testing.assert_close(made[::9, ::8], torch.tensor(FROZEN), atol=2e-4, rtol=2e-4)


FROZEN = [[1.571161, -1.987516, -3.026623, -0.526909], [1.614684, 0.060283, -2.050962, 1.509319],
          [-1.406774, 0.822816, 2.031815, 0.897671]]


@pytest.mark.parametrize("config, millions", [(GeneratorConfig(), 38.8), (GeneratorConfig.mini(), 1.8)])
def test_sizes(config, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in Generator(config).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
