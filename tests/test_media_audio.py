"""Any sound becomes mono 16 kHz on the file's clock, all at once or as a stream, or a one-line error."""

import io
import tracemalloc
import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from imtalker.errors import InputError
from imtalker.media import SAMPLES_PER_FRAME, AudioSource, frame_count, load_audio, stream_audio


def tone(seconds, rate, frequency=440.0, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


_FORMATS = {"u8": ("u1", 127.0), "s16": ("i2", 2**15 - 1), "s32": ("i4", 2**31 - 1), "flt": ("f4", 1), "dbl": ("f8", 1)}


def encode(path, samples, rate, codec, format="fltp", layout=None, start=0.0, picture=False):
    """Write float (n,) or (n, channels) as `codec`; sound starts `start` seconds after the file does."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    layout = layout or ("mono" if samples.shape[1] == 1 else "stereo")
    dtype, scale = _FORMATS[format.rstrip("p")]
    values = samples * scale + (128 if dtype == "u1" else 0)
    values = values.clip(0, 255) if dtype == "u1" else values
    values = (np.round(values) if scale != 1 else values).astype(dtype)
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream("libx264", rate=25)
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
        stream = container.add_stream(codec, rate=rate, layout=layout, format=format)
        if picture:
            for k in range(round(25 * (start + len(samples) / rate))):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        container.start_encoding()
        size = stream.codec_context.frame_size or 1024
        for begun in range(0, len(values), size):
            part = values[begun : begun + size]
            array = part.T if format.endswith("p") else part.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(array), format, layout)
            frame.sample_rate = rate
            frame.pts, frame.time_base = begun + round(start * rate), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def error_of(call, *arguments) -> str:
    with pytest.raises(InputError) as info:
        call(*arguments)
    message = str(info.value)
    assert "\n" not in message and ": " in message
    return message


def assert_tone(samples, seconds, frequency=440.0, level=0.5, slack=0.002, tolerance=0.02):
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) / 16000 - seconds) <= slack, len(samples) / 16000
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    phase = 2 * np.pi * frequency * np.arange(len(middle)) / 16000
    amplitude = 2 * np.hypot((middle * np.sin(phase)).mean(), (middle * np.cos(phase)).mean())
    assert amplitude == pytest.approx(level, abs=tolerance)


def test_frame_clock():
    assert SAMPLES_PER_FRAME == 640
    assert [frame_count(n) for n in (0, 1, 160, 640, 641, 16000)] == [0, 1, 1, 1, 2, 25]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000])
def test_wav_rates(tmp_path, rate):
    encode(tmp_path / "a.wav", tone(1.0, rate), rate, "pcm_s16le", "s16")
    assert_tone(load_audio(tmp_path / "a.wav"), 1.0, slack=1 / 16000)


@pytest.mark.parametrize(
    "codec, format",
    [
        ("pcm_u8", "u8"),
        ("pcm_s16le", "s16"),
        ("pcm_s24le", "s32"),
        ("pcm_s32le", "s32"),
        ("pcm_f32le", "flt"),
        ("pcm_f64le", "dbl"),
        ("pcm_mulaw", "s16"),
    ],
)
def test_sample_formats(tmp_path, codec, format):
    encode(tmp_path / "a.wav", tone(0.5, 16000), 16000, codec, format)
    samples = load_audio(tmp_path / "a.wav")
    assert_tone(samples, 0.5, slack=0)
    assert np.abs(samples - tone(0.5, 16000)).max() < 0.02


@pytest.mark.parametrize(
    "name, codec, format, rate",
    [
        ("a.mp3", "libmp3lame", "fltp", 44100),
        ("a.ogg", "libopus", "flt", 24000),
        ("a.opus", "libopus", "flt", 48000),
        ("a.webm", "libopus", "flt", 48000),
        ("a.m4a", "aac", "fltp", 48000),
        ("a.mkv", "aac", "fltp", 44100),
        ("a.flac", "flac", "s16", 44100),
        ("a.aiff", "pcm_s16be", "s16", 22050),
        ("höre: zu, 100 %d.mp3", "libmp3lame", "fltp", 24000),
    ],
)
def test_compressed_formats_keep_the_moment(tmp_path, name, codec, format, rate):
    """A burst at 0.5 s is heard at 0.5 s: encoder delays are taken off."""
    sound = np.zeros(round(1.5 * rate), np.float32)
    sound[round(0.5 * rate) : round(0.6 * rate)] = tone(0.1, rate, 1000)
    path = tmp_path / name
    encode(f"file:{path}", sound, rate, codec, format)
    samples = load_audio(path)
    heard = np.flatnonzero(np.abs(samples) > 0.2)
    assert abs(heard[0] / 16000 - 0.5) < 0.003 and abs(heard[-1] / 16000 - 0.6) < 0.003
    assert abs(len(samples) / 16000 - 1.5) < 0.06
    assert AudioSource(path).duration == pytest.approx(1.5, abs=0.06)
    assert (load_audio(path.read_bytes()) == samples).all()


def test_stereo_is_averaged(tmp_path):
    left, right = tone(0.5, 48000), np.zeros(24000, np.float32)
    encode(tmp_path / "a.wav", np.stack([left, right], 1), 48000, "pcm_s16le", "s16")
    assert_tone(load_audio(tmp_path / "a.wav"), 0.5, level=0.25)
    encode(tmp_path / "a.m4a", np.stack([left, right], 1), 48000, "aac")
    assert_tone(load_audio(tmp_path / "a.m4a"), 0.5, level=0.25)


def test_surround(tmp_path):
    """5.1 with speech in the centre: heard in both ears, and the bass channel is not."""
    sound = np.zeros((48000, 6), np.float32)  # FL FR FC LFE BL BR
    sound[:, 2], sound[:, 3] = tone(1, 48000), tone(1, 48000, 2000)
    encode(tmp_path / "a.wav", sound, 48000, "pcm_s16le", "s16", layout="5.1")
    samples = load_audio(tmp_path / "a.wav")
    assert_tone(samples, 1.0, level=0.5 * 0.7071 / 2.4142)
    assert_tone(samples, 1.0, frequency=2000, level=0, tolerance=0.001)
    stereo = np.concatenate(list(AudioSource(tmp_path / "a.wav").stream(48000, 2)))
    assert stereo.shape == (48000, 2) and (stereo[:, 0] == stereo[:, 1]).all()


def test_sound_of_a_video_that_starts_late(tmp_path):
    """Leading silence keeps sound and picture together."""
    for name in ("a.mp4", "a.mkv", "a.ts"):
        encode(tmp_path / name, tone(0.5, 48000), 48000, "aac", start=0.75, picture=True)
        samples = load_audio(tmp_path / name)
        heard = np.flatnonzero(np.abs(samples) > 0.1)
        assert abs(heard[0] / 16000 - 0.75) < 0.025, name
        assert abs(len(samples) / 16000 - 1.25) < 0.05, name


def test_hole_in_the_sound_is_silence(tmp_path):
    """A recording with a dropout: what follows keeps its time."""
    rate = 48000
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for begun in list(range(0, rate, 4800)) + list(range(2 * rate, 3 * rate, 4800)):
            frame = av.AudioFrame.from_ndarray(np.full((1, 4800), 8000, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, begun, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples = load_audio(tmp_path / "a.mkv")
    assert abs(len(samples) - 48000) < 32
    assert np.abs(samples[17000:31000]).max() < 1e-3 < samples[:15000].min() and samples[33000:47000].min() > 0.2


def test_stream_equals_whole(tmp_path):
    rng = np.random.default_rng(0)
    encode(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, 100_001).astype(np.float32), 44100, "pcm_s16le", "s16")
    whole = load_audio(tmp_path / "a.wav")
    for block in (7, 640, 1000, 10**6):
        blocks = list(stream_audio(tmp_path / "a.wav", block))
        assert {len(b) for b in blocks[:-1]} <= {block} and 0 < len(blocks[-1]) <= block
        assert (np.concatenate(blocks) == whole).all()
    source = AudioSource(tmp_path / "a.wav")
    assert (np.concatenate(list(source.stream(16000)))[:, 0] == whole).all()
    assert (np.concatenate(list(source.stream(16000)))[:, 0] == whole).all()  # a second time


def test_stream_memory_is_flat(tmp_path):
    """Ten minutes of sound need no more memory than a few blocks."""
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        for _ in range(10 * 60):
            file.writeframes(bytes(16000))
    stream = stream_audio(tmp_path / "long.wav", 640)
    next(stream)
    tracemalloc.start()
    count = sum(len(block) for block in stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10 * 60 * 16000 - 640
    assert peak < 4e6


def test_ten_milliseconds(tmp_path):
    for name, rate in (("a.wav", 16000), ("b.wav", 48000), ("a.m4a", 48000)):
        codec, format = ("aac", "fltp") if name == "a.m4a" else ("pcm_s16le", "s16")
        encode(tmp_path / name, tone(0.01, rate), rate, codec, format)
        samples = load_audio(tmp_path / name)
        assert len(samples) == 160 and frame_count(len(samples)) == 1


def test_arrays():
    assert_tone(load_audio((tone(1, 48000), 48000)), 1.0)
    assert_tone(load_audio(((tone(1, 16000) * 32767).astype(np.int16), 16000)), 1.0)
    assert load_audio((np.ones((100, 2), np.float32), 16000)).shape == (100,)
    nothing, sideways = np.zeros(0, np.float32), np.zeros((2, 16000), np.float32)
    for wrong in (nothing, sideways, np.zeros(100, np.int64), np.full(9, np.nan)):
        error_of(load_audio, (wrong, 16000))
    error_of(load_audio, (tone(1, 16000), 0))
    for wrong in (tone(1, 16000), (tone(1, 16000),), (tone(1, 16000), None)):
        assert "rate" in error_of(load_audio, wrong)
    assert "its path" in error_of(load_audio, io.BytesIO(b"sound"))


def test_a_sample_of_a_high_rate_is_still_a_sample():
    for count, rate in ((1, 48000), (1, 44100), (2, 96000), (3, 768_000)):
        assert len(load_audio((np.ones(count, np.float32), rate))) == 1


def test_wrong_files(tmp_path):
    assert "does not exist" in error_of(load_audio, tmp_path / "nothing.wav")
    assert "is a folder" in error_of(load_audio, tmp_path)
    (tmp_path / "empty.wav").touch()
    assert "empty" in error_of(load_audio, tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("hello\n" * 100)
    assert "text.wav" in error_of(load_audio, tmp_path / "text.wav")
    with wave.open(str(tmp_path / "silent.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    assert "silent.wav" in error_of(load_audio, tmp_path / "silent.wav")
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(50_000))
    error_of(load_audio, tmp_path / "noise.mp3")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsilent.wav\n#EXT-X-ENDLIST\n")
    error_of(load_audio, tmp_path / "list.m3u8")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile silent.wav\n")
    error_of(load_audio, tmp_path / "list.ffconcat")


def test_video_without_sound(tmp_path):
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    assert "no sound" in error_of(load_audio, tmp_path / "mute.mp4")


def test_stream_refuses_at_once(tmp_path):
    """Bad input is refused when the stream is made and not when it is first read."""
    with pytest.raises(InputError):
        stream_audio(tmp_path / "nothing.wav", 640)


def test_damaged_middle(tmp_path, caplog):
    """A scratch in an MP3 is reported and the rest is heard; an M4A cut before its index is refused."""
    path = encode(tmp_path / "a.mp3", tone(4, 44100), 44100, "libmp3lame")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    assert 3.5 < len(load_audio(path)) / 16000 < 4.1
    assert "damaged" in caplog.text and "a.mp3" in caplog.text
    path = encode(tmp_path / "a.m4a", tone(4, 44100), 44100, "aac")
    path.write_bytes(path.read_bytes()[:20000])
    assert "a.m4a" in error_of(load_audio, path)
