"""What many tests use: a tiny model with random weights on disk, and small inputs of every kind."""

import signal
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imtalker import IMTalker
from imtalker.media import write_video
from imtalker.models.audio import MelEncoderConfig
from imtalker.models.generator import GeneratorConfig
from imtalker.models.renderer import RendererConfig
from imtalker.weights import ModelConfig, build_model, save_model

TINY = ModelConfig(
    "tiny",
    RendererConfig(
        size=64,
        stem=8,
        widths=(16, 16, 8, 8),
        encoder_residuals=1,
        identity_dim=16,
        motion_stem=8,
        motion_widths=(8, 16),
        adapter_hidden=16,
        const_channels=8,
        map_convs=1,
        attention_levels=2,
        heads=2,
        fine="sample",
        synthesis_residuals=((0, 1),) * 3,
        synthesis_attention=("none", "none", "none"),
    ),
    GeneratorConfig(audio_dim=12, condition_dim=8, width=16, depth=1, heads=2, mlp_ratio=2, modulation_rank=4),
    MelEncoderConfig(dim=12, width=16),
    training_data="nothing",
    licence="Apache-2.0",
    nfe=2,
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a model of 64 x 64 pixels whose output moves with its input, but means nothing."""
    torch.manual_seed(0)
    model = build_model(TINY)
    for name, weight in model.generator.named_parameters():  # adaLN-zero: without this, conditions would be ignored
        if "modulation" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return save_model(model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def talker(tiny_model) -> IMTalker:
    return IMTalker.from_pretrained(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def source(talker):
    return talker.encode_source(pixels(), crop=False)


def pixels(height: int = 96, width: int = 80) -> np.ndarray:
    """A picture without a face: colour ramps, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], -1).astype(np.uint8)


def tone(seconds: float, rate: int = 16_000) -> np.ndarray:
    """A sound that swells and fades four times a second: float32 (samples,)."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * 220 * t) * np.sin(2 * np.pi * 2 * t) ** 2).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat((samples * 32767).astype("<i2"), channels).tobytes())
    return path


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(pixels()).save(path)
    return path


@pytest.fixture
def speech(tmp_path) -> Path:
    """1.3 seconds: 33 frames, the last one begun."""
    return write_wav(tmp_path / "speech.wav", tone(1.3))


@pytest.fixture
def driving(tmp_path) -> Path:
    """One second of moving colours at 25 frames a second, with sound."""
    path = tmp_path / "driving.mp4"
    write_video(path, [np.roll(pixels(96, 96), 3 * k, axis=1) for k in range(25)], 25, (tone(1.0), 16_000))
    return path


def listen_to_ctrl_c() -> None:
    """For processes that tests start: a shell's background jobs ignore Ctrl-C, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
