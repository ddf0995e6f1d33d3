"""The field's metrics with tiny networks in place of the published ones, and who is who."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchmetrics", reason="needs the extra imtalker[evaluate]")
from imtalker.errors import InputError
from imtalker.evaluate.field import FILES, Networks, frechet, mfcc
from imtalker.evaluate.identity import Recogniser, aligned_faces, fit, similarity
from imtalker.evaluate.observer import Observer, as_pictures, cut_patches, load_observer


class Distance(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


class Inception(nn.Module):
    def forward(self, x: Tensor, return_features: bool) -> Tensor:
        assert x.shape[1:] == (3, 299, 299) and return_features
        return x.mean((2, 3))


class Video(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert x.shape[1:3] == (3, 16) and rescale and resize and return_features
        return x.mean((3, 4)).flatten(1)


class Colour(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 112, 112)
        return x.mean((2, 3))


class Sync(nn.Module):
    """Lips are the brightness of the first frame, sound is loudness."""

    @torch.jit.export
    def forward_lip(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 5, 224, 224)
        return x[:, :, 0].mean((1, 2, 3))[:, None] / 100

    @torch.jit.export
    def forward_aud(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (1, 13, 20)
        return (x[:, 0, 0, :4].mean(1)[:, None] - 10) / 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for file, network in zip(FILES, (Distance(), Inception(), Video(), Colour(), Sync())):
        torch.jit.script(network).save(str(root / file))
    return root


def landmarks(count: int = 1) -> np.ndarray:
    """A face in the middle of the frame."""
    marks = np.full((count, 68, 2), 0.5)
    marks[:, 36:42], marks[:, 42:48] = (0.42, 0.42), (0.58, 0.42)
    marks[:, 36, 0], marks[:, 39, 0], marks[:, 42, 0], marks[:, 45, 0] = 0.38, 0.46, 0.54, 0.62
    marks[:, 30], marks[:, 48], marks[:, 54] = (0.5, 0.52), (0.44, 0.62), (0.56, 0.62)
    return marks


def test_all_networks_that_are_there_measure(folder):
    networks, rng = Networks(folder), np.random.default_rng(0)
    assert networks.missing == {}
    true = rng.integers(0, 200, (40, 64, 64, 3)).astype(np.uint8)
    assert networks.lpips(true, true) == 0
    assert networks.lpips(true + np.uint8(51), true) == pytest.approx(0.4, abs=1e-4)
    features = networks.features(true)
    assert features["fid"].shape == (40, 3) and features["fvd"].shape == (2, 48)
    assert networks.csim(true, landmarks(40), true[:1], landmarks()) > 0.99
    red, green = np.zeros((2, 1, 64, 64, 3), np.uint8)
    red[..., 0], green[..., 1] = 255, 255
    assert networks.csim(red, landmarks(), green, landmarks()) < 0


def test_lips_that_go_with_the_sound_are_told_from_late_ones(folder):
    networks, rng = Networks(folder), np.random.default_rng(0)
    loud = rng.uniform(0, 1, 100)
    sound = np.repeat(0.01 + 0.5 * loud, 640) * rng.standard_normal(64000)
    heard = (np.pad(mfcc(sound)[:, 0], (0, 1), "edge").reshape(100, 4).mean(1) - 10) / 10
    light = np.clip(100 * heard, 0, 255).astype(np.uint8)
    frames = np.broadcast_to(light[:, None, None, None], (100, 16, 16, 3))
    good, late = networks.sync(frames, sound), networks.sync(np.roll(frames, 4, 0), sound)
    noise = networks.sync(frames[rng.permutation(100)], sound)
    assert good["sync_d"] < 0.05 and good["sync_c"] > 0.1
    assert late["sync_d"] < 0.1 and noise["sync_d"] > 3 * good["sync_d"] and noise["sync_c"] < good["sync_c"] / 2
    assert np.isnan(networks.sync(frames[:4], sound)["sync_c"])


def test_what_is_not_there_is_named(tmp_path):
    networks = Networks(tmp_path)
    assert networks.missing["lpips"] == f"put lpips.pt into {tmp_path}"
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    assert np.isnan(networks.lpips(frames, frames)) and networks.features(frames) == {}
    assert np.isnan(networks.csim(frames, landmarks(2), frames[:1], landmarks()))
    assert "--weights" in Networks(None).missing["sync_c"]


def test_broken_weights_are_the_users_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Networks(tmp_path / "nowhere")
    (tmp_path / "arcface.pt").write_bytes(b"not a network")
    with pytest.raises(InputError, match="arcface.pt.*TorchScript"):
        Networks(tmp_path)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20000, 2)).astype(np.float32)
    assert frechet(a, a) == pytest.approx(0, abs=1e-3)
    assert frechet(a * 3 + [2, 0], b) == pytest.approx(2 ** 2 + 2 * (3 - 1) ** 2, rel=0.03)
    assert np.isnan(frechet(a[:1], b))


def test_cepstra_are_those_that_syncnet_knows():
    """Against python_speech_features 0.6 on a rising tone."""
    time = np.arange(8000) / 16000
    cepstra = mfcc(np.float32(0.3 * np.sin(2 * np.pi * (200 + 600 * time) * time)))
    assert cepstra.shape == (49, 13)
    known = [19.542, 23.358, 6.059, -11.098, -24.957, -31.104, -26.107, -13.658, 1.91, 14.002, 19.311, 16.013, 7.345]
    np.testing.assert_allclose(cepstra[20], known, atol=1e-3)
    assert mfcc(np.zeros(100, np.float32)).shape == (1, 13)


def test_faces_are_aligned_wherever_they_are():
    """A picture turned, scaled and moved with its landmarks gives the same face."""
    rng = np.random.default_rng(0)
    import cv2
    picture = cv2.resize(rng.integers(0, 255, (12, 12, 3)).astype(np.uint8), (256, 256), interpolation=cv2.INTER_CUBIC)
    matrix = similarity(np.array([[0.0, 0], [1, 0], [0, 1]]), np.array([[20.0, 5], [20.9, 5.3], [19.7, 5.9]]))
    by_index = matrix.copy()
    by_index[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
    moved = cv2.warpAffine(picture, by_index, (256, 256), borderMode=cv2.BORDER_REPLICATE)
    marks = landmarks()
    moved_marks = (marks * 256 @ matrix[:, :2].T + matrix[:, 2]) / 256
    one, other = aligned_faces(picture[None], marks), aligned_faces(moved[None], moved_marks)
    assert one.shape == (1, 112, 112, 3)
    assert np.abs(one[0].astype(int) - other[0]).mean() < 3 < np.abs(one[0].astype(int) - one[0].mean()).mean() / 5
    patches = [cut_patches(as_pictures(torch.from_numpy(x[None])), torch.from_numpy(np.float32(at)))
               for x, at in ((picture, marks), (moved, moved_marks))]
    assert patches[0].shape == (1, 4, 3, 48, 48) and patches[0].std() > 0.1
    torch.testing.assert_close(*patches, atol=0.06, rtol=0)


def test_the_recogniser_tells_people_apart_in_any_light(tmp_path):
    rng = np.random.default_rng(0)
    people = rng.uniform(60, 160, (40, 14, 14, 3))
    identity = np.repeat(np.arange(40), 6)
    faces = people[identity].repeat(8, 1).repeat(8, 2) * np.exp(rng.normal(0, 0.2, (240, 1, 1, 1)))
    faces = (faces + rng.normal(0, 6, faces.shape)).clip(0, 255).astype(np.uint8)
    fit(faces[:120], identity[:120]).save(tmp_path / "own.safetensors")
    codes = Recogniser.load(tmp_path / "own.safetensors")(faces[120:])  # people whom it has not met
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
    nearest = (codes @ codes[::6].T).argmax(1)
    assert (nearest == identity[120:] - 20).mean() > 0.95


def test_judges_come_with_the_package_or_from_a_file(tmp_path):
    assert Recogniser.load().directions.shape == (4800, 64)
    assert isinstance(load_observer(), Observer)
    for load, command in ((Recogniser.load, "train recogniser"), (load_observer, "train observer")):
        with pytest.raises(InputError, match=command):
            load(tmp_path / "none.safetensors")
