"""Training of audio encoder and generator on next to nothing: it runs, resumes, learns and measures."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY as TINY_MODEL
from test_synth_motion import write_pack

from imtalker.errors import InputError
from imtalker.evaluate.motion import habits
from imtalker.evaluate.mouth import correlation_and_lag
from imtalker.models.audio import MelEncoderConfig
from imtalker.models.generator import Generator, GeneratorConfig
from imtalker.synth import speech
from imtalker.synth.motion import EXPRESSIONS
from imtalker.synth.speech import RATE, Speech, join
from imtalker.train import audio as train_audio
from imtalker.train import generator as train_generator
from imtalker.train.bundle import OURS, bundle
from imtalker.train.generator import GeneratorTraining
from imtalker.train.loop import descend
from imtalker.weights import ModelConfig, build_model, load_model, save_model

TINY = GeneratorConfig(audio_dim=128, condition_dim=16, width=32, depth=1, heads=2, mlp_ratio=2, modulation_rank=8,
                       window=20, context=5)
ENCODER = "audio_encoder.safetensors"


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


def test_trainings_begin_from_a_model_folder(folder, tmp_path):
    config = ModelConfig("tiny", TINY_MODEL.renderer, TINY, MelEncoderConfig())
    model = build_model(config)
    save_model(model, tmp_path / "model", half=False)
    train_generator.train(folder, tmp_path / "gen", folder / "audio_encoder.safetensors", folder,
                          GeneratorTraining(steps=0), TINY, start=tmp_path / "model")
    begun, _ = train_generator.load(tmp_path / "gen")
    assert torch.equal(begun.embed.weight, model.generator.embed.weight)
    none = train_audio.AudioTraining(steps=0)
    encoder = train_audio.train(folder, tmp_path / "audio", none, start=tmp_path / "model")
    assert torch.equal(train_audio.load(encoder).out.weight, model.audio_encoder.out.weight)

    again = load_model(bundle(tmp_path / "model", tmp_path / "gen", encoder, tmp_path / "again"))
    assert again.config.generator == TINY and again.config.guidance_scale == 1
    kept = dict(again.renderer.named_parameters())
    assert all(torch.allclose(kept[name], x, atol=1e-3, rtol=2e-3) for name, x in model.renderer.named_parameters())

    # what was put together is all that the generator's training needs
    once = GeneratorTraining(steps=1, batch=2)
    train_generator.train(folder, tmp_path / "on", tmp_path / "again", folder, once, TINY, start=tmp_path / "again")


def test_models_are_named_and_what_is_none_is_told(folder, tmp_path, monkeypatch):
    config = ModelConfig("tiny", TINY_MODEL.renderer, TINY, MelEncoderConfig(), "theirs", "CC0-1.0", nfe=7)
    model = build_model(config)
    save_model(model, tmp_path / "tiny", half=False)
    (tmp_path / "tiny" / "readout.safetensors").write_bytes((folder / "readout.safetensors").read_bytes())
    monkeypatch.setenv("IMTALKER_CACHE", str(tmp_path))
    once = GeneratorTraining(steps=1, batch=2)
    train_generator.train(folder, tmp_path / "gen", "tiny", folder, once, TINY, start="tiny")
    mine = load_model(bundle("tiny", "tiny", "tiny", tmp_path / "mine"))
    assert mine.config == replace(config, name="mine")  # so it is sampled as it was, and says whose it is
    new = load_model(bundle("tiny", tmp_path / "gen", "tiny", tmp_path / "new", licence="MIT")).config
    assert new.training_data == f"theirs; {OURS}" and new.licence == "MIT" and new.guidance_scale == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = (tmp_path / "tiny" / "readout.safetensors").stat()
    assert (bundle("tiny", "tiny", "tiny", Path("tiny")) / "readout.safetensors").is_file()  # a folder, not the model
    assert (tmp_path / "tiny" / "readout.safetensors").stat().st_ino == before.st_ino

    for wrong in ("tiny/generator.safetensors", "tiny/config.json", "tiny/audio_encoder.safetensors", "nobody"):
        with pytest.raises(InputError):
            train_audio.load(str(tmp_path / wrong))
    for wrong in ("gen/generator.pt", "tiny/config.json", "gen", "nobody"):
        with pytest.raises(InputError):
            bundle(tmp_path / wrong, "tiny", "tiny", tmp_path / "mine")
    with pytest.raises(InputError, match="hears 128 numbers"):
        other = ModelConfig("other", TINY_MODEL.renderer, TINY, MelEncoderConfig(dim=16))
        bundle("tiny", "tiny", save_model(build_model(other), tmp_path / "other"), tmp_path / "mine")
    model.generator.embed.weight.data[0, 0] = 1e6  # too large for half precision
    save_model(model, tmp_path / "tiny", half=False)
    with pytest.raises(InputError, match="embed.weight of the generator is not finite.*--learning-rate"):
        bundle("tiny", "tiny", "tiny", tmp_path / "mine")


def test_an_interrupted_training_is_kept_and_a_diverged_one_is_not(folder, tmp_path, monkeypatch):
    """Weights of the step before, in both cases."""
    encoder, out = folder / ENCODER, tmp_path / "out"

    def audio(**options):
        train_audio.train(folder, out, train_audio.AudioTraining(steps=4, batch=2, frames=40, **options))

    def motion(**options):
        train_generator.train(folder, out, encoder, folder, GeneratorTraining(steps=4, batch=2, **options), TINY)

    for module, losses, train, file in ((train_audio, "losses", audio, "audio_encoder.pt"),
                                        (train_generator, "flow_loss", motion, "generator.pt")):
        def interrupted(loss, network, optimiser, step):
            if step == 2:
                raise KeyboardInterrupt
            descend(loss, network, optimiser, step)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "descend", interrupted)
            train()
        kept = (out / file).read_bytes()
        assert torch.load(out / file, weights_only=True)["step"] == 2
        with monkeypatch.context() as patch, pytest.raises(InputError, match="not finite at step 2.*--learning-rate"):
            patch.setattr(module, losses, lambda *given: {"loss": torch.tensor(torch.nan, requires_grad=True)})
            train()
        assert (out / file).read_bytes() == kept


def test_the_seed_reaches_the_noise(folder, tmp_path, monkeypatch):
    drawn = []

    def loss(generator, batch, decoder, options, rng):
        drawn.append(torch.rand(1, generator=rng).item())
        return {"nothing": generator.embed.weight.sum()}

    monkeypatch.setattr(train_generator, "flow_loss", loss)
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        options = GeneratorTraining(steps=1, batch=2, seed=seed)
        train_generator.train(folder, tmp_path / name, folder / ENCODER, folder, options, TINY)
    assert drawn[0] != drawn[1] == drawn[2]


def test_a_lost_reading_is_the_users_error(tmp_path):
    with pytest.raises(InputError, match="imtalker train audio"):
        train_audio.load_readout(tmp_path / "audio_encoder.safetensors")


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
    options = GeneratorTraining(batch=4, variants=1, cut=1.)
    batch = pool(folder, basis, options).sample(rng)

    def loss():
        terms = train_generator.flow_loss(generator, batch, torch.ones(22), options, torch.Generator().manual_seed(0))
        return sum(terms.values())

    before = loss()
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss() < .9 * before


def test_motion_over_the_whole_range_is_always_given(folder):
    """Otherwise heads would roam unasked."""
    options = GeneratorTraining(batch=3, variants=1, renewed=3, wide=1.)
    motions, turned, free = pool(folder, np.zeros((22, 67), np.float32), options), [], []
    for seed in range(8):
        batch = motions.sample(np.random.default_rng(seed))
        assert (batch.needed["pose"] + batch.needed["gaze"]).min() >= 1 and not batch.needed["cam"].any()
        for pose, needed in zip(batch.controls["pose"], batch.needed["pose"]):
            (turned if needed else free).append(float(pose.std(0).mean()))
    assert np.mean(turned) > 2 * np.mean(free)


def test_mouths_are_made_from_what_is_heard(folder):
    """Silence is heard as silence, whatever the phones of the clip say."""
    silent = [Speech(np.zeros(2 * RATE, np.float32), [(0., 2., "aa")])]
    encoder, readout = train_audio.load(folder / ENCODER), train_audio.load_readout(folder / ENCODER)
    with torch.no_grad():
        readout.visemes.weight.zero_(), readout.visemes.bias.zero_()
        readout.visemes.bias[[0, 15]] = 9
    basis = np.eye(22, len(EXPRESSIONS), len(EXPRESSIONS) - 22, dtype=np.float32)   # the last are the visemes
    opened = []
    for heard in (0., 1.):
        options = GeneratorTraining(batch=1, variants=1, heard=heard, wide=0.)
        one = train_generator.MotionPool(silent, encoder, readout, basis, TINY, options)
        aa = 10 + EXPRESSIONS[-22:].index("viseme_aa")
        opened.append(one.sample(np.random.default_rng(0)).motion[..., aa].mean())
    assert opened[0] > .5 and opened[1] < .01


def pool(folder, basis, options):
    encoder, readout = train_audio.load(folder / ENCODER), train_audio.load_readout(folder / ENCODER)
    return train_generator.MotionPool(speech.read_corpus(folder / "train.npz"), encoder, readout, basis, TINY, options)


def test_clips_too_short_are_the_users_error(folder):
    with pytest.raises(InputError, match="frames"):
        train_generator.MotionPool([buzz(np.random.default_rng(0))], train_audio.load(folder / ENCODER), None,
                                   np.zeros((22, 67), np.float32), GeneratorConfig(window=900), GeneratorTraining())


def test_nothing_can_be_measured_on_clips_too_short(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "clip", lambda rng, held_out: buzz(rng))
    speech.write_corpus(tmp_path, 1, held_out=True, report=None)
    monkeypatch.setattr(train_generator, "load", lambda folder: (None, None))
    monkeypatch.setattr(Speech, "frames", 75)
    with pytest.raises(InputError, match="more than 75 frames"):
        train_generator.measure(tmp_path, folder / ENCODER, tmp_path, folder)


@pytest.mark.parametrize("training, wrong", [(train_audio, "--frames"), (train_audio, "--batch"),
                                             (train_generator, "--batch"), (train_generator, "--clips")])
def test_nothing_at_all_is_no_number(training, wrong, capsys):
    with pytest.raises(SystemExit):
        training.main(["corpus", "out", wrong, "0"])
    assert f"{wrong}: '0' given" in capsys.readouterr().err


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
