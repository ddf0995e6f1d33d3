"""Exported graphs, run by the runtime that they are for."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY
from test_renderer import TINY as PUBLISHED

from imtalker import IMTalker, export
from imtalker.bundled import ASSETS
from imtalker.cli import main
from imtalker.face.reader import load_reader
from imtalker.media import load_picture
from imtalker.weights import build_model, save_model


@pytest.fixture(scope="module")
def published_model(tmp_path_factory) -> Path:
    """As the tiny model, with every layer that the published renderer has."""
    torch.manual_seed(0)
    model = build_model(replace(TINY, renderer=PUBLISHED))
    return save_model(model, tmp_path_factory.mktemp("models") / "published")


@pytest.fixture(scope="module")
def looking_model(tmp_path_factory) -> Path:
    """As the tiny model, with eyes that move."""
    torch.manual_seed(0)
    model = build_model(replace(TINY, renderer=replace(TINY.renderer, motion_encoder="landmarks", eyes=0.3)))
    model.renderer.motion_encoder.reader.load_state_dict(load_reader().state_dict())  # or eyes would have no width
    return save_model(model, tmp_path_factory.mktemp("models") / "looking")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["published_model", "looking_model"])
def test_a_frame_made_by_onnx_runtime_is_ours(kind, request, tmp_path, capsys):
    onnxruntime, folder = pytest.importorskip("onnxruntime"), request.getfixturevalue(kind)
    assert main(["models", "export", str(tmp_path / "graphs"), "--model", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"folder": str(tmp_path / "graphs")} | json.loads((tmp_path / "graphs/graphs.json").read_text())
    assert all(graph["relative_error"] < 1e-5 for graph in told["graphs"].values())
    assert {path.name for path in (tmp_path / "graphs").iterdir()} == {
        "graphs.json", *(graph["file"] for graph in told["graphs"].values())}

    def run(name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        graph = told["graphs"][name]
        assert [given["name"] for given in graph["inputs"]] == list(inputs)
        session = onnxruntime.InferenceSession(tmp_path / "graphs" / graph["file"])
        return dict(zip((made["name"] for made in graph["outputs"]), session.run(None, inputs)))

    talker, rng = IMTalker.from_pretrained(folder, device="cpu"), np.random.default_rng(0)
    picture = cv2.resize(load_picture(ASSETS / "sample.png"), (64, 64), interpolation=cv2.INTER_AREA)
    driving = np.stack([picture, picture[:, ::-1], rng.integers(0, 256, (64, 64, 3), np.uint8)])
    ours = np.stack(list(talker.reenact(talker.encode_source(picture, crop=False), driving, crop=False)))
    as_input = lambda pixels: pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    source = run("source_encoder", picture=as_input(picture[None]))
    motion = run("motion_encoder", pictures=as_input(driving))["motion"]
    wanted = [given["name"] for given in told["graphs"]["frame_renderer"]["inputs"][1:]]
    frames = run("frame_renderer", motion=motion, **{name: source[name] for name in wanted})["frames"]
    assert frames.shape == (3, 3, 64, 64)
    assert np.abs(255 * frames.transpose(0, 2, 3, 1) - ours).max() < 0.51 + 0.1


@pytest.mark.slow
def test_torch_programs_are_equal(tiny_model, tmp_path):
    errors = {}
    described = json.loads(export.export(tiny_model, tmp_path, "torch", errors.__setitem__).read_text())
    assert set(errors) == set(described["graphs"]) and max(errors.values()) < 1e-6
    program = torch.export.load(tmp_path / described["graphs"]["velocity"]["file"]).module()
    shapes = [[4 if size == "batch" else size for size in given["shape"]]
              for given in described["graphs"]["velocity"]["inputs"]]
    assert program(*map(torch.rand, shapes))[0].shape == (4, 60, 32)


def test_a_graph_that_differs_is_refused_and_nothing_is_left(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "write_torch", lambda graph, file: file.touch() or (lambda inputs: [
        x + 1 for x in graph.results(inputs)]))
    assert main(["models", "export", str(tmp_path), "--model", str(tiny_model), "--format", "torch"]) == 1
    assert "source_encoder" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert main(["models", "export", str(tmp_path / "graphs"), "--model", str(tiny_model)]) == 2
    assert "imtalker[export]" in capsys.readouterr().err and not list(tmp_path.iterdir())
