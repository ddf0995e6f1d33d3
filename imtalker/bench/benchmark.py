"""Run everything that is measured, several times in turn, and put the figures together.

Each run measures the plain path and ours one after the other, so that what disturbs the machine disturbs both, and a
ratio is one of a single run. All parts run once before, to warm up. Figures are medians.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..bundled import ASSETS
from ..devices import PRECISIONS
from ..errors import InputError
from ..face import driving_crop, no_crop, source_crop
from ..media import FPS, SAMPLE_RATE, VideoReader, load_audio, load_picture, write_video
from ..memory import keep_freed_memory, memory_by_default
from ..models.audio import KnownFeatures
from ..models.generator import Generator
from ..pipeline import IMTalker, to_pixels
from ..stream import MotionStream
from ..weights import load_model
from . import child
from .counts import Call, Cost, copy_gbs, cost, kernel_launches, matrix_gflops, seconds_of
from .plain import PlainRenderer

LEAST = 0.3  # seconds that a measurement goes on, at least
SOUND = 4.0  # seconds of sound for which features and motion are made: whole windows
FIRST_SOUND = 0.4  # seconds of sound that a live session gets before its first frame is waited for
COUNTED = 4  # frames at once, at most, whose costs are counted: attention is built in full for it
PICTURE = ASSETS / "sample.png"

# Stages in order: key, name, and once per what
STAGES = (
    ("crop", "find and crop the face", "picture"),
    ("source", "encode source", "picture"),
    ("features", "audio features", "frame"),
    ("sampling", "motion sampling", "frame"),
    ("driving", "decode and crop driving video", "frame"),
    ("motion", "encode motion", "frame"),
    ("maps", "motion maps", "frame"),
    ("transfer", "transfer", "frame"),
    ("synthesis", "synthesis", "frame"),
    ("pixels", "to uint8", "frame"),
    ("encoder", "video encoder", "frame"),
)


def benchmark(
    model: str,
    device: str = "auto",
    precision: str = "auto",
    *,
    runs: int = 5,
    seconds: float = 2.0,
    progress: Callable[[], object] = lambda: None,
) -> dict:
    """All figures of a model on a device, ready for JSON.

    seconds: length of the clips that are made from end to end. progress: called after warming up, and after each run.
    """
    talker = IMTalker.from_pretrained(model, device=device, precision=precision)
    if talker.device.type == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(talker, model, Path(folder), seconds)
        costs = bench.costs()
        samples: dict[str, list[float]] = {}
        for _ in bench.parts():
            pass
        progress()
        for _ in range(runs):
            for name, value in chain(bench.parts(), bench.whole()):
                samples.setdefault(name, []).append(value)
            progress()
        launches = bench.launches() if talker.device.type == "cuda" else None
    told = {
        "model": talker.config.name,
        "device": talker.device.type,
        "precision": talker.precision,
        "machine": machine(talker.device),
        "versions": f"imtalker {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": datetime.date.today().isoformat(),
        "size": talker.config.size,
        "runs": runs,
        "seconds": seconds,
        "batch": bench.batch,
    }
    return told | _figures({name: np.array(values) for name, values in samples.items()}, costs) | (launches or {})


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"{names[0]}, {torch.get_num_threads()} threads on {len(names)} cores"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"


def _figures(samples: dict[str, np.ndarray], costs: dict[str, Cost]) -> dict:
    """samples: name -> (runs,) as `_Bench` names them."""
    frame, motion, plain = samples["frame"], samples["motion"], samples["plain_frame"]
    samples["synthesis"] = samples["stages"] - samples["align"]
    heard = samples["features"] + samples["sampling"]  # by the same code on both sides
    network = {  # seconds a frame: ours, plain
        "animate_network": (heard + frame, heard + plain),
        "reenact_network": (motion + frame, samples["plain_motion"] + plain),
        "animate_network_alone": (heard + samples["frame_alone"], heard + plain),
        "reenact_network_alone": (samples["motion_alone"] + samples["frame_alone"], samples["plain_motion"] + plain),
        "renderer": (frame, plain),
        "motion_encoder": (motion, samples["plain_motion"]),
    }
    # what the device can do: its best
    matrix, copy = float(samples["matrix_gflops"].max()), float(samples["copy_gbs"].max())
    gflop = sum(costs[key].gflop for key in ("maps", "transfer", "synthesis"))
    figures = {  # of every run
        "animate_fps": 1 / samples["animate"],
        "reenact_fps": 1 / samples["reenact"],
        **{f"{name}_fps": 1 / ours for name, (ours, _) in network.items()},
        **{f"{name}_plain_fps": 1 / theirs for name, (_, theirs) in network.items()},
        **{f"{name}_ratio": theirs / ours for name, (ours, theirs) in network.items()},
        "live_first_frame_ms": 1000 * samples["live_first"],
        "live_frame_ms": 1000 * samples["live_frame"],
        "start_first_frame_s": samples["start"],
        "real_time_factor": FPS * samples["animate"],
        "peak_memory_mb": samples["memory"] / 1e6,
        "peak_gpu_memory_mb": samples["gpu_memory"] / 1e6,
        "achieved_gflops": gflop / frame,
        "matrix_share": gflop / frame / matrix,
    }
    stages = []
    for key, name, per in STAGES:
        values = 1000 * samples[key]
        row = {"stage": name, "per": per, "ms": float(np.median(values)), "spread": _spread(values)}
        if key in costs:
            bound = 1000 * max(costs[key].gflop / matrix, costs[key].megabytes / 1000 / copy)
            row |= {"gflop": costs[key].gflop, "megabytes": costs[key].megabytes, "operators": costs[key].operators,
                    "bound_ms": bound, "share": bound / row["ms"]}
        stages.append(row)
    return {
        **{name: float(np.median(values)) for name, values in figures.items()},
        "gflop_per_frame": gflop,
        "plain_gflop_per_frame": costs["plain_frame"].gflop,
        "matrix_gflops": matrix,
        "copy_gbs": copy,
        "spread": {name: _spread(values) for name, values in figures.items()},
        "stages": stages,
    }


def _spread(values: np.ndarray) -> list[float]:
    return [float(values.min()), float(values.max())]


class _Bench:
    """Inputs of every measurement, and the measurements."""

    def __init__(self, talker: IMTalker, model: str, folder: Path, seconds: float):
        self.talker, self.model = talker, model
        self.networks = load_model(model, talker.device)  # as they are written: for the plain path, and to count
        self.plain = PlainRenderer(self.networks.renderer)
        # what is made from end to end
        sound, frames = load_audio(ASSETS / "sample.wav"), list(VideoReader(ASSETS / "sample.mp4"))
        self.count = round(seconds * FPS)
        self.speech, self.driving, self.output = (folder / name for name in ("speech.wav", "driving.mp4", "out.mp4"))
        _write_wav(self.speech, np.resize(sound, self.count * SAMPLE_RATE // FPS))
        write_video(self.driving, islice(cycle(frames), self.count), FPS, self.speech)
        self.live_sound = np.resize(sound, round((FIRST_SOUND + seconds) * SAMPLE_RATE))
        # what single stages are given
        self.picture = load_picture(PICTURE)
        self.source = talker.encode_source(self.picture)
        self.square = talker._tensor(self.source.picture[None])
        self.plain_source = self.plain.encode_source(self.square)
        self.sound = torch.from_numpy(np.resize(sound, round(SOUND * SAMPLE_RATE))).to(talker.device)
        self.features = self.inferred(lambda: talker.audio_encoder(self.sound))
        self.batch = talker.at_once
        motion = torch.cat(list(self.sample(talker.generator)))
        self.latents = motion[torch.arange(self.batch) % len(motion)].to(talker.device)
        crop, size = driving_crop(frames), talker.config.size
        self.squares = [crop.apply(x, size) for x in islice(cycle(frames), self.batch)]
        self.frames = talker._tensor(np.stack(self.squares))
        self.maps = self.inferred(lambda: talker.renderer.motion_maps(self.latents, self.source.features.identity))
        self.painted = self.inferred(lambda: talker._frames(self.source.features, self.latents))
        self.drawn = list(talker.render(self.source, [self.latents]))

    def inferred(self, call: Call):
        with torch.inference_mode(), self.talker._autocast():
            return call()

    def sample(self, generator: Generator) -> Iterator[Tensor]:
        how = {"nfe": self.talker.config.nfe, "guidance_scale": self.talker.config.guidance_scale}
        return MotionStream(KnownFeatures(self.features), generator, self.source.features.motion, **how).rest()

    def read_driving(self) -> None:
        video = VideoReader(self.driving)
        crop = driving_crop(video)
        for frame in video:
            crop.apply(frame, self.talker.config.size)

    def parts(self) -> Iterator[tuple[str, float]]:
        """Every part once: its name, and seconds a frame, or a picture, or as the name says."""
        talker, renderer, device, batch = self.talker, self.talker.renderer, self.talker.device, self.batch
        features, size = self.source.features, self.talker.config.size

        def seconds(call: Call, frames: int = 1) -> float:
            return seconds_of(call, device, LEAST) / frames

        def network(call: Call, frames: int = 1) -> float:
            return seconds(lambda: self.inferred(call), frames)

        with memory_by_default() if device.type == "cpu" else contextlib.nullcontext():
            yield "plain_frame", seconds(lambda: self.plain.frame(self.plain_source, self.latents[:1]))
            yield "plain_motion", seconds(lambda: self.plain.encode_motion(self.frames[:1]))
        self.inferred(lambda: talker._frames(features, self.latents))  # take the memory that is kept from here on
        yield "frame", seconds(lambda: list(talker.render(self.source, [self.latents])), batch)
        yield "stages", network(lambda: talker._frames(features, self.latents), batch)
        yield "frame_alone", network(lambda: talker._frames(features, self.latents[:1]))
        yield "motion", seconds(lambda: list(talker.driving_motion(self.squares, no_crop(size, size))), batch)
        yield "motion_alone", network(lambda: renderer.encode_motion(self.frames[:1]))

        gaze = self.inferred(lambda: renderer.gaze(features, self.latents))
        yield "align", network(lambda: renderer.align(features, self.latents), batch)
        yield "maps", network(lambda: renderer.motion_maps(self.latents, features.identity), batch)
        yield "transfer", network(lambda: renderer.transfer(self.maps, features.transfer, gaze), batch)
        yield "pixels", seconds(lambda: to_pixels(self.painted), batch)
        yield "crop", seconds(lambda: source_crop(self.picture).apply(self.picture, size))
        yield "source", network(lambda: renderer.encode_source(self.square))
        yield "features", network(lambda: talker.audio_encoder(self.sound), len(self.features))
        yield "sampling", seconds(lambda: list(self.sample(talker.generator)), len(self.features))
        yield "driving", seconds(self.read_driving, self.count)
        drawn = lambda: islice(cycle(self.drawn), self.count)
        yield "encoder", seconds(lambda: write_video(self.output, drawn(), FPS, self.speech), self.count)

        most = talker.renderer.synthesis.painted_as if talker.precision == "mixed" else PRECISIONS[talker.precision]
        yield "matrix_gflops", matrix_gflops(device, most)
        yield "copy_gbs", copy_gbs(device)

    def whole(self) -> Iterator[tuple[str, float]]:
        """From end to end: seconds a frame, or as the name says."""
        talker, source = self.talker, self.source
        for name, clip in (("animate", lambda: talker.animate(source, self.speech)),
                           ("reenact", lambda: talker.reenact(source, self.driving))):  # fmt: skip
            yield name, seconds_of(lambda: clip().save(self.output), talker.device) / self.count  # noqa: B023
        yield from zip(("live_first", "live_frame"), self.live())
        yield from zip(("start", "memory", "gpu_memory"), self.start())

    def live(self) -> tuple[float, float]:
        """Seconds from a session's first FIRST_SOUND seconds of sound to its first frame, and of work for each frame.

        Sound then goes on in portions of a frame's length; if the first frame waits for them, so does the clock.
        """
        session = self.talker.session(self.source, seed=0)
        first, portion = round(FIRST_SOUND * session.sample_rate), session.sample_rate // FPS
        now, came, works = 0.0, [], []  # the time; when each frame came; how long each portion was worked on

        def take(frames: Iterable[np.ndarray], arrived: float) -> None:
            nonlocal now
            now, started = max(now, arrived), time.perf_counter()
            for _ in frames:
                came.append(now + time.perf_counter() - started)
            works.append(time.perf_counter() - started)
            now += works[-1]

        take(session.push(self.live_sound[:first]), arrived=0)
        for k, begin in enumerate(range(first, len(self.live_sound), portion), 1):
            take(session.push(self.live_sound[begin : begin + portion]), arrived=k / FPS)
        take(session.flush(), arrived=0)
        return came[0], sum(works) / len(came)

    def start(self) -> tuple[float, float, float]:
        """Seconds from starting `imtalker animate` to its first frame; the bytes it took of memory, and of a GPU's."""
        how = ["--model", str(self.model), "--device", str(self.talker.device), "--precision", self.talker.precision]
        command = ["animate", str(PICTURE), str(self.speech), "-o", str(self.output), "--quiet", *how]
        started = time.perf_counter()
        with subprocess.Popen([sys.executable, "-m", child.__name__, *command], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            first = time.perf_counter() - started
            told = process.stdout.readline().split()
        if process.returncode:
            raise InputError("imtalker animate, begun to see how soon it starts, failed: what it said stands above")
        memory, gpu_memory = map(float, told)
        return first, memory, gpu_memory

    def costs(self) -> dict[str, Cost]:
        """What each stage needs for a frame (or a picture): of the networks as they are written, source side once."""
        renderer, few = self.networks.renderer, min(self.batch, COUNTED)
        latents = self.latents[:few]
        source = self.inferred(lambda: renderer.encode_source(self.square))
        maps = self.inferred(lambda: renderer.motion_maps(latents, source.identity))
        gaze = self.inferred(lambda: renderer.gaze(source, latents))
        aligned = self.inferred(lambda: renderer.transfer(maps, source.transfer, gaze))

        def counted(call: Call, frames: int = few) -> Cost:
            return cost(lambda: self.inferred(call)).per(frames)

        return {
            "source": counted(lambda: renderer.encode_source(self.square), 1),
            "features": counted(lambda: self.networks.audio_encoder(self.sound), len(self.features)),
            "sampling": counted(lambda: list(self.sample(self.networks.generator)), len(self.features)),
            "motion": counted(lambda: renderer.encode_motion(self.frames[:few])),
            "maps": counted(lambda: renderer.motion_maps(latents, source.identity)),
            "transfer": counted(lambda: renderer.transfer(maps, source.transfer, gaze)),
            "synthesis": counted(lambda: renderer.synthesis(aligned)),
            "plain_frame": cost(lambda: self.plain.frame(self.plain_source, latents[:1])),
            "plain_motion": cost(lambda: self.plain.encode_motion(self.frames[:1])),
        }

    def launches(self) -> dict[str, int]:
        """Kernels launched for a batch of frames, for one frame, and for one frame of the plain path."""
        draw = lambda latents: self.inferred(lambda: self.talker._frames(self.source.features, latents))
        return {
            "launches_batch": kernel_launches(lambda: draw(self.latents)),
            "launches_frame": kernel_launches(lambda: draw(self.latents[:1])),
            "launches_plain_frame": kernel_launches(lambda: self.plain.frame(self.plain_source, self.latents[:1])),
        }


def _write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
