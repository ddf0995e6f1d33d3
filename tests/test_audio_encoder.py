import pytest
import torch

from imtalker.models import audio
from imtalker.models.audio import FeatureStream, MelEncoder, MelEncoderConfig


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return MelEncoder().eval()


def noise(seconds, seed=0):
    return torch.randn(round(seconds * 16_000), generator=torch.Generator().manual_seed(seed)) * 0.1


@torch.no_grad()
@pytest.mark.parametrize("samples, frames", [(1, 1), (640, 1), (641, 2), (16_000, 25), (20_000, 32)])
def test_one_feature_vector_per_frame(encoder, samples, frames):
    assert encoder(noise(2)[:samples]).shape == (frames, 128)
    assert encoder(noise(2)[:samples][None].expand(2, -1)).shape == (2, frames, 128)


def test_no_samples_are_refused(encoder):
    with pytest.raises(ValueError, match="no samples"):
        encoder(torch.zeros(0))


@torch.no_grad()
def test_pieces_equal_the_whole(encoder, monkeypatch):
    waveform = noise(5.3)
    whole = encoder(waveform)
    monkeypatch.setattr(audio, "PIECE_FRAMES", 40)
    torch.testing.assert_close(encoder(waveform), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("portion", [160, 1000, 16_000])
def test_stream_equals_the_whole(encoder, portion):
    waveform = noise(2.21)
    stream = FeatureStream(encoder)
    parts = []
    for part in waveform.split(portion):
        stream.push(part)
        if stream.ready:
            parts.append(stream.take(stream.ready))
    assert stream.ready == 0 < stream.waiting
    parts.append(stream.take(stream.waiting))
    torch.testing.assert_close(torch.cat(parts), encoder(waveform), atol=1e-5, rtol=1e-5)
    assert stream.buffer.shape[0] < 2 * 16_000


@torch.no_grad()
def test_look_ahead_is_at_most_200_ms(encoder):
    waveform, changed = noise(3), noise(3)
    changed[32_000:] = noise(1, seed=1)
    moved = (encoder(waveform) - encoder(changed)).abs().amax(1) > 1e-6
    first = int(moved.nonzero()[0])
    assert 45 <= first < 50 and encoder.right_samples <= 3_200
    assert first == 50 - encoder.right_frames


@torch.no_grad()
def test_features_follow_the_frame_they_belong_to(encoder):
    waveform = noise(2)
    shifted = torch.cat([torch.zeros(640 * 7), waveform])
    torch.testing.assert_close(encoder(shifted)[20:50], encoder(waveform)[13:43], atol=1e-5, rtol=1e-5)


def test_mel_bands_hear_their_pitch():
    mel = audio.LogMel(80)
    time = torch.arange(16_000) / 16_000
    tones = [0.3 * torch.sin(2 * torch.pi * pitch * time)[None] for pitch in (100, 300, 1000, 4000)]
    peaks = [mel(tone).mean(-1).argmax().item() for tone in tones]
    assert peaks == sorted(peaks) and len(set(peaks)) == 4
    assert (mel.filters.sum(0) > 0.99).all(), "a band without any frequency is dead"
    silence, loud = mel(torch.zeros(1, 4000)), mel(noise(0.25)[None] * 10)
    assert -2 < silence.min() and loud.max() < 3


def test_level_of_the_rest_of_the_clip_does_not_matter(encoder):
    waveform = noise(4)
    louder = waveform.clone()
    louder[40_000:] *= 8
    with torch.no_grad():
        torch.testing.assert_close(encoder(waveform)[:50], encoder(louder)[:50])


def test_gradients_reach_every_parameter():
    model = MelEncoder(MelEncoderConfig(dim=8, width=16, step_blocks=1, frame_blocks=1))
    model(noise(1)[None]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.slow  # importing transformers takes seconds
@torch.no_grad()
def test_published_encoder(monkeypatch):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    encoder = audio.Wav2Vec2Encoder(audio.Wav2Vec2EncoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)).eval()
    waveform = noise(3.3)
    whole = encoder(waveform)
    assert whole.shape == (83, 32) and encoder(waveform[None]).shape == (1, 83, 32)
    torch.testing.assert_close(encoder(waveform * 3 + 0.2), whole, atol=1e-3, rtol=1e-3)  # any level
    assert encoder(waveform[:100]).shape == (1, 32)
    monkeypatch.setattr(audio, "PIECE_FRAMES", 40)
    assert encoder(waveform).shape == (83, 32)
    stream = FeatureStream(encoder)
    stream.push(waveform)
    parts = [stream.take(stream.ready), stream.take(stream.waiting)]
    assert [len(part) for part in parts] == [82 - encoder.wait_frames, 1 + encoder.wait_frames]
    quiet = FeatureStream(encoder)
    quiet.push(waveform * 1e-3)
    assert quiet.level.normalise(waveform * 1e-3).std() < 0.1, "the noise of a room is not raised to speech"
