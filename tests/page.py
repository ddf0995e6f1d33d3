"""What tests of the page share: a server, a browser that shows its page, scripts that run in it, and what users do."""

import base64
import tempfile
import time
from pathlib import Path

import chromium
import cv2
import numpy as np
import pytest
from conftest import tone, write_wav
from live_fake import FakeTalker, Running

from imtalker.bundled import ASSETS

# What an element shows, as a picture
LOOK = """(async () => { const e = document.querySelector('%s'); const c = document.createElement('canvas');
c.width = e.videoWidth || e.width; c.height = e.videoHeight || e.height; c.getContext('2d').drawImage(e, 0, 0);
return c.toDataURL('image/png'); })()"""
# The loudest sound of a video in the next second
LISTEN = """(async () => { const a = new AudioContext(); await a.resume(); const n = new AnalyserNode(a);
const mediaStream = document.querySelector('#video').srcObject; const x = new Float32Array(n.fftSize); let most = 0;
new MediaStreamAudioSourceNode(a, {mediaStream}).connect(n); const end = performance.now() + 1000;
while (performance.now() < end) { n.getFloatTimeDomainData(x); for (const v of x) most = Math.max(most, Math.abs(v));
await new Promise(r => setTimeout(r, 20)); } await a.close(); return most; })()"""

# When the sound of a video begins anew and when its picture becomes bright, in the next five seconds
BEGINNINGS = """(async () => { const a = new AudioContext(); await a.resume();
const n = new AnalyserNode(a, {fftSize: 256}); const video = document.querySelector('#video'); const x =
new Float32Array(n.fftSize);
new MediaStreamAudioSourceNode(a, {mediaStream: video.srcObject}).connect(n);
const d = new OffscreenCanvas(32, 32).getContext('2d', {willReadFrequently: true});
const heard = [], seen = []; let loud = false, bright = false; const end = performance.now() + 5000;
while (performance.now() < end) { n.getFloatTimeDomainData(x); const sounds = x.some(v => Math.abs(v) > 0.02);
if (sounds && !loud) heard.push(performance.now()); loud = sounds;
d.drawImage(video, 0, 0); const shines = d.getImageData(16, 24, 1, 1).data[0] > 25;
if (shines && !bright) seen.push(performance.now()); bright = shines;
await new Promise(r => setTimeout(r, 3)); } await a.close(); return {heard, seen}; })()"""

# For `browser`'s `before`. The browser asks whether a camera may be used; `permit` says yes, `given` is what it gives
PROMPT = """const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => { await new Promise(go => { window.permit = go; });
return window.given = await real(wanted); };"""
# Counts the decoded pictures and the object URLs that are held
COUNT = """window.bitmaps = window.urls = 0; const [decode, let_go] = [createImageBitmap, ImageBitmap.prototype.close];
window.createImageBitmap = async (x) => { const made = await decode(x); bitmaps++; return made; };
ImageBitmap.prototype.close = function () { bitmaps--; let_go.call(this); };
const [make, revoke] = [URL.createObjectURL, URL.revokeObjectURL]; const made = new Set();
URL.createObjectURL = (x) => { const url = make(x); made.add(url); urls = made.size; return url; };
URL.revokeObjectURL = (url) => { revoke(url); made.delete(url); urls = made.size; };"""
# A network that stalls while `held` is a list, and what was played: [when, how long after it was known, is it heard]
STALL = """window.held = null; window.played = [];
window.WebSocket = class extends WebSocket { set onmessage(take) {
super.onmessage = (event) => held ? held.push(() => take(event)) : take(event); } };
const start = AudioBufferSourceNode.prototype.start; AudioBufferSourceNode.prototype.start = function (at) {
const heard = this.buffer.getChannelData(0).some(x => Math.abs(x) > 0.01);
played.push([at, at - this.context.currentTime, heard]); start.call(this, at); };"""
# A face of the test's own, as `own`
OWN = """(async () => { const { SocketLink } = await import('/socket.js');
window.own = new SocketLink(document.createElement('canvas'), { source: 'sample' }, () => {}); await own.open(); })()"""


@pytest.fixture(scope="module")
def server():
    with Running(FakeTalker(), sessions=16) as running:
        running.service.speaker = lambda text: iter(np.split(tone(2.0), 8))
        yield running


@pytest.fixture
def browser(tmp_path):
    """Opens a page of a server."""
    microphone = write_wav(tmp_path / "microphone.wav", np.tile(tone(1.0, 48_000), 8), 48_000)
    pages = []

    def start(server, path="/", before="", **size):
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # Chromium's helpers may still be writing
        page = chromium.Page(Path(folder.name), f"--use-file-for-fake-audio-capture={microphone}", **size)
        pages.append((page, folder))
        page.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        page.open(f"http://127.0.0.1:{server.port}{path}")
        page.wait("!document.querySelector('#start').disabled")
        return page

    yield start
    for page, folder in pages:
        page.__exit__(None, None, None)
        folder.cleanup()


def look(page, selector):
    data = base64.b64decode(page.run(LOOK % selector).split(",")[1])
    return cv2.imdecode(np.frombuffer(data, np.uint8), 1)[:, :, ::-1]


def bring_to_life(page):
    page.click("#start")
    page.wait("document.querySelector('#frame').dataset.state === 'live'")


def newest(server):
    return list(server.service.conversations)[-1]


def pause(seconds):
    """For what must not happen."""
    time.sleep(seconds)


def mouse(page, kind, place, count=1):
    page.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=count)


def choose_sample_as_file(page):
    page.choose_file("#picture-file", ASSETS / "sample.png")
    page.wait("document.querySelector('.pick').classList.contains('chosen')")


def forget_pictures(server):
    for name in [name for name in server.service.sources._kept if name != "sample"]:
        server.service.sources.drop(name)
