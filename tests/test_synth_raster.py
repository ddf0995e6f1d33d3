"""The rasteriser on a handful of triangles (no head pack needed)."""
import numpy as np
import pytest

raster = pytest.importorskip("imtalker.synth.raster", reason="needs the extra imtalker[synth]")

SIZE = 16


def scene(depths, alpha=1.0):
    """Squares that fill the view at the given depths, nearest wins; each its own material with a plain texture."""
    corners = np.float32([[0, 0], [SIZE, 0], [SIZE, SIZE], [0, SIZE]])
    screen = np.concatenate([np.c_[corners, np.full(4, d)] for d in depths]).astype(np.float32)
    quad = np.int32([[0, 3, 1], [1, 3, 2]])                                 # counter-clockwise seen from the camera
    triangles = np.concatenate([quad + 4 * i for i in range(len(depths))])
    corner_uv = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])
    uv = np.concatenate([corner_uv[quad] for _ in depths])
    material = np.repeat(np.arange(len(depths), dtype=np.int32), 2)
    textures = [np.full((8, 8, 4), alpha, np.float32) for _ in depths]
    texels, mips = raster.pack_textures(textures)
    return screen, triangles, uv, np.full(len(triangles), 32, np.float32), material, texels, mips


def rasterise(depths, masked=False, alpha=1.0, flip=False, two_sided=False, coverage=2):
    screen, triangles, uv, area, material, texels, mips = scene(depths, alpha)
    if flip:
        triangles = np.ascontiguousarray(triangles[:, ::-1])
    flags = lambda value: np.full(len(depths), value)
    return raster.rasterise(screen, triangles, uv, area, material, flags(masked), flags(two_sided), texels, mips, SIZE,
                            coverage)


def test_the_nearest_surface_wins_and_nothing_is_left_open():
    depth, ids, bary1, bary2 = rasterise([3, 2, 5])
    assert set(np.unique(ids)) == {2, 3}
    assert np.allclose(depth, 2)
    assert ((bary1 >= 0) & (bary2 >= 0) & (bary1 + bary2 <= 1.0001)).all()


def test_back_faces_are_dropped_unless_the_material_has_two_sides():
    assert (rasterise([2], flip=True)[1] == -1).all()
    assert (rasterise([2], flip=True, two_sided=True)[1] >= 0).all()


@pytest.mark.parametrize("alpha, covered", [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (1.0, 1.0)])
def test_alpha_becomes_coverage_of_samples(alpha, covered):
    ids = rasterise([2], masked=True, alpha=alpha)[1]
    assert np.isclose((ids >= 0).mean(), covered)


def test_surface_map_interpolates_the_template():
    screen, triangles, *_ = scene([2])
    _, ids, bary1, bary2 = rasterise([2])
    template = (screen * [7, -7, 0]).astype(np.float32)                     # grows with x, falls with y
    surface, parts = raster.sample_surface(ids, bary1, bary2, triangles, template, np.uint8([4, 4]), 8)
    centres = (np.arange(8) + 0.5) * SIZE / 8 + 0.5                         # sample behind the centre of a cell
    assert np.abs(surface[..., 0] - 7 * centres).max() <= 1
    assert np.abs(surface[..., 1] + 7 * centres[:, None]).max() <= 1
    assert (parts == 4).all()


def test_develop_keeps_order_and_ends():
    ramp = np.linspace(0, 3, 4000, dtype=np.float32).reshape(1, -1, 1).repeat(3, 2)
    codes = raster.develop(ramp, np.float32(1))[0, :, 0].astype(int)
    assert codes[0] == 0 and codes[-1] >= 250 and (np.diff(codes) >= 0).all()
    assert abs(int(raster.develop(np.full((1, 1, 3), 0.2140, np.float32), np.float32(1))[0, 0, 0]) - 128) <= 1


def test_smaller_mip_levels_keep_colour_where_alpha_is_zero_elsewhere():
    texture = np.zeros((16, 16, 4), np.float32)
    texture[::2, ::2] = [0.5, 0.25, 0.125, 1]
    texels, mips = raster.pack_textures([texture])
    start, width, height = mips[0, 1]
    assert (width, height) == (8, 8)
    assert np.allclose(texels[start:start + 4], [0.5, 0.25, 0.125, 0.25], atol=0.01)
