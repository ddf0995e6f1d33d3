"""Compressing a live face's pictures."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np

from ..clock import FPS
from . import protocol

KEY_EVERY = 2 * FPS  # frames between pictures that decoding can begin with


def jpeg(picture: np.ndarray, quality: int = 92) -> bytes:
    """A picture, uint8 (H, W, 3) RGB, as the contents of a JPEG file."""
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[
        1
    ].tobytes()


class JpegEncoder:
    """Pictures, uint8 (H, W, 3) RGB, each as one message that stands alone."""

    def __init__(self, quality: int = 85):
        self._quality = quality

    def encode(self, frame: int, picture: np.ndarray) -> list[bytes]:
        return [protocol.pack(protocol.Kind.JPEG, frame, jpeg(picture, self._quality), protocol.KEY)]


class H264Encoder:
    """Pictures of one size as an H.264 stream without delay; frames may be left out before encoding, not after."""

    def __init__(self):
        self._codec: av.VideoCodecContext | None = None

    def encode(self, frame: int, picture: np.ndarray) -> list[bytes]:
        if self._codec is None:
            self._open(*picture.shape[:2])
        video = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
        video.pts = frame
        return [
            protocol.pack(protocol.Kind.H264, frame, bytes(packet), protocol.KEY if packet.is_keyframe else 0)
            for packet in self._codec.encode(video)
        ]

    def _open(self, height: int, width: int) -> None:
        self._codec = av.CodecContext.create("libx264", "w")
        self._codec.width, self._codec.height, self._codec.pix_fmt = width, height, "yuv420p"
        self._codec.time_base = Fraction(1, FPS)
        self._codec.options = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": "23",
            "g": str(KEY_EVERY),
        }


def encoder(hello: protocol.Hello) -> JpegEncoder | H264Encoder:
    return H264Encoder() if hello.format == "h264" else JpegEncoder(hello.quality)
