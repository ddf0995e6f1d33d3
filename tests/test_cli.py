"""The command line as a user meets it: run in this process, with a tiny model of random weights."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import listen_to_ctrl_c, pixels, tone, write_wav
from PIL import Image
from safetensors.torch import load_file, save_file

import imtalker
from imtalker.cli import main
from imtalker.media import VideoReader, load_audio


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Every test runs in its own empty folder; inputs lie in another."""
    folder = tmp_path / "work place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def animate(tiny_model):
    """Runs `imtalker animate` with the tiny model and no face needed."""
    return lambda *given: main(
        ["animate", *map(str, given), "--no-crop", "--model", str(tiny_model), "--device", "cpu"]
    )


@pytest.fixture
def refused(capsys, workplace):
    """Runs a command that must be refused: status 2, one line on stderr, nothing on stdout or left behind."""

    def run(*arguments, command="animate", mentions=()) -> str:
        before = sorted(Path().rglob("*"))
        assert main([command, *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("imtalker: error: ") and err.count("\n") == 1 and err.endswith("\n"), (
            out,
            err,
        )
        for words in [mentions] if isinstance(mentions, str) else mentions:
            assert words in err
        assert sorted(Path().rglob("*")) == before
        return err

    return run


# --------------------------------------------------------------------------------------------------------- what works


def test_help_version_and_no_arguments(capsys):
    assert main(["--help"]) == 0 and "animate" in capsys.readouterr().out
    assert main([]) == 0 and "reenact" in capsys.readouterr().out
    assert main(["--version"]) == 0 and imtalker.__version__ in capsys.readouterr().out
    for command in ("animate", "reenact", "serve", "models", "synth", "train"):
        assert main([command, "--help"]) == 0 and capsys.readouterr().out.startswith("usage: imtalker")


def test_animate_says_what_it_made(animate, capsys, picture, speech):
    assert animate(picture, speech, "-o", "talk.mp4") == 0
    out, err = capsys.readouterr()
    assert out.startswith("talk.mp4: 1.3 s, 64x64, 25 frames a second") and out.count("\n") == 1 and err == ""
    assert os.listdir() == ["talk.mp4"]
    assert sum(1 for _ in VideoReader("talk.mp4")) == 33


def test_json_and_quiet(animate, capsys, picture, speech):
    assert animate(picture, speech, "-o", "talk.mp4", "--json", "--seed", 7, "--fps", 30) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["output"] == "talk.mp4" and result["frames"] == 40 and result["fps"] == 30 and result["seed"] == 7
    assert (result["width"], result["height"], result["device"], result["precision"]) == (64, 64, "cpu", "float32")
    assert err == ""
    assert animate(picture, speech, "-o", "talk.mp4", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_the_output_is_named_after_both_inputs(animate, picture, speech):
    assert animate(picture, speech, "--quiet") == 0
    assert os.listdir() == ["picture_speech.mp4"]


def test_reenact(tiny_model, capsys, picture, driving):
    options = ["--no-crop", "--model", str(tiny_model), "--json"]
    assert main(["reenact", str(picture), str(driving), "-o", "copy.mp4", *options]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 25
    assert abs(len(load_audio("copy.mp4")) / 640 - 25) <= 1
    assert main(["reenact", str(picture), str(driving), "-o", "copy.mp4", "--relative", "--whole", *options]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["width"], made["height"]) == VideoReader("copy.mp4").size == (80, 96)


def test_same_seed_same_file(animate, picture, speech):
    for name, seed in (("a.mp4", 1), ("b.mp4", 1), ("c.mp4", 2)):
        assert animate(picture, speech, "-o", name, "--seed", seed, "--quiet") == 0
    a, b, c = (np.stack(list(VideoReader(name))) for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_controls(animate, picture, speech):
    np.save("pose.npy", np.zeros((10, 3), np.float32))
    Path("gaze.csv").write_text("yaw,pitch\n0.1,0\n")
    assert (
        animate(
            picture,
            speech,
            "-o",
            "a.mp4",
            "--pose",
            "pose.npy",
            "--gaze",
            "gaze.csv",
            "--nfe",
            1,
            "--guidance",
            1,
            "--quiet",
        )
        == 0
    )


def test_odd_pictures_work(animate, speech, tmp_path):
    colour = Image.fromarray(pixels(60, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    pictures = {
        "grey.png": colour.convert("L"),
        "alpha.png": colour.convert("RGBA"),
        "palette.gif": colour.convert("P"),
        "cmyk.jpg": colour.convert("CMYK"),
        "phone.jpg": colour,
        "Bild größe ü 1.webp": colour,
    }
    for name, image in pictures.items():
        image.save(tmp_path / name, **({"exif": exif} if name == "phone.jpg" else {}))
        assert animate(tmp_path / name, speech, "-o", f"{name}.mp4", "--quiet") == 0, name
    assert len(os.listdir()) == len(pictures)


def test_a_whole_picture_of_odd_size_is_told_as_it_is_written(tiny_model, speech, tmp_path, capsys):
    Image.fromarray(pixels(201, 333)).save(tmp_path / "odd.png")
    given = [tmp_path / "odd.png", speech, "--no-crop", "--whole", "--json", "--model", tiny_model, "-o", "a.mp4"]
    assert main(["animate", *map(str, given)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["width"], told["height"]) == VideoReader("a.mp4").size == (332, 200)


def test_odd_sounds_work(animate, picture, tmp_path):
    sounds = {
        "silent.wav": (np.zeros(16_000), 16_000, 1, 25),
        "short.wav": (tone(0.01), 16_000, 1, 1),
        "telephone.wav": (tone(1, 8_000), 8_000, 1, 25),
        "Größe 48.wav": (tone(1, 48_000), 48_000, 2, 25),
    }
    for name, (samples, rate, channels, frames) in sounds.items():
        write_wav(tmp_path / name, samples, rate, channels)
        assert animate(picture, tmp_path / name, "-o", f"{name}.mp4", "--quiet") == 0, name
        assert abs(sum(1 for _ in VideoReader(f"{name}.mp4")) - frames) <= 1, name


def test_speech_may_be_a_video(animate, picture, driving):
    assert animate(picture, driving, "-o", "a.mp4", "--quiet") == 0


def test_models(tiny_model, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("IMTALKER_CACHE", str(tmp_path))
    shutil.copytree(tiny_model, tmp_path / "mine")
    assert main(["models"]) == 0 and "list" in capsys.readouterr().out
    assert main(["models", "list"]) == 0 and "mine" in capsys.readouterr().out
    assert main(["models", "list", "--json"]) == 0
    size = sum(file.stat().st_size for file in tiny_model.glob("*.safetensors"))
    models = json.loads(capsys.readouterr().out)["models"]
    assert {"name": "mine", "origin": "fetched", "folder": str(tmp_path / "mine"), "bytes": size} in models
    assert {"name": "base", "origin": "published", "folder": None, "bytes": None} in models
    assert main(["models", "show", "mine"]) == 0 and "licence Apache-2.0" in capsys.readouterr().out
    assert main(["models", "show", str(tiny_model), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["size"] == 64 and shown["parts"]["renderer"]["parameters"] > 0


# -------------------------------------------------------------------------------------------------- what is refused


def png_header(width: int, height: int) -> bytes:
    """The beginning of a grey PNG of that size: enough for its size to be known."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x08\0\0\0\0")
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_wrong_pictures(refused, speech, tiny_model, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("Dear Sir or Madam")
    (tmp_path / "huge.png").write_bytes(png_header(20_000, 20_000))
    Image.fromarray(pixels(200, 200)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:400])
    Image.fromarray(pixels(200, 200)).save(tmp_path / "no face.png")
    for name, mentions in (
        ("missing.png", "does not exist"),
        (".", "folder"),
        ("empty.png", "empty"),
        ("text.png", "not a picture"),
        ("dot.png", "1 x 1"),
        ("huge.png", "64 megapixels"),
        ("cut.png", "damaged"),
        ("no face.png", "--no-crop"),
    ):
        refused(tmp_path / name, speech, "--model", tiny_model, "-o", "a.mp4", mentions=mentions)
    refused("", speech, "--model", tiny_model, "-o", "a.mp4", mentions="empty file name")


def test_wrong_sounds(refused, picture, tiny_model, tmp_path):
    write_wav(tmp_path / "nothing.wav", np.zeros(0))
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("Dear Sir or Madam " * 100)
    for name in ("missing.wav", "nothing.wav", "empty.wav", "text.wav"):
        refused(picture, tmp_path / name, "--no-crop", "--model", tiny_model, "-o", "a.mp4", mentions=name)
    refused(picture, picture, "--no-crop", "--model", tiny_model, "-o", "a.mp4", mentions="sound")


def test_wrong_videos(refused, picture, speech, tiny_model, tmp_path):
    with av.open(str(tmp_path / "no frames.mkv"), "w") as container:  # a header and nothing else
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        container.start_encoding()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("Dear Sir or Madam " * 100)
    for path in (
        tmp_path / "no frames.mkv",
        tmp_path / "empty.mp4",
        tmp_path / "text.mp4",
        tmp_path / "missing.mp4",
        speech,
    ):
        refused(picture, path, "--no-crop", "--model", tiny_model, "-o", "a.mp4", command="reenact", mentions=path.name)


def test_a_driving_video_without_a_face(refused, picture, driving, tiny_model):
    refused(
        picture, driving, "--no-crop", "--driving-crop", "--model", tiny_model, command="reenact", mentions="no face"
    )


def test_wrong_outputs(refused, picture, speech, driving, tiny_model, workplace):
    given = (picture, speech, "--no-crop", "--model", tiny_model, "-o")
    refused(*given, "no such folder/a.mp4", mentions="does not exist")
    refused(*given, workplace, mentions="talk.mp4")
    refused(*given, "a.txt", mentions=".mp4")
    refused(*given, "x" * 300 + ".mp4", mentions="too long")
    refused(picture, driving, "--no-crop", "--model", tiny_model, "-o", driving, command="reenact", mentions="inputs")
    assert driving.stat().st_size > 1000


def test_no_permission(refused, picture, speech, tiny_model, workplace, monkeypatch):
    given = (picture, speech, "--no-crop", "--model", tiny_model, "-o", "locked/a.mp4")
    Path("locked").mkdir(mode=0o500)
    if os.access("locked", os.W_OK):  # root may write anywhere: let the system refuse in its name
        original = os.open

        def refuse(path, flags, *rest, **named):
            if "locked" in os.fspath(path) and flags & os.O_CREAT:
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return original(path, flags, *rest, **named)

        monkeypatch.setattr(os, "open", refuse)
    refused(*given, mentions=("locked/a.mp4", "ermission denied"))


def test_a_full_disk(animate, refused, picture, speech, tiny_model, monkeypatch):
    from imtalker.media import VideoWriter

    def full(self, frame):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VideoWriter, "write", full)
    refused(picture, speech, "--no-crop", "--model", tiny_model, "-o", "a.mp4", mentions="No space left")


def test_an_existing_output_survives_a_failure(animate, picture, speech, monkeypatch, capsys):
    from imtalker.media import VideoWriter

    Path("a.mp4").write_bytes(b"precious")
    original = VideoWriter.write

    def breaks(self, frame):
        if self.count == 5:
            raise ZeroDivisionError("a fault\nof ours")
        original(self, frame)

    monkeypatch.setattr(VideoWriter, "write", breaks)
    assert animate(picture, speech, "-o", "a.mp4") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "ZeroDivisionError" in err and "--debug" in err
    assert os.listdir() == ["a.mp4"] and Path("a.mp4").read_bytes() == b"precious"
    assert animate(picture, speech, "-o", "a.mp4", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_unknown_and_damaged_models(refused, picture, speech, tiny_model, tmp_path):
    given = (picture, speech, "--no-crop", "-o", "a.mp4", "--model")
    refused(*given, "maxi", mentions="maxi")
    refused(*given, tmp_path, mentions="config.json")

    def damaged(name) -> Path:
        shutil.copytree(tiny_model, tmp_path / name)
        return tmp_path / name

    cut = damaged("cut")
    weights = (cut / "renderer.safetensors").read_bytes()
    (cut / "renderer.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(*given, cut, mentions="renderer.safetensors")

    lost = damaged("lost")
    (lost / "generator.safetensors").unlink()
    refused(*given, lost, mentions="generator.safetensors")

    other = damaged("other")
    config = json.loads((other / "config.json").read_text())
    tensors = load_file(other / "generator.safetensors")
    tensors["embed.weight"] = torch.zeros(3, 5)
    save_file(tensors, other / "generator.safetensors")
    import hashlib

    config["files"]["generator.safetensors"] = hashlib.sha256(
        (other / "generator.safetensors").read_bytes()
    ).hexdigest()
    (other / "config.json").write_text(json.dumps(config))
    refused(*given, other, mentions="embed.weight")

    strange = damaged("strange")
    (strange / "config.json").write_text("{")
    refused(*given, strange, mentions="config.json")


@pytest.mark.parametrize(
    "options",
    [
        ["--nfe", "0"],
        ["--nfe", "many"],
        ["--seed", "-1"],
        ["--fps", "0"],
        ["--fps", "nan"],
        ["--face", "-1"],
        ["--guidance", "inf"],
        ["--device", "gpu"],
        ["--device", "cuda:99"],
        ["--precision", "float16"],
        ["--bogus"],
        ["third"],
        ["--pose", "missing.npy"],
        ["--face", "1"],
    ],
    ids=" ".join,
)
def test_wrong_options(refused, picture, speech, tiny_model, options):
    refused(
        picture,
        speech,
        "--no-crop",
        "--model",
        tiny_model,
        "-o",
        "a.mp4",
        *options,
        mentions=options[0].removeprefix("--"),
    )


def test_wrong_commands(refused, tmp_path):
    refused(command="sing", mentions="animate")
    refused("renderer", command="train", mentions="data")
    refused("voice", command="train", mentions="audio")
    refused("audio", "corpus", "out", "--steps", "many", command="train", mentions=("many", "train audio --help"))
    refused("reader", "data", "out", "--minutes", "0", command="train", mentions="above 0")
    refused("reader", "no data", "out", command="train", mentions=("no data", "imtalker synth"))
    refused("recogniser", "no data", ".", command="train", mentions="is a folder")
    refused("reader", "no data", ".", command="train", mentions="is a folder")
    Path("file").write_text("")
    refused("audio", "no data", "file", command="train", mentions=("'file'", "exists"))
    refused("file", "--speech", 2, command="synth", mentions=("'file'", "exists"))
    Path("corpus").mkdir()
    Path("corpus/test.npz").write_text("")
    refused("corpus", "--speech", 2, command="synth", mentions=("test.npz", "there already"))
    refused("out", command="synth", mentions="--pack")
    refused("out", "--pack", tmp_path / "no pack", command="synth", mentions="no pack")
    refused("show", "maxi", command="models", mentions="maxi")


def test_a_missing_extra_is_named(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith("imtalker.synth")]:
        monkeypatch.delitem(sys.modules, name)
    refused("out", "--pack", "pack", command="synth", mentions="imtalker[synth]")
    for name in [name for name in sys.modules if name.startswith("imtalker.evaluate.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy.fft", None)
    refused("--pack", "pack", command="evaluate", mentions="imtalker[evaluate]")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    refused("renderer", "no data", "out", command="train", mentions="imtalker[train]")


def test_nobody_copies_another_where_there_is_no_other(refused, tiny_model):
    given = ("--pack", "pack", "--people", 1, "--compare", "--model", tiny_model)
    refused(*given, "--protocols", "cross_reenactment", command="evaluate", mentions="two people")


# ------------------------------------------------------------------------------------------- terminals, pipes, signals


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_for_terminals_and_for_what_takes_long(monkeypatch):
    from imtalker import commands

    for terminal, delay, expected in ((True, 0, True), (True, 60, False), (False, 0, False)):
        monkeypatch.setattr(commands, "BAR_DELAY", delay)
        monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
        with commands._bar(3, "frames", quiet=False) as bar:
            for _ in range(3):
                time.sleep(0.15)
                bar.update(1)
        assert bool(sys.stderr.getvalue()) == expected


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "imtalker", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(imtalker.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        preexec_fn=listen_to_ctrl_c,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(picture, tiny_model, tmp_path, sent, status):
    write_wav(tmp_path / "long.wav", tone(600))
    Path("a.mp4").write_bytes(b"precious")
    process = start("animate", picture, tmp_path / "long.wav", "--no-crop", "--model", tiny_model, "-o", "a.mp4")
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.stat().st_size > 0 for path in Path().glob(".imtalker-*")):
            break
        time.sleep(0.05)
    for _ in range(30):  # who presses Ctrl-C presses it again when nothing happens
        process.send_signal(sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert out == "" and err.count("\n") == 1 and err.startswith("imtalker: error: ")
    assert os.listdir() == ["a.mp4"] and Path("a.mp4").read_bytes() == b"precious"


def test_a_closed_pipe_is_no_error():
    process = start("models", "list")
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == ""
