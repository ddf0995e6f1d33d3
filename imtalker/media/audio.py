"""Sound: any file FFmpeg reads, or an array, as a stream of float samples at the rate that is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from numbers import Real
from typing import Union

import av
import numpy as np
import soxr

from ..clock import SAMPLE_RATE, SAMPLES_PER_FRAME
from ..errors import InputError
from .files import MAX_GAP_SECONDS, best_stream, declared_end, decode, name_of, open_media, time_zero

EXPECTED = "a sound file such as WAV, MP3 or M4A, or a video with sound"

_RATES = (1000, 768_000)  # Hz; a header that names another rate is damaged

# A hole in the timestamps shorter than this is rounding; a longer one is filled with silence.
_GAP_SECONDS = 0.1
_FILL_BLOCK = 1 << 16  # samples of silence made at once

# Full scale of FFmpeg's integer sample formats
_SCALE = {np.dtype("i2"): 2.0**15, np.dtype("i4"): 2.0**31}

AudioInput = Union[str, "os.PathLike[str]", bytes, "tuple[np.ndarray, int]"]


def load_audio(source: AudioInput, rate: int = SAMPLE_RATE) -> np.ndarray:
    """All of the sound as float32 (samples,), mono, nominal range -1..1, at `rate` Hz.

    source: a sound or video file (path or bytes), or (samples, rate). In a video whose sound starts after the picture,
    silence comes first, so that sample n belongs to the time n / rate of the video.
    Raises InputError if there is no sound in it.
    """
    blocks = list(AudioSource(source).stream(rate))
    return np.concatenate(blocks)[:, 0]


def stream_audio(source: AudioInput, block: int, rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """The samples of `load_audio` in blocks of exactly `block` samples (the last one may be shorter).

    Memory does not grow with the length of the sound.
    """
    if block < 1:
        raise ValueError(f"block is {block}, expected at least 1 sample")
    return _blocks_of(AudioSource(source).stream(rate), block)


def loudness(waveform: np.ndarray) -> np.ndarray:
    """(T,) level of each frame's 40 ms in decibels of full scale, not below -100. waveform: (samples,) at 16 kHz."""
    frames = np.pad(waveform, (0, -len(waveform) % SAMPLES_PER_FRAME)).reshape(-1, SAMPLES_PER_FRAME)
    return 10 * np.log10((frames.astype(np.float64) ** 2).mean(1) + 1e-10)


def _blocks_of(chunks: Iterator[np.ndarray], block: int) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        held.append(chunk[:, 0])
        count += len(chunk)
        if count >= block:
            samples = np.concatenate(held)
            whole = count - count % block
            yield from samples[:whole].reshape(-1, block).copy()
            held, count = [samples[whole:]], count % block
    if count:
        yield np.concatenate(held)


class AudioSource:
    """Sound that can be read any number of times, each time as a stream.

    rate: native samples per second. channels: native number of channels. duration: seconds, None where the file does
    not say. Opening decodes the beginning, so that bad input is refused before any work is done.
    """

    def __init__(self, source: AudioInput):
        if isinstance(source, np.ndarray) or isinstance(source, (tuple, list)) and len(source) != 2:
            raise InputError("samples alone were given, expected (samples, rate): say how many there are in a second")
        if isinstance(source, (tuple, list)):
            self._samples, self.rate = _check_array(*source)
            self.channels = self._samples.shape[1]
            self.duration: float | None = len(self._samples) / self.rate
            return
        self._samples = None
        self._source = source
        with open_media(source, EXPECTED) as container:
            stream = best_stream(container, "audio")
            if stream is None:
                raise InputError(f"{name_of(source)} has no sound in it, expected {EXPECTED}: give a file with sound")
            first = next(decode(container, stream, name_of(source)), None)
            if first is None or first.samples == 0:
                raise InputError(f"{name_of(source)} has no samples in it, expected {EXPECTED}: give a longer file")
            # Of the first frame, not of the header: HE-AAC headers name half the rate.
            self.rate = first.sample_rate
            self.channels = first.layout.nb_channels
            end = declared_end(source, container, stream)
            self.duration = None if end is None else float(end)

    def stream(self, rate: int, channels: int = 1) -> Iterator[np.ndarray]:
        """Yield float32 (n, channels) blocks of any length n > 0 at `rate` Hz; channels is 1 or 2.

        The first sample belongs to the file's time zero; holes in the timestamps are silence.
        """
        blocks = self._array_blocks() if self._samples is not None else self._file_blocks()
        return _resampled(blocks, rate, channels)

    def _array_blocks(self) -> Iterator[tuple[np.ndarray, int]]:
        for start in range(0, len(self._samples), _FILL_BLOCK):
            block = self._samples[start : start + _FILL_BLOCK]
            # Which channel is which is not known beyond two.
            yield (block.mean(axis=1, keepdims=True) if self.channels > 2 else block), self.rate

    def _file_blocks(self) -> Iterator[tuple[np.ndarray, int]]:
        """(samples (n, 1 or 2), rate) as decoded, without holes, from time zero on."""
        name = name_of(self._source)
        heard = 0
        with open_media(self._source, EXPECTED) as container:
            stream = best_stream(container, "audio")
            if stream is None:
                raise InputError(f"{name} has no sound in it any more: do not change it while it is read")
            zero = time_zero(self._source, container)
            now = Fraction(0)  # seconds handed on so far
            # MP4 and MOV give the end to the sample; the last AAC frame reaches beyond it, with padding.
            exact = "mp4" in container.format.name and stream.duration
            end = declared_end(self._source, container, stream) if exact else None
            for frame in decode(container, stream, name):
                rate = frame.sample_rate
                block = _to_float(frame, name)
                if frame.pts is not None and frame.time_base:
                    start = frame.pts * frame.time_base - zero
                    gap = start - now
                    if gap > MAX_GAP_SECONDS:
                        raise InputError(f"{name} is damaged (its sound jumps from {float(now):.1f} s to "
                                         f"{float(start):.1f} s): convert it first")  # fmt: skip
                    if gap > (_GAP_SECONDS if heard else 0):
                        silence = round(gap * rate)
                        now += Fraction(silence, rate)
                        for begun in range(0, silence, _FILL_BLOCK):
                            yield np.zeros((min(_FILL_BLOCK, silence - begun), block.shape[1]), np.float32), rate
                    elif start < 0 and not heard:
                        block = block[round(-start * rate) :]  # before time zero: encoder's lead-in
                if end is not None and now < end < now + Fraction(len(block), rate):
                    block = block[: round((end - now) * rate)]
                if len(block):
                    heard += len(block)
                    now += Fraction(len(block), rate)
                    yield block, rate
        if not heard:
            raise InputError(f"{name} has no samples in it, expected {EXPECTED}: give a longer file")


def _check_array(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    samples = np.asarray(samples)
    given = f"the given samples are {samples.dtype} of shape {samples.shape} at {rate} Hz"
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or not 1 <= samples.shape[1] <= 8 or len(samples) == 0:
        raise InputError(f"{given}, expected (samples,) or (samples, channels), at least one sample: reshape them")
    if samples.dtype in _SCALE:
        samples = samples / np.float32(_SCALE[samples.dtype])
    elif not np.issubdtype(samples.dtype, np.floating):
        raise InputError(f"{given}, expected float32 from -1 to 1, or int16: convert them")
    if not isinstance(rate, Real) or not _RATES[0] <= rate <= _RATES[1] or int(rate) != rate:
        raise InputError(f"{given}, expected a whole rate from {_RATES[0]} to {_RATES[1]}: check the rate")
    if not np.isfinite(samples).all():
        raise InputError(f"{given} and some are not finite numbers, expected values from -1 to 1: check their source")
    return samples.astype(np.float32, copy=False), int(rate)


def _to_float(frame: av.AudioFrame, name: str) -> np.ndarray:
    """Decoded sound as float32 (samples, 1 or 2), nominal range -1..1, whatever the sample format and layout."""
    if not _RATES[0] <= frame.sample_rate <= _RATES[1]:
        raise InputError(f"{name} has sound at {frame.sample_rate} Hz, expected {_RATES[0]} to {_RATES[1]}: convert it")
    try:
        samples = frame.to_ndarray()
    except (ValueError, KeyError):
        raise InputError(f"{name} has samples of the kind {frame.format.name}: convert it to 16-bit WAV") from None
    channels = frame.layout.nb_channels
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    else:
        samples = samples.astype(np.float32) / np.float32(_SCALE.get(samples.dtype, 1.0))
    if not np.isfinite(samples).all():
        raise InputError(f"{name} has samples that are not numbers, it is damaged: convert it to 16-bit WAV")
    return samples @ _stereo_mix(frame.layout) if channels > 2 else samples


def _stereo_mix(layout: av.AudioLayout) -> np.ndarray:
    """(channels, 2) weights from surround to stereo: fronts 1, others -3 dB, no bass channel; each column sums to 1."""
    mix = np.zeros((layout.nb_channels, 2), np.float32)
    for row, channel in zip(mix, layout.channels):
        side = channel.name
        if side.startswith("LFE"):
            continue
        weight = 1.0 if side in ("FL", "FR", "DL", "DR") else 0.7071
        row[:] = weight * np.float32([not side.endswith("R"), not side.endswith("L")])
    sums = mix.sum(axis=0)
    return mix / sums if sums.all() else np.full_like(mix, 1 / len(mix))


def _resampled(blocks: Iterator[tuple[np.ndarray, int]], rate: int, channels: int) -> Iterator[np.ndarray]:
    """Blocks (n, 1 or 2) of any rate, which may change on the way, as (n, channels) at `rate`; never nothing at all."""
    resampler, current, given = None, 0, 0
    nothing = np.zeros((0, channels), np.float32)
    for block, block_rate in blocks:
        if block.shape[1] > channels:
            block = block.mean(axis=1, keepdims=True)
        elif block.shape[1] < channels:
            block = np.repeat(block, channels, axis=1)
        if block_rate != current:
            if resampler is not None:
                tail = resampler.resample_chunk(nothing, last=True)
                if len(tail):
                    given += len(tail)
                    yield tail
            current = block_rate
            resampler = None if current == rate else soxr.ResampleStream(current, rate, channels, dtype="float32")
        if resampler is not None:
            block = resampler.resample_chunk(np.ascontiguousarray(block), last=False)
        if len(block):
            given += len(block)
            yield block
    if resampler is not None:
        tail = resampler.resample_chunk(nothing, last=True)
        if len(tail):
            yield tail
        elif not given:  # a sample or two of a high rate, which come to less than one here
            yield np.zeros((1, channels), np.float32)
