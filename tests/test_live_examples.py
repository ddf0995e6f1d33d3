"""The clients in examples/, against a server with a talker that needs no weights; and the load script."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tone
from live_fake import FakeTalker, Running, loudness_of, number_of, wait_until

from imtalker.live import load
from imtalker.media import VideoReader, load_audio

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def server():
    with Running(FakeTalker()) as running:
        yield running


@pytest.fixture
def example(server, tmp_path, monkeypatch, speech):
    """Runs an example; returns the pictures and the sound of the video that it made."""

    def run(name, *arguments):
        out = tmp_path / "out.mp4"
        given = [*map(str, arguments), str(out), f"ws://127.0.0.1:{server.port}"]
        monkeypatch.setattr(sys, "argv", [name, *given])
        exec(compile((EXAMPLES / name).read_text(), name, "exec"), {"__name__": "__main__"})
        return np.stack(list(VideoReader(out))), load_audio(out)

    yield run
    wait_until(lambda: not server.service.conversations)


def in_sync(pictures, sound):
    """Share of the frames whose brightness says how loud their own sound is."""
    levels = np.abs(sound[: len(pictures) * 640].reshape(-1, 640)).max(1)
    return np.mean([abs(loudness_of(p) - level) < 0.12 for p, level in zip(pictures, levels)])


def test_the_shortest_client(example, speech):
    pictures, sound = example("live_client.py", speech)
    assert len(pictures) >= 33 and in_sync(pictures, sound) > 0.85
    assert [number_of(p) for p in pictures] == sorted(number_of(p) for p in pictures)


def test_text_to_speech(example, speech, monkeypatch):
    with open(speech, "rb") as file:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        pictures, sound = example("live_text_to_speech.py")
    assert len(pictures) >= 33 and np.abs(sound).max() > 0.2 and in_sync(pictures, sound) > 0.85


def test_an_agent_that_is_interrupted(example, capsys):
    pictures, sound = example("live_agent.py")
    assert "interrupted" in capsys.readouterr().out
    levels = np.abs(sound[: len(sound) // 640 * 640].reshape(-1, 640)).max(1)
    loud = np.flatnonzero(levels > 0.05)
    pause = np.diff(loud).max()  # frames between the interruption and the next answer
    assert pause >= 15 and loud[-1] > loud[0] + 50
    assert in_sync(pictures, sound) > 0.7


def test_the_load_script_measures_what_it_should(server, capsys, monkeypatch):
    import asyncio

    address = f"http://127.0.0.1:{server.port}"
    speech = np.concatenate([tone(0.8), np.zeros(3200, np.float32)])
    viewers = asyncio.run(load.together(address, 2, 4.0, speech))
    line = load.told(viewers, 4.0)
    assert all(18 < viewer.rate(4.0) < 28 and viewer.answers and viewer.answers[0] < 2 for viewer in viewers), line
    told = asyncio.run(load.soak(address, 0.15, speech, None))
    assert "last 3 seconds" in told and "first frame after" in told
