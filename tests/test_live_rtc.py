"""A live face over WebRTC, on loopback, with a client of the same library."""

import asyncio
import json

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaPlayer
from conftest import tone, write_wav
from live_fake import Running, loudness_of, number_of, wait_until

from imtalker import InputError
from imtalker.live.rtc import ice_server


@pytest.fixture(scope="module")
def server():
    with Running(sessions=2) as running:
        yield running


class Browser:
    """What a web page does: sends a microphone, shows what comes."""

    def __init__(self, server, microphone=None, **hello):
        self.server, self.microphone, self.hello = server, microphone, hello
        self.events, self.pictures, self.sounds = [], [], []

    async def __aenter__(self):
        self.peer = RTCPeerConnection(RTCConfiguration([]))
        self.channel = self.peer.createDataChannel("commands")
        self.channel.on("message", lambda message: self.events.append(json.loads(message)))
        self.tasks = []
        self.peer.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.take(track))))
        self.peer.addTransceiver("video", "recvonly")
        self.peer.addTransceiver(self.microphone or "audio", "sendrecv" if self.microphone else "recvonly")
        await self.peer.setLocalDescription(await self.peer.createOffer())
        body = json.dumps({"sdp": self.peer.localDescription.sdp, "hello": self.hello})
        headers = {"content-type": "application/json"}
        status, _, answer = await asyncio.to_thread(self.server.ask, "POST", "/v1/rtc", body, headers)
        assert status == 200, answer
        await self.peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        return self

    async def __aexit__(self, *error):
        await self.peer.close()
        for task in self.tasks:
            task.cancel()

    async def take(self, track):
        taken = self.pictures if track.kind == "video" else self.sounds
        while True:
            frame = await track.recv()
            taken.append((float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24") if track.kind == "video"
                          else np.abs(frame.to_ndarray()).max() / 2**15))  # fmt: skip

    async def until(self, true, seconds=15):
        for _ in range(int(seconds * 50)):
            if true():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it did not come")


def test_microphone_in_face_and_sound_out_in_sync(server, tmp_path):
    speech = np.tile(np.concatenate([np.zeros(16_000, np.float32), tone(1.0)]), 4)

    async def talk():
        microphone = MediaPlayer(str(write_wav(tmp_path / "mic.wav", speech))).audio
        async with Browser(server, microphone, input="microphone") as browser:
            await browser.until(lambda: browser.events and browser.events[0]["type"] == "ready")
            await browser.until(lambda: sum(level > 0.1 for _, level in browser.sounds) > 60)
            return browser.pictures, browser.sounds

    pictures, sounds = asyncio.run(talk())
    shown = [(time, loudness_of(picture)) for time, picture in pictures]
    # Both begin with the same moment, so that equal timestamps mean the same: compare when either begins to be loud.
    loud_sound = np.array([time for time, level in sounds if level > 0.1])
    loud_picture = np.array([time for time, level in shown if level > 0.1])
    starts = lambda times: times[np.flatnonzero(np.diff(times, prepend=-9) > 0.6)]
    first, second = starts(loud_sound), starts(loud_picture)
    assert len(first) >= 1 and len(second) >= 1
    offsets = [np.abs(second - start).min() for start in first[: len(second)]]
    assert np.median(offsets) <= 0.08, offsets


def test_commands_over_the_channel(server):
    server.service.speaker = lambda text: iter(np.split(tone(1.0), 4))

    async def talk():
        async with Browser(server) as browser:
            await browser.until(lambda: len(browser.pictures) > 10)
            numbers = [number_of(picture) for _, picture in browser.pictures]
            assert numbers == sorted(numbers)
            browser.channel.send(json.dumps({"type": "text", "text": "Hello."}))
            await browser.until(lambda: any(event["type"] == "said" for event in browser.events))
            await browser.until(lambda: sum(level > 0.05 for _, level in browser.sounds) > 20)
            browser.channel.send("rubbish")
            await browser.until(lambda: browser.events[-1]["type"] == "error")
            browser.channel.send(json.dumps({"type": "interrupt"}))
            await browser.until(lambda: browser.events[-1]["type"] == "interrupted")
            before = len(browser.pictures)
            await browser.until(lambda: len(browser.pictures) > before + 10)

    asyncio.run(talk())
    wait_until(lambda: not server.service.conversations)


def test_wrong_offers(server):
    for body, words in (
        ({"sdp": "rubbish"}, "offer"),
        ({"sdp": 3}, "offer"),
        ({}, "offer"),
        ({"sdp": "v=0", "hello": {"input": "camera"}}, "WebSocket"),
        ([], "JSON"),
    ):
        status, _, told = server.ask("POST", "/v1/rtc", json.dumps(body), {"content-type": "application/json"})
        assert status == 400 and words in told["error"], told
    status, _, told = server.ask("POST", "/v1/rtc", b"x" * 2**19, {"content-type": "application/json"})
    assert status == 413
    assert not server.service.conversations


def test_a_server_that_stops_says_so():
    server = Running().__enter__()

    async def talk():
        async with Browser(server) as browser:
            await browser.until(lambda: browser.pictures)
            await asyncio.to_thread(server.stop)
            await browser.until(lambda: browser.events[-1]["type"] == "closing")
            assert "stops" in browser.events[-1]["error"]

    asyncio.run(talk())


def test_a_client_that_vanishes_is_noticed(server, monkeypatch):
    import aioice.ice

    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)

    async def talk():
        async with Browser(server) as browser:
            await browser.until(lambda: browser.pictures)
            assert server.service.conversations
            for transceiver in browser.peer.getTransceivers():  # as if its cable had been pulled
                await transceiver.sender.transport.transport.stop()
            await asyncio.to_thread(wait_until, lambda: not server.service.conversations, 15)

    asyncio.run(talk())
    wait_until(lambda: not server.service.connections and not len(server.service.stage))


@pytest.mark.parametrize("url, expected", [
    ("stun:stun.example.org", ("stun:stun.example.org", None, None)),
    ("turn:turn.example.org:3479", ("turn:turn.example.org:3479", None, None)),
    ("turn:me:a:b@turn.example.org", ("turn:turn.example.org", "me", "a:b"))])
def test_servers_for_those_behind_a_wall(url, expected):
    server = ice_server(url)
    assert (server.urls, server.username, server.credential) == expected


@pytest.mark.parametrize("url", ["stun.example.org:3478", "http://example.org", "stun:", ""])
def test_a_server_that_is_none_is_refused(url):
    with pytest.raises(InputError, match="--ice"):
        ice_server(url)


def test_a_client_that_never_connects_is_let_go(server, monkeypatch):
    monkeypatch.setattr("imtalker.live.rtc.CONNECT_SECONDS", 0.5)

    async def offer():
        peer = RTCPeerConnection(RTCConfiguration([]))
        peer.addTransceiver("video", "recvonly")
        await peer.setLocalDescription(await peer.createOffer())
        sdp = peer.localDescription.sdp
        await peer.close()
        return sdp

    body = json.dumps({"sdp": asyncio.run(offer())})
    status, _, answer = server.ask("POST", "/v1/rtc", body, {"content-type": "application/json"})
    assert status == 200 and answer["session"] in server.service.conversations
    wait_until(lambda: not server.service.conversations and not server.service.connections)
