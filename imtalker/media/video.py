"""Video in, on the frame clock, and video out, with sound of exactly the same length."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from numbers import Rational
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from ..clock import FPS
from ..errors import InputError
from ..files import check_writable, complete
from .audio import AudioInput, AudioSource
from .files import (
    MAX_GAP_SECONDS,
    MediaSource,
    best_stream,
    declared_end,
    decode,
    log,
    name_of,
    open_media,
    reason_of,
    time_zero,
)
from .picture import MAX_PIXELS, MIN_SIDE

EXPECTED = "a video such as MP4, MOV or WebM"


# ---------------------------------------------------------------- reading


class FrameSequence:
    """Frames in memory, uint8 (T, H, W, 3) RGB at 25 a second, to be used as a `VideoReader` without sound.
    Raises InputError for anything else."""

    has_audio = False

    def __init__(self, frames: np.ndarray):
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
            raise InputError(f"frames of shape {frames.shape} and type {frames.dtype}: uint8 (T, H, W, 3) RGB expected")
        self._pictures = frames
        self.frames, (height, width) = len(frames), frames.shape[1:3]
        self.size = width, height

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._pictures)


class VideoReader:
    """Frames of a video file at a constant rate; iterate as often as you like, each time from the start.

    Yields uint8 (H, W, 3) RGB, upright, with square pixels. Frame k is what a player shows in the middle of the time
    from k / fps to (k + 1) / fps, counted from where the file's sound or picture begins, so that it belongs to samples
    640 k to 640 (k + 1) of `load_audio` of the same file. This holds for variable frame rates too.
    Memory does not grow with the length of the video. Raises InputError if there is no video in the file, or its frames
    have more than `most_pixels`.

    size: (width, height) of the frames. duration: seconds, frames: their number; both as the file declares, None where
    it does not say. has_audio: whether there is sound in it.
    """

    def __init__(self, source: MediaSource, fps: int | float | Fraction = FPS, most_pixels: int = MAX_PIXELS):
        self.source = source
        self.fps = as_rate(fps)
        self._most_pixels = most_pixels
        self._name = name_of(source)
        with self._open() as container:
            stream = best_stream(container, "video")
            self._check_size(stream.codec_context.width or MIN_SIDE, stream.codec_context.height or MIN_SIDE)
            frames = decode(container, stream, self._name)
            first = next(frames, None)
            if first is None:
                raise InputError(f"{self._name} has no frames in it, expected {EXPECTED}: check that it plays")
            if container.format.name in ("gif", "apng") and next(frames, None) is None:
                raise InputError(f"{self._name} is a still picture, expected {EXPECTED}: give a moving one")
            frames.close()
            self._stored_size = _square_pixels(first, stream)
            self._turn = _turn(first)
            width, height = self._stored_size
            self.size = (height, width) if self._turn[0] else (width, height)
            self._check_size(width, height)
            self.has_audio = best_stream(container, "audio") is not None
            end = declared_end(source, container, stream)
            self.duration = None if end is None else float(end)
            self.frames = None if end is None else max(1, self._frames_before(end))

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._most_pixels or min(width, height) < MIN_SIDE:
            raise InputError(f"{self._name} has {width} x {height} pixels, expected at least {MIN_SIDE} on each "
                             f"side and at most {self._most_pixels / 1e6:.3g} megapixels: scale it")  # fmt: skip

    def __iter__(self) -> Iterator[np.ndarray]:
        k = 0
        end = Fraction(0)
        shown = None  # the decoded frame on the screen
        reformatter = VideoReformatter()
        with self._open() as container:
            for frame, start, frame_end in self._timed(container):
                if shown is not None:
                    due = self._frames_before(start)
                    while k < due:
                        yield self._picture(shown, reformatter)
                        k += 1
                shown, end = frame, max(end, frame_end)
            while k < max(1, self._frames_before(end)):
                yield self._picture(shown, reformatter)
                k += 1
        if self.duration is not None and self.duration - end > 1:
            log.warning("%s declares %.1f s of video, but only %.1f s are in it: the file is cut short",
                        self._name, self.duration, end)  # fmt: skip

    def _open(self) -> av.container.InputContainer:
        container = open_media(self.source, EXPECTED)
        problem = None
        if best_stream(container, "video") is None:
            problem = "has no video in it, only sound" if container.streams.audio else "has no video in it"
        elif container.format.name.endswith("_pipe") or container.format.name == "image2":
            problem = "is a still picture"
        if problem:
            container.close()
            raise InputError(f"{self._name} {problem}, expected {EXPECTED}: give a video of a face")
        stream = best_stream(container, "video")
        stream.thread_type = "AUTO"
        return container

    def _frames_before(self, time: Fraction) -> int:
        """How many output frames have their middle before `time`, in seconds.

        One millisecond of grace: timestamps in whole milliseconds must not decide which of two frames is shown.
        """
        return max(0, math.ceil((time + Fraction(1, 1000)) * self.fps - Fraction(1, 2)))

    def _timed(self, container: av.container.InputContainer) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
        """(frame, start, end) in seconds from time zero, starts never going back."""
        stream = best_stream(container, "video")
        zero = time_zero(self.source, container)
        usual = 1 / Fraction(stream.average_rate or stream.guessed_rate or FPS)
        start = -usual
        for frame in decode(container, stream, self._name):
            before = start
            if frame.pts is not None and frame.time_base:
                start = max(start, frame.pts * frame.time_base - zero)
            else:
                start = start + usual  # raw streams have no timestamps
            if start - before > MAX_GAP_SECONDS:
                raise InputError(f"{self._name} is damaged (its picture jumps from {float(before):.1f} s to "
                                 f"{float(start):.1f} s): convert it first")  # fmt: skip
            length = frame.duration * frame.time_base if frame.duration and frame.time_base else usual
            yield frame, start, start + min(length, MAX_GAP_SECONDS)

    def _picture(self, frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
        width, height = self._stored_size
        # Untagged video: players take the colours of HD for BT.709 and of anything smaller for BT.601.
        tagged = frame.colorspace not in (2, 3)  # 2 unspecified, 3 reserved
        colorspace = None if tagged else (Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601)
        rgb = reformatter.reformat(frame, width, height, "rgb24", src_colorspace=colorspace, threads=1).to_ndarray()
        transpose, flip_y, flip_x = self._turn
        if transpose:
            rgb = rgb.transpose(1, 0, 2)
        return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def as_rate(fps: int | float | Fraction) -> Fraction:
    """Frames per second as an exact fraction; 29.97 is what video calls so, 30000/1001. Raises InputError."""
    try:
        rate = Fraction(fps if isinstance(fps, (str, Rational)) else float(fps)).limit_denominator(1001)
    except (TypeError, ValueError, ArithmeticError):
        rate = Fraction(0)
    if rate.denominator > 1 and abs(rate / (slowed := Fraction(1000 * math.ceil(rate), 1001)) - 1) < 5e-5:
        rate = slowed
    if not 1 <= rate <= 240:
        raise InputError(f"frame rate {fps!r}, expected a number from 1 to 240: give another rate")
    return rate


def _square_pixels(frame: av.VideoFrame, stream: av.video.VideoStream) -> tuple[int, int]:
    """(width, height) in square pixels, never smaller than stored."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if aspect <= 0:
        aspect = Fraction(1)
    width, height = frame.width, frame.height
    return (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then flip vertically, flip horizontally) that turns the stored picture upright.

    From the display matrix, which maps stored (x, y) to shown (a x + c y, b x + d y); turns by other angles than
    quarters are rounded.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d, _, _, _, _ = np.frombuffer(bytes(data), np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


# ---------------------------------------------------------------- writing

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")
X264 = {"crf": "18", "preset": "veryfast"}  # hardly to be told from what was drawn, and little beside drawing it


def check_output(path: str | os.PathLike[str]) -> Path:
    """Raise InputError unless a video can be written at `path`; return where (links followed)."""
    suffix = Path(path).suffix
    if suffix.lower() not in SUFFIXES:
        raise InputError(f"output {name_of(path)} ends in {suffix or 'nothing'!r}, expected {', '.join(SUFFIXES)}: "
                         "name it for example talk.mp4")  # fmt: skip
    return check_writable(path, "output")


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: int | float | Fraction = FPS,
    audio: AudioInput | AudioSource | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write frames as H.264 with AAC sound, while they come; return their number.

    path: .mp4, .mov, .m4v or .mkv; the file appears only when complete. frames: uint8 (H, W, 3) RGB, all of one size;
    odd sizes are padded to even ones by repeating the last row or column. fps: any rate. audio: a sound or video file,
    an AudioSource, or (samples, rate); it is cut, or continued with silence, to the length of the picture.
    progress: called with the number of frames written so far. Raises InputError before the first frame is asked for if
    the output or the audio cannot be used.
    """
    with VideoWriter(path, fps, audio) as writer:
        for frame in frames:
            writer.write(frame)
            if progress is not None:
                progress(writer.count)
    return writer.count


class VideoWriter:
    """`write_video`, one frame at a time. Use as a context manager: on any exception nothing is left behind."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: int | float | Fraction = FPS,
        audio: AudioInput | AudioSource | None = None,
    ):
        self.fps = as_rate(fps)
        self.count = 0  # frames written
        self._name = name_of(path)
        self._file = complete(check_output(path))
        if audio is not None and not isinstance(audio, AudioSource):
            audio = AudioSource(audio)
        self._audio = audio
        self._shape: tuple[int, ...] | None = None
        self._reformatter = VideoReformatter()
        self._container = self._sound = self._video = None
        self._unfinished = self._file.__enter__()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def write(self, frame: np.ndarray) -> None:
        """Append one uint8 (H, W, 3) RGB frame, and the sound that belongs to it."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame is {frame.dtype} of shape {frame.shape}, expected uint8 (H, W, 3)")
        if self._shape is None:
            self._start(frame.shape)
        elif frame.shape != self._shape:
            raise ValueError(f"frame {self.count} has shape {frame.shape}, the first one had {self._shape}")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame), "rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,  # more threads cost more than they gain at these sizes
        )
        picture.pts, picture.time_base = self.count, 1 / self.fps
        self.count += 1
        self._mux(lambda: self._video.encode(picture))
        if self._sound is not None:
            self._sound.advance(self.count / self.fps, self._mux)

    def _start(self, shape: tuple[int, ...]) -> None:
        height, width = shape[:2]
        self._shape = shape
        options = {} if self._unfinished.suffix == ".mkv" else {"movflags": "+faststart"}
        with self._blamed():
            self._container = av.open(f"file:{self._unfinished}", "w", options=options)
            video = self._container.add_stream("libx264", rate=self.fps)
        video.width, video.height = width + width % 2, height + height % 2
        video.pix_fmt = "yuv420p"
        video.options = dict(X264)
        context = video.codec_context
        context.time_base = 1 / self.fps
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = ColorRange.MPEG
        self._video = video
        if self._audio is not None:
            self._sound = _SoundTrack(self._container, self._audio)

    def _mux(self, encode: Callable[[], list[av.Packet]]) -> None:
        with self._blamed():
            self._container.mux(encode())

    def _blamed(self) -> _Blame:
        return _Blame(self._name)

    def _finish(self) -> None:
        if self._shape is None:
            raise InputError(f"there are no frames to write to {self._name}: give sound or video that is not empty")
        if self._sound is not None:
            self._sound.finish(self.count / self.fps, self._mux)
        self._mux(lambda: self._video.encode(None))
        with self._blamed():
            self._container.close()
            self._container = None
            self._file.keep()

    def _discard(self) -> None:
        """Close everything and remove what is unfinished. Does nothing after a complete write."""
        if self._sound is not None:
            self._sound.close()
        try:
            if self._container is not None:
                self._container.close()
        except (av.FFmpegError, OSError):
            pass  # the file is thrown away, and an error is on its way already
        finally:
            self._container = None
            self._file.discard()


class _Blame:
    """Turn FFmpeg's and the system's errors of writing (no space left, folder gone) into one of the user's."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, (av.FFmpegError, OSError)):
            raise InputError(f"output {self.name} cannot be written ({reason_of(error)}): "
                             "check the space and the place") from error  # fmt: skip


class _SoundTrack:
    """AAC beside the picture: pulls as much sound as the picture needs, silence when there is no more."""

    def __init__(self, container: av.container.OutputContainer, source: AudioSource):
        # The two rates every player knows; whichever divides the native one evenly loses nothing.
        self.rate = 44_100 if source.rate % 11_025 == 0 else 48_000
        self.channels = min(source.channels, 2)
        self._layout = ("mono", "stereo")[self.channels - 1]
        self._stream = container.add_stream("aac", rate=self.rate, layout=self._layout)
        self._stream.bit_rate = 96_000 * self.channels
        self._blocks = source.stream(self.rate, self.channels)
        self._held = np.zeros((0, self.channels), np.float32)
        self._sent = 0  # samples given to the encoder

    def advance(self, seconds: Fraction, mux: Callable) -> None:
        """Encode sound up to `seconds`, in whole encoder frames."""
        size = self._stream.codec_context.frame_size or 1024
        while self._sent + size <= round(seconds * self.rate):
            self._encode(self._take(size), mux)

    def finish(self, seconds: Fraction, mux: Callable) -> None:
        """Encode the rest, so that exactly `seconds` of sound were written."""
        self.advance(seconds, mux)
        rest = round(seconds * self.rate) - self._sent
        if rest > 0:
            self._encode(self._take(rest), mux)
        mux(lambda: self._stream.encode(None))

    def close(self) -> None:
        self._blocks.close()

    def _take(self, count: int) -> np.ndarray:
        held = [self._held]
        have = len(self._held)
        while have < count:
            block = next(self._blocks, None)
            if block is None:
                block = np.zeros((count - have, self.channels), np.float32)
            held.append(block)
            have += len(block)
        samples = np.concatenate(held)
        self._held = samples[count:]
        return samples[:count]

    def _encode(self, samples: np.ndarray, mux: Callable) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", self._layout)
        frame.sample_rate = self.rate
        frame.pts, frame.time_base = self._sent, Fraction(1, self.rate)
        self._sent += len(samples)
        mux(lambda: self._stream.encode(frame))
