"""Loops over arrays that no stock operator does well on a CPU, compiled by numba. Float32 throughout.

They let go of Python's lock, so that several threads run them at once.
"""

from __future__ import annotations

import numba
import numpy as np


def jit(function):
    options = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # nowhere to write: compiled in every process then, ten seconds
        return numba.njit(function, **options)


f4, i4 = np.float32, np.int32


# ------------------------------------------------------------------------------------------------ minimal filtering
#
# `terms` and `factors` (n, k) are a matrix of n rows, of which only k columns a row are not zero: row i of the product
# is the sum over k of factors[i, k] · rows[terms[i, k]].


@jit
def tiles_of(x, first, step, padding, terms, factors, tiles):
    """Transform tiles of x (H, W, C), which begin `step` apart at -padding, into tiles (rows, across, p, p, C).

    first: the row of tiles to begin with. Outside of x is zero. terms, factors: (p, 4).
    """
    height, width, channels = x.shape
    rows, across, products = tiles.shape[:3]
    columns = (across - 1) * step + terms.max() + 1
    half = np.zeros((products, columns, channels), f4)  # transformed in height, for a whole row of tiles
    shown = min(width, columns - padding)
    for r in range(rows):
        top = (first + r) * step - padding
        for i in range(products):
            k = factors[i].copy()
            y = np.empty(4, np.int64)
            for q in range(4):
                y[q] = min(max(top + terms[i, q], 0), height - 1)
                if y[q] != top + terms[i, q]:
                    k[q] = 0
            k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
            a, b, c, d = x[y[0]].reshape(-1), x[y[1]].reshape(-1), x[y[2]].reshape(-1), x[y[3]].reshape(-1)
            out = half[i, padding : padding + shown].reshape(-1)
            for n in range(out.size):
                out[n] = k0 * a[n] + k1 * b[n] + k2 * c[n] + k3 * d[n]
        for t in range(across):
            for i in range(products):
                for j in range(products):
                    k0, k1, k2, k3 = factors[j, 0], factors[j, 1], factors[j, 2], factors[j, 3]
                    a, b = half[i, t * step + terms[j, 0]], half[i, t * step + terms[j, 1]]
                    c, d = half[i, t * step + terms[j, 2]], half[i, t * step + terms[j, 3]]
                    out = tiles[r, t, i, j]
                    for n in range(channels):
                        out[n] = k0 * a[n] + k1 * b[n] + k2 * c[n] + k3 * d[n]


@jit
def outputs_of(products, first, terms, factors, bias, slope, add, out):
    """Transform products (rows, across, p, p, C) into m x m outputs each of out (H, W, C), from tile row `first` on;
    then the bias, `add` (H, W, C) unless it is empty, and a leaky ReLU of `slope`. terms, factors: (m, 5)."""
    height, width, channels = out.shape
    rows, across, count = products.shape[:3]
    size = terms.shape[0]
    half = np.empty((count, size, channels), f4)
    for r in range(rows):
        for t in range(across):
            tile = products[r, t]
            for i in range(count):
                for j in range(size):
                    k0, k1, k2, k3, k4 = factors[j, 0], factors[j, 1], factors[j, 2], factors[j, 3], factors[j, 4]
                    a, b, c = tile[i, terms[j, 0]], tile[i, terms[j, 1]], tile[i, terms[j, 2]]
                    d, e = tile[i, terms[j, 3]], tile[i, terms[j, 4]]
                    x = half[i, j]
                    for n in range(channels):
                        x[n] = k0 * a[n] + k1 * b[n] + k2 * c[n] + k3 * d[n] + k4 * e[n]
            top, left = (first + r) * size, t * size
            for i in range(min(size, height - top)):
                k0, k1, k2, k3, k4 = factors[i, 0], factors[i, 1], factors[i, 2], factors[i, 3], factors[i, 4]
                for j in range(min(size, width - left)):
                    a, b, c = half[terms[i, 0], j], half[terms[i, 1], j], half[terms[i, 2], j]
                    d, e = half[terms[i, 3], j], half[terms[i, 4], j]
                    x = out[top + i, left + j]
                    if add.size:
                        more = add[top + i, left + j]
                        for n in range(channels):
                            z = k0 * a[n] + k1 * b[n] + k2 * c[n] + k3 * d[n] + k4 * e[n] + bias[n] + more[n]
                            x[n] = z if z > 0 else z * slope
                    else:
                        for n in range(channels):
                            z = k0 * a[n] + k1 * b[n] + k2 * c[n] + k3 * d[n] + k4 * e[n] + bias[n]
                            x[n] = z if z > 0 else z * slope


# -------------------------------------------------------------------------------------------------------- attention


@jit
def exp(x):
    """e^x for x of -87 to 88, to a relative 2e-7: a polynomial between halves of a power of two."""
    shifted = f4(x * f4(1.44269504) + f4(12582912))  # so large that its last bits count whole numbers
    power = i4(shifted.view(i4) - i4(0x4B400000))
    n = f4(power)
    r = x - n * f4(0.693359375) + n * f4(2.12194440e-4)
    y = f4(8.3334519073e-3)
    y = y * r + f4(4.1665795894e-2)
    y = y * r + f4(1.6666665459e-1)
    y = y * r + f4(5.0000001201e-1)
    y = y * r + f4(1)
    y = f4(y * r + f4(1))
    return i4(y.view(i4) + i4(power << i4(23))).view(f4)


@jit
def greatest(x):
    """The greatest of x (n,). As whole numbers, which compare alike and, unlike floats, many at once."""
    most = i4(-(2**31))
    for j in range(x.size):
        bits = f4(x[j]).view(i4)
        bits = i4(bits ^ i4((bits >> i4(31)) & i4(0x7FFFFFFF)))
        most = bits if bits > most else most
    return i4(most ^ i4((most >> i4(31)) & i4(0x7FFFFFFF))).view(f4)


@jit
def softened(x):
    """x (n,) replaced by e^(x - its greatest); their sum."""
    most, total = greatest(x), f4(0)
    for j in range(x.size):
        y = exp(max(x[j] - most, f4(-87)))
        x[j] = y
        total += y
    return total


@jit
def logits_of(queries, keys, logits):
    """queries (4, d), keys (d, M) to logits (4, M); d is a multiple of 4."""
    logits[:] = 0
    for g in range(0, keys.shape[0], 4):
        k0, k1, k2, k3 = keys[g], keys[g + 1], keys[g + 2], keys[g + 3]
        q = queries[:, g : g + 4]
        a0, a1, a2, a3 = q[0, 0], q[0, 1], q[0, 2], q[0, 3]
        b0, b1, b2, b3 = q[1, 0], q[1, 1], q[1, 2], q[1, 3]
        c0, c1, c2, c3 = q[2, 0], q[2, 1], q[2, 2], q[2, 3]
        d0, d1, d2, d3 = q[3, 0], q[3, 1], q[3, 2], q[3, 3]
        for j in range(logits.shape[1]):
            w, x, y, z = k0[j], k1[j], k2[j], k3[j]
            logits[0, j] += a0 * w + a1 * x + a2 * y + a3 * z
            logits[1, j] += b0 * w + b1 * x + b2 * y + b3 * z
            logits[2, j] += c0 * w + c1 * x + c2 * y + c3 * z
            logits[3, j] += d0 * w + d1 * x + d2 * y + d3 * z


@jit
def weighed(weights, values, scale, out):
    """weights (4, M), values (d, M) to their products times scale (4,): out (4, d); d is even."""
    for d in range(0, values.shape[0], 2):
        u, v = values[d], values[d + 1]
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = f4(0)
        for j in range(weights.shape[1]):
            w, x, y, z = weights[0, j], weights[1, j], weights[2, j], weights[3, j]
            a0 += w * u[j]
            a1 += x * u[j]
            a2 += y * u[j]
            a3 += z * u[j]
            b0 += w * v[j]
            b1 += x * v[j]
            b2 += y * v[j]
            b3 += z * v[j]
        out[0, d], out[1, d], out[2, d], out[3, d] = a0 * scale[0], a1 * scale[1], a2 * scale[2], a3 * scale[3]
        out[0, d + 1], out[1, d + 1] = b0 * scale[0], b1 * scale[1]
        out[2, d + 1], out[3, d + 1] = b2 * scale[2], b3 * scale[3]


@jit
def attend(queries, keys, values, attended, match):
    """Attention, and the cell of greatest mean weight. queries (h, R, d), scaled; keys and values (h, d, M), d a
    multiple of 4; attended (h, R, d); match (R,) int64. R is a multiple of 4."""
    heads, rows, _ = queries.shape
    weights, scale = np.empty((4, keys.shape[2]), f4), np.empty(4, f4)
    block = 16  # rows whose mean weights are kept meanwhile, in a cache, while a head's keys and values stay there
    mean = np.empty((block, keys.shape[2]), f4)
    for begin in range(0, rows, block):
        count = min(block, rows - begin)
        mean[:] = 0
        for h in range(heads):
            for s in range(0, count, 4):
                r = begin + s
                logits_of(queries[h, r : r + 4], keys[h], weights)
                for i in range(4):
                    scale[i] = 1 / softened(weights[i])
                    of_head, of_all, part = weights[i], mean[s + i], scale[i]
                    for j in range(of_all.size):
                        of_all[j] += part * of_head[j]
                weighed(weights, values[h], scale, attended[h, r : r + 4])
        for i in range(count):
            most, j = greatest(mean[i]), 0
            while mean[i, j] != most:
                j += 1
            match[begin + i] = j


@jit
def attend_in_windows(qkv, order, biases, which, scale, out):
    """Attention inside windows of a map. qkv (N, 3, h, d), queries not scaled yet; order (n, T): the tokens of each
    window; which (n,): its bias, of biases (m, h, T, T), keys before queries; out (N, h, d).

    Whatever is done to a logit is done to all queries of a window at once.
    """
    windows, tokens = order.shape
    _, _, heads, width = qkv.shape
    logits, queries, sums = np.empty((tokens, tokens), f4), np.empty((width, tokens), f4), np.empty((width, tokens), f4)
    most, total = np.empty(tokens, f4), np.empty(tokens, f4)
    for w in range(windows):
        for h in range(heads):
            for i in range(tokens):
                for d in range(width):
                    queries[d, i] = qkv[order[w, i], 0, h, d] * scale
            most[:] = -np.inf
            for j in range(tokens):
                row, bias, key = logits[j], biases[which[w], h, j], qkv[order[w, j], 1, h]
                for d in range(0, width, 4):
                    a, b, c, e = queries[d], queries[d + 1], queries[d + 2], queries[d + 3]
                    k0, k1, k2, k3 = key[d], key[d + 1], key[d + 2], key[d + 3]
                    if d == 0:  # not one loop over what is either: compilers would not know that they are apart
                        for i in range(tokens):
                            row[i] = bias[i] + k0 * a[i] + k1 * b[i] + k2 * c[i] + k3 * e[i]
                    else:
                        for i in range(tokens):
                            row[i] += k0 * a[i] + k1 * b[i] + k2 * c[i] + k3 * e[i]
                for i in range(tokens):
                    x = row[i]
                    most[i] = x if x > most[i] else most[i]
            total[:] = 0
            for j in range(tokens):
                row = logits[j]
                for i in range(tokens):
                    x = exp(max(row[i] - most[i], f4(-87)))
                    row[i] = x
                    total[i] += x
            sums[:] = 0
            for j in range(0, tokens, 4):
                a, b, c, e = logits[j], logits[j + 1], logits[j + 2], logits[j + 3]
                t, u, v, x = (qkv[order[w, j], 2, h], qkv[order[w, j + 1], 2, h], qkv[order[w, j + 2], 2, h],
                              qkv[order[w, j + 3], 2, h])  # fmt: skip
                for d in range(width):
                    of_value, v0, v1, v2, v3 = sums[d], t[d], u[d], v[d], x[d]
                    for i in range(tokens):
                        of_value[i] += v0 * a[i] + v1 * b[i] + v2 * c[i] + v3 * e[i]
            for i in range(tokens):
                total[i] = 1 / total[i]
            for i in range(tokens):
                for d in range(width):
                    out[order[w, i], h, d] = sums[d, i] * total[i]
