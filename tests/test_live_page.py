"""The page in a real browser: headless Chromium with a fake microphone and a fake camera."""

import chromium
import numpy as np
import pytest
from conftest import tone, write_wav
from live_fake import Running, loudness_of, wait_until
from page import (
    BEGINNINGS,
    COUNT,
    LISTEN,
    OWN,
    bring_to_life,
    browser,
    choose_sample_as_file,
    look,
    newest,
    pause,
    server,
)

from imtalker.media import SAMPLE_RATE, SAMPLES_PER_FRAME

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium here: apt-get install chromium")


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


def test_a_key_is_asked_for(browser):
    with Running(key="secret") as server:
        page = browser(server)
        page.wait("!document.querySelector('#key').hidden")
        page.run("document.querySelector('#key-value').value = 'secret'")
        page.click("#key button")
        bring_to_life(page)


def test_the_same_picture_can_be_chosen_again(server, browser):
    page = browser(server)
    choose_sample_as_file(page)
    page.click("#sample")
    page.wait("!document.querySelector('.pick').classList.contains('chosen')")
    choose_sample_as_file(page)


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
