"""Every command and every example of the documentation is run, with a tiny model in place of the real ones."""

import contextlib
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import imtalker
from imtalker import cli, weights

ROOT = Path(__file__).parents[1]
ASSETS = Path(imtalker.__file__).parent / "assets"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(program: str) -> list[list[str]]:
    """Arguments of every line of the shell blocks that begins with `program`."""
    lines = [
        shlex.split(line, comments=True)
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
    ]
    return [line[1:] for line in lines if line and line[0] == program]


@pytest.fixture
def desk(tmp_path, monkeypatch, tiny_model):
    """A folder with the files that the documentation names; `mini` and the folders in models/ are the tiny model."""
    monkeypatch.chdir(tmp_path)
    for name in ("face.jpg", "portrait.png", "group.jpg"):
        shutil.copy(ASSETS / "sample.png", name)
    shutil.copy(ASSETS / "sample.wav", "speech.wav")
    shutil.copy(ASSETS / "sample.mp4", "driving.mp4")
    Path("pose.csv").write_text("0,0.1,0\n")
    Path("gaze.csv").write_text("0.1,0\n")
    Path("docs").mkdir()
    for name in ("base", "mine"):
        shutil.copytree(tiny_model, f"models/{name}")
    find = weights.find_model
    monkeypatch.setattr(weights, "find_model", lambda name: tiny_model if name in ("mini", "base") else find(name))
    return tmp_path


def test_there_are_commands_to_run():
    assert len(commands("imtalker")) > 10 and commands("make") and commands("pip")
    assert all(
        line[0] in ("imtalker", "make", "pip")
        for page in PAGES
        for block in blocks(page, "sh")
        for line in map(lambda text: shlex.split(text, comments=True), block.splitlines())
        if line
    )


@pytest.mark.parametrize(
    "arguments", [line for line in commands("imtalker") if line[0] in ("animate", "reenact")], ids=" ".join
)
def test_commands_that_make_videos(desk, arguments, capsys, monkeypatch):
    if "group.jpg" in arguments:  # the sample shows one person: pretend that the second one is she
        from imtalker import pipeline

        monkeypatch.setattr(pipeline, "source_crop", lambda pixels, face, name: pipeline.no_crop(*pixels.shape[:2]))
    before = set(Path().rglob("*.mp4"))
    assert cli.main(arguments) == 0, capsys.readouterr().err
    made = set(Path().rglob("*.mp4")) - before
    assert len(made) == 1 and made.pop().stat().st_size > 1000
    if "--json" in arguments:
        assert capsys.readouterr().out.startswith("{")


@pytest.mark.parametrize(
    "arguments", [line for line in commands("imtalker") if line[0] not in ("animate", "reenact")], ids=" ".join
)
def test_other_commands(desk, arguments, capsys, monkeypatch):
    """What renders, fetches or trains is replaced; its options are read by what reads them in earnest."""
    calls = []

    def instead(module, name, result=None):
        monkeypatch.setattr(importlib.import_module(module), name, lambda *given, **named: calls.append(name) or result)

    if arguments[0] == "train":
        module = f"imtalker.train.{arguments[1]}"
        instead(
            module,
            {"reader": "train_reader", "bundle": "bundle"}.get(
                arguments[1], "measure" if "--measure" in arguments else "train"
            ),
        )
    elif arguments[0] == "synth":
        instead("imtalker.synth.dataset", "write_dataset", {"identities": 1, "frames": 1, "frames_per_second": 1.0})
        instead("imtalker.synth.speech", "write_corpus", "corpus")
    elif arguments[0] == "evaluate":
        instead("imtalker.evaluate.protocols", "evaluate", [])
    elif arguments[0] == "serve":
        instead("imtalker.live.server", "serve")
    elif arguments[0] == "benchmark":
        instead("imtalker.bench.benchmark", "benchmark")
        instead("imtalker.bench.report", "write")
        instead("imtalker.bench.report", "text")
    elif arguments[1] in ("pull", "convert"):
        instead("imtalker.published", arguments[1], "folder")
    elif arguments[1] == "export":
        instead("imtalker.export", "export", "graphs.json")
    assert cli.main(arguments) == 0, capsys.readouterr().err
    assert calls or arguments[:2] in (["models", "list"], ["models", "show"])


@pytest.mark.parametrize("code", [pytest.param(code, id=f"{page.name}-{k}") for page in PAGES
                                  for k, code in enumerate(blocks(page, "python"))])
def test_python_of_the_pages(desk, code):
    exec(compile(code, "page", "exec"), {})
    assert Path("talk.mp4").stat().st_size > 1000


# Those that talk to a server are tested with one, in test_live_examples.py
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("[!l]*.py")), ids=lambda path: path.name)
def test_examples(desk, example, monkeypatch):
    monkeypatch.setattr(sys, "argv", [example.name])
    with contextlib.redirect_stdout(None):
        exec(compile(example.read_text(), str(example), "exec"), {"__name__": "__main__"})
    assert list(Path().glob("*.mp4"))


def test_make_and_pip_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for arguments in commands("make"):
        assert f"\n{arguments[0]}:" in makefile
    project = (ROOT / "pyproject.toml").read_text()
    for arguments in commands("pip"):
        assert arguments[:3] == ["install", "-c", "constraints.txt"]
        extras = re.search(r"\[(.*)\]", arguments[-1])
        assert extras is None or all(f"\n{extra} = [" in project for extra in extras[1].split(","))


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
