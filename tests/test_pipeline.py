"""The Python interface, with a tiny model of random weights: what a user relies on, whatever the weights."""

import dataclasses
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import pixels, tone, write_wav

import imtalker
from imtalker import Clip, IMTalker, InputError
from imtalker.bench import child
from imtalker.bundled import ASSETS
from imtalker.devices import choose_device, choose_precision
from imtalker.media import VideoReader, load_audio, load_picture


def frames_of(clip) -> np.ndarray:
    return np.stack(list(clip))


def test_the_package_is_light_until_it_is_used():
    code = "import sys, imtalker, imtalker.cli; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert imtalker.Clip is Clip and issubclass(InputError, ValueError) and set(imtalker.__all__) <= set(dir(imtalker))


def test_animate_loads_nothing_that_it_does_not_use(tiny_model, picture, speech, tmp_path):
    """What takes seconds to import stays out, so that the first frame comes soon after Enter."""
    command = ["animate", picture, speech, "-o", tmp_path / "out.mp4", "--no-crop", "--model", tiny_model, "--quiet"]
    code = f"import sys; from imtalker.cli import main; main({[str(word) for word in command]}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert "torch" in loaded
    for heavy in ("transformers", "huggingface_hub", "scipy", "numba", "sympy", "torch._dynamo", "fastapi", "aiortc"):
        assert heavy not in loaded


def test_a_source_is_frozen(source):
    assert source.size == (64, 64) and source.picture.shape == (64, 64, 3) and source.crop.side == 80
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.features = None


def test_the_whole_picture_with_the_face_in_its_place(talker, source, speech):
    whole = talker.encode_source(pixels(), crop=False, whole=True)
    clip = talker.animate(whole, speech)
    frames, squares = frames_of(clip), frames_of(talker.animate(source, speech))
    assert clip.size == whole.size == (80, 96) and frames.shape == (33, 96, 80, 3)
    assert (frames[:, :8] == pixels()[:8]).all() and (frames[:, 88:] == pixels()[88:]).all()
    for k in (0, 32):
        np.testing.assert_array_equal(frames[k], source.crop.paste(squares[k], pixels()))
    large = talker.encode_source(np.zeros((1000, 4000, 3), np.uint8), crop=False, whole=True)
    assert large.size == (1920, 480) and large.crop.side == 480


def test_animate_makes_a_frame_for_every_begun_25th_of_a_second(talker, source, speech):
    clip = talker.animate(source, speech)
    assert len(clip) == 33 and clip.fps == 25 and clip.size == (64, 64) and clip.audio == speech
    frames = frames_of(clip)
    assert frames.shape == (33, 64, 64, 3) and frames.dtype == np.uint8
    assert clip.motion.shape == (33, 32) and clip.motion.dtype == np.float32
    assert len(talker.animate(source, (tone(0.01), 16_000))) == 1


def test_same_seed_same_frames_other_seed_other_frames(talker, source, speech):
    clip = talker.animate(source, speech, seed=3)
    first = frames_of(clip)
    assert np.array_equal(first, frames_of(talker.animate(source, speech, seed=3)))
    assert not np.array_equal(clip.motion, talker.animate(source, speech, seed=4).motion)


@pytest.mark.parametrize("options", [{}, {"windows": (5,)}, {"fps": 30}])
def test_a_clip_looked_at_twice_is_the_same(talker, source, speech, options):
    """Frames that are drawn in other batches differ in their last bits."""
    batches, render = [], talker.renderer.render
    clip = talker.animate(source, speech, **options)
    talker.renderer.render = lambda features, latents: batches.append(latents.clone()) or render(features, latents)
    try:
        first, second = frames_of(clip), frames_of(clip)
    finally:
        del talker.renderer.render
    assert np.array_equal(first, second)
    by_content = sorted(batches, key=lambda batch: batch.flatten().tolist())
    assert all(torch.equal(a, b) for a, b in zip(by_content[::2], by_content[1::2]))


def test_sound_steps_and_guidance_matter(talker, source, speech):
    plain = talker.animate(source, speech).motion
    silent = talker.animate(source, (np.zeros(20_800, np.float32), 16_000)).motion
    assert plain.shape == silent.shape and not np.allclose(plain, silent)
    assert not np.allclose(plain, talker.animate(source, speech, nfe=5).motion)
    assert not np.allclose(plain, talker.animate(source, speech, guidance_scale=1).motion)


def test_sound_in_portions_is_sound_as_a_whole(talker, source):
    """Features are made while the sound is read; the motion must not know."""
    samples = tone(6.3)
    features = talker.audio_encoder(torch.from_numpy(samples))
    whole = torch.cat(list(talker.motion_stream(source, features, nfe=2, seed=1, guidance_scale=2.0).rest()))
    assert np.allclose(talker.animate(source, (samples, 16_000), seed=1, nfe=2).motion, whole.numpy(), atol=1e-4)


def test_frames_are_made_while_they_are_asked_for(talker, source):
    made = []
    original = talker.renderer.align
    talker.renderer.align = lambda *given: made.append(1) or original(*given)
    try:
        clip = talker.animate(source, (tone(8), 16_000))
        assert not made
        frames = iter(clip)
        next(frames)
        assert 1 <= len(made) <= 1 + talker.workers.count  # of the clip's fifty and more
        frames.close()
    finally:
        del talker.renderer.align


def test_controls_from_arrays_and_files(talker, source, speech, tmp_path):
    pose = np.linspace(0, 0.5, 99, dtype=np.float32).reshape(33, 3)
    np.save(tmp_path / "pose.npy", pose)
    np.savez(tmp_path / "pose.npz", pose=pose, gaze=pose[:, :2])
    (tmp_path / "pose.csv").write_text("down,left,roll\n" + "\n".join(",".join(map(str, row)) for row in pose.tolist()))
    plain, driven = talker.animate(source, speech).motion, talker.animate(source, speech, pose=pose).motion
    assert not np.allclose(plain, driven)
    for suffix in ("npy", "npz", "csv"):
        assert np.allclose(driven, talker.animate(source, speech, pose=tmp_path / f"pose.{suffix}").motion, atol=1e-5)
    # one row holds, a short control holds its last row
    held = talker.animate(source, speech, gaze=[0.1, 0.2]).motion
    assert np.array_equal(held, talker.animate(source, speech, gaze=np.tile(np.float32([0.1, 0.2]), (7, 1))).motion)
    assert not np.allclose(held, plain)


@pytest.mark.parametrize(
    "control, words",
    [
        ({"pose": np.zeros((5, 2))}, "(5, 2)"),
        ({"gaze": np.zeros((0, 2))}, "at least one"),
        ({"gaze": [[0.0, np.nan]]}, "row 0"),
        ({"pose": [[0.0, 30.0, 0.0]]}, "radians"),
        ({"cam": "missing.npy"}, "missing.npy"),
        ({"cam": [["a", "b", "c"]]}, "numbers"),
    ],
)
def test_wrong_controls_are_refused_in_one_line(talker, source, speech, control, words):
    with pytest.raises(InputError) as caught:
        talker.animate(source, speech, **control)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_control_files_are_refused(talker, source, speech, tmp_path):
    for name, content in (
        ("a.npy", b"nonsense"),
        ("a.npz", b"PK\3\4"),
        ("a.csv", b"1,2\n3,x\n"),
        ("b.csv", b"1,2\n3\n"),
        ("a.txt", b"1 2 3"),
        ("c.csv", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            talker.animate(source, speech, gaze=tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"nfe": 0}, {"guidance_scale": float("nan")}, {"fps": 0}, {"fps": 1000},
                                   {"nfe": 2.5}, {"guidance_scale": "2"}, {"seed": -1}, {"seed": 0.5}])  # fmt: skip
def test_wrong_options_are_refused(talker, source, speech, wrong):
    with pytest.raises(InputError):
        talker.animate(source, speech, **wrong)


def test_reenact_copies_motion_and_keeps_the_sound(talker, source, driving):
    clip = talker.reenact(source, driving, crop=False)
    assert len(clip) == 25 and clip.audio == driving and clip.motion.shape == (25, 32)
    relative = talker.reenact(source, driving, crop=False, relative=True).motion
    own = source.features.motion.numpy()[0]
    assert np.allclose(relative, clip.motion - clip.motion[0] + own, atol=1e-5)


def test_a_driving_video_whose_sound_cannot_be_decoded_moves_the_picture(talker, source, tmp_path, caplog):
    with av.open(str(tmp_path / "mute.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        container.add_stream("aac", rate=48000)  # and never a packet of it
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode(None))
    clip = talker.reenact(source, tmp_path / "mute.mkv", crop=False)
    assert clip.audio is None and clip.save(tmp_path / "out.mp4") == 1
    assert "its sound is left out" in caplog.text


def test_a_saved_clip_has_sound_and_picture_of_one_length(talker, source, speech, driving, tmp_path):
    for clip in (talker.animate(source, speech), talker.reenact(source, driving, crop=False)):
        seen = []
        assert clip.save(tmp_path / "out.mp4", progress=seen.append) == len(clip) and seen[-1] == len(clip)
        video = VideoReader(tmp_path / "out.mp4")
        assert video.size == (64, 64) and sum(1 for _ in video) == len(clip)
        assert abs(len(load_audio(tmp_path / "out.mp4")) / 640 - len(clip)) <= 1


@pytest.mark.parametrize("fps, frames", [(50, 66), (30, 40), (12.5, 17), (Fraction(24000, 1001), 32)])
def test_other_rates_keep_the_time(talker, source, speech, tmp_path, fps, frames):
    clip = talker.animate(source, speech, fps=fps)
    assert len(clip) == frames == sum(1 for _ in clip) and len(clip.motion) == 33
    clip.save(tmp_path / "out.mp4")
    assert abs(float(VideoReader(tmp_path / "out.mp4").duration) - frames / float(fps)) < 0.01


def test_devices_and_precisions(monkeypatch):
    assert choose_device("cpu").type == "cpu" and choose_device("auto").type in ("cpu", "cuda", "mps")
    assert choose_precision("auto", torch.device("cpu")) == "float32"
    for wrong in ("gpu", "cuda:99", "meta", "cpu:3"):
        with pytest.raises(InputError):
            choose_device(wrong)
    assert choose_precision("float16", torch.device("cuda")) == "float16"
    for can, precision in ((False, "float32"), (True, "mixed")):
        monkeypatch.setattr("imtalker.devices.multiplies_bfloat16", lambda can=can: can)
        assert choose_precision("auto", torch.device("cpu"), copies=True) == precision
        assert choose_precision("auto", torch.device("cpu"), copies=False) == "float32"
    for wrong, why in (("float16", "slower"), ("int8", "not known")):
        with pytest.raises(InputError, match=why):
            choose_precision(wrong, torch.device("cpu"))


def test_bfloat16_is_close_to_float32(tiny_model, talker, source, speech):
    other = IMTalker.from_pretrained(tiny_model, device="cpu", precision="bfloat16")
    again = other.encode_source(pixels(), crop=False)
    exact, rough = (next(iter(t.animate(s, speech))).astype(int) for t, s in ((talker, source), (other, again)))
    assert np.abs(exact - rough).mean() < 8


def test_a_model_that_copies_pixels_hardly_differs_in_mixed_precision():
    """On a CPU that multiplies matrices of it users of the bundled model get it."""
    picture = load_picture(ASSETS / "sample.png")
    frames = []
    for precision in ("float32", "mixed"):
        talker = IMTalker.from_pretrained("mini", device="cpu", precision=precision)
        source = talker.encode_source(picture)
        motion = source.features.motion + 0.3 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
        frames.append(np.stack(list(talker.render(source, [motion]))).astype(float))
        assert talker.precision == precision
    assert 20 * np.log10(255 / np.sqrt(((frames[0] - frames[1]) ** 2).mean())) > 50


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tiny_model, picture, tmp_path):
    """Ten minutes take at most a tenth more than ten seconds. Their frames alone would take half as much again."""

    def peak(seconds: int) -> float:
        speech = write_wav(tmp_path / f"{seconds}.wav", tone(seconds))
        command = [picture, speech, "-o", tmp_path / "out.mp4", "--model", tiny_model, "--device", "cpu", "--no-crop"]
        told = subprocess.run([sys.executable, "-m", child.__name__, "animate", *command, "--quiet", "--nfe", "1"],
                              stdout=subprocess.PIPE, text=True, check=True).stdout
        return float(told.split()[1])

    short, long = peak(10), peak(600)
    print(f"peak memory: {short / 1e6:.0f} and {long / 1e6:.0f} MB")
    assert 1e8 < long < 1.1 * short
