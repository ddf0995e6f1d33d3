"""The page where something goes wrong: the network, the server, or a user who is quicker than either."""

import asyncio
import json
from types import SimpleNamespace

import chromium
import numpy as np
import pytest
from live_fake import FakeTalker, Running, wait_until
from page import (
    COUNT,
    OWN,
    PROMPT,
    STALL,
    bring_to_life,
    browser,
    choose_sample_as_file,
    forget_pictures,
    mouse,
    newest,
    pause,
    server,
)

from imtalker import InputError
from imtalker.bundled import ASSETS
from imtalker.live.jobs import Job
from imtalker.live.refusal import busy
from imtalker.media import FPS, SAMPLE_RATE

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium here: apt-get install chromium")


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
