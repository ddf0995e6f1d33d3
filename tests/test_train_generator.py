"""Training of audio encoder and generator on next to nothing: it runs, resumes, learns and measures."""
import numpy as np
import pytest
import torch
from test_synth_motion import write_pack

from imtalker.errors import InputError
from imtalker.evaluate.motion import habits
from imtalker.evaluate.mouth import correlation_and_lag
from imtalker.models.generator import Generator, GeneratorConfig
from imtalker.synth import speech
from imtalker.synth.motion import EXPRESSIONS
from imtalker.synth.speech import RATE, Speech, join
from imtalker.train import audio as train_audio
from imtalker.train import generator as train_generator
from imtalker.train.generator import GeneratorTraining

TINY = GeneratorConfig(audio_dim=128, condition_dim=16, width=32, depth=1, heads=2, mlp_ratio=2, modulation_rank=8,
                       window=20, context=5)


def buzz(rng, held_out=False):
    """Loud tones are open vowels, the rest is silence."""
    parts = []
    for _ in range(4):
        time = np.arange(int(rng.uniform(.3, .5) * RATE)) / RATE
        wave = .3 * np.sign(np.sin(2 * np.pi * rng.uniform(100, 200) * time)).astype(np.float32)
        parts.append(Speech(wave, [(0., len(time) / RATE, "aa")], "buzz"))
    return join(parts, [.2, .3, .4, .3, .3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    patch = pytest.MonkeyPatch()
    patch.setattr(speech, "clip", buzz)
    speech.write_corpus(root, 3, report=None)
    speech.write_corpus(root, 2, held_out=True, report=None)
    patch.undo()
    write_pack(root)
    encoder = train_audio.train(root, root, train_audio.AudioTraining(steps=20, batch=2, frames=40), every=10)
    assert encoder.is_file()
    return root


def test_audio_encoder_comes_back_and_resumes(folder):
    encoder = train_audio.load(folder / "audio_encoder.safetensors")
    features = encoder(torch.zeros(2000))
    assert features.shape == (4, 128)
    train_audio.train(folder, folder, train_audio.AudioTraining(steps=22, batch=2, frames=40), every=10)
    assert torch.load(folder / "audio_encoder.pt", weights_only=True)["step"] == 22


def test_generator_trains_resumes_and_is_measured(folder, capsys):
    def run(steps):
        return train_generator.train(folder, folder / "gen", folder / "audio_encoder.safetensors", folder,
                                     GeneratorTraining(steps=steps, batch=4, variants=2), TINY, every=5)

    run(6)
    run(8)
    assert torch.load(folder / "gen" / "generator.pt", weights_only=True)["step"] == 8
    generator, decoder = train_generator.load(folder / "gen")
    assert generator.config == TINY and decoder.shape == (22,)
    train_generator.measure(folder / "gen", folder / "audio_encoder.safetensors", folder, folder, guidances=(1.,))
    shown = capsys.readouterr().out
    assert "ceiling" in shown and "guidance 1" in shown and "blinks" in shown


def test_the_loss_falls(folder):
    torch.manual_seed(0)
    generator = Generator(TINY)
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((22, len(EXPRESSIONS))).astype(np.float32) * .3
    encoder = train_audio.load(folder / "audio_encoder.safetensors")
    pool = train_generator.MotionPool(speech.read_corpus(folder / "train.npz"), encoder, basis, TINY, 1, report=None)
    options = GeneratorTraining(batch=4, cut=1.)
    batch = pool.sample(rng, options)

    def loss():
        return sum(train_generator.flow_loss(generator, batch, options, torch.Generator().manual_seed(0)).values())

    before = loss()
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss() < .9 * before


def test_clips_too_short_are_the_users_error(folder):
    encoder = train_audio.load(folder / "audio_encoder.safetensors")
    with pytest.raises(InputError, match="frames"):
        train_generator.MotionPool([buzz(np.random.default_rng(0))], encoder, np.zeros((22, 67), np.float32),
                                   GeneratorConfig(window=900), 1)


def test_missing_weights_are_the_users_error(tmp_path):
    with pytest.raises(InputError, match="imtalker train audio"):
        train_audio.load(tmp_path / "audio_encoder.safetensors")


def test_lag_is_positive_when_late():
    truth = np.sin(np.arange(100) / 3)
    made = np.roll(truth, 2)
    assert correlation_and_lag(made, truth)[1] == 2
    assert correlation_and_lag(truth, truth) == (pytest.approx(1), 0)


def test_habits_count_blinks_and_jitter():
    motion = np.zeros((250, 32), np.float32)
    motion[[50, 51, 150], 8:10] = 2
    found = habits(motion)
    assert found["blinks"] == pytest.approx(12) and found["jitter"] == 0 and found["drift"] == 0
