"""Synthetic speech: times, corpus, augmentation; the speaking programs only where they are installed."""
import shutil

import numpy as np
import pytest

from imtalker.errors import InputError
from imtalker.media import loudness
from imtalker.synth import speech
from imtalker.synth.speech import RATE, Speech, augment, faster, join, read_corpus
from imtalker.synth.texts import LANGUAGES, sentence
from imtalker.synth.visemes import VISEMES


def tone(seconds=1.):
    time = np.arange(int(seconds * RATE)) / RATE
    return Speech((.3 * np.sin(2 * np.pi * 220 * time)).astype(np.float32), [(0., seconds, "aa")], "tone")


def espeak_or_skip(*arguments):
    try:
        return speech.espeak(*arguments)
    except InputError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise


def test_joined_parts_keep_their_times():
    whole = join([tone(), tone(.5)], [.2, .4, .3])
    assert len(whole.waveform) == pytest.approx(2.4 * RATE, abs=3)
    assert [row[2] for row in whole.segments] == ["sil", "aa", "sil", "aa", "sil"]
    assert whole.segments[3][0] == pytest.approx(1.6, abs=1e-3)
    weights = whole.curves()
    assert weights.shape == (whole.frames, 15) and weights[15, VISEMES.index("aa")] > .9 and weights[34, 0] > .9


def test_faster_moves_sound_and_times_together():
    quick = faster(tone(), 1.25)
    assert len(quick.waveform) == pytest.approx(.8 * RATE, abs=3)
    assert quick.segments[0][1] == pytest.approx(.8)


def test_energy_is_relative_to_the_clip():
    whole = join([tone()], [.4, .4])
    quiet = Speech(whole.waveform * .1, whole.segments)
    np.testing.assert_allclose(whole.energy(), quiet.energy(), atol=.02)
    assert whole.energy()[20] > .9 and whole.energy()[2] == 0
    assert loudness(np.zeros(1000, np.float32)).shape == (2,)


@pytest.mark.parametrize("seed", range(12))
def test_augmentation_keeps_length_and_range(seed):
    rng = np.random.default_rng(seed)
    for clean in (tone().waveform, np.zeros(RATE, np.float32)):
        out = augment(rng, clean, tone().waveform)
        assert out.shape == clean.shape and out.dtype == np.float32
        assert np.isfinite(out).all() and np.abs(out).max() <= 1


def test_sentences_vary_in_every_language():
    for language in LANGUAGES:
        texts = {sentence(np.random.default_rng(k), language) for k in range(20)}
        assert len(texts) > 15 and all(len(t) > 8 for t in texts)


def test_missing_programs_are_told_plainly(monkeypatch, tmp_path):
    monkeypatch.setattr(speech.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="flite is not installed"):
        speech.flite("Hello")
    with pytest.raises(InputError, match="corpus"):
        read_corpus(tmp_path / "train.npz")


@pytest.mark.skipif(not shutil.which("flite"), reason="flite is not installed")
def test_flite_times_cover_the_sound():
    said = speech.flite("Bob made a map.", "slt")
    assert said.segments[0][0] == 0 and said.segments[-1][1] == pytest.approx(len(said.waveform) / RATE, abs=.05)
    assert sum(row[2] == "PP" for row in said.segments) == 5
    silent = [said.waveform[int(a * RATE):int(b * RATE)] for a, b, v in said.segments if v == "sil"]
    assert np.abs(silent[0][:800]).max() < .05
    with pytest.raises(InputError, match="voice"):
        speech.flite("Hello", "nobody")


def test_espeak_times_cover_the_sound():
    said = espeak_or_skip("Guten Abend, liebe Mama.", "de+f2")
    assert said.segments[-1][1] == pytest.approx(len(said.waveform) / RATE, abs=.05)
    assert sum(row[2] == "PP" for row in said.segments) == 4
    with pytest.raises(InputError, match="voice"):
        speech.espeak("Hello", "nobody-at-all")


def test_corpus_comes_back_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "clip", lambda rng, held_out: join([tone(rng.uniform(.8, 1.2))], [.2, .2]))
    path = speech.write_corpus(tmp_path, 3, report=None)
    clips = read_corpus(path)
    assert len(clips) == 3 and clips[0].voice == "tone"
    assert clips[1].segments[1][2] == "aa" and np.abs(clips[1].waveform).max() == pytest.approx(.3, abs=.01)

    with pytest.raises(InputError, match="train.npz' is there already"):
        speech.check_new(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match="train.npz.*imtalker synth"):
        read_corpus(path)
    np.savez(path, waveform=np.zeros(10, np.int16), offsets=[0, 20], segments="[[]]", voices='["tone"]')
    with pytest.raises(InputError, match="10 samples, 20 expected"):
        read_corpus(path)
    monkeypatch.setattr(speech.np, "savez", lambda file, **arrays: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        speech.write_corpus(tmp_path / "new", 1, report=None)
    assert not list((tmp_path / "new").iterdir())
