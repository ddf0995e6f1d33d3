"""From a picture and what drives it to frames: the one path that every command, test and server takes.

    picture ─ crop ─ encode_source ───────────────────────────────┐
    audio ─ features ─ generator ─┐                               ▼
    driving video ─ crop ─ encode_motion ─ motion (n, 32) ─ retime ─ render ─ frames

Everything between the ends is a generator of portions, so memory does not grow with the length of a clip.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from numbers import Integral, Real

import cv2
import numpy as np
import torch
from torch import Tensor

from . import weights
from .controls import read_control
from .devices import PRECISIONS, choose_device, choose_precision, painting_type
from .errors import InputError
from .face import Crop, default_reader, driving_crop, no_crop, source_crop
from .media import (
    FPS,
    SAMPLE_RATE,
    FrameSequence,
    VideoReader,
    frame_count,
    load_audio,
    load_picture,
    stream_audio,
    write_video,
)
from .media.audio import AudioInput, AudioSource
from .media.picture import PictureSource
from .media.video import as_rate
from .memory import give_back_freed_memory
from .models.audio import FeatureStream, KnownFeatures, MelEncoder
from .models.prepared import prepare
from .models.renderer import SourceFeatures, map_tensors
from .session import WINDOWS, Session
from .stream import MotionStream, held, plan
from .timing import retime, retimed_count, steadied
from .workers import Workers

log = logging.getLogger("imtalker.pipeline")

AUDIO_BLOCK = 2 * SAMPLE_RATE  # samples read at once
WHOLE_SIDE = 1920  # pixels; what is shown whole and is larger is made smaller
# Pixels rendered at once: more gains nothing, takes memory, and the first frame comes later
BATCH_PIXELS = {"cpu": 4 * 256**2, "cuda": 32 * 512**2}


@dataclass(frozen=True, eq=False)
class Source:
    """A picture, encoded once. Nothing in it changes, so that any number of clips can be made from it."""

    features: SourceFeatures
    crop: Crop  # where in the picture the frames come from
    picture: np.ndarray  # that part, uint8 (S, S, 3) RGB
    whole: np.ndarray | None = None  # uint8 (H, W, 3) RGB, if frames are the whole picture, in which the face moves

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the frames made from it, pixels."""
        height, width = (self.picture if self.whole is None else self.whole).shape[:2]
        return width, height


class IMTalker:
    """A model on a device: `encode_source` a picture once, then `animate` or `reenact` it as often as you like."""

    def __init__(self, model: weights.Model, *, name: str = "model", device: str = "auto", precision: str = "auto"):
        """Most users call `from_pretrained`. The networks of `model` are moved to the device and set to evaluation."""
        self.name = name
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device, model.config.renderer.copy)
        self.renderer = prepare(model.renderer.to(self.device, memory_format=torch.channels_last).eval())
        self.renderer.synthesis.paint_as(painting_type(self.precision, self.device))
        self.generator = model.generator.to(self.device).eval().requires_grad_(False)
        self.audio_encoder = model.audio_encoder.to(self.device).eval().requires_grad_(False)
        self.config = model.config
        # pictures that are read or drawn at once: in one batch, or on a CPU in as many as there are threads for
        self.at_once = max(1, BATCH_PIXELS.get(self.device.type, 2 * 512**2) // self.config.size**2)
        self.workers = Workers(min(self.at_once, torch.get_num_threads()) if self.device.type == "cpu" else 1)
        self._batch = self.at_once // self.workers.count

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str] = "mini", device: str = "auto", precision: str = "auto"
    ) -> IMTalker:
        """Load a model by name ("mini" is bundled) or from a folder.

        device: "auto" (CUDA, then Apple's MPS, then CPU), "cpu", "cuda", "cuda:1" or "mps". precision: "float32",
        "mixed" (float32, but synthesis in bfloat16, on CUDA in float16: for models that copy pixels, as "mini" does),
        "bfloat16" (networks' inner products; synthesis in float32, on CUDA in float16), "float16" (all of them; not on
        a CPU), or "auto": on a CUDA device bfloat16, or mixed if the model copies pixels; on a CPU float32, or mixed if
        the model copies pixels and the CPU multiplies matrices of bfloat16.
        Raises InputError for an unknown model, damaged weights, or a device that is not there.
        """
        choose_precision(precision, choose_device(device))  # a wrong option is told before anything is loaded
        talker = cls(weights.load_model(model), name=os.fspath(model), device=device, precision=precision)
        give_back_freed_memory()
        return talker

    # -------------------------------------------------------------------------------------------------------- source

    def encode_source(self, picture: PictureSource, face: int = 0, crop: bool = True, whole: bool = False) -> Source:
        """Encode the face of a picture.

        picture: a file, its bytes, a PIL image, or uint8 (H, W, 3) RGB. face: which one, 0 is the largest. crop: find
        the face and cut it out; otherwise the centred square is taken as it is. whole: frames are the whole picture, at
        most WHOLE_SIDE pixels wide and high and of an even number of them, as video wants, with the face in its place;
        otherwise the square alone, at the model's size. Raises InputError without such a face.
        """
        _check_face(face, crop)
        pixels = load_picture(picture)
        if whole and (scale := WHOLE_SIDE / max(pixels.shape[:2])) < 1:
            height, width = (max(1, round(scale * side)) for side in pixels.shape[:2])
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        if whole:
            pixels = pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2]
        name = f"{os.fspath(picture)!r}" if isinstance(picture, (str, os.PathLike)) else "the picture"
        where = source_crop(pixels, face, name) if crop else no_crop(*pixels.shape[:2])
        square = where.apply(pixels, self.renderer.config.size)
        gaze = torch.from_numpy(default_reader()(square[None]).gaze) if self.renderer.config.eyes else None
        with torch.inference_mode(), self._autocast():
            features = self.renderer.encode_source(self._tensor(square[None]), gaze=gaze)
        give_back_freed_memory()  # a picture needs more than frames do
        return Source(features, where, square, pixels if whole else None)

    # -------------------------------------------------------------------------------------------------------- driving

    def animate(
        self,
        source: Source,
        audio: AudioInput,
        *,
        seed: int = 0,
        nfe: int | None = None,
        guidance_scale: float | None = None,
        pose=None,
        gaze=None,
        cam=None,
        fps: float | Fraction = FPS,
        windows: Sequence[int] | None = None,
    ) -> Clip:
        """A clip of the source speaking `audio`: a sound or video file, its bytes, or (samples, rate).

        seed: same seed, same device, same input: same frames. nfe: velocity evaluations per window of frames, fewer
        are faster. guidance_scale: weight of the sound, 1 is off and halves the generator's work; None: the model's.
        pose (n, 3), gaze (n, 2), cam (n, 3): what head, eyes and framing shall do, 25 rows a second, see
        `read_control`; the last row is held.
        fps: of the clip, 1 to 240. windows: make it as a live session with these windows would, see `session`.
        Nothing is made until the clip is iterated or saved.
        """
        rate = as_rate(fps)
        given = {
            "pose": read_control("pose", pose),
            "gaze": read_control("gaze", gaze),
            "cam": read_control("cam", cam),
        }
        controls = {kind: torch.from_numpy(rows).to(self.device) for kind, rows in given.items() if rows is not None}
        sampling = self._sampling(nfe, guidance_scale, seed, windows) | {"controls": held(controls)}
        # Only decoding tells how long a file is; it also tells at once whether it can be decoded.
        frames = frame_count(sum(len(samples) for samples in stream_audio(audio, AUDIO_BLOCK)))

        def motion() -> Iterator[Tensor]:
            if windows is None and not isinstance(self.audio_encoder, MelEncoder):  # it wants to hear the clip at once
                stream = self.motion_stream(source, self._hear(audio), **sampling)
            else:
                stream = self.motion_stream(source, **sampling)
                for samples in stream_audio(audio, AUDIO_BLOCK):
                    stream.push(torch.from_numpy(samples).to(self.device))
                    yield from stream.due()
            yield from stream.rest()

        return Clip(self, source, motion, frames, rate, audio)

    def reenact(
        self,
        source: Source,
        driving: str | os.PathLike[str] | bytes | np.ndarray,
        *,
        face: int = 0,
        crop: bool = True,
        relative: bool = False,
        fps: float | Fraction = FPS,
    ) -> Clip:
        """A clip of the source moving as the face in the video `driving` does; the video's sound is kept.

        driving: a file, its bytes, or frames, uint8 (T, H, W, 3) RGB at 25 a second. face: which face of the video to
        follow, 0 is the largest. crop: find the face, once for the whole video; otherwise the centred square is taken
        as it is. relative: add the driving's change since its first frame to the source's own motion, instead of
        copying the driving's motion as it is (the method's own way).
        """
        rate = as_rate(fps)
        _check_face(face, crop)
        video = FrameSequence(driving) if isinstance(driving, np.ndarray) else VideoReader(driving)
        name = f"{os.fspath(driving)!r}" if isinstance(driving, (str, os.PathLike)) else "the driving video"
        width, height = video.size
        where = driving_crop(video, face, name) if crop else no_crop(height, width)

        def motion() -> Iterator[Tensor]:
            first = None
            for portion in self.driving_motion(video, where):
                if relative:
                    first = portion[:1] if first is None else first
                    portion = source.features.motion.float() + portion - first
                yield portion

        return Clip(self, source, motion, video.frames, rate, driving if _is_heard(video, name) else None)

    def session(
        self,
        source: Source,
        *,
        seed: int = 0,
        nfe: int | None = None,
        guidance_scale: float | None = None,
        windows: Sequence[int] = WINDOWS,
        look_ahead: int = 0,
    ) -> Session:
        """A live session: push sound of any length, get the frames that are due.

        windows: frames that are made at once, one number per window, the last for all that follow; short ones answer
        sooner, long ones cost less. look_ahead: frames of sound after a window that its motion may know, for better
        lips at the price of their delay. The others as for `animate`. A whole file through a session gives the frames
        of `animate` with the same windows. Raises InputError for numbers that make no sense.
        """
        sampling = self._sampling(nfe, guidance_scale, seed, windows)
        return Session(self, source, look_ahead=look_ahead, **sampling)

    def motion_stream(self, source: Source, features: Tensor | None = None, **options) -> MotionStream:
        """Sound to motion of `source`: what is pushed, or `features` (T, D) of all of it; options of `MotionStream`."""
        sound = FeatureStream(self.audio_encoder) if features is None else KnownFeatures(features)
        return MotionStream(sound, self.generator, source.features.motion, **options)

    def _sampling(
        self, nfe: int | None, guidance_scale: float | None, seed: int, windows: Sequence[int] | None
    ) -> dict:
        """Options of the sampler, the model's own where None is given. Raises InputError for what makes no sense."""
        nfe = self.config.nfe if nfe is None else nfe
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if not isinstance(nfe, Integral) or nfe < 1:
            raise InputError(f"nfe={nfe!r}: a whole number of velocity evaluations, at least 1, expected")
        if not isinstance(scale, Real) or not math.isfinite(scale):
            raise InputError(f"guidance_scale={scale!r}: a finite number expected")
        if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
            raise InputError(f"seed={seed!r}: a whole number from 0 to 2**63 - 1 expected")
        plan(windows, 0, self.generator.config.window)
        return {"nfe": nfe, "guidance_scale": scale, "seed": seed, "windows": windows}

    def _hear(self, audio: AudioInput) -> Tensor:
        """Features (n, D) of the whole sound at once."""
        with torch.inference_mode():
            return self.audio_encoder(torch.from_numpy(load_audio(audio)).to(self.device))

    def driving_motion(self, video: Iterable[np.ndarray], crop: Crop) -> Iterator[Tensor]:
        """Motion latents (n, 32) float32 of the cropped frames, uint8 (H, W, 3) RGB, of a video."""
        size = self.renderer.config.size
        frames = (crop.apply(frame, size) for frame in video)

        def read(batch: list[np.ndarray]) -> Tensor:
            with torch.inference_mode(), self._autocast():
                return self.renderer.encode_motion(self._tensor(np.stack(batch))).float()

        batches = iter(lambda: list(islice(frames, self._batch)), [])
        return steadied(self.workers.map(read, batches), self.config.steadying)

    # ------------------------------------------------------------------------------------------------------ rendering

    def render(self, source: Source, motion: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Frames, uint8 (height, width, 3) RGB, one for each row of the portions of motion latents (n, 32)."""
        squares = self._squares(source.features, motion)
        return squares if source.whole is None else (source.crop.paste(square, source.whole) for square in squares)

    def render_together(self, faces: Sequence[tuple[Source, Tensor]]) -> list[list[np.ndarray]]:
        """Squares, uint8 (S, S, 3) RGB, of several sources, drawn at once: for each of them its latents (n, 32)."""
        latents = torch.cat([motion for _, motion in faces])
        if len({id(source) for source, _ in faces}) == 1:
            squares = self._squares(faces[0][0].features, [latents])
        else:
            rows = (source.features for source, motion in faces for _ in motion)
            squares = iter(self._draw(map_tensors(lambda *row: torch.cat(row), *rows), latents.to(self.device)))
        return [list(islice(squares, len(motion))) for _, motion in faces]

    def _squares(self, features: SourceFeatures, motion: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Frames, uint8 (S, S, 3) RGB, one for each row of the portions: as many at once as suit the device."""

        def split(portion: Tensor) -> Sequence[Tensor]:
            share = math.ceil(len(portion) / self.workers.count)
            return portion.split(min(self._batch, max(share, 1)))

        pieces = (piece for portion in motion for piece in split(portion.to(self.device)))
        for squares in self.workers.map(lambda latents: self._draw(features, latents), pieces):
            yield from squares

    def _draw(self, features: SourceFeatures, latents: Tensor) -> np.ndarray:
        """Frames, uint8 (n, S, S, 3) RGB, of one source's features, or of one row of features for each latent."""
        with torch.inference_mode():
            return to_pixels(self._frames(features, latents))

    def _frames(self, features: SourceFeatures, latents: Tensor) -> Tensor:
        """(n, 3, S, S) in [0, 1]."""
        with self._autocast():
            return self.renderer.render(features, latents)

    def _tensor(self, pictures: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) -> float32 (B, 3, S, S) in [0, 1] on the device."""
        return torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float().div(255)

    def _autocast(self):
        kind = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, kind, enabled=kind != torch.float32)


class Clip:
    """Frames that are made while they are looked at: iterate, `save`, or both; every time they are made anew.

    fps: frames per second, a Fraction. size: (width, height). audio: what was given as sound, or None.
    """

    def __init__(
        self,
        talker: IMTalker,
        source: Source,
        make_motion: Callable[[], Iterator[Tensor]],
        frames: int | None,
        fps: Fraction,
        audio: AudioInput | None,
    ):
        """make_motion: begins the motion latents, portions (n, 32) at 25 a second. frames: how many, if it is known."""
        self.fps, self.size, self.audio = fps, source.size, audio
        self._talker, self._source, self._make_motion = talker, source, make_motion
        self._frames = frames
        self._made: list[Tensor] | None = None  # kept once it has been made, as small as it is, in the same portions

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames, uint8 (height, width, 3) RGB, in order, `fps` a second."""
        return self._talker.render(self._source, retime(self._portions(), self.fps))

    def __len__(self) -> int:
        """Number of frames. Of a driving video that has not been read to its end yet: as its file declares it; where it
        does not, it is read now."""
        if self._frames is None:
            self._frames = len(self.motion)
        return self.expected

    @property
    def expected(self) -> int | None:
        """Number of frames, as far as it is known without making any motion."""
        return None if self._frames is None else retimed_count(self._frames, self.fps)

    @property
    def motion(self) -> np.ndarray:
        """Motion latents (T, 32) float32 at 25 a second, whatever the clip's own rate."""
        return torch.cat(list(self._portions())).numpy()

    def save(self, path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> int:
        """Write the clip with its sound as H.264 and AAC; the file appears when complete. Returns the frames written.

        path: .mp4, .mov, .m4v or .mkv. progress: called with the number of frames written so far.
        Raises InputError if the file cannot be written.
        """
        return write_video(path, self, self.fps, self.audio, progress=progress)

    def _portions(self) -> Iterator[Tensor]:
        if self._made is not None:
            yield from self._made
            return
        made = []
        for portion in self._make_motion():
            made.append(portion.cpu())
            yield made[-1]
        self._frames, self._made = sum(map(len, made)), made


def _check_face(face: int, crop: bool) -> None:
    if face and not crop:
        raise InputError(f"face={face} without a crop: the centred square is taken as it is; choose one of the two")


def _is_heard(video: FrameSequence | VideoReader, name: str) -> bool:
    """Whether the driving video has sound, and it can be decoded; the picture moves without it, too."""
    if not video.has_audio:
        return False
    try:
        AudioSource(video.source)
    except InputError as error:
        log.warning("%s moves the picture, but its sound is left out: %s", name, error)
        return False
    return True


def to_pixels(frames: Tensor) -> np.ndarray:
    """Frames (n, 3, S, S) in [0, 1] -> uint8 (n, S, S, 3)."""
    pixels = frames.float().mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return pixels.contiguous().cpu().numpy()
