"""CPU rasteriser: one pass writes a G-buffer (triangle and barycentrics per sample), a second one lights it.

Legend: V vertices, F triangles, S samples per pixel side, H x W pixels. Positions in decimetres, colours linear light,
float32 throughout. Screen x to the right and y down, in samples; depth is the distance in front of the camera.
"""
from __future__ import annotations

import math

import numba
import numpy as np

jit = numba.njit(cache=True, fastmath=True, error_model="numpy")

# Light rows are (direction to the light xyz, colour rgb); row 0 is the key light that casts the shadows.
# Material rows are (diffuse wrap rgb, specular strength, shininess, share of ambient occlusion).


@jit
def vertex_normals(vertices, triangles):
    """Unit normals (V,3) weighted by triangle area."""
    normals = np.zeros_like(vertices)
    for f in range(len(triangles)):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in (a, b, c):
            normals[corner, 0] += nx
            normals[corner, 1] += ny
            normals[corner, 2] += nz
    for v in range(len(normals)):
        x, y, z = normals[v, 0], normals[v, 1], normals[v, 2]
        scale = np.float32(1) / (math.sqrt(x * x + y * y + z * z) + np.float32(1e-12))
        normals[v, 0], normals[v, 1], normals[v, 2] = x * scale, y * scale, z * scale
    return normals


@jit
def _texel(texels, start, width, height, u, v, channel):
    """Bilinear texture lookup, clamped at the borders; u, v in 0..1."""
    x = min(max(u * width - np.float32(0.5), np.float32(0)), np.float32(width) - np.float32(1.001))
    y = min(max(v * height - np.float32(0.5), np.float32(0)), np.float32(height) - np.float32(1.001))
    i, j = int(x), int(y)
    x, y = x - i, y - j
    at = start + (j * width + i) * 4 + channel
    below = at + 4 * width
    top = texels[at] + x * (texels[at + 4] - texels[at])
    return top + y * (texels[below] + x * (texels[below + 4] - texels[below]) - top)


@jit
def _mip(area_screen, area_texture, levels, bias):
    """Mip level whose texels are about as large as the pixels: texture and screen areas in the same triangle."""
    level = np.float32(0.5) * math.log2(max(area_texture, np.float32(1e-6)) / max(area_screen, np.float32(1e-6))) + bias
    return min(max(int(level + np.float32(0.5)), 0), levels - 1)


@jit
def rasterise(screen, triangles, uv, uv_area, material, masked, two_sided, texels, mips, size, coverage):
    """G-buffer of `size` x `size` samples: depth f32, triangle i32 (-1 nothing), barycentrics of corners 1, 2 (f32).

    screen (V,3) x, y, depth; uv (F,3,2); uv_area (F) in texels of level 0; masked, two_sided (materials) bool.
    A masked material covers samples of a pixel in proportion to alpha; `coverage` is S, or 0 for a plain cut at 1/2.
    """
    depth = np.full((size, size), np.float32(1e9))
    ids = np.full((size, size), np.int32(-1))
    bary1 = np.zeros((size, size), np.float32)
    bary2 = np.zeros((size, size), np.float32)
    half, one = np.float32(0.5), np.float32(1)
    for f in range(len(triangles)):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ax, ay, bx, by, cx, cy = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        left, right = max(math.ceil(min(ax, bx, cx) - half), 0), min(math.floor(max(ax, bx, cx) - half), size - 1)
        top, bottom = max(math.ceil(min(ay, by, cy) - half), 0), min(math.floor(max(ay, by, cy) - half), size - 1)
        if left > right or top > bottom:
            continue
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)            # y is down: from outside it is negative
        kind = material[f]
        if abs(area) < 1e-7 or (area > 0 and not two_sided[kind]):
            continue
        inverse = one / area
        wa, wb, wc = one / screen[a, 2], one / screen[b, 2], one / screen[c, 2]
        level = _mip(abs(area) * half, uv_area[f], mips.shape[1], np.float32(0)) if masked[kind] else 0
        start, width, height = mips[kind, level, 0], mips[kind, level, 1], mips[kind, level, 2]
        step1, step2 = (cy - ay) * inverse, (ay - by) * inverse             # change of the barycentrics per sample in x
        for y in range(int(top), int(bottom) + 1):
            py = y + half - ay
            px = int(left) + half - ax
            s1 = (px * (cy - ay) - (cx - ax) * py) * inverse
            s2 = ((bx - ax) * py - px * (by - ay)) * inverse
            for x in range(int(left), int(right) + 1):
                if s1 >= 0 and s2 >= 0 and s1 + s2 <= one:
                    z = one / (wa + s1 * (wb - wa) + s2 * (wc - wa))
                    if z < depth[y, x]:
                        t1, t2 = s1 * wb * z, s2 * wc * z
                        solid = True
                        if masked[kind]:
                            t0 = one - t1 - t2
                            u = t0 * uv[f, 0, 0] + t1 * uv[f, 1, 0] + t2 * uv[f, 2, 0]
                            v = t0 * uv[f, 0, 1] + t1 * uv[f, 1, 1] + t2 * uv[f, 2, 1]
                            threshold = half
                            if coverage:                                    # thresholds stay put from frame to frame
                                count = coverage * coverage
                                order = ((y % coverage) * coverage + x % coverage) * 3 % count if count > 4 else \
                                    (y % 2) * 2 + (x + y) % 2
                                threshold = (order + half) / count
                            solid = _texel(texels, start, width, height, u, v, 3) > threshold
                        if solid:
                            depth[y, x], ids[y, x], bary1[y, x], bary2[y, x] = z, f, t1, t2
                s1 += step1
                s2 += step2
    return depth, ids, bary1, bary2


@jit
def _shadow(shadow, x, y, z, radius):
    """Share 0..1 of the key light that arrives: 9 taps of the shadow map (N,N) over a square of `radius` texels."""
    size, lit, one = shadow.shape[0], np.float32(0), np.float32(1)
    for row in range(3):
        for column in range(3):
            i = int(x + radius * (column - one) * np.float32(0.9))
            j = int(y + radius * (row - one) * np.float32(0.9))
            if i < 0 or j < 0 or i >= size or j >= size:
                lit += one
            else:                                                           # a soft step hides the texels
                lit += min(max((shadow[j, i] - z) * np.float32(25) + np.float32(2), np.float32(0)), one)
    return lit / np.float32(9)


@jit
def shade(depth, ids, bary1, bary2, samples, vertices, normals, visible, screen, triangles, uv, uv_area, material,
          texels, mips, table, lights, sky, ground, eye, shadow, to_shadow, softness, background):
    """Linear colour (H,W,3) of a G-buffer. Samples of one pixel on one smooth surface are lit once.

    visible (V) ambient visibility 0..1; eye (3) camera position; to_shadow (3,4) world to shadow-map texels and depth;
    softness in shadow texels; background (H,W,3) linear.
    """
    height, width, count = ids.shape[0] // samples, ids.shape[1] // samples, samples * samples
    image = np.zeros((height, width, 3), np.float32)
    share = np.float32(1) / count
    half, one, zero = np.float32(0.5), np.float32(1), np.float32(0)
    done = np.zeros(count, np.bool_)
    for row in range(height):
        for column in range(width):
            done[:] = False
            for s in range(count):
                if done[s]:
                    continue
                y, x = row * samples + s // samples, column * samples + s % samples
                f = ids[y, x]
                weight = zero
                if f < 0:
                    for other in range(s, count):
                        if ids[row * samples + other // samples, column * samples + other % samples] < 0:
                            weight += share
                            done[other] = True
                    for channel in range(3):
                        image[row, column, channel] += weight * background[row, column, channel]
                    continue
                kind = material[f]
                for other in range(s, count):
                    oy, ox = row * samples + other // samples, column * samples + other % samples
                    g = ids[oy, ox]
                    if g == f or (g >= 0 and material[g] == kind and abs(depth[oy, ox] - depth[y, x]) < 0.04):
                        weight += share
                        done[other] = True
                a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
                p1, p2 = bary1[y, x], bary2[y, x]
                p0 = one - p1 - p2
                nx = p0 * normals[a, 0] + p1 * normals[b, 0] + p2 * normals[c, 0]
                ny = p0 * normals[a, 1] + p1 * normals[b, 1] + p2 * normals[c, 1]
                nz = p0 * normals[a, 2] + p1 * normals[b, 2] + p2 * normals[c, 2]
                wx = p0 * vertices[a, 0] + p1 * vertices[b, 0] + p2 * vertices[c, 0]
                wy = p0 * vertices[a, 1] + p1 * vertices[b, 1] + p2 * vertices[c, 1]
                wz = p0 * vertices[a, 2] + p1 * vertices[b, 2] + p2 * vertices[c, 2]
                vx, vy, vz = eye[0] - wx, eye[1] - wy, eye[2] - wz
                length = one / math.sqrt(vx * vx + vy * vy + vz * vz)
                vx, vy, vz = vx * length, vy * length, vz * length
                length = one / (math.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-9))
                if nx * vx + ny * vy + nz * vz < 0:                         # the far side of a sheet of hair
                    length = -length
                nx, ny, nz = nx * length, ny * length, nz * length
                open_sky = one - table[kind, 5] * (one - (p0 * visible[a] + p1 * visible[b] + p2 * visible[c]))
                lit = _shadow(shadow,
                              to_shadow[0, 0] * wx + to_shadow[0, 1] * wy + to_shadow[0, 2] * wz + to_shadow[0, 3],
                              to_shadow[1, 0] * wx + to_shadow[1, 1] * wy + to_shadow[1, 2] * wz + to_shadow[1, 3],
                              to_shadow[2, 0] * wx + to_shadow[2, 1] * wy + to_shadow[2, 2] * wz + to_shadow[2, 3],
                              softness)
                up = half + half * ny
                red = open_sky * (ground[0] + (sky[0] - ground[0]) * up)
                green = open_sky * (ground[1] + (sky[1] - ground[1]) * up)
                blue = open_sky * (ground[2] + (sky[2] - ground[2]) * up)
                shine_r, shine_g, shine_b = zero, zero, zero
                for q in range(len(lights)):
                    lx, ly, lz = lights[q, 0], lights[q, 1], lights[q, 2]
                    facing = nx * lx + ny * ly + nz * lz
                    arrives = open_sky * (np.float32(0.06) + np.float32(0.94) * lit) if q == 0 else open_sky
                    red += lights[q, 3] * arrives * max(zero, (facing + table[kind, 0]) / (one + table[kind, 0]))
                    green += lights[q, 4] * arrives * max(zero, (facing + table[kind, 1]) / (one + table[kind, 1]))
                    blue += lights[q, 5] * arrives * max(zero, (facing + table[kind, 2]) / (one + table[kind, 2]))
                    if facing > 0 and table[kind, 3] > 0:                   # Blinn-Phong with Schlick's Fresnel term
                        hx, hy, hz = lx + vx, ly + vy, lz + vz
                        length = one / math.sqrt(hx * hx + hy * hy + hz * hz + np.float32(1e-9))
                        along = max(zero, (nx * hx + ny * hy + nz * hz) * length)
                        grazing = one - min(max((vx * hx + vy * hy + vz * hz) * length, zero), one)
                        fresnel = np.float32(0.04) + np.float32(0.96) * grazing ** 5
                        shine = table[kind, 3] * fresnel * (table[kind, 4] + np.float32(8)) * np.float32(0.25) * \
                            along ** table[kind, 4] * facing * arrives
                        shine_r += lights[q, 3] * shine
                        shine_g += lights[q, 4] * shine
                        shine_b += lights[q, 5] * shine
                u = p0 * uv[f, 0, 0] + p1 * uv[f, 1, 0] + p2 * uv[f, 2, 0]
                v = p0 * uv[f, 0, 1] + p1 * uv[f, 1, 1] + p2 * uv[f, 2, 1]
                area = abs((screen[b, 0] - screen[a, 0]) * (screen[c, 1] - screen[a, 1])
                           - (screen[c, 0] - screen[a, 0]) * (screen[b, 1] - screen[a, 1])) * half / count
                level = _mip(area, uv_area[f], mips.shape[1], np.float32(-0.25))
                start, tw, th = mips[kind, level, 0], mips[kind, level, 1], mips[kind, level, 2]
                image[row, column, 0] += weight * (_texel(texels, start, tw, th, u, v, 0) * red + shine_r)
                image[row, column, 1] += weight * (_texel(texels, start, tw, th, u, v, 1) * green + shine_g)
                image[row, column, 2] += weight * (_texel(texels, start, tw, th, u, v, 2) * blue + shine_b)
    return image


def _tone_curve():
    """sRGB codes (4096) of the squares of 0 .. 2, with the shoulder of `develop`."""
    light = (np.arange(4096) / 2047) ** 2
    light = np.where(light > 0.75, 0.75 + 0.25 * (1 - np.exp(-3 * (light - 0.75))), light)
    codes = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * codes.clip(0, 1)).astype(np.uint8)


_CURVE = _tone_curve()


@jit
def develop(image, exposure):
    """Linear (H,W,3) times exposure -> sRGB uint8, with a soft shoulder above 0.75 instead of clipping."""
    flat = image.ravel()
    out = np.empty(len(flat), np.uint8)
    for i in range(len(flat)):                                              # square root: even steps for the eye
        out[i] = _CURVE[int(min(math.sqrt(max(flat[i] * exposure, np.float32(0))), np.float32(2)) * 2047)]
    return out.reshape(image.shape)


@jit
def sample_surface(ids, bary1, bary2, triangles, template, part_of_triangle, cells):
    """Surface map int8 (C,C,3) and parts uint8 (C,C) at the centres of C x C cells; template (V,3) already scaled."""
    surface = np.zeros((cells, cells, 3), np.int8)
    parts = np.zeros((cells, cells), np.uint8)
    step = ids.shape[0] / cells
    for i in range(cells):
        for j in range(cells):
            y, x = int((i + 0.5) * step), int((j + 0.5) * step)
            f = ids[y, x]
            if f >= 0:
                parts[i, j] = part_of_triangle[f]
                a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
                for k in range(3):
                    value = template[a, k] + bary1[y, x] * (template[b, k] - template[a, k]) \
                        + bary2[y, x] * (template[c, k] - template[a, k])
                    surface[i, j, k] = np.int8(min(max(round(value), -127), 127))
    return surface, parts


def pack_textures(textures, levels=6):
    """RGBA float32 textures -> one flat texel buffer and (textures, levels, 3) int64 rows (offset, width, height)."""
    flat, table, offset = [], np.zeros((len(textures), levels, 3), np.int64), 0
    for i, texture in enumerate(textures):
        for level in range(levels):
            height, width = texture.shape[:2]
            table[i, level] = offset, width, height
            flat.append(texture.ravel())
            offset += texture.size
            if min(height, width) >= 8 and level + 1 < levels:
                texture = _halve(np.ascontiguousarray(texture))
    return np.concatenate(flat), table


@jit
def _halve(texture):
    """Mean of 2 x 2 blocks; colour is weighted by alpha so that cut-out textures keep no dark fringe."""
    height, width = texture.shape[0] // 2, texture.shape[1] // 2
    out = np.empty((height, width, 4), np.float32)
    for y in range(height):
        for x in range(width):
            red = green = blue = alpha = weight = np.float32(0)
            for j in range(2):
                for i in range(2):
                    w = texture[2 * y + j, 2 * x + i, 3]
                    alpha += w
                    w += np.float32(1e-4)
                    weight += w
                    red += w * texture[2 * y + j, 2 * x + i, 0]
                    green += w * texture[2 * y + j, 2 * x + i, 1]
                    blue += w * texture[2 * y + j, 2 * x + i, 2]
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = red / weight, green / weight, blue / weight
            out[y, x, 3] = alpha * np.float32(0.25)
    return out
