"""The parts of the server that need no server: turns, shares, queues, clocks, speech, and the real model's session."""

import asyncio
import gc
import shutil
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from live_fake import FakeSession, FakeTalker, Running, number_of, wait_until

from imtalker import InputError
from imtalker.bundled import ASSETS
from imtalker.live.camera import Mirror
from imtalker.live.conversation import MISTAKES
from imtalker.live.guard import matches
from imtalker.live.jobs import Job, Jobs
from imtalker.live.limits import Limits
from imtalker.live.metrics import Metrics
from imtalker.live.outbox import Closed, Event, Moment, Outbox
from imtalker.live.pace import Pace
from imtalker.live.protocol import HEADER, Hello, Kind, number, pack, pcm
from imtalker.live.pump import LEAD, Pump
from imtalker.live.refusal import short
from imtalker.live.scheduler import Once, Scheduler
from imtalker.live.sources import Sources
from imtalker.live.speech import Utterance, espeak, load_speaker
from imtalker.live.stage import Stage
from imtalker.live.uploads import safe_name
from imtalker.media import FPS, load_picture
from imtalker.workers import Workers


class Work:
    """`steps` steps, whose results are needed at `needed`."""

    def __init__(self, name, needed, done, steps=1, error=None):
        self.name, self.needed, self.done, self.steps, self.error = name, needed, done, steps, error

    def wants(self, now):
        return 0.0, self.needed

    def step(self, now):
        self.done.append(self.name)
        if self.error:
            raise self.error
        self.steps -= 1
        return self.steps > 0

    def fail(self, error):
        self.done.append(str(error))


@pytest.fixture
def scheduler():
    scheduler = Scheduler()
    yield scheduler
    scheduler.stop()


def test_who_needs_it_soonest_comes_first(scheduler):
    done = []
    for name, needed in (("late", 3.0), ("soon", 1.0), ("then", 2.0)):
        scheduler.add(Work(name, needed, done))
    scheduler.start()
    wait_until(lambda: not len(scheduler))
    assert done == ["soon", "then", "late"]


def test_a_work_that_fails_does_not_stop_the_others(scheduler):
    done = []
    scheduler.start()
    scheduler.add(Work("bad", 0, done, steps=9, error=ValueError("broken")))
    wait_until(lambda: "broken" in done)
    scheduler.add(Work("good", 1, done, steps=2))
    wait_until(lambda: not len(scheduler))
    assert done == ["bad", "broken", "good", "good"]


def test_waiting_takes_no_time_and_waking_is_immediate(scheduler):
    class Sleeper(Work):
        ready = False

        def wants(self, now):
            return (now, now) if self.ready else None

    done = []
    work = Sleeper("woken", 0, done)
    scheduler.start()
    scheduler.add(work)
    begun = time.thread_time()
    time.sleep(0.2)
    assert not done and time.thread_time() - begun < 0.1
    work.ready = True
    scheduler.wake()
    wait_until(lambda: done == ["woken"], 1)


def test_once(scheduler):
    results = []
    scheduler.start()
    scheduler.add(Once(lambda: threading.current_thread().name, results.append, results.append))
    scheduler.add(Once(lambda: 1 / 0, results.append, results.append))
    wait_until(lambda: len(results) == 2)
    assert results[0] == "model" and isinstance(results[1], ZeroDivisionError)


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


# ------------------------------------------------------------------------------------------------------------ protocol


def test_header_and_samples():
    message = pack(Kind.SOUND, 3, pcm(np.float32([-2, 0, 0.5])))
    assert HEADER.size == 16 and message[:16] == bytes([3, 0, 0, 0, 3, 0, 0, 0, 128, 7, 0, 0, 0, 0, 0, 0])
    assert np.frombuffer(message[16:], "<i2").tolist() == [-32767, 0, 16383]


def test_hello_takes_what_it_says_and_no_more():
    assert Hello.read({"type": "hello"}) == Hello()
    assert Hello.read({"guidance": 1, "nfe": None, "latency": "low"}).guidance == 1
    for wrong in ({"nfe": 0}, {"sound": 1}, {"quality": 101}, {"source": None}, {"latency": "none"}, {"rate": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Hello.read(wrong)


def test_what_no_number_key_name_or_reason_should_be_is_told_and_breaks_nothing():
    with pytest.raises(InputError, match="strength"):
        number({"strength": 10 ** 400}, "strength")
    assert not matches("key", "\ud800")
    assert len(safe_name("\U0001d54f" * 200).encode()) <= 80
    assert short("ö" * 100) == "ö" * 60


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


# ------------------------------------------------------------------------------------------------- pictures and clips


def test_no_more_than_two_pictures_are_decoded_at_once(monkeypatch, picture):
    decoding, most = [], []

    def slowly(path, *limits):
        decoding.append(path)
        time.sleep(0.05)
        most.append(len(decoding))
        decoding.remove(path)
        return np.zeros((32, 32, 3), np.uint8)

    async def encode():
        async def on_model(function):
            return function()

        sources = Sources(FakeTalker(), Limits(), on_model, crop=False)
        await asyncio.gather(*(sources.encode(picture, crop=False) for _ in range(6)))

    monkeypatch.setattr("imtalker.live.sources.load_picture", slowly)
    asyncio.run(encode())
    assert len(most) == 6 and max(most) == 2


def test_a_server_may_stop_in_the_moment_in_which_a_job_is_cancelled(tmp_path):
    """Whoever makes jobs for ever must not take the one for the other."""

    async def stop_meanwhile():
        jobs = Jobs(None, Limits(), Metrics())
        job = Job("animate", tmp_path, asyncio.Event().wait, 1.0)
        jobs.add(job)
        running = asyncio.ensure_future(jobs.run())
        await asyncio.sleep(0.01)
        job._task.add_done_callback(lambda _: running.cancel())  # before it has heard that the job has ended
        jobs.drop(job.id)
        await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 2)

    asyncio.run(stop_meanwhile())


def test_jobs_that_nobody_wants_any_more_are_not_kept(tmp_path):
    async def come_and_go():
        jobs = Jobs(None, Limits(), Metrics())
        running = asyncio.ensure_future(jobs.run())
        first = Job("animate", tmp_path, asyncio.Event().wait, 1.0)
        jobs.add(first)
        await asyncio.sleep(0.01)
        kept = [weakref.ref(jobs.add(Job("animate", tmp_path / str(n), None, 1.0))) for n in range(5)]
        for job in kept:
            jobs.drop(job().id)
        gc.collect()
        running.cancel()
        await asyncio.wait([running])
        return len(jobs), [job() for job in kept], jobs._metrics.text().decode()

    left, kept, told = asyncio.run(come_and_go())
    assert left == 1 and kept == [None] * 5
    assert 'imtalker_jobs_total{state="cancelled"} 5.0' in told and "imtalker_jobs_waiting 0.0" in told


def test_a_job_at_rest_is_reported_again_and_again(monkeypatch, tmp_path):
    monkeypatch.setattr("imtalker.live.jobs.ALIVE", 0.01)

    async def watch():
        events = Job("animate", tmp_path, None, 1.0).events()
        return [await anext(events) for _ in range(3)]

    assert [told["state"] for told in asyncio.run(watch())] == ["waiting"] * 3


# -------------------------------------------------------------------------------------------------------------- speech


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng here")
def test_espeak():
    sound = np.concatenate(list(espeak("--help; $(reboot) Hello there.")))  # text is text, whatever it says
    assert sound.dtype == np.float32 and 8_000 < len(sound) < 160_000 and 0.05 < np.abs(sound).max() <= 1


def test_no_espeak(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="--speaker"):
        next(espeak("Hello"))


def test_other_speakers():
    assert load_speaker("live_fake:FakeTalker") is FakeTalker
    with pytest.raises(InputError, match="nothing:here"):
        load_speaker("nothing:here")


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


# ------------------------------------------------------------------------------------------------------ the real model


@pytest.mark.slow
def test_mini_speaks_over_a_websocket():
    """The bundled sentence: its own sound comes back with a face whose mouth it opens."""
    from imtalker import IMTalker
    from imtalker.face import no_crop, read_curves
    from imtalker.live.load import SPEECH
    from imtalker.media import load_audio

    speech = load_audio(SPEECH)[: 2 * 16_000]
    with Running(IMTalker.from_pretrained("mini")) as server, server.live(quality=95) as viewer:
        viewer.say(speech)
        viewer.send(type="flush")
        said = viewer.event("said", 60)["frame"]
        viewer.take_until(lambda: said + 40 in viewer.sounds, 60)
    heard = np.concatenate([viewer.sounds[k] for k in range(said - 50, said)])
    assert np.abs(heard - speech).max() < 1e-3
    talking = [viewer.pictures[k] for k in range(said - 50, said) if k in viewer.pictures]
    assert len(talking) >= 5 and talking[0].shape == (256, 256, 3)
    silent = [picture for k, picture in viewer.pictures.items() if k < said - 50 or k > said + 10]
    opening = lambda pictures: read_curves(pictures, no_crop(256, 256)).mouth
    assert opening(talking).max() > 2 * opening(silent).max() > 0
