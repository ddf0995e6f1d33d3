"""Video in on the frame clock, video out whole or not at all, sound and picture together."""

import gc
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from imtalker.errors import InputError
from imtalker.media import AudioSource, VideoReader, VideoWriter, load_audio, write_video
from imtalker.media.video import as_rate


def flat(value, size=(64, 48)):
    """A frame (H, W, 3) of one colour; size is (width, height)."""
    return np.broadcast_to(np.uint8(value), (size[1], size[0], 3))


def make(path, frames, times=None, rate=25, codec="libx264", pix_fmt="yuv420p", setup=None):
    """A video of `frames`, each shown from its time (seconds) on."""
    time_base = Fraction(1, 1000)
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if codec == "libx264":
            stream.options = {"crf": "10", "preset": "ultrafast"}
        if times is not None:
            stream.codec_context.time_base = time_base
        if setup:
            setup(stream)
        for k, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), "rgb24")
            if times is None:
                frame.pts, frame.time_base = k, 1 / Fraction(rate)
            else:
                frame.pts, frame.time_base = round(times[k] / time_base), time_base
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    return path


def levels(reader):
    """Brightness of each frame, rounded to tens: which of the frames made by `flat` it is."""
    return [int(round(frame.mean() / 10) * 10) for frame in reader]


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as info:
        call(*arguments, **options)
    message = str(info.value)
    assert "\n" not in message and ": " in message
    return message


# ---------------------------------------------------------------- reading


def test_frame_clock_of_a_plain_video(tmp_path):
    wanted = [10 * (k % 20) + 20 for k in range(50)]
    make(tmp_path / "ein Video – schön: 100 %d.mp4", [flat(v) for v in wanted])
    reader = VideoReader(tmp_path / "ein Video – schön: 100 %d.mp4")
    assert (reader.size, reader.frames, reader.duration, reader.has_audio) == ((64, 48), 50, 2.0, False)
    first = next(iter(reader))
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8 and first.flags.c_contiguous
    assert levels(reader) == wanted
    assert levels(reader) == wanted  # a second time
    assert levels(VideoReader((tmp_path / "ein Video – schön: 100 %d.mp4").read_bytes())) == wanted


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi", "ts"])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(50), Fraction(60), Fraction(12)])
def test_other_rates_are_resampled(tmp_path, suffix, rate):
    """Two seconds in, fifty frames out, and each shows what was on the screen then."""
    count = round(2 * rate)
    codec = {"codec": "mpeg4"} if suffix == "avi" else {}
    make(tmp_path / f"a.{suffix}", [flat(20 + 100 * (k / rate >= 1)) for k in range(count)], rate=rate, **codec)
    seen = levels(VideoReader(tmp_path / f"a.{suffix}"))
    assert len(seen) == 50
    assert abs(seen.index(120) - 25) <= 1 and seen == sorted(seen)


def test_other_output_rates(tmp_path):
    make(tmp_path / "a.mp4", [flat(10 * k) for k in range(1, 26)])
    assert levels(VideoReader(tmp_path / "a.mp4", fps=50)) == [10 * k for k in range(1, 26) for _ in (0, 1)]
    assert levels(VideoReader(tmp_path / "a.mp4", fps=12.5))[:3] in ([10, 30, 50], [20, 40, 60])
    assert "1 to 240" in error_of(VideoReader, tmp_path / "a.mp4", fps=0)


def test_variable_frame_rate(tmp_path):
    """A frame stays until the next one comes, as on a screen."""
    times = [0, 0.04, 0.41, 0.43, 1.2]
    make(tmp_path / "a.mp4", [flat(v) for v in (20, 60, 100, 140, 180)], times)
    seen = levels(VideoReader(tmp_path / "a.mp4"))
    assert seen[:30] == [20] + [60] * 9 + [100] + [140] * 19
    assert set(seen[30:]) == {180}
    make(tmp_path / "a.mkv", [flat(v) for v in (20, 60, 100, 140, 180)], times)
    assert levels(VideoReader(tmp_path / "a.mkv"))[:30] == seen[:30]


def test_late_start(tmp_path):
    """Timestamps that start at five seconds are no five seconds of waiting."""
    for name in ("a.mkv", "a.mp4", "a.mov"):
        reader = VideoReader(make(tmp_path / name, [flat(20), flat(60), flat(100)], [5.0, 5.04, 5.08]))
        assert levels(reader) == [20, 60, 100]
        assert reader.frames == 3 and reader.duration == pytest.approx(0.12)


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot write rotations")
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("hflip", [False, True])
def test_rotation(tmp_path, degrees, hflip):
    """The display matrix of a phone is applied: the picture shown is the same, however it is stored."""
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48], upright[:32, 48:], upright[32:, :48] = (250, 10, 10), (10, 250, 10), (10, 10, 250)
    stored = upright[:, ::-1] if hflip else upright
    stored = np.rot90(stored, -degrees // 90)
    make(tmp_path / "a.mp4", [stored] * 3, setup=lambda s: s.set_display_rotation(degrees, hflip=hflip))
    reader = VideoReader(tmp_path / "a.mp4")
    assert reader.size == (96, 64)
    shown = next(iter(reader)).astype(int)
    assert shown.shape == (64, 96, 3)
    for y, x in ((10, 10), (10, 80), (54, 10), (54, 80)):
        assert np.abs(shown[y, x] - upright[y, x]).max() < 40, (y, x, shown[y, x])


@pytest.mark.parametrize("aspect, size", [(Fraction(16, 11), (93, 48)), (Fraction(1, 2), (64, 96))])
def test_non_square_pixels(tmp_path, aspect, size):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    make(tmp_path / "a.mp4", [flat(100)] * 2, setup=setup)
    reader = VideoReader(tmp_path / "a.mp4")
    assert reader.size == size and next(iter(reader)).shape == (size[1], size[0], 3)


def test_odd_size(tmp_path):
    make(tmp_path / "a.mkv", [flat(100, (63, 47))] * 2, codec="ffv1", pix_fmt="yuv444p")
    assert next(iter(VideoReader(tmp_path / "a.mkv"))).shape == (47, 63, 3)


@pytest.mark.parametrize("size", [(64, 64), (1280, 720)])
def test_colours_survive(tmp_path, size):
    """Write and read: the same colours, whatever the size (BT.709, tagged)."""
    for colour in ((200, 30, 40), (30, 180, 60), (20, 40, 220), (224, 172, 140), (255, 255, 255), (0, 0, 0)):
        write_video(tmp_path / "a.mp4", [flat(colour, size)] * 2)
        shown = next(iter(VideoReader(tmp_path / "a.mp4")))[10, 10].astype(int)
        assert np.abs(shown - colour).max() <= 3, (colour, shown)


def test_moving_gif_is_a_video(tmp_path):
    pictures = [Image.new("RGB", (48, 32), (v, v, v)) for v in (20, 120, 220)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=80)
    assert levels(VideoReader(tmp_path / "a.gif"))[:6] == [20, 20, 120, 120, 220, 220]


def test_not_a_video(tmp_path):
    picture = Image.new("RGB", (64, 64))
    for suffix in ("png", "jpg", "gif", "webp", "bmp"):
        picture.save(tmp_path / f"still.{suffix}")
        assert f"still.{suffix}" in error_of(VideoReader, tmp_path / f"still.{suffix}")
    assert "still picture" in error_of(VideoReader, tmp_path / "still.gif")
    assert "does not exist" in error_of(VideoReader, tmp_path / "nothing.mp4")
    assert "is a folder" in error_of(VideoReader, tmp_path)
    (tmp_path / "empty.mp4").touch()
    assert "empty" in error_of(VideoReader, tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    assert "text.mp4" in error_of(VideoReader, tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "only sound" in error_of(VideoReader, tmp_path / "sound.m4a")
    make(tmp_path / "tiny.mp4", [flat(0, (8, 8))] * 3)
    assert "at least 16" in error_of(VideoReader, tmp_path / "tiny.mp4")


def test_cut_file(tmp_path, caplog):
    """A download that broke off: refused without its index, else used as far as it goes, and said so."""
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", (rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(100)))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert 30 < len(list(VideoReader(tmp_path / "cut.mp4"))) < 70
    assert "cut short" in caplog.text and "cut.mp4" in caplog.text
    make(tmp_path / "b.mp4", [flat(k) for k in range(50)])  # index at the end
    data = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert "cut.mp4" in error_of(VideoReader, tmp_path / "cut.mp4")


# ---------------------------------------------------------------- writing


def streams_of(path):
    with av.open(str(path)) as container:
        return {stream.type: stream for stream in container.streams}


def test_flash_and_beep_stay_together(tmp_path):
    """A white frame and a beep at 2 s come back at 2 s, through every container and from every kind of audio."""
    frames = [flat(255 if k == 50 else 0) for k in range(100)]
    beep = np.zeros((4 * 48000, 2), np.float32)
    beep[2 * 48000 : 2 * 48000 + 1920] = np.sin(np.arange(1920) * 0.2)[:, None]
    write_video(tmp_path / "first.mp4", frames, audio=(beep, 48000))
    for suffix in ("mp4", "mov", "m4v", "mkv"):
        first = tmp_path / "first.mp4"
        for audio in ((beep, 48000), (beep[::3, 0], 16000), first, AudioSource(first)):
            path = tmp_path / f"a.{suffix}"
            assert write_video(path, frames, audio=audio) == 100
            flashes = [k for k, frame in enumerate(VideoReader(path)) if frame.mean() > 128]
            sound = load_audio(path)
            heard = np.flatnonzero(np.abs(sound) > 0.2) / 16000
            assert flashes == [50]
            assert abs(heard[0] - 2.0) < 0.005 and abs(heard[-1] - 2.04) < 0.005
            assert abs(len(sound) / 16000 - 4) <= 0.04


def test_players_start_at_zero(tmp_path):
    """The encoder's lead-in is cut by the file's edit list: first sound and first picture at time 0, index in front."""
    write_video(tmp_path / "a.mp4", [flat(k) for k in range(30)], audio=(np.zeros(48000, np.float32), 48000))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert next(container.decode(audio=0)).pts == 0
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert next(container.decode(video=0)).pts == 0
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert container.streams.audio[0].codec_context.name == "aac"
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_rates_by_their_usual_names():
    usual = {29.97: Fraction(30000, 1001), 23.976: Fraction(24000, 1001), 59.94: Fraction(60000, 1001), 25.0: 25}
    assert {name: as_rate(name) for name in usual} == usual
    assert as_rate(np.float32(12.5)) == as_rate("25/2") == 12.5 and as_rate(np.int64(30)) == 30
    with pytest.raises(InputError):
        as_rate("1/0")


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("fps", [25, 30, Fraction(30000, 1001), 12.5])
def test_sound_is_as_long_as_the_picture(tmp_path, seconds, fps):
    sound = (0.3 * np.sin(np.arange(round(seconds * 44100)) * 0.1)).astype(np.float32)
    count = round(fps)
    write_video(tmp_path / "a.mp4", (flat(k) for k in range(count)), fps, audio=(sound, 44100))
    streams = streams_of(tmp_path / "a.mp4")
    lengths = {kind: float(stream.duration * stream.time_base) for kind, stream in streams.items()}
    assert lengths["video"] == pytest.approx(count / float(fps), abs=0.002)
    assert lengths["audio"] == pytest.approx(lengths["video"], abs=0.002)
    assert streams["video"].average_rate == Fraction(fps).limit_denominator(1001)


@pytest.mark.parametrize(
    "rate, channels, expected",
    [(48000, 2, (48000, 2)), (44100, 1, (44100, 1)), (16000, 1, (48000, 1)), (22050, 2, (44100, 2))],
)
def test_sound_keeps_its_quality(tmp_path, rate, channels, expected):
    sound = np.zeros((rate, channels), np.float32)
    sound[:, 0] = 0.4 * np.sin(2 * np.pi * 0.3 * np.arange(rate))  # close to the upper end of what the rate holds
    write_video(tmp_path / "a.mp4", [flat(0)] * 25, audio=(sound, rate))
    source = AudioSource(tmp_path / "a.mp4")
    assert (source.rate, source.channels) == expected
    heard = np.concatenate(list(source.stream(rate, channels)))
    middle = heard[rate // 4 : -rate // 4]
    assert np.sqrt((middle[:, 0] ** 2).mean()) == pytest.approx(0.4 / 2**0.5, rel=0.1)
    if channels == 2:
        assert np.abs(middle[:, 1]).max() < 0.02


def test_odd_sizes_are_padded(tmp_path):
    frame = np.zeros((47, 63, 3), np.uint8)
    frame[-1], frame[:, -1] = 200, 200
    write_video(tmp_path / "a.mp4", [frame] * 3)
    shown = next(iter(VideoReader(tmp_path / "a.mp4")))
    assert shown.shape == (48, 64, 3) and shown[-1].mean() > 180 and shown[:, -1].mean() > 180


def test_one_frame_and_progress(tmp_path):
    seen = []
    sound = (np.zeros(100, np.float32), 16000)
    assert write_video(tmp_path / "a.mp4", [flat(50)], audio=sound, progress=seen.append) == 1
    assert seen == [1] and levels(VideoReader(tmp_path / "a.mp4")) == [50]
    assert len(load_audio(tmp_path / "a.mp4")) == 640


def test_frames_are_pulled_lazily(tmp_path):
    """Nothing waits for the end: frames are asked for one by one while the file grows."""

    def frames():
        for _ in range(200):
            yield np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        hidden = [p for p in tmp_path.iterdir() if p.name.startswith(".")]
        assert len(hidden) == 1 and hidden[0].suffix == ".mp4" and not (tmp_path / "a.mp4").exists()

    write_video(tmp_path / "a.mp4", frames())
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.mp4").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError, GeneratorExit])
@pytest.mark.parametrize("when", [0, 1, 60])
def test_nothing_is_left_after_an_exception(tmp_path, error, when):
    (tmp_path / "a.mp4").write_bytes(b"the old file")

    def frames():
        for k in range(100):
            if k == when:
                raise error("stop")
            yield flat(k)

    with pytest.raises(error):
        write_video(tmp_path / "a.mp4", frames(), audio=(np.zeros(16000, np.float32), 16000))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"the old file"


def test_writer_in_a_closed_generator(tmp_path):
    def generate():
        with VideoWriter(tmp_path / "a.mp4") as writer:
            while True:
                writer.write(flat(0))
                yield

    generator = generate()
    for _ in range(3):
        next(generator)
    generator.close()
    assert list(tmp_path.iterdir()) == []


def test_bad_output_is_refused_before_the_first_frame(tmp_path):
    def frames():
        pytest.fail("a frame was asked for")
        yield

    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for path, words in {
        tmp_path / "nowhere" / "a.mp4": "does not exist",
        tmp_path / "file" / "a.mp4": "does not exist",
        tmp_path / "folder.mp4": "is a folder",
        tmp_path / "a.avi": ".mp4",
        tmp_path / "a": ".mp4",
        tmp_path / ("x" * 300 + ".mp4"): "cannot be written",
    }.items():
        assert words in error_of(write_video, path, frames())
    assert "nothing.wav" in error_of(write_video, tmp_path / "a.mp4", frames(), audio=tmp_path / "nothing.wav")
    assert "frame rate" in error_of(write_video, tmp_path / "a.mp4", frames(), fps=-1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in error_of(write_video, tmp_path / "a.mp4", [flat(0)])


def test_bad_frames(tmp_path):
    for frames in ([flat(0).astype(np.float32)], [flat(0), flat(0, (32, 32))], [flat(0)[..., 0]]):
        with pytest.raises(ValueError, match="expected|first"):
            write_video(tmp_path / "a.mp4", frames)
    assert "no frames" in error_of(write_video, tmp_path / "a.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "a.mp4").symlink_to(tmp_path / "there" / "b.mp4")
    write_video(tmp_path / "a.mp4", [flat(0)] * 2)
    assert (tmp_path / "a.mp4").is_symlink() and (tmp_path / "there" / "b.mp4").is_file()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_is_flat(tmp_path):
    """Two minutes out and in again, with sound: no more memory at the end than soon after the start."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    count, early = 3000, 1000
    marks = []

    def watched(frames):
        for k, frame in enumerate(frames):
            if k in (early, count - 1):
                gc.collect()
                marks.append(resident_bytes())
            yield frame

    sound = (np.zeros(16000 * 120, np.float32), 16000)
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(first, watched(np.roll(noise, k, axis=1) for k in range(count)), audio=sound)
    write_video(second, watched(VideoReader(first)), audio=first)
    assert marks[1] - marks[0] < 12e6 and marks[3] - marks[2] < 12e6, np.diff(marks) / 1e6
