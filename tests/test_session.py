"""Live sessions with a tiny model: the clock, the order, and that they make what `animate` makes."""

import numpy as np
import pytest
import torch
from conftest import tone

from imtalker import InputError
from imtalker.steering import EASE
from imtalker.stream import MEMORY


def motion_of(session, samples=None) -> np.ndarray:
    """Latents of all that is due after `samples`, nothing drawn."""
    if samples is not None:
        session.push(samples)
    made = list(iter(session.next_motion, None))
    return torch.cat(made).numpy() if made else np.zeros((0, 32), np.float32)


SPEECH = tone(3.41)  # 86 frames, the last one begun


@pytest.mark.parametrize("portion", [317, 640, 7001, 80_000])
@pytest.mark.parametrize("windows", [(5, 5, 10, 15, 20, 25), (5,), (50,)])
def test_a_whole_file_gives_the_frames_of_animate_to_the_bit(talker, source, windows, portion):
    clip = talker.animate(source, (SPEECH, 16_000), seed=4, windows=windows)
    session = talker.session(source, seed=4, windows=windows)
    frames = [f for start in range(0, len(SPEECH), portion) for f in session.push(SPEECH[start : start + portion])]
    frames += session.flush()
    assert session.frames == len(frames) == 86
    assert np.array_equal(np.stack(frames), np.stack(list(clip)))
    if windows == (50,):  # as animate does it by itself
        assert np.array_equal(clip.motion, talker.animate(source, (SPEECH, 16_000), seed=4).motion)


def test_the_first_frames_come_after_the_stated_delay(talker, source):
    session = talker.session(source)
    assert session.sample_rate == 16_000 and session.delay == 0.4
    needed = round(session.delay * 16_000)
    assert list(session.push(SPEECH[: needed - 1])) == []
    first = list(session.push(SPEECH[needed - 1 : needed]))
    assert len(first) == 5 and first[0].shape == (64, 64, 3) and first[0].dtype == np.uint8


@pytest.mark.parametrize("windows", [(5,), (3,), (5, 5, 10)])
def test_with_the_steady_delay_no_frame_is_late(talker, source, windows):
    session = talker.session(source, windows=windows, look_ahead=2)
    made = 0
    for pushed in range(1, 100):  # frames of sound that have been spoken
        made += len(motion_of(session, np.zeros(640, np.float32)))
        assert made >= pushed - round(session.steady_delay * 25) + 1


def test_look_ahead_costs_its_delay_and_changes_the_motion(talker, source):
    plain, ahead = talker.session(source), talker.session(source, look_ahead=5)
    assert ahead.delay == pytest.approx(plain.delay + 0.2)
    made, knowing = motion_of(plain, SPEECH), motion_of(ahead, SPEECH)
    assert len(made) >= len(knowing) > 0 and not np.allclose(made[: len(knowing)], knowing)


def test_a_face_that_looks_ahead_idles_and_changes_its_pace(talker, source):
    session = talker.session(source, windows=(5,), look_ahead=20)
    assert len(motion_of(session, SPEECH)) == 60
    assert len(list(session.idle(60))) == 86 - 60 + 60
    with pytest.raises(InputError, match="windows=.*1 to 30 beside look_ahead=20"):
        session.pace((31,))
    assert session.delay == (5 + session._ahead) / 25 and len(motion_of(session, SPEECH)) == 60
    session.flush()
    session.pace((30,))
    assert len(motion_of(session, SPEECH)) == 26 + 60


def test_what_was_not_taken_comes_with_the_next_call(talker, source):
    session, whole = talker.session(source), talker.session(source)
    taken = [next(session.push(SPEECH))]
    taken += [frame for _, frame in zip(range(7), session.push(SPEECH[:0]))]
    taken += session.flush()
    session_after = list(session.push(SPEECH)) + list(session.flush())
    expected = [*whole.push(SPEECH), *whole.flush(), *whole.push(SPEECH), *whole.flush()]
    assert np.array_equal(np.stack(taken + session_after), np.stack(expected))


def test_idle_takes_its_place_on_the_clock(talker, source):
    session = talker.session(source)
    early = list(session.idle(3))
    rest = list(session.push(SPEECH)) + list(session.idle(7)) + list(session.push(SPEECH)) + list(session.flush())
    assert len(early) == 3 and session.frames == 3 + 86 + 7 + 86 == 3 + len(rest)
    moving = np.abs(np.diff(np.stack(early + rest).astype(int), axis=0)).max((1, 2, 3))
    assert (moving > 0).mean() > 0.9, "an idle face moves, too"
    with pytest.raises(InputError, match="idle for 0 frames"):
        session.idle(0)


def test_idle_for_hours_needs_no_more_memory(talker, source):
    session = talker.session(source, nfe=1, guidance_scale=1)
    for _ in range(8):
        session.idle(50)
        assert len(motion_of(session)) == 50
    stream = session._stream
    assert len(stream._sound.buffer) < 16_000 and sum(len(w.motion) for w in stream._made) < MEMORY + 50


def test_an_interruption_drops_the_sound_and_goes_on_in_silence(talker, source):
    session = talker.session(source)
    before = motion_of(session, SPEECH)
    session.push(SPEECH)
    session._drawing, session.frames = iter(()), len(before)
    session.interrupt()
    assert len(motion_of(session)) == 0 and session.frames == len(before)
    assert len(list(session.idle(5))) == 5 and session.frames == len(before) + 5


@pytest.mark.parametrize("shown", [0, 5, 7, 30])
def test_an_interruption_takes_back_what_nobody_has_seen(talker, source, shown):
    """The viewer has seen `shown` frames only: what follows is what would have followed had the speech ended there."""
    session = talker.session(source, windows=(5,))
    frames = list(session.push(SPEECH))
    session.interrupt(shown)
    assert session.frames == shown
    window = session._stream._state
    assert torch.equal(window.motion[0, max(10 - shown, 0) :], _stack(talker, source)[max(shown - 10, 0) : shown])
    following = list(session.idle(5))
    assert session.frames == shown + 5
    if shown:
        jump = np.abs(following[0].astype(int) - frames[shown - 1]).mean()
        assert jump <= 3 * np.abs(np.diff(np.stack(frames).astype(int), axis=0)).mean() + 1
    with pytest.raises(InputError, match="handed out"):
        session.interrupt(1000)


def _stack(talker, source) -> torch.Tensor:
    return torch.from_numpy(motion_of(talker.session(source, windows=(5,)), SPEECH))


def test_what_is_long_past_cannot_be_taken_back(talker, source):
    session = talker.session(source, nfe=1, guidance_scale=1)
    frames = len(list(session.push(np.zeros(640 * (MEMORY + 150), np.float32))))
    session.interrupt(0)
    assert frames - MEMORY - 50 < session.frames <= frames - MEMORY


@pytest.mark.parametrize("windows", [(5,), (50,)])
def test_ten_seconds_can_be_taken_back(talker, source, windows):
    session = talker.session(source, nfe=1, guidance_scale=1, windows=windows)
    made = len(motion_of(session, np.zeros(640 * (MEMORY + 180), np.float32)))
    session.interrupt(made - MEMORY)
    assert session.frames == made - MEMORY


def test_steering_is_eased_and_can_be_let_go(talker, source):
    plain, steered = talker.session(source, windows=(5,)), talker.session(source, windows=(5,))
    sound = np.zeros(640 * 10, np.float32)
    assert np.array_equal(motion_of(plain, sound), motion_of(steered, sound))
    steered.steer(pose=(0.1, -0.4, 0), strength=0.5)
    values, share = steered._steering(range(0, 60))["pose"]
    first = steered._stream.frames
    assert not share[:first].any() and (share.diff() >= 0).all() and share.diff().max() < 0.2
    assert (share[first + EASE :] == 1).all()
    off = values[first + EASE :] - torch.tensor([0.1, -0.4, 0])  # a head that is held still lives, by a degree
    assert 0.005 < off.abs().max() < 0.02 and off.diff(dim=0).abs().max() < 0.001
    later = np.zeros(640 * 30, np.float32)
    assert not np.allclose(motion_of(plain, later), motion_of(steered, later))
    steered.steer(pose=None)
    now = steered._stream.frames
    assert "pose" not in steered._steering(range(now + EASE, now + EASE + 5))
    steered.steer(gaze=(0.3, 0))
    steered.steer(gaze=(-0.3, 0))
    values = steered._steering(range(now, now + 40))["gaze"][0][:, 0]
    assert values.diff().abs().max() < 0.1


def test_strength_scales_the_expression_about_the_source(talker, source):
    plain, strong, none = (talker.session(source) for _ in range(3))
    strong.steer(strength=2.0)
    none.steer(strength=0)
    rows = [motion_of(session, SPEECH)[EASE:] - source.features.motion.numpy() for session in (plain, strong, none)]
    assert np.allclose(rows[1], 2 * rows[0], atol=1e-4) and np.allclose(rows[2], 0, atol=1e-6)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"pose": (1, 2)}, r"pose has shape \(2,\)"),
        ({"gaze": (40, 0)}, "radians"),
        ({"cam": np.zeros((2, 3))}, "one is expected"),
        ({"strength": 5}, "strength 5"),
        ({"strength": float("nan")}, "strength nan"),
    ],
)
def test_wrong_steering_is_refused_and_changes_nothing(talker, source, wrong, words):
    session = talker.session(source)
    with pytest.raises(InputError, match=words):
        session.steer(pose=(0, 0, 0.1), **wrong) if "pose" not in wrong else session.steer(**wrong)
    assert session._steering(range(0, 50)) == {}


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"windows": ()}, "windows"),
        ({"windows": (0,)}, "windows"),
        ({"windows": (51,)}, "1 to 50"),
        ({"look_ahead": -1}, "look_ahead=-1"),
        ({"look_ahead": 40}, "from 1 to 10 beside look_ahead=40"),
        ({"nfe": 0}, "nfe=0"),
    ],
)
def test_wrong_options_are_refused_at_once(talker, source, wrong, words):
    with pytest.raises(InputError, match=words):
        talker.session(source, **wrong)


@pytest.mark.parametrize("sound", [np.zeros((5, 2), np.float32), np.zeros(5, np.int16), np.full(9, np.nan)])
def test_wrong_sound_is_refused_and_the_session_goes_on(talker, source, sound):
    session = talker.session(source)
    with pytest.raises(InputError, match="sound"):
        session.push(sound)
    assert len(list(session.push(SPEECH[:6400]))) == 5
