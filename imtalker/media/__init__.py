"""Pictures, sound and video in and out, on one clock."""

from ..clock import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, frame_count
from .audio import AudioSource, load_audio, loudness, stream_audio
from .picture import load_picture
from .video import FrameSequence, VideoReader, VideoWriter, check_output, write_video

__all__ = [
    "FPS",
    "SAMPLE_RATE",
    "SAMPLES_PER_FRAME",
    "AudioSource",
    "FrameSequence",
    "VideoReader",
    "VideoWriter",
    "check_output",
    "frame_count",
    "load_audio",
    "load_picture",
    "loudness",
    "stream_audio",
    "write_video",
]
