"""The source picture: whatever Pillow reads becomes upright 8-bit RGB."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from typing import Union

import numpy as np
from PIL import Image, ImageCms

from ..errors import InputError
from .files import check_readable, name_of

MAX_PIXELS = 64_000_000  # 64 megapixels: 192 MB as RGB. Checked in the header, before anything is decoded.
MIN_SIDE = 16  # pixels; below this no face can be seen
MAX_SIDE = 30_000  # pixels; OpenCV counts them in 16 bits

EXPECTED = "a picture such as a PNG, JPEG or WebP"

PictureSource = Union[str, "os.PathLike[str]", bytes, np.ndarray, Image.Image]

# EXIF orientation -> what turns the stored picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112

# Errors with which Pillow's decoders answer damaged files; which one depends on the format.
_DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
                   MemoryError, NotImplementedError, ArithmeticError, Image.DecompressionBombError)  # fmt: skip


def load_picture(
    source: PictureSource, most_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None
) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3) RGB, upright, on white where it is transparent.

    source: path, bytes of a picture file, PIL image, or uint8 array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.
    Of an animation the first frame is taken. An embedded colour profile is converted to sRGB.
    formats: of files, as Pillow calls them, if not all that it reads are welcome: some are decoded to learn their size.
    Raises InputError if it is no picture, damaged, narrower than 16 pixels, or larger than `most_pixels`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, most_pixels)
    with warnings.catch_warnings():
        # Pillow warns of odd metadata that does not matter, and of a size that our own, lower limit refuses.
        warnings.simplefilter("ignore")
        return _load(source, most_pixels, formats)


def _load(
    source: str | os.PathLike[str] | bytes | Image.Image, most_pixels: int, formats: Sequence[str] | None
) -> np.ndarray:
    if isinstance(source, Image.Image):
        name, image = "the given picture", source
        _check_size(image.size, name, most_pixels)
    else:
        name, image = name_of(source), _open(source, most_pixels, formats)
    try:
        image.load()
        return np.array(_to_rgb(_upright(image), name))  # a copy: Pillow's own memory is read-only
    except InputError:
        raise
    except _DECODER_ERRORS as error:
        raise InputError(f"{name} is damaged or of an unusual kind ({_reason(error)}), expected {EXPECTED}: "
                         "open it in a picture program and save it as PNG") from None  # fmt: skip
    finally:
        if image is not source:
            image.close()


def _open(source: str | os.PathLike[str] | bytes, most_pixels: int, formats: Sequence[str] | None) -> Image.Image:
    """Read the header only, and refuse what is too large or too small before decoding it."""
    check_readable(source, EXPECTED)
    name = name_of(source)
    file = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        raise InputError(f"{name} is larger than the limit of {most_pixels / 1e6:.3g} megapixels: "
                         "make it smaller first") from None  # fmt: skip
    except _DECODER_ERRORS:
        expected = EXPECTED if formats is None else f"a picture: {', '.join(formats)}"
        raise InputError(f"{name} is not a picture that can be read{_hint(source)}, expected {expected}: "
                         "save it in one of these formats") from None  # fmt: skip
    if image.format == "EPS":  # Pillow would start Ghostscript
        image.close()
        raise InputError(f"{name} is an EPS drawing, expected {EXPECTED}: save it in one of these formats")
    try:
        _check_size(image.size, name, most_pixels)
    except InputError:
        image.close()
        raise
    return image


def _hint(source: str | os.PathLike[str] | bytes) -> str:
    """What the file is instead, where its first bytes tell and users commonly stumble over it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        head = bytes(source[:512])
    else:
        with open(source, "rb") as file:
            head = file.read(512)
    if head[4:8] == b"ftyp":
        heif = head[8:12] in (b"heic", b"heix", b"mif1", b"hevc", b"heim", b"heis")
        return " (it is a HEIC photo)" if heif else " (it is a video)"
    if head[:4] == b"%PDF":
        return " (it is a PDF)"
    if b"<svg" in head:
        return " (it is an SVG drawing)"
    return ""


def _check_size(size: tuple[int, int], name: str, most_pixels: int) -> None:
    width, height = size
    if width * height > most_pixels or max(width, height) > MAX_SIDE:
        raise InputError(f"{name} has {width} x {height} pixels, the limit is {most_pixels / 1e6:.3g} megapixels and "
                         f"{MAX_SIDE} on a side: make it smaller first")  # fmt: skip
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name} has only {width} x {height} pixels, expected at least {MIN_SIDE} on each side and a "
                         "face that can be seen: give a larger picture")  # fmt: skip


def _from_array(array: np.ndarray, most_pixels: int) -> np.ndarray:
    shape = array.shape
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise InputError(f"the given array is {array.dtype} of shape {shape}, expected uint8 (H, W, 3) in RGB order, "
                         "values 0..255: convert it")  # fmt: skip
    _check_size((shape[1], shape[0]), "the given array", most_pixels)
    if array.ndim == 2 or shape[2] == 1:
        return np.repeat(array.reshape(shape[0], shape[1], 1), 3, axis=2)
    if shape[2] == 4:
        return np.array(_on_white(Image.fromarray(np.ascontiguousarray(array))))
    return np.array(array, order="C")


def _upright(image: Image.Image) -> Image.Image:
    # Read after decoding: Pillow's TIFF reader turns the picture itself and then removes the tag.
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image, name)
    if image.mode == "LAB":
        return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), _SRGB, outputMode="RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "La":  # premultiplied grey has no direct way to RGBA
            image = image.convert("LA")
        image = _on_white(image.convert("RGBA"))
    return _to_srgb(image, profile)


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 or 32 bits or floating point, to 8 bits. The range says the scale: 0..1, 0..255 or 0..65535."""
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise InputError(f"{name} has values from {low:g} to {high:g}, expected 0..1, 0..255 or 0..65535: "
                         "save it with 8 bits a channel")  # fmt: skip
    if image.mode == "F" and high <= 1:
        values *= 255
    elif image.mode.startswith("I;16") or high > 255:  # an "I" picture up to 255 is an 8-bit one in wide storage
        values /= 257
    return Image.fromarray(np.round(values).astype(np.uint8))


_SRGB = ImageCms.createProfile("sRGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """To RGB through the embedded colour profile, if there is a usable one (Display P3 photos, CMYK prints)."""
    if image.mode != "CMYK":
        image = image.convert("RGB")
    if profile:
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(embedded):
                return ImageCms.profileToProfile(image, embedded, _SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # an unusable profile is the same as none, as in every viewer
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
