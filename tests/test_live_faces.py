"""Faces on the server's clock, without a server: how much they draw, when it is shown, and what the camera shows."""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from live_fake import FakeSession, FakeTalker, Running, number_of, wait_until

from imtalker.bundled import ASSETS
from imtalker.live import pump as pumping
from imtalker.live.camera import Mirror
from imtalker.live.conversation import MISTAKES
from imtalker.live.outbox import Closed, Event, Moment, Outbox
from imtalker.live.pace import Pace
from imtalker.live.pump import LEAD, Pump
from imtalker.live.speech import Utterance
from imtalker.live.stage import Stage
from imtalker.media import FPS, load_picture
from imtalker.workers import Workers


def test_the_share_of_frames_follows_the_time_there_is():
    pace = Pace()
    assert pace.share == 1 and pace.fits(1, 5)
    pace.faces = 1
    for _ in range(200):
        pace.moved(5, 0.02)  # 4 ms a frame
        pace.drew(2, 0.04)  # 20 ms a frame
    assert pace.share == 1  # 24 of 38 ms
    pace.faces = 2
    assert pace.share == pytest.approx((0.019 - 0.004) / 0.02, rel=0.05)
    pace.workers = 2
    assert pace.share == 1
    pace.workers, pace.faces = 1, 20
    assert pace.share == 0.1
    assert pace.fits(4, 5) and not pace.fits(5, 5)  # 200 ms of drawing and motion a second for each


def test_windows_are_as_short_as_can_be_afforded():
    pace = Pace()
    assert pace.window(1) == 5
    pace.window_seconds = 0.05
    assert [pace.window(faces) for faces in range(1, 7)] == [5, 10, 15, 15, 25, 25]
    pace.window_seconds = 0.06  # affordable, but hardly: whoever has a longer one keeps it
    assert pace.window(1) == 5 and pace.window(1, 10) == 10
    pace.window_seconds = 0.05
    assert pace.window(1, 10) == 5


def test_windows_get_longer_when_there_is_no_time_for_short_ones(pump):
    pump._window, pump._pace.faces, pump._pace.window_seconds = 5, 1, 0.2
    pump.say(np.zeros(32_000, np.float32))
    play(pump, 0.3)
    assert pump._session.paced[0] == (15,)


def moment(frame):
    return Moment(frame, None, np.zeros(640, np.float32), 0.0)


def test_an_outbox_keeps_the_newest_and_all_that_is_to_be_told():
    async def use():
        outbox = Outbox(asyncio.get_running_loop(), most=3)
        outbox.put(Event("said", {}))
        for frame in range(5):
            outbox.put(moment(frame))
        outbox.take_back(4)
        outbox.close("enough")
        outbox.put(moment(9))
        taken = [await outbox.take() for _ in range(3)]
        with pytest.raises(Closed, match="enough"):
            await outbox.take()
        return taken, outbox.dropped

    taken, dropped = asyncio.run(use())
    assert isinstance(taken[0], Event) and [item.frame for item in taken[1:]] == [2, 3] and dropped == 2


class Collected:
    """An outbox that only collects."""

    def __init__(self):
        self.moments, self.events = [], []

    def put(self, item):
        (self.events if isinstance(item, Event) else self.moments).append(item)

    def take_back(self, frame):
        self.moments = [item for item in self.moments if item.frame < frame]

    def close(self, reason):
        self.events.append(reason)


@pytest.fixture
def pump():
    return Pump(None, FakeSession(windows=(5,)), Collected(), Pace(), lambda: None)


def play(pump, seconds):
    """Do what the scheduler would, for so long."""
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        wanted = pump.wants(now)
        if wanted[0] <= now:
            rows = pump.prepare(now)
            if rows is not None:
                pump.show([None] * len(rows))
        else:
            time.sleep(0.002)


def test_moments_come_one_after_the_other_a_25th_of_a_second_apart_and_not_too_early(pump):
    pump.say(np.full(16_000, 0.5, np.float32))
    pump.end()
    begun = time.monotonic()
    play(pump, 1.5)
    moments = pump.outbox.moments
    assert [item.frame for item in moments] == list(range(len(moments)))
    assert np.allclose(np.diff([item.due for item in moments]), 0.04)
    assert 1.5 + LEAD - 0.1 < len(moments) / 25 + (moments[0].due - begun) < 1.5 + LEAD + 0.2
    assert [item.sound.max() > 0 for item in moments[:30]] == [True] * 25 + [False] * 5


def test_what_is_complete_is_spoken_to_its_end_before_what_follows(pump):
    """Three sentences at once, and nothing is told of them twice."""
    for length in (8_000, 3_200, 16_000):
        pump.say(np.full(length, 0.5, np.float32))
        pump.end()
        pump.end()
    play(pump, 1.7)
    assert [event.details["frame"] for event in pump.outbox.events] == [13, 18, 43]
    assert [item.sound.max() > 0 for item in pump.outbox.moments[:43]] == [True] * 43


def test_an_interruption_forgets_what_was_to_be_spoken_to_its_end(pump):
    pump.say(np.full(16_000, 0.5, np.float32))
    pump.end()
    play(pump, 0.1)
    pump.interrupt()
    play(pump, 0.3)
    assert [event.kind for event in pump.outbox.events] == ["interrupted"]


def test_frames_are_left_out_only_while_there_is_no_time_to_spare(pump):
    pump._pace.faces = 1
    pump._pace.drew(1, 0.08)  # an estimate twice as long as there is time, though drawing takes none
    pump.say(np.full(32_000, 0.5, np.float32))
    play(pump, 1.5)
    assert pump._pace.share < 0.5 and pump.skipped < 0.3 * (pump.drawn + pump.skipped)
    assert pump.drawn > 25


def test_speech_does_not_wait_for_the_idle_second_to_pass(pump):
    play(pump, 0.3)
    before = pump.outbox.moments[-1].frame
    pump.say(np.full(8_000, 0.5, np.float32))
    pump.end()
    play(pump, 0.6)
    first = next(item.frame for item in pump.outbox.moments if item.sound.max() > 0)
    assert first == before + 1  # right after what had been drawn already
    assert pump.stalls == 0


@pytest.mark.parametrize("begun", np.arange(0.5, 1.5, 0.1).round(1))
def test_lips_go_with_a_microphones_sound_after_idling(monkeypatch, begun):
    """On a clock of its own, and where drawing is slow: frames of the idle second are still to be drawn then."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pumping, "time", SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now))
    pace = Pace()
    pace.faces, pace.workers, pace.window_seconds, pace.motion_seconds, pace.drawing_seconds = 2, 2, 0.1, 0.02, 0.03
    pump = Pump(None, FakeSession(windows=(5,)), Collected(), pace, lambda: None)
    packets = [np.full(320, (k // 2 + 1) / 100, np.float32) for k in range(75)]  # every 25th of a second louder
    while clock.now < 100 + begun + 3:
        while packets and clock.now >= 100 + begun + 0.02 * (75 - len(packets)):
            pump.hear(packets.pop(0))
        if pump.wants(clock.now)[0] <= clock.now and (rows := pump.prepare(clock.now)) is not None:
            pump.show([float(row[1]) for row in rows])
        clock.now += 0.004
    drawn = [(item.picture, float(item.sound.max())) for item in pump.outbox.moments if item.picture is not None]
    assert max(heard for _, heard in drawn) > 0.3 and np.allclose(*zip(*drawn))


def test_what_is_said_after_an_interruption_is_not_taken_back_with_what_was_said_before(pump):
    pump.say(np.full(16_000, 0.2, np.float32))
    play(pump, 0.2)
    pump.interrupt()
    pump.say(np.full(8_000, 0.5, np.float32))
    pump._pending.clear()
    pump.look_ahead(time.monotonic())  # all drawings are under way: nothing is prepared now
    play(pump, 0.8)
    assert sum(item.sound.max() == 0.5 for item in pump.outbox.moments) > 10


@pytest.mark.parametrize("device, together", [("cuda:0", [2, 1, 1]), ("cpu", [1, 1, 1])])
def test_faces_are_drawn_together_where_that_pays(device, together):
    talker, pace = FakeTalker(), Pace()
    talker.device = device
    stage = Stage(talker, pace)
    pumps = [Pump(None, FakeSession(windows=(5,)), Collected(), pace, lambda: None) for _ in range(2)]
    for pump in pumps:
        stage.add(pump)
        pump.say(np.zeros(16_000, np.float32))
    for _ in range(3):
        now = time.monotonic()
        assert stage.wants(now)[0] <= now
        stage.step(now)
        stage.remove(pumps[0])  # from now on the other one is alone
    assert talker.together == together
    assert [item.frame for item in pumps[1].outbox.moments] == list(range(len(pumps[1].outbox.moments)))
    assert [number_of(item.picture) for item in pumps[1].outbox.moments] == list(range(len(pumps[1].outbox.moments)))


def test_faces_come_and_go_from_any_thread():
    stage, interval = Stage(FakeTalker(), Pace()), sys.getswitchinterval()

    def come_and_go(own):
        for pump in own:
            stage.add(pump)
        for pump in own[::2]:
            stage.remove(pump)

    faces = [[object() for _ in range(300)] for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(come_and_go, faces))
    finally:
        sys.setswitchinterval(interval)
    assert set(stage._pumps) == {pump for own in faces for pump in own[1::2]}


def test_nobody_is_late_who_has_not_begun_to_take():
    async def wait():
        box = Outbox(asyncio.get_running_loop(), most=2, stuck_seconds=0.0)
        for frame in range(5):
            box.put(Moment(frame, None, np.zeros(640, np.float32), 0.0))
        assert box.reason is None and (await box.take()).frame == 3
        for frame in range(5, 8):
            box.put(Moment(frame, None, np.zeros(640, np.float32), 0.0))
        assert "nothing was taken" in box.reason

    asyncio.run(wait())


def staged(seconds):
    """A stage of one face, on three workers who need so long for a frame."""
    talker, pace = FakeTalker(seconds), Pace()
    talker.workers = Workers(3)
    pump = Pump(None, FakeSession(windows=(5,)), Collected(), pace, lambda: None)
    stage = Stage(talker, pace)
    stage.add(pump)
    return stage, pump


def play_stage(stage, enough):
    end = time.monotonic() + 10
    while not enough():
        now = time.monotonic()
        assert now < end, "it did not come"
        if (wanted := stage.wants(now)) and wanted[0] <= now:
            stage.step(now)
        else:
            time.sleep(0.001)


def test_what_several_workers_draw_comes_in_order_and_is_not_waited_for():
    stage, pump = staged(seconds=0.03)
    pump.say(np.full(16_000, 0.5, np.float32))
    moments = pump.outbox.moments
    play_stage(stage, lambda: len(moments) >= 20)
    assert [item.frame for item in moments] == list(range(len(moments)))
    assert [number_of(item.picture) for item in moments] == [item.frame for item in moments]
    assert len({name for name in stage._talker.threads if name.startswith("imtalker")}) == 3
    assert pump.stalls == pump.skipped == 0


def test_frames_that_are_being_drawn_when_somebody_interrupts_are_not_shown():
    stage, pump = staged(seconds=0.05)
    pump.say(np.full(32_000, 0.5, np.float32))
    play_stage(stage, lambda: len(pump.outbox.moments) >= 4 and len(pump._under_way) >= 4)
    pump.interrupt(2)
    play_stage(stage, lambda: len(pump.outbox.moments) >= 12)
    moments = pump.outbox.moments
    assert [item.frame for item in moments] == list(range(len(moments)))
    assert [number_of(item.picture) for item in moments] == [item.frame for item in moments]
    assert all(item.sound.max() > 0 for item in moments[:2]) and all(item.sound.max() == 0 for item in moments[2:])


def test_a_face_that_leaves_while_it_is_drawn_is_forgotten():
    stage, pump = staged(seconds=0.05)
    pump.say(np.zeros(32_000, np.float32))
    play_stage(stage, lambda: len(pump._under_way) >= 4)
    stage.remove(pump)
    shown = len(pump.outbox.moments)
    play_stage(stage, lambda: stage.wants(time.monotonic()) is None)
    assert len(pump.outbox.moments) == shown


def test_a_face_that_fails_leaves_the_others_alone():
    with Running(sessions=4) as server, server.live() as one, server.live() as two:
        broken = server.talker.sessions[-1]
        broken.next_motion = lambda: 1 / 0
        two.take_until(lambda: two.events and two.events[-1]["type"] == "closing")
        assert "ZeroDivisionError" in two.events[-1]["error"]
        one.take_until(lambda: len(one.pictures) > 25)


@pytest.mark.parametrize("model", ["tiny_model", "mini"])
def test_drawing_together_is_drawing_alone(model, request):
    from imtalker import IMTalker

    talker = IMTalker.from_pretrained(request.getfixturevalue(model) if model != "mini" else model, device="cpu",
                                      precision="float32")
    rng = np.random.default_rng(0)
    sources = [talker.encode_source(rng.integers(0, 256, (64, 64, 3), np.uint8), crop=False) for _ in range(2)]
    portions = [source.features.motion + 0.1 * torch.randn(n, 32) for n, source in enumerate(sources, 2)]
    together = talker.render_together(list(zip(sources, portions)))
    for source, portion, frames in zip(sources, portions, together):
        alone = list(talker.render(source, [portion]))
        assert len(frames) == len(portion)
        assert np.abs(np.stack(frames).astype(int) - np.stack(alone)).max() <= 1
    same = talker.render_together([(sources[0], portions[0]), (sources[0], portions[0])])
    assert np.abs(np.stack(same[0]).astype(int) - np.stack(same[1])).max() <= 1


def test_a_session_changes_its_windows_while_it_runs(tiny_model):
    from imtalker import IMTalker

    talker = IMTalker.from_pretrained(tiny_model, device="cpu")
    source = talker.encode_source(np.zeros((64, 64, 3), np.uint8), crop=False)
    session = talker.session(source, windows=(5,))
    before = session.steady_delay
    session.push(np.zeros(32_000, np.float32))
    lengths = [len(session.next_motion())]
    session.pace((15,))
    lengths += [len(session.next_motion()), len(session.next_motion())]
    assert lengths == [5, 15, 15] and session.steady_delay == pytest.approx(before + 0.4)


def test_a_microphone_that_comes_too_late_is_dropped(pump):
    pump.hear(np.zeros(16_000, np.float32))
    pump.hear(np.zeros(16_000, np.float32))
    for _ in range(20):
        pump.hear(np.zeros(1_600, np.float32))
    assert pump.unheard > 0 and pump._waiting < 3 * 16_000


def test_an_interruption_that_tells_nonsense_is_kept_in_bounds(pump):
    play(pump, 0.2)
    pump.interrupt(10_000)
    play(pump, 0.1)
    assert pump.outbox.events[-1].kind == "interrupted" and pump.outbox.events[-1].details["frame"] <= 30


# ------------------------------------------------------------------------------------------------ a camera, a speaker


def test_a_camera_may_change_the_size_of_its_pictures():
    mirror = Mirror(FakeTalker(), None, None, Pace(), lambda: None, crop=False)
    mirror.see(np.zeros((100, 100, 3), np.uint8))
    mirror._find = True
    mirror.see(np.zeros((100, 120, 3), np.uint8))  # where the face is in it is not known yet
    assert mirror.wants(0.0) and mirror.step(time.monotonic()) and mirror.drawn == 0


def test_a_camera_that_sees_nobody_says_so_and_goes_on_looking():
    face = load_picture(ASSETS / "sample.png")

    async def look():
        outbox = Outbox(asyncio.get_running_loop())
        mirror = Mirror(FakeTalker(), None, outbox, Pace(), lambda: None)
        for _ in range(MISTAKES + 1):
            for _ in range(FPS):
                mirror.see(np.zeros((64, 64, 3), np.uint8))
            assert "no face" in (await outbox.take()).details["error"]
        assert outbox.reason is None and mirror.wants(0.0) is None
        for _ in range(FPS):
            mirror.see(face)
        assert (await outbox.take()).kind == "face" and mirror.wants(0.0)

    asyncio.run(look())


def test_an_utterance_that_is_stopped_says_nothing_more(pump):
    def endless():
        while True:
            yield np.zeros(640, np.float32)
            time.sleep(0.001)

    utterance = Utterance(pump, endless())
    wait_until(lambda: pump._waiting > 6_400)
    utterance.stop()
    waiting = pump._waiting
    time.sleep(0.1)
    assert pump._waiting == waiting
