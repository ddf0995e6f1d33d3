"""Data sets and clips of synthetic heads: files of independent frames with labels, and continuous video."""
from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from imtalker.errors import InputError
from imtalker.files import complete, readable
from imtalker.synth.motion import BLINK, INDEX, Motion, expression_basis, latent, varied
from imtalker.synth.pack import load_pack
from imtalker.synth.scene import MAP_CELLS, SPLITS, Scene

JPEG_QUALITY = 93
POSE_LIMIT = np.radians(np.float32([18, 32, 13]))       # pitch, yaw, roll: what a talking person hardly exceeds
NEUTRAL_SHARE = 0.15                                    # frames with a relaxed closed mouth
OPEN_SHARE = 0.45                                       # frames whose mouth is opened if it is not open yet
OPENERS = ("jawOpen", "viseme_aa", "viseme_O", "viseme_E", "viseme_I", "viseme_CH")


def frames_of(rng: np.random.Generator, count: int, steady: bool = False) -> Motion:
    """`count` unrelated motion samples for training: varied, within POSE_LIMIT, with the shares above of closed mouths
    and of open ones (silence is frequent in speech, but a renderer learns little from it). steady: the head keeps
    nearly one place, as that of a person who talks, and only the face moves."""
    motion = varied(rng, count)
    pose = POSE_LIMIT * np.tanh(motion.pose / POSE_LIMIT)
    cam = motion.cam
    if steady:
        sway = np.float32(rng.uniform(0, 1))
        pose = pose[:1] + np.float32(np.radians(2.5)) * sway * rng.normal(size=pose.shape).astype(np.float32)
        cam = cam[:1] + 0.012 * sway * rng.normal(size=cam.shape).astype(np.float32)
    expression = motion.expression.copy()
    kind = rng.random(count)
    lids = expression[:, BLINK]
    expression[kind < NEUTRAL_SHARE] = 0
    expression[:, BLINK] = lids
    columns = [INDEX[name] for name in OPENERS]
    for k in np.flatnonzero(kind > 1 - OPEN_SHARE):
        row = expression[k]
        if row[columns].sum() < 0.3:
            row[rng.choice(columns)] = rng.uniform(0.1, 0.9)
            row[INDEX["mouthClose"]] = 0
    return dataclasses.replace(motion, pose=pose.astype(np.float32), cam=cam.astype(np.float32), expression=expression)


def render_clip(pack, motion: Motion, *, seed=0, split: str = "heldout", size: int = 256, samples: int = 2,
                studio: bool = False):
    """Yield uint8 RGB frames (size,size,3) of one identity doing `motion`, one per 1/25 s; nothing else is kept.

    pack: folder of the head pack. The identity, its light and background follow from `split` and `seed`; the seed
    (seed, index) is identity `index` of `write_dataset`. samples: per pixel side. studio: see `Scene`."""
    scene = Scene(load_pack(str(pack)), split, seed, size, samples, studio)
    for pose, cam, gaze, expression in zip(motion.pose, motion.cam, motion.gaze, motion.expression):
        yield scene.render(pose, cam, gaze, expression).image


def render_identity(pack, split: str, seed: int, index: int, frames: int, size: int, basis,
                    steady: bool = False) -> dict[str, np.ndarray]:
    """The arrays of one identity file (see `write_dataset`)."""
    scene = Scene(load_pack(str(pack)), split, [seed, index], size)
    # The scene draws from [split, seed, index]; a fourth number keeps the motion independent of it.
    motion = frames_of(np.random.default_rng([SPLITS.index(split), seed, index, 1]), frames, steady)
    jpegs = []
    arrays = {"latent": latent(motion, basis), "pose": motion.pose, "cam": motion.cam, "gaze": motion.gaze,
              "blink": motion.expression[:, BLINK], "mouth": np.empty(frames, np.float32),
              "expression": motion.expression.astype(np.float16), "landmarks": np.empty((frames, 68, 2), np.float32),
              "surface": np.empty((frames, MAP_CELLS, MAP_CELLS, 3), np.int8),
              "parts": np.empty((frames, MAP_CELLS, MAP_CELLS), np.uint8)}
    for k in range(frames):
        frame = scene.render(motion.pose[k], motion.cam[k], motion.gaze[k], motion.expression[k])
        file = io.BytesIO()
        Image.fromarray(frame.image).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        jpegs.append(np.frombuffer(file.getvalue(), np.uint8))
        for name in ("mouth", "landmarks", "surface", "parts"):
            arrays[name][k] = getattr(frame, name)
    arrays["jpeg"] = np.concatenate(jpegs)
    arrays["offsets"] = np.cumsum([0] + [len(j) for j in jpegs], dtype=np.int64)
    looks = scene.looks
    meta = {"split": split, "seed": seed, "index": index, "size": size, "steady": steady, "sex": looks["sex"],
            "skin": [Path(file).stem for file in looks["skin"]], **looks["proxies"]}
    arrays["meta"] = np.array(json.dumps(meta))
    return arrays


def _write_identity(job):
    """Worker: render one identity and put its file in place when complete. Returns the number of frames rendered."""
    out, pack, split, seed, index, frames, size, basis, steady = job
    path = Path(out) / f"identity-{index:06d}.npz"
    if path.exists():
        _check_same(path, {"split": split, "seed": seed, "size": size, "steady": steady, "frames": frames})
        return 0
    arrays = render_identity(pack, split, seed, index, frames, size, basis, steady)
    with complete(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)                                            # JPEG does not shrink further
    return frames


def _check_same(path: Path, wanted: dict) -> None:
    """Raise InputError unless the identity file that is there was made with the options `wanted`."""
    with readable(path, "delete it to have it made again"), np.load(path) as data:
        made = {**json.loads(str(data["meta"])), "frames": len(data["offsets"]) - 1}
    others = [name for name, value in wanted.items() if made.get(name) != value]
    if others:
        told = ", ".join(f"{name} {made.get(name)} instead of {wanted[name]}" for name in others)
        raise InputError(f"{str(path)!r} was made with {told}: name another folder, or another --first")


def write_dataset(out, *, identities: int = 400, frames: int = 20, size: int = 256, split: str = "train", seed: int = 0,
                  workers: int | None = None, pack, progress=None, first: int = 0, steady: bool = False) -> dict:
    """Render a data set into folder `out`, one file per identity; files that are there already are kept,
    and refused where they were made with other options.

    Identities `first` .. `first + identities - 1` of (split, seed); the same numbers give the same pictures. The frames
    of one identity share person, light and background and differ in motion: any two are a (source, driving) pair.
    steady: heads hardly move and only faces do, see `frames_of`; a renderer wants both kinds.
    `progress(done, identities, frames_per_second)` is called after each identity.

    `identity-000123.npz`, with K frames, float32 unless said: `jpeg` uint8 concatenated JPEG files and `offsets` int64
    (K+1); `latent` (K,32); `pose` (K,3), `gaze` (K,2) radians; `cam` (K,3) log scale and crop widths; `blink` (K,2)
    left, right 0..1; `mouth` (K) lip opening over the distance of the outer eye corners; `expression` float16 (K,67);
    `landmarks` (K,68,2) in crop fractions; `surface` int8 (K,64,64,3) place on the template head; `parts` uint8
    (K,64,64): 0 background, 1 skin, 2 eyes, 3 mouth inside, 4 hair, 5 brows and lashes, 6 clothes; `meta` JSON text.

    Returns {"identities", "frames", "seconds", "frames_per_second"} of what was rendered now."""
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; expected one of {', '.join(SPLITS)}")
    for name, value, low in (("identities", identities, 1), ("frames", frames, 1), ("size", size, MAP_CELLS)):
        if value < low:
            raise InputError(f"{name} is {value}; expected at least {low}")
    load_pack(str(pack))                                                    # a missing pack is reported before any work
    basis = expression_basis(pack)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    workers = workers or os.cpu_count() or 1
    jobs = ((str(out), str(pack), split, seed, index, frames, size, basis, steady)
            for index in range(first, first + identities))
    start, rendered, done = time.perf_counter(), 0, 0
    rate = lambda: rendered / (time.perf_counter() - start)
    with _mapping(workers) as run:
        for count in run(_write_identity, jobs):
            rendered, done = rendered + count, done + 1
            if progress:
                progress(done, identities, rate())
    return {"identities": identities, "frames": rendered, "seconds": time.perf_counter() - start,
            "frames_per_second": rate()}


@contextmanager
def _mapping(workers: int) -> Iterator[Callable]:
    """`map`, whatever the order, over worker processes, or in this process when one is enough."""
    if workers == 1:
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_leave_interrupts) as pool:

        def unordered(function, jobs):
            for done in as_completed([pool.submit(function, job) for job in jobs]):
                yield done.result()

        try:
            yield unordered
        except BrokenProcessPool:
            raise InputError("one of the processes that render was ended from outside, perhaps for lack of memory: "
                             "type the same again, with fewer --workers") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)  # who is begun is finished
            raise


def _leave_interrupts() -> None:
    """Ctrl-C reaches workers, too, but is for the process that began them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
