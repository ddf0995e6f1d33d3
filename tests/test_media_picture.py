"""Any picture becomes upright 8-bit RGB on white, or a one-line error."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from imtalker.errors import InputError
from imtalker.media import load_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners() -> Image.Image:
    """48 x 32: red top left, green top right, blue bottom left, white bottom right."""
    array = np.zeros((32, 48, 3), np.uint8)
    array[:16, :24], array[:16, 24:], array[16:, :24], array[16:, 24:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(array)


def assert_corners(array, tolerance=0):
    assert array.dtype == np.uint8 and array.shape == (32, 48, 3) and array.flags.writeable
    for (y, x), colour in {(4, 4): RED, (4, 44): GREEN, (28, 4): BLUE, (28, 44): WHITE}.items():
        assert np.abs(array[y, x].astype(int) - colour).max() <= tolerance, (y, x, array[y, x])


def error_of(source) -> str:
    with pytest.raises(InputError) as info:
        load_picture(source)
    message = str(info.value)
    assert "\n" not in message and "expected" in message and ": " in message
    return message


NAMES = ["a.png", "a.webp", "a.bmp", "a.tiff", "a.gif", "a.ppm", "ein Bild – schön.png", "a:b %d.png"]


@pytest.mark.parametrize("name", NAMES)
def test_formats_and_names(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    corners().save(tmp_path / name, **options)
    assert_corners(load_picture(tmp_path / name))
    assert_corners(load_picture(str(tmp_path / name)))
    assert_corners(load_picture((tmp_path / name).read_bytes()))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, suffix, orientation):
    turn_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = corners()
    if orientation in turn_back:
        image = image.transpose(turn_back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    assert_corners(load_picture(tmp_path / f"a.{suffix}"), tolerance=20)
    assert_corners(load_picture(Image.open(tmp_path / f"a.{suffix}")), tolerance=20)


def test_alpha_on_white(tmp_path):
    image = corners().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 16, 24, 32))  # the blue corner vanishes
    alpha.paste(51, (24, 0, 48, 16))  # the green one is one fifth there
    image.putalpha(alpha)
    image.save(tmp_path / "a.png")
    array = load_picture(tmp_path / "a.png")
    assert array[28, 4].tolist() == [255, 255, 255]
    assert array[4, 44].tolist() == [204, 255, 204]
    assert array[4, 4].tolist() == list(RED)
    assert (load_picture(np.array(image)) == array).all()

    Image.merge("LA", (Image.new("L", (32, 32), 0), Image.new("L", (32, 32), 51))).save(tmp_path / "la.png")
    assert (load_picture(tmp_path / "la.png") == 204).all()


def test_palette_with_transparency(tmp_path):
    image = corners().quantize(4)
    blue = image.getpixel((4, 28))
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=blue)
        array = load_picture(tmp_path / name)
        assert array[28, 4].tolist() == [255, 255, 255] and array[4, 4].tolist() == list(RED)
    image.save(tmp_path / "alphas.png", transparency=bytes([255] * 4))
    assert_corners(load_picture(tmp_path / "alphas.png"))


def test_rgb_and_grey_with_a_transparent_colour(tmp_path):
    corners().save(tmp_path / "a.png", transparency=BLUE)
    assert load_picture(tmp_path / "a.png")[28, 4].tolist() == [255, 255, 255]
    Image.new("L", (20, 20), 7).save(tmp_path / "l.png", transparency=7)
    assert (load_picture(tmp_path / "l.png") == 255).all()


def test_depths(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    expected = np.round(ramp / 257)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "grey16.png")
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "grey16.tiff")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "int.tiff")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray((ramp / 257).astype(np.float32)).save(tmp_path / "float255.tiff")
    for name in ("grey16.png", "grey16.tiff", "int.tiff", "float.tiff", "float255.tiff"):
        array = load_picture(tmp_path / name)
        assert array.shape == (64, 64, 3)
        assert np.abs(array[..., 1] - expected).max() <= 1, name

    Image.fromarray(ramp > 30000).save(tmp_path / "bits.png")  # mode 1
    assert set(np.unique(load_picture(tmp_path / "bits.png"))) == {0, 255}
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    assert "0..1" in error_of(tmp_path / "nan.tiff")


def test_16_bit_colour_png(tmp_path):
    row = b"\0" + struct.pack(">3H", 65535, 32896, 0) * 32
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * 32)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    assert load_picture(png)[5, 5].tolist() == [255, 128, 0]


def test_cmyk_and_other_modes(tmp_path):
    corners().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    corners().convert("CMYK").save(tmp_path / "a.tiff")
    assert_corners(load_picture(tmp_path / "a.jpg"), tolerance=25)
    assert_corners(load_picture(tmp_path / "a.tiff"))
    for mode in ("YCbCr", "HSV", "RGBX", "RGBa"):
        image = corners().convert("RGBA").convert(mode) if mode == "RGBa" else corners().convert(mode)
        assert_corners(load_picture(image), tolerance=3)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(corners(), to_lab).save(tmp_path / "lab.tiff")
    assert_corners(load_picture(tmp_path / "lab.tiff"), tolerance=30)


def test_colour_profile(tmp_path):
    """A profile other than sRGB is honoured; a broken or unfitting one is ignored."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, profile in {"srgb.png": srgb, "unfitting.png": lab, "broken.png": b"not a profile"}.items():
        corners().save(tmp_path / name, icc_profile=profile)
        assert_corners(load_picture(tmp_path / name))

    # A made-up colour space in which "red" means green, and the other way round
    swapped = srgb.replace("sRGB".encode("utf-16-be"), "GRB ".encode("utf-16-be"))
    red, green = (swapped.index(tag) for tag in (b"rXYZ", b"gXYZ"))
    table = bytearray(swapped)
    table[red : red + 4], table[green : green + 4] = b"gXYZ", b"rXYZ"
    corners().save(tmp_path / "swapped.png", icc_profile=bytes(table))
    corners().quantize(4).save(tmp_path / "palette.png", icc_profile=bytes(table))
    for name in ("swapped.png", "palette.png"):
        array = load_picture(tmp_path / name)
        assert np.abs(array[4, 4].astype(int) - GREEN).max() <= 3
        assert np.abs(array[4, 44].astype(int) - RED).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animation_gives_its_first_frame(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    corners().save(path, save_all=True, append_images=[Image.new("RGB", (48, 32), "black")], duration=100, **options)
    assert_corners(load_picture(path))


def test_arrays():
    array = np.array(corners())
    result = load_picture(array)
    assert_corners(result)
    assert result is not array
    assert_corners(load_picture(array[:, ::-1][:, ::-1]))
    assert load_picture(array[..., 0]).shape == (32, 48, 3)
    for wrong in (array.astype(np.float32), array.transpose(2, 0, 1), array[None]):
        assert "uint8 (H, W, 3)" in error_of(wrong)


def test_bomb_is_refused_from_its_header(tmp_path):
    def png_header(width, height):
        data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
        return start + data + struct.pack(">I", zlib.crc32(data)) + b"\0\0\0\0IDAT" + bytes(4)

    for size in ((9000, 9000), (12000, 12000), (20000, 20000), (60000, 60000)):
        (tmp_path / "bomb.png").write_bytes(png_header(*size))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError, match="64 megapixels"):
                load_picture(tmp_path / "bomb.png")


def test_a_picture_longer_than_opencv_counts_is_refused(tmp_path):
    Image.new("L", (40_000, 16)).save(tmp_path / "long.png")
    with pytest.raises(InputError, match="30000 on a side"):
        load_picture(tmp_path / "long.png")


def test_large_but_allowed(tmp_path):
    Image.new("RGB", (8000, 4000), (1, 2, 3)).save(tmp_path / "large.jpg")
    assert load_picture(tmp_path / "large.jpg").shape == (4000, 8000, 3)


@pytest.mark.parametrize("size", [(1, 1), (15, 200), (200, 3)])
def test_too_small(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "small.png")
    assert "at least 16" in error_of(tmp_path / "small.png")


def test_wrong_files(tmp_path):
    assert "does not exist" in error_of(tmp_path / "nothing.png")
    assert "does not exist" in error_of("https://example.org/face.png")
    assert "is a folder" in error_of(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty" in error_of(tmp_path / "empty.png")
    assert "empty" in error_of(b"")
    (tmp_path / "text.png").write_text("hello, this is no picture\n" * 30)
    assert "text.png" in error_of(tmp_path / "text.png")
    (tmp_path / "two\nlines.png").write_text("hello")
    error_of(tmp_path / "two\nlines.png")
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(500))
    assert "HEIC" in error_of(tmp_path / "photo.jpg")
    (tmp_path / "drawing.svg").write_text('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    assert "SVG" in error_of(tmp_path / "drawing.svg")
    error_of("nul\0byte.png")


def test_eps_does_not_start_ghostscript(tmp_path):
    corners().save(tmp_path / "a.eps")
    assert "EPS" in error_of(tmp_path / "a.eps")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path):
    corners().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert "permissions" in error_of(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff"])
def test_damaged_files(tmp_path, suffix):
    """Cut or overwritten anywhere: an InputError or a picture, never another exception."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, suffix.replace("jpg", "jpeg"))
    data = buffer.getvalue()
    error_of(data[: len(data) // 2])
    for trial in range(40):
        broken = bytearray(data)
        for place in rng.integers(0, len(data) if trial % 2 else 200, 8):
            broken[place] = rng.integers(256)
        try:
            load_picture(bytes(broken))
        except InputError:
            pass
