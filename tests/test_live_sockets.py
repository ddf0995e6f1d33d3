"""A live face over a WebSocket, on loopback, with a talker that needs no weights."""

import asyncio
import io
import json
import threading
import time

import numpy as np
import pytest
from conftest import tone
from live_fake import FakeTalker, Running, Viewer, loudness_of, number_of, wait_until
from PIL import Image
from websockets.exceptions import ConnectionClosed

from imtalker.media import SAMPLES_PER_FRAME


@pytest.fixture(scope="module")
def server():
    with Running(sessions=8) as running:
        yield running


def closing(viewer):
    """(close code, last event) of a connection that the server closes."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            viewer.take()
    return closed.value.rcvd.code, viewer.events[-1] if viewer.events else None


def test_ready_tells_what_a_client_needs(server):
    with server.live() as viewer:
        assert viewer.ready["type"] == "ready" and viewer.ready["fps"] == 25
        assert viewer.ready["sample_rate"] == 16_000 and viewer.ready["size"] == [32, 32] and viewer.ready["delay"] > 0


def test_speech_comes_back_with_its_own_pictures(server):
    speech = np.concatenate([tone(1.0), np.zeros(8000, np.float32)])
    with server.live() as viewer:
        viewer.say(speech)
        viewer.send(type="flush")
        said = viewer.event("said")["frame"]
        viewer.take_until(lambda: said - 1 in viewer.pictures and said - 1 in viewer.sounds)
    heard = np.concatenate([viewer.sounds[k] for k in sorted(viewer.sounds)])
    begin = np.flatnonzero(heard)[0] // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME  # after some idle frames
    assert np.abs(heard[begin : begin + len(speech)] - speech).max() < 1e-4
    assert sorted(viewer.sounds) == list(range(len(viewer.sounds)))
    for frame, picture in viewer.pictures.items():
        assert number_of(picture) == frame
        assert abs(loudness_of(picture) - np.abs(viewer.sounds[frame]).max()) < 0.05


def test_a_face_that_nobody_speaks_to_idles_in_real_time(server):
    with server.live() as viewer:
        begun = time.monotonic()
        viewer.take_until(lambda: len(viewer.pictures) >= 50)
        assert 1.3 < time.monotonic() - begun < 4
        assert not any(sound.any() for sound in viewer.sounds.values())


def test_a_microphone_answers_soon_and_at_its_own_rate(server):
    with server.live(input="microphone", rate=48_000) as viewer:
        viewer.take_until(lambda: viewer.pictures)
        begun = max(viewer.pictures)
        for block in tone(1.5, 48_000).reshape(-1, 960):  # 20 ms
            viewer.say(block)
            time.sleep(0.02)
        loud = lambda: [k for k, sound in viewer.sounds.items() if np.abs(sound).max() > 0.1]
        viewer.take_until(lambda: len(loud()) > 20)
        assert loud()[0] - begun <= 20  # frames
        assert all(loudness_of(viewer.pictures[k]) > 0.05 for k in loud() if k in viewer.pictures)


def test_h264(server):
    import av

    with server.live(format="h264") as viewer:
        viewer.take_until(lambda: len(viewer.pictures) >= 10)
    codec = av.CodecContext.create("h264", "r")
    frames = [f for k in sorted(viewer.pictures) for f in codec.decode(av.Packet(viewer.pictures[k]))]
    assert len(frames) >= 8 and (frames[0].width, frames[0].height) == (32, 32)


def test_no_sound_when_none_is_wanted(server):
    with server.live(sound=False) as viewer:
        viewer.take_until(lambda: len(viewer.pictures) >= 5)
        assert not viewer.sounds


def test_interrupt_drops_what_was_not_shown(server):
    with server.live() as viewer:
        viewer.say(tone(20.0))
        viewer.take_until(lambda: any(np.abs(sound).max() > 0.1 for sound in viewer.sounds.values()))
        shown = max(viewer.pictures) - 2
        viewer.send(type="interrupt", shown=shown)
        frame = viewer.event("interrupted")["frame"]
        assert frame == shown
        viewer.sounds.clear()
        viewer.take_until(lambda: len(viewer.sounds) > 30)
        assert min(viewer.sounds) == frame and not any(sound.any() for sound in viewer.sounds.values())


def test_steering(server):
    with server.live() as viewer:
        session = server.talker.sessions[-1]
        viewer.send(type="steer", pose=[0, 0.2, 0], strength=1.5)
        viewer.send(type="steer", pose=None)
        wait_until(lambda: len(session.steered) == 2)
        assert session.steered == [{"pose": [0, 0.2, 0], "strength": 1.5}, {"pose": None}]
        viewer.send(type="steer", strength=5)
        assert "strength" in viewer.event("error")["error"]


def test_options_reach_the_session(server):
    with server.live(seed=7, nfe=3, guidance=1, latency="smooth"):
        session = server.talker.sessions[-1]
        assert session.options == {"seed": 7, "nfe": 3, "guidance_scale": 1} and len(session.windows) > 1


def test_text_is_spoken(server):
    def speaker(text):
        yield from np.split(tone(1.0), 4)

    server.service.speaker = speaker
    with server.live() as viewer:
        viewer.send(type="text", text="Hello.")
        viewer.event("said")
        assert any(np.abs(sound).max() > 0.1 for sound in viewer.sounds.values())


def test_texts_are_spoken_one_after_the_other_and_not_without_end(server):
    def speaker(text):
        yield np.full(8_000, 0.1 * int(text), np.float32)

    server.service.speaker = speaker
    with server.live() as viewer:
        for n in range(1, 4):
            viewer.send(type="text", text=str(n))
        loudest = lambda: [round(float(sound.max()), 1) for _, sound in sorted(viewer.sounds.items()) if sound.any()]
        viewer.take_until(lambda: loudest().count(0.3) >= 10)
        assert loudest() == sorted(loudest()) and set(loudest()) == {0.1, 0.2, 0.3}

        def endless(text):
            while True:
                time.sleep(0.01)
                yield np.zeros(16, np.float32)

        server.service.speaker = endless
        for _ in range(12):
            viewer.send(type="text", text="On and on.")
        assert "wait to be spoken" in viewer.event("error")["error"]
        viewer.send(type="interrupt")
        viewer.event("interrupted")
    wait_until(lambda: not any(thread.name == "utterance" for thread in threading.enumerate()))


def test_sound_of_another_rate_comes_through_to_its_end(server):
    with server.live(rate=44_100) as viewer:
        viewer.say(np.full(44_100, 0.5, np.float32))
        viewer.send(type="flush")
        said = viewer.event("said")["frame"]
        viewer.take_until(lambda: said in viewer.sounds)
    assert sum(np.abs(sound).sum() for sound in viewer.sounds.values()) == pytest.approx(8_000, rel=0.02)


def test_a_synthesizer_that_fails_says_so(server):
    def speaker(text):
        yield tone(0.1)
        raise RuntimeError("no voice")

    server.service.speaker = speaker
    with server.live() as viewer:
        viewer.send(type="text", text="Hello.")
        told = viewer.event("error")["error"]
        assert "RuntimeError" in told and "no voice" not in told  # what went wrong inside is for the log
        viewer.take_until(lambda: len(viewer.pictures) > 20)  # the face goes on


def test_a_sound_file_is_spoken(server, speech):
    with server.live() as viewer:
        path = f"/v1/sessions/{viewer.ready['session']}/speech"
        assert server.post(path, {"audio": ("a.wav", speech.read_bytes())})[0] == 202
        viewer.event("said")
        loud = sum(np.abs(sound).max() > 0.05 for sound in viewer.sounds.values())
        assert 15 < loud <= 33
        wait_until(lambda: not list(server.service.folder.iterdir()))
        status, _, told = server.post(path, {"audio": ("b.wav", speech.read_bytes()[:20])})
        assert status == 400 and "'b.wav'" in told["error"] and str(server.service.folder) not in told["error"]


def test_two_sentences_that_come_at_once_are_told_of_one_by_one(server):
    server.service.speaker = lambda text: iter([tone(0.5)])
    with server.live() as viewer:
        viewer.send(type="text", text="One.")
        viewer.send(type="text", text="Two.")
        said = lambda: [event["frame"] for event in viewer.events if event["type"] == "said"]
        viewer.take_until(lambda: len(said()) == 2)
        assert said()[1] - said()[0] >= 12


def test_a_camera_that_shows_nothing_is_not_waited_for():
    with Running(blind_seconds=0.5) as server, server.live(input="camera") as viewer:
        viewer.take_until(lambda: viewer.events and viewer.events[-1]["type"] == "closing")
        assert "camera" in viewer.events[-1]["error"]
        wait_until(lambda: not server.service.conversations)


def test_a_camera_sends_jpegs_alone(server):
    """The size of an ICO is known only once the picture in it is decoded."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "ICO", sizes=[(64, 64)])
    with server.live(input="camera") as viewer:
        viewer.socket.send(file.getvalue())
        assert "JPEG" in viewer.event("error")["error"]


def test_a_camera_drives_the_face(server):
    import cv2

    with server.live(input="camera") as viewer:
        for shade in (50, 200):
            picture = np.full((64, 64, 3), shade, np.uint8)
            viewer.pictures.clear()
            viewer.socket.send(cv2.imencode(".jpg", picture)[1].tobytes())
            viewer.take_until(lambda: viewer.pictures)
            assert abs(loudness_of(viewer.pictures[max(viewer.pictures)]) * 255 - shade) < 8
        viewer.socket.send(b"rubbish")
        assert "picture" in viewer.event("error")["error"]
        viewer.send(type="flush")
        viewer.take_until(lambda: "camera" in viewer.events[-1]["error"])
        viewer.socket.send(cv2.imencode(".jpg", np.zeros((1200, 1920, 3), np.uint8))[1].tobytes())
        viewer.take_until(lambda: "1920 x 1200" in viewer.events[-1]["error"])


def closing_code(viewer):
    return closing(viewer)[0]


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "hello, words",
    [
        ({"rate": 5}, "8000"),
        ({"rate": "16000"}, "rate"),
        ({"format": "gif"}, "jpeg"),
        ({"colour": "red"}, "'colour'"),
        ({"seed": True}, "seed"),
        ({"source": "nobody"}, "not there"),
    ],
    ids=str,
)
def test_a_wrong_hello(server, hello, words):
    viewer = Viewer(server.port, hello)
    assert viewer.ready["type"] == "closing" and words in viewer.ready["error"]
    assert closing_code(viewer) == 1008


@pytest.mark.parametrize(
    "rubbish", [b"\x00\xff" * 9, "[" * 100_000, "{}", "null", '{"type": 3}', "\ud7ff"], ids=range(6)
)
def test_rubbish_instead_of_a_hello(server, rubbish):
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{server.port}/v1/live") as socket:
        socket.send(rubbish)
        assert json.loads(socket.recv(timeout=5))["type"] == "closing"


def test_rubbish_later_is_answered_and_in_the_end_closed(server):
    with server.live() as viewer:
        viewer.send(type="dance")
        assert "'dance'" in viewer.event("error")["error"]
        viewer.socket.send(b"odd")  # three bytes are no samples
        viewer.take_until(lambda: len(viewer.events) == 2)
        for _ in range(18):
            viewer.socket.send("rubbish")
        code, last = closing(viewer)
        assert code == 1008 and last["type"] == "closing" and "20 messages" in last["error"]
    wait_until(lambda: not server.service.conversations)


def test_too_large_a_message_ends_the_connection(server):
    with server.live() as viewer:
        with pytest.raises(ConnectionClosed):
            viewer.socket.send(bytes(3 * 2**20))  # it may be thrown out before it has said all
            while True:
                viewer.take()
    wait_until(lambda: not server.service.conversations)


def test_a_client_that_vanishes_leaves_nothing_behind(server):
    viewers = [server.live() for _ in range(4)]
    for viewer in viewers:
        viewer.say(tone(5.0))
        viewer.take()
        viewer.socket.socket.close()  # no goodbye
    wait_until(lambda: not server.service.conversations and not len(server.service.stage))


def test_many_clients_one_after_the_other_leave_no_task_and_no_thread():
    with Running() as server:

        def there():
            return len(asyncio.all_tasks(server.loop)), threading.active_count()

        def visit():
            with server.live() as viewer:
                viewer.say(tone(0.5))
                viewer.send(type="flush")
                viewer.event("said")
            wait_until(lambda: not server.service.connections)

        visit()
        before = there()
        for _ in range(10):
            visit()
        wait_until(lambda: there()[0] <= before[0] and there()[1] <= before[1] + 32)  # helpers of the pool stay


def test_no_more_sessions_than_allowed():
    with Running(sessions=2) as server:
        with server.live(), server.live():
            third = Viewer(server.port, {})
            assert "2 sessions" in third.ready["error"] and closing_code(third) == 1013
        wait_until(lambda: not server.service.conversations)
        with server.live() as again:
            assert again.ready["type"] == "ready"
        assert b'imtalker_refused_total{reason="busy"} 1.0' in server.ask("GET", "/metrics")[2]


def test_no_hello_no_connection():
    with Running(hello_seconds=0.2) as server:
        from websockets.sync.client import connect

        with connect(f"ws://127.0.0.1:{server.port}/v1/live") as socket:
            assert "hello" in json.loads(socket.recv(timeout=5))["error"]


def test_a_silent_session_is_closed_in_the_end():
    with Running(silent_seconds=0.5) as server, server.live() as viewer:
        assert "nothing was asked" in closing(viewer)[1]["error"]


def test_a_slow_reader_loses_frames_and_is_closed_but_others_are_not():
    with Running(stuck_seconds=2.0) as server, server.live() as other:
        reader = threading.Thread(target=lambda: closing_code(other))
        reader.start()
        slow = Viewer(server.port, {"quality": 100}, max_queue=1)
        conversation = list(server.service.conversations.values())[-1]
        server.talker.render = BigPictures().render
        wait_until(lambda: conversation.outbox.dropped > 0, 30)  # nobody reads: the sockets fill, then frames drop
        wait_until(lambda: len(server.service.conversations) == 1, 30)
        before = len(other.pictures)
        wait_until(lambda: len(other.pictures) > before + 10)
        slow.socket.socket.close()
    reader.join()


class BigPictures(FakeTalker):
    """Pictures that fill a socket soon."""

    def render(self, source, portions):
        rng = np.random.default_rng(0)
        for portion in portions:
            for _ in portion:
                yield rng.integers(0, 256, (512, 512, 3), np.uint8)


def test_too_slow_a_machine_shows_fewer_frames_to_everyone_alike():
    """Two faces of a machine that draws 25 frames a second: each gets about half of its frames, all of its sound."""
    with Running(FakeTalker(seconds=0.04), sessions=4) as server:
        with server.live() as one, server.live() as two:
            end = time.monotonic() + 4
            while time.monotonic() < end:
                one.take()
                two.take()
        shares = [len(viewer.pictures) / len(viewer.sounds) for viewer in (one, two)]
        assert all(0.25 < share < 0.65 for share in shares) and abs(shares[0] - shares[1]) < 0.15, shares
        assert all(len(viewer.sounds) > 60 for viewer in (one, two))


def test_everything_of_the_model_happens_in_one_thread(server):
    assert server.talker.threads == {"model"}


def test_stopping_tells_the_sessions_and_removes_the_folder():
    server = Running().__enter__()
    viewer = server.live()
    viewer.say(tone(10.0))
    viewer.take_until(lambda: viewer.pictures)
    folder = server.service.folder
    assert folder.is_dir()
    server.stop()
    code, last = closing(viewer)
    assert code == 1012 and "stops" in last["error"]
    assert not folder.exists() and not server.service.conversations
