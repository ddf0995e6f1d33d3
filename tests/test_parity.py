"""The published networks, number for number, against golden outputs and weights that are made from tensor names.

Those live outside this repository, in ../shared/parity (or $IMTALKER_PARITY); without them this file is skipped.
"""
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pixels, tone, write_wav
from hub import serve
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import imtalker
from imtalker import IMTalker
from imtalker.bench import child
from imtalker.bench.plain import PlainRenderer
from imtalker.errors import InputError
from imtalker.media import write_video
from imtalker.models.prepared import prepare
from imtalker.published import HUB_REPOSITORY, convert, read_checkpoint
from imtalker.weights import load_model

ASSETS = Path(imtalker.__file__).parent / "assets"
PARITY = Path(os.environ.get("IMTALKER_PARITY") or Path(__file__).parents[2] / "shared" / "parity")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PARITY / "SPEC.md").exists(), reason=f"no golden outputs and weights at {PARITY}"),
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Both checkpoints and the wav2vec2 folder in the published layout (1.4 GB, removed afterwards)."""
    folder = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, str(PARITY / "reference_weights.py"), str(folder)], check=True)
    yield folder
    for file in folder.rglob("*.*"):
        file.unlink()


@pytest.fixture(scope="module")
def folder(checkpoints, tmp_path_factory):
    folder = convert(checkpoints / "renderer.ckpt", checkpoints / "generator.ckpt", checkpoints / "wav2vec2-base-960h",
                     tmp_path_factory.mktemp("base"))
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def base(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def inputs():
    spec = importlib.util.spec_from_file_location("parity_inputs", PARITY / "inputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name):
    return np.load(PARITY / f"golden_{name}.npz")


def compare(ours, expected, tolerance, name):
    """Relative distance; a map wider than 16 is kept in the golden file as every s-th row and column from s // 2 on."""
    ours, expected = ours.double().numpy(), expected.astype(np.float64)
    if ours.shape != expected.shape:
        s = ours.shape[-1] // expected.shape[-1]
        ours = ours[..., s // 2:: s, s // 2:: s]
    assert ours.shape == expected.shape, name
    distance = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    print(f"{name:24s} {distance:.1e}")
    assert distance < tolerance, f"{name} is {distance:.1e} away"


def test_parameter_counts(base):
    count = lambda module: round(sum(p.numel() for p in module.parameters()) / 1e6, 1)
    # the renderer without what takes no part in any output: an equalised convolution, noise weights
    assert (count(base.renderer), count(base.generator), count(base.audio_encoder)) == (121.8, 38.8, 94.4)


@torch.inference_mode()
def test_velocity(base, inputs):
    def tracks(seed, frames):
        return torch.from_numpy(np.stack([inputs.track(1 + seed + b, frames, 32) for b in (0, 1)]))

    condition = sum(torch.cat([tracks(context, 10), tracks(window, 50)], 1)
                    for window, context in ((2, 4), (6, 7), (8, 9), (10, 11)))
    x = torch.cat([tracks(3, 10), tracks(1, 50)], 1)
    velocity = base.generator(x, torch.tensor([0.3, 0.8]), condition, tracks(5, 1)[:, 0])
    compare(velocity, golden("generator")["velocity"], 1e-5, "velocity")


@pytest.mark.parametrize("case, name, seconds, scale, nfe, control_frames", [
    (1, "plain", 1.3, 1, 10, 0), (2, "guided", 2, 2, 10, 0), (3, "long", 5.16, 3, 5, 0),
    (4, "controlled", 3, 2, 10, 75), (5, "short_controls", 3, 2, 10, 40)])
@torch.inference_mode()
def test_audio_to_motion(base, inputs, case, name, seconds, scale, nfe, control_frames):
    def track(seed, frames, dim):
        return torch.from_numpy(inputs.track(seed, frames, dim))

    features = base.audio_encoder(torch.from_numpy(inputs.waveform(case, seconds)))
    compare(features[None, ::5], golden("generator")[f"{name}_audio"], 1e-5, f"{name}_audio")
    controls = {kind: track(case + offset, control_frames, dim)
                for kind, offset, dim in (("gaze", 100, 2), ("pose", 200, 3), ("cam", 300, 3)) if control_frames}

    def noise(first):
        rng = np.random.default_rng([17, case, first // 50])
        return torch.from_numpy(rng.standard_normal((1, 50, 32)).astype(np.float32))

    # As published: noise of its own for every window, nfe - 1 evaluations, and zeros where controls have ended.
    state, made, reference = base.generator.begin(), [], track(case, 1, 32)
    for first in range(0, len(features), 50):
        window = features[None, first:first + 50]
        given = {kind: F.pad(x, (0, 0, 0, len(features)))[None, first:first + window.shape[1]]
                 for kind, x in controls.items()}
        motion, state = base.generator.step(state, base.generator.project(window, **given), reference, noise(first),
                                            times=torch.linspace(0, 1, nfe), guidance_scale=scale)
        made.append(motion)
    compare(torch.cat(made)[None], golden("generator")[f"{name}_motion"], 1e-5, f"{name}_motion")


@torch.inference_mode()
def test_renderer(base, inputs):
    expected, renderer = golden("renderer"), prepare(base.renderer)  # as it runs for users
    seen = {}
    for name, module in [("appearance", renderer.appearance_encoder), ("maps", renderer.motion_decoder),
                         ("aligned", renderer.transfer),
                         *((f"synthesis_{i}", module) for i, module in enumerate(renderer.synthesis.attention))]:
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    source, *driving = (torch.from_numpy(inputs.picture(seed))[None] for seed in (1, 2, 3))
    features = renderer.encode_source(source)
    driving_motion = torch.cat([renderer.encode_motion(picture) for picture in driving])
    frames = renderer.render(features, driving_motion)
    seen["synthesis_4"] = F.leaky_relu(seen["synthesis_4"], 0.2)  # the golden one was taken after the next layer

    def check(name, ours, tolerance=1e-5):
        compare(ours, expected[name], tolerance, name)

    check("identity", features.identity)
    check("source_motion", features.motion)
    check("driving_motion", driving_motion)
    check("source_adapted", renderer.adapter(features.motion, features.identity))
    check("driving_adapted", renderer.adapter(driving_motion, features.identity))
    for i, x in enumerate(seen["appearance"][0]):
        check(f"appearance_{i}", x)
    for i, x in enumerate(seen["maps"]):
        check(f"driving_map_{i}", x)
    for i, x in enumerate(seen["aligned"]):
        check(f"aligned_{i}", x, 1e-5 if i < 4 else 1e-2)
    for i in range(5):
        check(f"synthesis_{i}", seen[f"synthesis_{i}"], 5e-5)
    check("frames", frames, 2e-4)


def test_the_benchmarks_plain_path(base, inputs):
    plain, expected = PlainRenderer(base.renderer), golden("renderer")
    source, driving = (torch.from_numpy(inputs.picture(seed))[None] for seed in (1, 2))
    encoded, motion = plain.encode_source(source), plain.encode_motion(driving)
    compare(encoded.identity, expected["identity"], 1e-5, "identity")
    compare(motion, expected["driving_motion"][:1], 1e-5, "driving_motion")
    compare(plain.frame(encoded, motion), expected["frames"][:1], 2e-4, "frame")


class Rounded(TorchDispatchMode):
    """Every result is rounded to `dtype`, as an accelerator gives it, while the sums inside are float32.

    Random weights make large, contradictory features, so rounding hurts them more than those of a trained network.
    """

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        rounded = lambda x: x.to(self.dtype).float() if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x
        return out if function.is_view else tree_map(rounded, out)


def psnr(frame, truth):
    return -10 * np.log10(np.square(frame - truth.astype(np.float32)).mean())


@torch.no_grad()
def test_frames_in_float16(base, inputs):
    expected, renderer = golden("renderer"), base.renderer
    weights = {name: x.clone() for name, x in renderer.named_parameters()}
    source, driving = (torch.from_numpy(inputs.picture(seed))[None] for seed in (1, 2))
    try:
        for x in renderer.parameters():
            x.copy_(x.half())
        with Rounded(torch.float16):
            features, motion = renderer.encode_source(source), renderer.encode_motion(driving)
            frame = renderer.render(features, motion)[0].numpy()
    finally:
        for name, x in renderer.named_parameters():
            x.copy_(weights[name])
    compare(features.identity, expected["identity"], 2e-3, "identity in float16")
    compare(motion, expected["driving_motion"][:1], 2e-3, "driving_motion in float16")
    print(f"frames in float16: {psnr(frame, expected['frames'][0]):.1f} dB")
    assert psnr(frame, expected["frames"][0]) > 35


def test_frames_in_bfloat16_as_users_get_them(base, inputs):
    expected, talker = golden("renderer"), IMTalker(base, device="cpu", precision="bfloat16")
    source, driving = ((255 * inputs.picture(seed)).round().astype(np.uint8).transpose(1, 2, 0) for seed in (1, 2))
    frames = np.stack(list(talker.reenact(talker.encode_source(source, crop=False), driving[None], crop=False)))
    found = psnr(frames[0] / np.float32(255), expected["frames"][0].transpose(1, 2, 0))
    print(f"frames in bfloat16: {found:.1f} dB")
    assert found > 35


LIVE = """
import sys, numpy as np
from imtalker import IMTalker
from imtalker.memory import peak_memory
talker = IMTalker.from_pretrained(sys.argv[1])
session = talker.session(talker.encode_source(sys.argv[2], crop=False), windows=(2, 3), nfe=2)
sound = np.float32(np.random.default_rng(0).normal(0, .1, 16_000))
frames = list(session.push(sound[:round(session.delay * 16_000)]))
assert len(frames) == 2 and session.delay == (2 + 5) / 25
session.steer(pose=(.1, .2, 0), strength=.8)
frames += session.push(sound[4480:6000])
frames += session.idle(1)
assert {frame.shape for frame in frames} == {(512, 512, 3)} and len(frames) == session.frames == 11
assert any((a != b).any() for a, b in zip(frames, frames[1:]))
print(peak_memory())
"""


def test_a_session_with_base_in_bounded_memory(folder, picture):
    peak = int(subprocess.run([sys.executable, "-c", LIVE, str(folder), str(picture)], stdout=subprocess.PIPE,
                              check=True).stdout)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"peak memory of a session: {peak / 1e6:.0f} MB")
    assert peak < 1.2 * weights + 1.5e9


@pytest.mark.parametrize("command", [
    ("animate", "speech.wav", "--pose", "pose.csv", "--gaze", "gaze.npy", "--cam", "cam.npz", "--nfe", "2"),
    ("reenact", "driving.mp4", "--no-crop")], ids=lambda command: command[0])
def test_commands_with_base_in_bounded_memory(folder, tmp_path, command):
    picture, speech, driving = ASSETS / "sample.png", tone(0.2), [pixels(96, 96)] * 5
    write_wav(tmp_path / "speech.wav", speech)
    write_video(tmp_path / "driving.mp4", driving, 25, (speech, 16000))
    (tmp_path / "pose.csv").write_text("0,0,0\n0,0.1,0\n")
    np.save(tmp_path / "gaze.npy", np.zeros((2, 2), np.float32))
    np.savez(tmp_path / "cam.npz", cam=np.zeros((1, 3), np.float32))
    command = [command[0], str(picture), *command[1:], "--model", str(folder), "--json"]
    told = subprocess.run([sys.executable, "-m", child.__name__, *command], cwd=tmp_path, stdout=subprocess.PIPE,
                          text=True, check=True).stdout.splitlines()
    result, peak = json.loads(told[1]), int(told[2].split()[0])
    assert (result["width"], result["frames"]) == (512, 5)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"peak memory of {command[0]}: {peak / 1e6:.0f} MB")
    assert peak < 1.2 * weights + 1.5e9


def test_foreign_and_incomplete_checkpoints_are_named(checkpoints, tmp_path):
    wav2vec = checkpoints / "wav2vec2-base-960h"
    good = checkpoints / "renderer.ckpt"
    with pytest.raises(InputError, match="generator.ckpt.*gen"):
        convert(checkpoints / "generator.ckpt", good, wav2vec, tmp_path)
    with pytest.raises(InputError, match="absent.ckpt.*does not exist"):
        convert(tmp_path / "absent.ckpt", good, wav2vec, tmp_path)
    (tmp_path / "broken.ckpt").write_bytes(good.read_bytes()[:1000])
    with pytest.raises(InputError, match="broken.ckpt"):
        convert(tmp_path / "broken.ckpt", good, wav2vec, tmp_path)
    state = {f"gen.{name}": x for name, x in read_checkpoint(good, "gen.").items() if name.startswith("adapt")}
    state["gen.adapt.surprise.weight"] = torch.zeros(2)
    torch.save({"state_dict": state}, tmp_path / "part.ckpt")
    with pytest.raises(InputError, match="part.ckpt.*missing: .*left over: adapt.surprise.weight"):
        convert(tmp_path / "part.ckpt", good, wav2vec, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))



def test_pull_from_a_hub_that_cuts_and_damages(checkpoints, tmp_path):
    with serve(checkpoints, HUB_REPOSITORY) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"),
                       "HF_HUB_DISABLE_XET": "1", "IMTALKER_CACHE": str(tmp_path / "cache")}

        def imtalker(*command, **more):
            return subprocess.run([sys.executable, "-m", "imtalker", *command], capture_output=True, text=True,
                                  env=environment | more)

        def refused(done, *parts):
            line = done.stderr.strip().splitlines()[-1]
            assert done.returncode == 2 and done.stdout == "" and all(part in line for part in parts), done.stderr
            assert not list((tmp_path / "cache").rglob("*.*"))

        refused(imtalker("animate", "--model", "base"), "imtalker models pull base")
        refused(imtalker("models", "pull", "base", HF_HUB_OFFLINE="1"), "renderer.ckpt", "cannot be fetched")
        hub.damaged.add("generator.ckpt")
        refused(imtalker("models", "pull", "base"), "generator.ckpt", "damaged", "imtalker models pull base")
        hub.damaged.clear()
        hub.cut.update(("generator.ckpt", "wav2vec2-base-960h/pytorch_model.bin"))
        done = imtalker("models", "pull", "base", "--half", "--json")
    assert done.returncode == 0, done.stderr
    assert set(hub.ranges) == {"generator.ckpt", "wav2vec2-base-960h/pytorch_model.bin"}  # resumed where they were cut
    told = json.loads(done.stdout)
    assert told["folder"] == str(tmp_path / "cache" / "base")
    assert "base" in imtalker("models", "list").stdout
    half = sum(file.stat().st_size for file in Path(told["folder"]).glob("*.safetensors"))
    assert half < 0.52e9 and load_model(told["folder"]).config.name == "base"
    shutil.rmtree(tmp_path)
