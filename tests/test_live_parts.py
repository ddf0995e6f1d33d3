"""The parts of the server that need no server: turns, protocol, jobs, speech; and the real model behind one."""

import asyncio
import gc
import shutil
import threading
import time
import weakref

import numpy as np
import pytest
from live_fake import FakeTalker, Running, wait_until

from imtalker import InputError
from imtalker.live.guard import matches
from imtalker.live.jobs import Job, Jobs
from imtalker.live.limits import Limits
from imtalker.live.metrics import Metrics
from imtalker.live.protocol import HEADER, Hello, Kind, number, pack, pcm
from imtalker.live.refusal import short
from imtalker.live.scheduler import Once, Scheduler
from imtalker.live.sources import Sources
from imtalker.live.speech import espeak, load_speaker
from imtalker.live.uploads import safe_name


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
