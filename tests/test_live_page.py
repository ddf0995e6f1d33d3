"""The page in a real browser: headless Chromium with a fake microphone and a fake camera."""

import base64
import tempfile
from pathlib import Path

import chromium
import cv2
import numpy as np
import pytest
from conftest import tone, write_wav
from live_fake import FakeTalker, Running, loudness_of, wait_until

import imtalker
from imtalker.media import SAMPLE_RATE, SAMPLES_PER_FRAME

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium here: apt-get install chromium")

ASSETS = Path(imtalker.__file__).parent / "assets"

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


def test_the_page_loads_without_a_word_of_complaint(server, browser):
    page = browser(server)
    assert page.run("document.querySelector('#server').textContent") == "fake on cpu"
    assert not page.said and page.run("document.querySelector('#error').hidden")


def test_everything_can_be_reached_and_is_named(server, browser):
    page = browser(server)
    bring_to_life(page)
    nameless = page.run(
        "[...document.querySelectorAll('button, input, a, video, progress, canvas')].filter(e => "
        "!(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map(e => e.id || e.outerHTML)"
    )
    assert nameless == []
    reached = []
    for _ in range(30):
        page.key("Tab", "Tab", "keyDown")
        page.key("Tab", "Tab", "keyUp")
        reached.append(page.run("document.activeElement.id"))
    order = [name for name in ("talk", "sample", "text-value", "turn", "camera", "make-start") if name in reached]
    assert order == ["talk", "sample", "text-value", "turn", "camera", "make-start"]
    assert [reached.index(name) for name in order] == sorted(reached.index(name) for name in order)


def test_a_phone_sees_all_of_it_without_scrolling_sideways(server, browser):
    page = browser(server, width=500, height=900)
    page.call("Emulation.setDeviceMetricsOverride", width=375, height=740, deviceScaleFactor=2, mobile=True)
    assert page.run("document.documentElement.scrollWidth") <= 375
    small = page.run(
        "[...document.querySelectorAll('button')].filter(e => e.offsetParent && e.offsetHeight < 44).map(e => e.id)"
    )
    assert small == []


def test_live_over_webrtc_with_the_microphone(server, browser):
    page = browser(server)
    bring_to_life(page)
    assert page.run("document.querySelector('#link').textContent") == "Live over WebRTC"
    page.wait("document.querySelector('#video').getVideoPlaybackQuality().totalVideoFrames > 10")
    assert loudness_of(look(page, "#video")) < 0.1
    page.press("#talk")
    page.wait("document.querySelector('#talk').getAttribute('aria-pressed') === 'true'")
    assert page.run(LISTEN) > 0 or page.run(LISTEN) > 0.05  # what it hears comes back as what it says
    wait_until(lambda: loudness_of(look(page, "#video")) > 0.1)
    page.release("#talk")
    page.wait("document.querySelector('#talk').getAttribute('aria-pressed') === 'false'")
    session = newest(server)
    page.click("#start")
    wait_until(lambda: session not in server.service.conversations)
    assert not page.said


def test_sound_and_picture_are_played_together(server, browser, monkeypatch):
    time = np.arange(24 * SAMPLES_PER_FRAME) / SAMPLE_RATE
    burst = np.where(time < 0.2, 0.4 * np.sin(2 * np.pi * 220 * time), 0).astype(np.float32)
    monkeypatch.setattr(server.service, "speaker", lambda text: iter([burst] * 6))
    page = browser(server)
    bring_to_life(page)
    page.wait("document.querySelector('#video').getVideoPlaybackQuality().totalVideoFrames > 10")
    for _ in range(6):  # a browser draws both together by and by
        page.click("#text button")
        begun = page.run(BEGINNINGS)
        heard, seen = np.array(begun["heard"]), np.array(begun["seen"])
        assert min(len(heard), len(seen)) >= 4, begun
        apart = heard - seen[np.abs(heard[:, None] - seen).argmin(1)]
        if abs(np.median(apart)) <= 40:
            return
    raise AssertionError(f"sound after the picture, in milliseconds: {apart.round()}")


def test_the_microphone_by_keyboard(server, browser):
    page = browser(server)
    bring_to_life(page)
    page.run("document.querySelector('#talk').focus()")
    page.key(" ", "Space", "keyDown")
    page.wait("document.querySelector('#talk').getAttribute('aria-pressed') === 'true'")
    page.run("new Promise(r => setTimeout(r, 400))")
    page.key(" ", "Space", "keyUp")
    page.wait("document.querySelector('#talk').getAttribute('aria-pressed') === 'false'")


@pytest.mark.parametrize("path", ["/", "/?transport=websocket"])
def test_text_a_file_steering_and_interrupting(server, browser, tmp_path, path):
    page = browser(server, path)
    bring_to_life(page)
    shown = "#canvas" if "websocket" in path else "#video"
    session = server.talker.sessions[-1]
    page.click("#text button")
    wait_until(lambda: loudness_of(look(page, shown)) > 0.1)
    page.click("#hush")
    wait_until(lambda: session.rewound)
    page.choose_file("#speech-file", write_wav(tmp_path / "hello.wav", tone(4.0)))
    page.click("#speech-say")
    page.wait("document.querySelector('#said').textContent.includes('hello.wav')")
    wait_until(lambda: loudness_of(look(page, shown)) > 0.1)
    page.run("document.querySelector('#turn').value = 0.3")
    page.run("document.querySelector('#turn').dispatchEvent(new Event('input', {bubbles: true}))")
    wait_until(lambda: session.steered[-1]["pose"] == [0.0, 0.3, 0.0] and session.steered[-1]["gaze"] is None)
    assert not page.said


def test_a_microphone_over_the_websocket(server, browser):
    page = browser(server, "/?transport=websocket")
    bring_to_life(page)
    page.press("#talk")
    wait_until(lambda: loudness_of(look(page, "#canvas")) > 0.1, 20)
    page.release("#talk")


def test_a_webcam_drives_the_face(server, browser):
    page = browser(server)
    page.run("document.querySelector('#relative').checked = false")
    page.click("#camera")
    page.wait("document.querySelector('#camera').getAttribute('aria-pressed') === 'true'")
    wait_until(lambda: look(page, "#canvas").max() > 20)
    session = newest(server)
    page.click("#camera")
    wait_until(lambda: session not in server.service.conversations)


def test_a_picture_without_a_face_is_refused_in_words(server, browser, picture):
    page = browser(server)
    page.choose_file("#picture-file", picture)
    page.wait("document.querySelector('#error').textContent.includes('No face found')")


def test_a_server_that_stops_is_told_in_words(browser):
    with Running() as server:
        page = browser(server)
        bring_to_life(page)
    page.wait("document.querySelector('#error').textContent.length > 10")
    assert page.run("document.querySelector('#frame').dataset.state") == "still"


def test_a_key_is_asked_for(browser):
    with Running(key="secret") as server:
        page = browser(server)
        page.wait("!document.querySelector('#key').hidden")
        page.run("document.querySelector('#key-value').value = 'secret'")
        page.click("#key button")
        bring_to_life(page)


@pytest.mark.slow
def test_mini_makes_a_video_and_talks_live(browser, tmp_path):
    """The bundled picture with the bundled model: a video, then live through WebRTC, hearing the microphone."""
    from imtalker import IMTalker

    with Running(IMTalker.from_pretrained("mini")) as server:
        page = browser(server)
        page.click("#make-start")
        page.wait("!document.querySelector('#made').hidden", 240)
        page.run("document.querySelector('#made-video').play()")
        page.wait("document.querySelector('#made-video').currentTime > 0.5")
        assert page.run("document.querySelector('#made-video').duration") > 2
        assert page.run("document.querySelector('#download').href").startswith("blob:")
        assert look(page, "#made-video").std() > 20
        page.screenshot(tmp_path / "made.png")

        bring_to_life(page)
        page.press("#talk")
        frames = "document.querySelector('#video').getVideoPlaybackQuality().totalVideoFrames"
        page.wait(f"{frames} > 10")
        first, before = look(page, "#video"), page.run(frames)
        page.wait(f"{frames} > {before} + 15")
        later = look(page, "#video")
        assert first.std() > 20 and later.std() > 20  # not black
        assert np.abs(first.astype(int) - later).mean() > 0.2  # it moves
        page.screenshot(tmp_path / "live.png")
        page.release("#talk")
        assert not page.said
