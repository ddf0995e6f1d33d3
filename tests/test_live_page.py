"""The page in a real browser: headless Chromium with a fake microphone and a fake camera."""

import asyncio
import base64
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import chromium
import cv2
import numpy as np
import pytest
from conftest import tone, write_wav
from live_fake import FakeTalker, Running, loudness_of, wait_until

import imtalker
from imtalker import InputError
from imtalker.live.jobs import Job
from imtalker.live.refusal import busy
from imtalker.media import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

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


@pytest.fixture
def faces(server, monkeypatch):
    """Opening a face takes a second. `asked`: how many were asked for. `there`: tells those that are there."""
    open_face, before = server.service.open, set(server.service.conversations)
    faces = SimpleNamespace(asked=0)
    faces.there = lambda: [face for name, face in server.service.conversations.items() if name not in before]

    async def open_slowly(hello):
        faces.asked += 1
        await asyncio.sleep(1)
        return await open_face(hello)

    monkeypatch.setattr(server.service, "open", open_slowly)
    return faces


def choose_sample_as_file(page):
    page.choose_file("#picture-file", ASSETS / "sample.png")
    page.wait("document.querySelector('.pick').classList.contains('chosen')")


def forget_pictures(server):
    for name in [name for name in server.service.sources._kept if name != "sample"]:
        server.service.sources.drop(name)


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


@pytest.mark.parametrize("path", ["/", "/?transport=websocket"])
def test_what_goes_wrong_with_a_live_face_is_told_in_words(server, browser, monkeypatch, path):
    def silent(text):
        raise InputError("nobody here can speak")
        yield

    monkeypatch.setattr(server.service, "speaker", silent)
    page = browser(server, path)
    bring_to_life(page)
    page.run("document.querySelector('#text-value').value = 'Hello.'")
    page.click("#text button")
    page.wait("document.querySelector('#error').textContent.includes('obody here can speak')")


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


@pytest.mark.parametrize("path", ["/", "/?transport=websocket"])
def test_connecting_can_be_cancelled(server, faces, browser, path):
    page = browser(server, path)
    page.click("#start")
    page.wait("document.querySelector('#frame').dataset.state === 'connecting'")
    assert page.run("document.querySelector('#start').textContent") == "Cancel"
    wait_until(lambda: faces.asked)
    page.click("#start")
    assert page.run("document.querySelector('#frame').dataset.state") == "still"
    pause(2)
    assert not faces.there() and page.run("document.querySelector('#frame').dataset.state") == "still"
    assert page.run("document.querySelector('#error').hidden")


def test_a_double_click_opens_one_face(server, faces, browser):
    page = browser(server)
    place = page.run(chromium.PLACE % json.dumps("#start"))
    for count in (1, 2):
        mouse(page, "mousePressed", place, count)
        mouse(page, "mouseReleased", place, count)
    page.wait("document.querySelector('#frame').dataset.state === 'live'")
    pause(1.5)
    assert len(faces.there()) == 1 and page.run("document.querySelector('#start').textContent") == "Stop"


def test_the_webcam_asked_for_while_connecting_wins(server, faces, browser):
    page = browser(server)
    page.click("#start")
    page.wait("document.querySelector('#frame').dataset.state === 'connecting'")
    page.click("#camera")
    page.wait("document.querySelector('#camera').getAttribute('aria-pressed') === 'true'")
    pause(1.5)
    assert [face.hello.input for face in faces.there()] == ["camera"]


def test_a_picture_chosen_while_connecting_wins(server, faces, browser):
    page = browser(server)
    page.click("#start")
    page.wait("document.querySelector('#frame').dataset.state === 'connecting'")
    choose_sample_as_file(page)
    page.wait("document.querySelector('#frame').dataset.state === 'live'")
    pause(1.5)
    assert [face.hello.source == "sample" for face in faces.there()] == [False]


def test_the_picture_chosen_last_wins(server, browser, monkeypatch):
    encode, answered = server.service.sources.encode, []

    async def encode_slowly(*given, **options):
        await asyncio.sleep(1)
        answered.append(await encode(*given, **options))
        return answered[0]

    page = browser(server, before=COUNT)
    monkeypatch.setattr(server.service.sources, "encode", encode_slowly)
    page.choose_file("#picture-file", ASSETS / "sample.png")
    page.wait("document.querySelector('#said').textContent.includes('Looking')")
    page.click("#sample")
    wait_until(lambda: answered)
    pause(1)
    assert page.run("document.querySelector('#sample').getAttribute('aria-pressed')") == "true"
    assert not page.run("document.querySelector('.pick').classList.contains('chosen')")
    assert page.run("urls") == 1 and page.run("document.querySelector('#still').src").startswith("blob:")


def test_the_same_picture_can_be_chosen_again(server, browser):
    page = browser(server)
    choose_sample_as_file(page)
    page.click("#sample")
    page.wait("!document.querySelector('.pick').classList.contains('chosen')")
    choose_sample_as_file(page)


@pytest.mark.parametrize("path", ["/", "/?transport=websocket"])
def test_a_picture_that_the_server_forgot_is_sent_again(server, browser, path):
    page = browser(server, path)
    choose_sample_as_file(page)
    forget_pictures(server)
    bring_to_life(page)
    assert server.service.conversations[newest(server)].hello.source != "sample"
    forget_pictures(server)
    page.click("#make-start")
    page.wait("!document.querySelector('#made').hidden")


def test_letting_go_while_the_browser_asks_leaves_the_microphone_closed(server, browser):
    page = browser(server, before=PROMPT)
    bring_to_life(page)
    page.click("#talk")
    page.wait("Boolean(window.permit)")
    page.run("permit()")
    page.wait("document.querySelector('#said').textContent.includes('microphone is ready')")
    assert page.run("document.querySelector('#talk').getAttribute('aria-pressed')") == "false"
    page.press("#talk")
    page.wait("document.querySelector('#talk').getAttribute('aria-pressed') === 'true'")
    page.release("#talk")
    page.click("#start")
    page.wait("given.getTracks().every(track => track.readyState === 'ended')")


@pytest.mark.parametrize("open_it, close_it", [("#talk", "#start"), ("#camera", "#camera"), ("#photo", "#snap-cancel")])
def test_what_is_permitted_too_late_is_switched_off(server, browser, open_it, close_it):
    page = browser(server, before=PROMPT)
    if open_it == "#talk":
        bring_to_life(page)
    page.click(open_it)
    page.wait("Boolean(window.permit)")
    page.click(close_it)
    page.run("permit()")
    page.wait("window.given?.getTracks().every(track => track.readyState === 'ended')")
    assert page.run("document.querySelector('#error').hidden") and not page.said


def test_the_button_may_be_let_go_elsewhere(server, browser):
    page = browser(server)
    bring_to_life(page)
    page.press("#talk")
    page.wait("document.querySelector('#talk').getAttribute('aria-pressed') === 'true'")
    pause(0.4)
    mouse(page, "mouseMoved", (5, 5))
    mouse(page, "mouseReleased", (5, 5))
    page.wait("document.querySelector('#talk').getAttribute('aria-pressed') === 'false'", 5)


def test_reports_are_read_past_comments_and_refusals_are_told(server, browser):
    page = browser(server)
    read = """(async () => { const { reports } = await import('/api.js'); const [text, status] = %s;
    window.fetch = async () => new Response(text, { status }); const all = [];
    try { for await (const report of reports('x')) all.push(report.frames); } catch (error) { all.push(error.message); }
    return all; })()"""
    stream = ': keep-alive\n\nevent: running\ndata: {"frames": 1}\n\n: keep-alive\n\ndata: {"frames": 2}\n\n'
    assert page.run(read % json.dumps([stream, 200])) == [1, 2]
    assert page.run(read % json.dumps(['{"error": "the key is wrong"}', 401])) == ["The key is wrong."]


@pytest.mark.parametrize("fault", ["breaks", "ends", "is refused"])
def test_a_video_is_made_though_its_stream_is_cut(browser, monkeypatch, fault):
    async def events(job):
        yield job.report()
        if fault == "breaks":
            raise ConnectionError("what a test wants")

    with Running(FakeTalker(0.01)) as server:
        page = browser(server)
        if fault == "is refused":
            get, times = server.service.jobs.get, iter(range(3))

            def refuse_at_first(name):
                if next(times, None) is not None:
                    raise busy("the server is not itself")
                return get(name)

            monkeypatch.setattr(server.service.jobs, "get", refuse_at_first)
        else:
            monkeypatch.setattr(Job, "events", events)
        page.click("#make-start")
        page.wait("!document.querySelector('#made').hidden")
        wait_until(lambda: not len(server.service.jobs))
        assert page.run("document.querySelector('#error').hidden")


@pytest.mark.parametrize("way", ["cancelled", "left"])
def test_a_video_that_nobody_wants_any_more_is_not_made(browser, way):
    with Running(FakeTalker(0.1)) as server:
        page = browser(server)
        page.click("#make-start")
        page.wait("!document.querySelector('#make-cancel').hidden")
        page.wait("document.querySelector('#making-told').textContent.includes('frames')")
        assert len(server.service.jobs) == 1
        if way == "left":
            page.open("about:blank")
        else:
            page.click("#make-cancel")
            page.wait("document.querySelector('#making').hidden")
            assert page.run("document.querySelector('#error').hidden")
        wait_until(lambda: not len(server.service.jobs), 3)


def test_a_hidden_page_holds_no_pictures(server, browser):
    page = browser(server, before=COUNT)
    page.run(OWN)
    page.wait("own.shown > 5")
    page.call("Target.createTarget", url="about:blank")  # before this one
    page.wait("document.hidden")
    before = page.run("bitmaps")
    pause(3)
    assert page.run("bitmaps") <= before + 1
    page.run("for (let k = 0; k < 300; k++) { const data = new DataView(new ArrayBuffer(100)); data.setUint8(0, 1);"
             "data.setUint32(4, 10_000 + k, true); own.take(data.buffer); }")  # fmt: skip
    assert page.run("own.pictures.size") == 250
    page.run("own.close()")


def test_interrupting_and_stopping_let_go_of_all_pictures(server, browser):
    page = browser(server, before=COUNT)
    page.run(OWN)
    for shown in (10, 15, 20):
        page.wait(f"own.shown > {shown}")
        page.run("own.send({ type: 'interrupt' })")
    page.run("own.close()")
    page.wait("bitmaps === 0", 3)


def test_pictures_go_on_where_sound_is_held_back(server, browser):
    page = browser(server)
    page.run(OWN)
    page.wait("own.shown > 5")
    page.run("own.audio.suspend()")
    held, shown = page.run("own.playing.size"), page.run("own.shown")
    page.wait(f"own.shown > {shown} + 40", 5)
    assert page.run("own.playing.size") <= held + 5
    page.run("document.dispatchEvent(new Event('visibilitychange'))")  # what a page that is seen again hears
    page.wait("own.audio.state === 'running'", 5)
    page.wait("own.playing.size > 0 && own.timeOf(own.shown) - own.audio.currentTime < 0.1", 5)  # and in sync
    page.run("own.close()")


def test_what_a_stall_delayed_is_caught_up_with_in_silence(server, browser, monkeypatch):
    speech = 0.3 * np.sin(2 * np.pi * 220 * np.arange(7 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    monkeypatch.setattr(server.service, "speaker", lambda text: iter([speech]))
    page = browser(server, "/?transport=websocket", before=STALL)
    bring_to_life(page)
    pause(1)
    page.run("held = []")
    pause(1.5)
    page.run("(() => { const late = held; held = null; for (const take of late) take(); })()")
    late = "Math.min(...played.slice(-25).map(([, ahead]) => ahead))"
    pause(1.5)
    assert page.run(late) > 1
    page.click("#text button")
    page.wait(f"{late} < 0.45", 25)
    times, _, heard = np.array(page.run("played")).T
    assert (np.diff(times) > 0.0399).all()  # nothing overlaps
    assert heard.sum() == 7 * FPS  # all that was said is heard
    page.press("#talk")
    pause(5)
    assert (np.diff(np.array(page.run("played"))[-100:, 0]) < 0.0401).all()  # still in time


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
