"""A model as graphs that other runtimes read: ONNX, or PyTorch's own exported programs.

    source_encoder    picture -> motion, identity and everything else that frames need of the source
    motion_encoder    pictures of a driving video -> motion
    frame_renderer    motion, and what source_encoder made of one picture -> frames
    conditions        audio features, pose, cam, gaze -> one projection each; what drives is the sum of those at hand
    velocity          noisy motion, time, conditions, the source's motion -> velocity

Stock operators only, every batch size. Each graph is run and compared with the networks before anything appears.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bundled import ASSETS
from .errors import InputError
from .media import load_picture
from .models.generator import CONDITIONS
from .models.renderer import SourceFeatures
from .models.transfer import TransferSource
from .weights import Model, load_model

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4  # relative distance between a graph's output and the network's, float32


class Call(nn.Module):
    """A network as one function of tensors: what an exported graph is."""

    def __init__(self, network: nn.Module, function: Callable[..., tuple[Tensor, ...]]):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(self.network, *inputs)


@dataclass(frozen=True)
class Graph:
    """One graph: example inputs by name, outputs' names, and which inputs have the batch as first dimension."""

    name: str
    module: Call
    inputs: dict[str, Tensor]
    outputs: list[str]
    batched: set[str]

    def results(self, inputs: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(self.module(*inputs))


def graphs(model: Model) -> list[Graph]:
    """The graphs of a model, float32 on the CPU, with example inputs of two pictures, frames or windows."""
    config, rng = model.config, torch.Generator().manual_seed(0)
    renderer, generator = model.renderer, model.generator
    size, motion_dim = config.size, config.renderer.motion_dim
    face = torch.from_numpy(load_picture(ASSETS / "sample.png")).permute(2, 0, 1)[None] / 255
    pictures = F.interpolate(torch.cat([face, face.flip(3)]), size=(size, size), mode="bilinear", antialias=True)
    with torch.no_grad():
        source = renderer.encode_source(pictures[:1])
    levels, moved = len(source.transfer.keys), bool(config.renderer.eyes)
    places = {name: x for name in ("astray", "eyes") if (x := getattr(source.transfer, name)) is not None}
    parts = {"source_motion": source.motion, "identity": source.identity,
             **{f"key_{i}": x for i, x in enumerate(source.transfer.keys)},
             **{f"value_{i}": x for i, x in enumerate(source.transfer.values)},
             **{f"fine_{i}": x for i, x in enumerate(source.transfer.fine)},
             **places}

    def encode_source(network: nn.Module, picture: Tensor) -> tuple[Tensor, ...]:
        made = network.encode_source(picture)
        t = made.transfer
        return made.motion, made.identity, *t.keys, *t.values, *t.fine, *(getattr(t, name) for name in places)

    def render(network: nn.Module, motion: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        own, identity, *rest = given if moved else (motion[:1], *given)  # nothing else asks for the source's motion
        fine = rest[2 * levels:len(rest) - len(places)]
        placed = dict(zip(places, rest[len(rest) - len(places):]))
        transfer = TransferSource(rest[:levels], rest[levels:2 * levels], fine, **placed)
        return (network.render(SourceFeatures(own, identity, transfer), motion),)

    def project(network: nn.Module, *raw: Tensor) -> tuple[Tensor, ...]:
        return tuple(network[name](x) for name, x in zip(CONDITIONS, raw))

    wanted = {name: x for name, x in parts.items() if moved or name != "source_motion"}
    motion = source.motion + 0.1 * torch.randn(2, motion_dim, generator=rng)
    g = config.generator
    tokens = g.context + g.window
    random = lambda *shape: torch.randn(*shape, generator=rng)
    raw = {name: random(2, tokens, getattr(g, f"{name}_dim")) for name in CONDITIONS}
    flow = {"x": random(2, tokens, g.motion_dim), "t": torch.tensor([0.3, 0.8]),
            "condition": random(2, tokens, g.condition_dim), "reference": random(2, g.motion_dim)}
    return [
        Graph("source_encoder", Call(renderer, encode_source), {"picture": pictures}, list(parts), {"picture"}),
        Graph("motion_encoder", Call(renderer.motion_encoder, lambda network, x: (network(x),)), {"pictures": pictures},
              ["motion"], {"pictures"}),
        Graph("frame_renderer", Call(renderer, render), {"motion": motion, **wanted}, ["frames"], {"motion"}),
        Graph("conditions", Call(generator.projections, project), raw, [f"{name}_projected" for name in CONDITIONS],
              set(raw)),
        Graph("velocity", Call(generator, lambda network, *given: (network(*given),)), flow, ["velocity"], set(flow)),
    ]


def export(model: str | os.PathLike, folder: str | os.PathLike, kind: str = "onnx",
           told: Callable[[str, float], None] = lambda name, error: None) -> Path:
    """Write a model's graphs and `graphs.json`, which describes them, into `folder`; returns that file.

    model: as in `load_model`. kind: "onnx", or "torch" for `torch.export.load`. told(name, error) is called with each
    graph's greatest relative distance from the network, over outputs and over batches of one and of three.
    Raises InputError for an unknown model or format, ModuleNotFoundError where ONNX's packages are missing,
    RuntimeError where a graph is not equal to its network; then nothing is left behind.
    """
    if kind not in FORMATS:
        raise InputError(f"format {kind!r} is not known: {' or '.join(FORMATS)} expected")
    if kind == "onnx":
        import onnxruntime  # noqa: F401  (before anything slow)
        import onnxscript  # noqa: F401
    loaded, folder = load_model(model), Path(folder)
    described = {"model": loaded.config.name, "format": kind, "size": loaded.config.size, "fps": loaded.config.fps,
                 "generator": dataclasses.asdict(loaded.config.generator), "graphs": {}}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".imtalker-") as unfinished:
        for graph in graphs(loaded):
            file = Path(unfinished) / (graph.name + FORMATS[kind])
            run = (write_onnx if kind == "onnx" else write_torch)(graph, file)
            error = max(distance(run(inputs), graph.results(inputs)) for inputs in (others(graph, 1), others(graph, 3)))
            told(graph.name, error)
            if not error < TOLERANCE:
                raise RuntimeError(f"the graph {graph.name} is {error:.1e} away from its network, {TOLERANCE:.0e} is "
                                   "allowed; nothing was written")
            described["graphs"][graph.name] = describe(graph, file.name, error)
        (Path(unfinished) / "graphs.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        for file in sorted(Path(unfinished).iterdir(), key=lambda file: file.name == "graphs.json"):  # that one last
            file.replace(folder / file.name)
    return folder / "graphs.json"


def traced(graph: Graph) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if name in graph.batched else None for name in graph.inputs)
    return torch.export.export(graph.module, tuple(graph.inputs.values()), dynamic_shapes=(shapes,))


def write_onnx(graph: Graph, file: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """Write the graph and return a function that runs what was written, as does `write_torch`."""
    import onnxruntime

    torch.onnx.export(traced(graph), f=file, input_names=list(graph.inputs), output_names=graph.outputs, dynamo=True,
                      external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(inputs: list[Tensor]) -> list[Tensor]:
        given = {name: x.contiguous().numpy() for name, x in zip(graph.inputs, inputs)}
        return [torch.from_numpy(x) for x in session.run(graph.outputs, given)]

    return run


def write_torch(graph: Graph, file: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    torch.export.save(traced(graph), file)
    program = torch.export.load(file).module()
    return lambda inputs: list(program(*inputs))


def others(graph: Graph, batch: int) -> list[Tensor]:
    """Example inputs of another batch size, and, where they are batched, of other values."""
    return [x.flip(0)[torch.arange(batch) % len(x)] if name in graph.batched else x for name, x in graph.inputs.items()]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Greatest relative distance of any output; infinite where shapes differ."""
    return max(((a - b).norm() / b.norm()).item() if a.shape == b.shape else float("inf")
               for a, b in zip(found, expected))


def describe(graph: Graph, file: str, error: float) -> dict:
    def shape(name: str, x: Tensor, batched: bool) -> dict:
        return {"name": name, "shape": ["batch", *x.shape[1:]] if batched else list(x.shape), "dtype": "float32"}

    outputs = graph.results(list(graph.inputs.values()))
    return {"file": file, "relative_error": float(f"{error:.1e}"),
            "inputs": [shape(name, x, name in graph.batched) for name, x in graph.inputs.items()],
            "outputs": [shape(name, x, True) for name, x in zip(graph.outputs, outputs)]}
