"""Audio encoders: 16 kHz mono waveform -> one feature vector per 25 fps video frame.

    B batch, S samples, M mel steps (100 a second), T = ceil(S / 640) frames, D feature width

`MelEncoder` is small, causal but for a short look-ahead, and exact in pieces: it is what `mini` uses.
`Wav2Vec2Encoder` wraps the published wav2vec2-base-960h for `base`; it needs the `transformers` library.

Both share one interface: `encoder(waveform)`, `encoder.piece(samples, before, after)`, `encoder.dim`, and the frames of
sound around a frame that it hears: `left_frames`, `right_frames`, and, when it is heard live, `wait_frames` instead of
the latter. `FeatureStream` turns either into a live encoder.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..clock import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, frame_count

# Longer audio is encoded in pieces of this length, so that memory does not grow with the clip.
PIECE_FRAMES = 60 * FPS


# ---------------------------------------------------------------------------------------------------- mel encoder


@dataclass(frozen=True)
class MelEncoderConfig:
    dim: int = 128            # features per frame
    width: int = 128          # channels of every hidden layer
    mel_bins: int = 80
    step_blocks: int = 2      # residual blocks at 100 steps a second, each sees 2 steps to either side
    frame_blocks: int = 3     # residual blocks at 25 frames a second, each sees 2 frames back and 1 ahead


class LogMel(nn.Module):
    """(B, 240 + 160 M) waveform -> (B, mel_bins, M) log-mel energies of about unit range.

    25 ms Hann windows every 10 ms; window m is centred on samples [160 m, 160 m + 160) of the part that remains
    when 120 samples are taken from either end. The level is compressed by a logarithm with a floor near the noise of
    a quiet room and moved by constants only: nothing here depends on the rest of the clip.
    """

    window, hop, fft = 400, 160, 1024  # samples; the transform is longer so that low mel bands are not empty
    margin = (window - hop) // 2       # samples a window reaches beyond its own hop, on either side

    def __init__(self, bins: int = 80, low: float = 40.0, high: float = 7600.0):
        super().__init__()
        self.register_buffer("taper", torch.hann_window(self.window), persistent=False)
        self.register_buffer("filters", mel_filters(bins, self.fft, low, high), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        frames = waveform.float().unfold(-1, self.window, self.hop) * self.taper.float()
        power = torch.fft.rfft(frames, n=self.fft).abs().square()
        energy = power @ self.filters.float()
        return ((energy + 1e-4).log10().transpose(1, 2) + 1.0) / 2.0


def mel_filters(bins: int, fft: int, low: float, high: float) -> Tensor:
    """Triangular filters, evenly spaced in mel (2595 log10(1 + f / 700)), each of unit area: (fft // 2 + 1, bins)."""
    def to_mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    mels = torch.linspace(to_mel(low), to_mel(high), bins + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)
    frequency = torch.arange(fft // 2 + 1, dtype=torch.float64)[:, None] * SAMPLE_RATE / fft
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequency - left) / (centre - left), (right - frequency) / (right - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles / triangles.sum(0, keepdim=True)).float()


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, N): every time step on its own, so pieces equal the whole."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvBlock(nn.Module):
    """Residual convolution without padding: sees `back` steps before and `ahead` steps after, and shortens by both."""

    def __init__(self, width: int, back: int, ahead: int):
        super().__init__()
        self.back, self.ahead = back, ahead
        self.norm = ChannelNorm(width)
        self.conv = nn.Conv1d(width, width, back + 1 + ahead)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = x[..., self.back: x.shape[-1] - self.ahead]
        return kept + self.mix(F.gelu(self.conv(self.norm(x))))


class MelEncoder(nn.Module):
    """Log-mel, residual convolutions, four mel steps to one frame.

    Every convolution is unpadded and the clip's ends are padded with silence as *audio*, so a piece encoded with its
    neighbourhood gives exactly the features of the whole.
    """

    def __init__(self, config: MelEncoderConfig = MelEncoderConfig()):
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.mel = LogMel(config.mel_bins)
        self.embed = nn.Conv1d(config.mel_bins, config.width, 5)
        self.step_blocks = nn.Sequential(*(ConvBlock(config.width, 2, 2) for _ in range(config.step_blocks)))
        steps_per_frame = SAMPLES_PER_FRAME // LogMel.hop  # 4
        self.pool = nn.Conv1d(config.width, config.width, steps_per_frame, stride=steps_per_frame)
        self.frame_blocks = nn.Sequential(*(ConvBlock(config.width, 2, 1) for _ in range(config.frame_blocks)))
        self.norm = ChannelNorm(config.width)
        self.out = nn.Conv1d(config.width, config.dim, 1)

        steps = 2 * (1 + config.step_blocks)  # the embedding sees two steps to either side, as a block does
        margin = LogMel.margin + steps * LogMel.hop
        self.left_samples = margin + 2 * config.frame_blocks * SAMPLES_PER_FRAME
        self.right_samples = margin + config.frame_blocks * SAMPLES_PER_FRAME
        self.left_frames, self.right_frames = frame_count(self.left_samples), frame_count(self.right_samples)
        self.wait_frames = self.right_frames

    def features(self, padded: Tensor) -> Tensor:
        """(B, left_samples + 640 T + right_samples) -> (B, T, D): the network itself, no padding."""
        x = self.mel(padded).to(self.out.weight.dtype)
        x = self.step_blocks(self.embed(x))
        x = self.frame_blocks(self.pool(x))
        return self.out(F.gelu(self.norm(x))).transpose(1, 2)

    def piece(self, samples: Tensor, before: int = 0, after: int = 0) -> Tensor:
        """Features of a piece of a clip, given with some of its neighbourhood.

        `samples`: (S,) or (B, S) of which the first `before` and the last `after` frames are only context. Equal to
        the same frames of the whole clip when before >= `left_frames` or the clip begins there, and likewise after.
        Returns (T - before - after, D), with a batch dimension if one was given.
        """
        batch = samples if samples.ndim == 2 else samples[None]
        frames = frame_count(batch.shape[-1])
        fill = frames * SAMPLES_PER_FRAME - batch.shape[-1]
        x = self.features(F.pad(batch, (self.left_samples, self.right_samples + fill)))[:, before: frames - after]
        return x if samples.ndim == 2 else x[0]

    def forward(self, waveform: Tensor) -> Tensor:
        """(S,) or (B, S) float32, 16 kHz, [-1, 1] -> (T, D) or (B, T, D)."""
        return in_pieces(self, waveform)


def in_pieces(encoder: nn.Module, waveform: Tensor, **how) -> Tensor:
    """Encode a clip of any length by pieces of a minute, each with the context its encoder needs. how: for `piece`."""
    total = frame_count(waveform.shape[-1])
    if total == 0:
        raise ValueError("the waveform holds no samples; give at least one")
    parts = []
    for start in range(0, total, PIECE_FRAMES):
        end = min(start + PIECE_FRAMES, total)
        first, last = max(start - encoder.left_frames, 0), min(end + encoder.right_frames, total)
        samples = waveform[..., first * SAMPLES_PER_FRAME: last * SAMPLES_PER_FRAME]
        parts.append(encoder.piece(samples, start - first, last - end, **how))
    return torch.cat(parts, -2)


# ------------------------------------------------------------------------------------------------ published encoder


@dataclass(frozen=True)
class Wav2Vec2EncoderConfig:
    """The numbers of wav2vec2-base-960h, named as the transformers library names them."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16


class Wav2Vec2Encoder(nn.Module):
    """wav2vec2 with its convolutional features resampled to 25 a second before the transformer.

    Clips up to a minute are encoded whole, as published. Longer ones go in pieces of a minute with two seconds of
    overlap to either side, which is no longer exact (attention is cut), but bounds memory. The level is normalised
    over the whole clip in both cases.
    """

    left_frames = right_frames = 2 * FPS
    wait_frames = 5  # a live face cannot wait for two seconds

    def __init__(self, config: Wav2Vec2EncoderConfig = Wav2Vec2EncoderConfig()):
        super().__init__()
        try:
            from transformers import Wav2Vec2Config, Wav2Vec2Model  # heavy, and only this model needs it
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("this model's audio encoder needs the transformers library: "
                                      "pip install 'imtalker[base]'", name=error.name) from error
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
        self.config = config
        self.dim = config.hidden_size
        self.wav2vec2 = Wav2Vec2Model(Wav2Vec2Config(**options, layerdrop=0.0, mask_time_prob=0.0))
        # weight norm only helps training: one plain kernel instead of a length and a direction
        parametrize.remove_parametrizations(self.wav2vec2.encoder.pos_conv_embed.conv, "weight")

    def piece(self, samples: Tensor, before: int = 0, after: int = 0, normalised: bool = False) -> Tensor:
        """As `MelEncoder.piece`; `normalised` tells that the samples have zero mean and unit variance already."""
        batch = samples if samples.ndim == 2 else samples[None]
        batch = batch if normalised else normalise(batch)
        frames = frame_count(batch.shape[-1])
        # the published code fills the last frame with the last sample
        batch = F.pad(batch[:, None], (0, frames * SAMPLES_PER_FRAME - batch.shape[-1]), mode="replicate")[:, 0]
        model = self.wav2vec2
        x = model.feature_extractor(batch.to(model.encoder.layer_norm.weight.dtype))
        x = F.interpolate(x, size=frames, mode="linear", align_corners=True).transpose(1, 2)
        x, _ = model.feature_projection(x)
        x = model.encoder(x).last_hidden_state[:, before: frames - after]
        return x if samples.ndim == 2 else x[0]

    def forward(self, waveform: Tensor) -> Tensor:
        """(S,) or (B, S) float32, 16 kHz, any level -> (T, D) or (B, T, D)."""
        return in_pieces(self, normalise(waveform), normalised=True)


def normalise(waveform: Tensor) -> Tensor:
    """Zero mean and unit variance over the last dimension."""
    variance, mean = torch.var_mean(waveform, -1, correction=0, keepdim=True)
    return (waveform - mean) / torch.sqrt(variance + 1e-7)


# ------------------------------------------------------------------------------------------------------------- live


class FeatureStream:
    """Features of sound that is still arriving: push samples in any portions, take frames as soon as they are final.

    Every take encodes just the sound that its frames need, so the same frames taken in the same steps are the same to
    the bit, however the sound was pushed. With a `MelEncoder` they also equal the features of the whole; a
    `Wav2Vec2Encoder` sees `left_frames` of the past, `wait_frames` of the future and the level heard so far.
    """

    def __init__(self, encoder: MelEncoder | Wav2Vec2Encoder):
        self.encoder = encoder
        self.buffer = torch.zeros(0)  # samples: `before` frames of context, then all that has no features yet
        self.before = 0
        self.level = Level() if isinstance(encoder, Wav2Vec2Encoder) else None

    @property
    def waiting(self) -> int:
        """Frames of sound that were not taken; a begun one counts."""
        return frame_count(self.buffer.shape[0]) - self.before

    @property
    def ready(self) -> int:
        """Frames that can be taken now with all the future that the encoder wants to hear."""
        return max(self.buffer.shape[0] // SAMPLES_PER_FRAME - self.before - self.encoder.wait_frames, 0)

    def push(self, samples: Tensor) -> None:
        """samples: (S,) float32 at 16 kHz."""
        self.buffer = torch.cat([self.buffer.to(samples), samples])

    def fill(self) -> None:
        """Complete a begun frame with silence."""
        self.buffer = F.pad(self.buffer, (0, -self.buffer.shape[0] % SAMPLES_PER_FRAME))

    def forget(self) -> None:
        """Drop all sound: what comes next is heard as if silence had been before."""
        self.buffer, self.before = self.buffer[:0], 0

    @torch.inference_mode()
    def take(self, frames: int, ahead: int = 0) -> Tensor:
        """(frames + ahead, D): features of the next frames, and of `ahead` more that can be taken again later.

        frames + ahead is at most `waiting`. What was not pushed yet sounds like silence.
        """
        end = self.before + frames + ahead
        assert 0 < frames and end <= self.before + self.waiting
        heard = self.buffer[: (end + self.encoder.wait_frames) * SAMPLES_PER_FRAME]
        after = frame_count(heard.shape[0]) - end
        if self.level is None:
            features = self.encoder.piece(heard, self.before, after)
        else:
            self.level.hear(heard[self.before * SAMPLES_PER_FRAME: (self.before + frames) * SAMPLES_PER_FRAME])
            features = self.encoder.piece(self.level.normalise(heard), self.before, after, normalised=True)
        forget = max(self.before + frames - self.encoder.left_frames, 0)
        self.buffer = self.buffer[forget * SAMPLES_PER_FRAME:]
        self.before += frames - forget
        return features


class KnownFeatures:
    """Features (T, D) of a whole clip, taken as those of a `FeatureStream` are."""

    def __init__(self, features: Tensor):
        self.features = features

    @property
    def waiting(self) -> int:
        return len(self.features)

    ready = waiting

    def fill(self) -> None:
        """There is no begun frame."""

    def take(self, frames: int, ahead: int = 0) -> Tensor:
        taken, self.features = self.features[: frames + ahead], self.features[frames:]
        return taken


class Level:
    """Mean and variance of what was heard in about the last half minute, for an encoder that wants a clip's level.

    The variance has a floor, 40 dB below full scale: the noise of a quiet room must not be raised to speech.
    """

    memory, floor = 30 * SAMPLE_RATE, 1e-4

    def __init__(self):
        self.count, self.mean, self.square = 0, 0.0, 0.0

    def hear(self, samples: Tensor) -> None:
        self.count = min(self.count + len(samples), self.memory)
        share = min(len(samples) / self.count, 1.0)
        self.mean += share * (float(samples.mean()) - self.mean)
        self.square += share * (float(samples.square().mean()) - self.square)

    def normalise(self, samples: Tensor) -> Tensor:
        return (samples - self.mean) / math.sqrt(max(self.square - self.mean ** 2, self.floor))
