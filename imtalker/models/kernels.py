"""Triton kernels for `gpu`, which checks shapes and launches them. Imports triton: only where it is installed.

Sums, exponents and maxima are float32 whatever the inputs are. Exponentials are powers of two, which a GPU computes.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile(at, rows, stride, columns, count, WIDTH: tl.constexpr, WHOLE: tl.constexpr):
    """Rows of a matrix; zeros where there are none. WHOLE: all are there, so that no mask slows the loads."""
    places = at + rows[:, None] * stride + columns[None, :]
    if WHOLE:
        x = tl.load(places)
    else:
        x = tl.load(places, mask=(rows < count)[:, None] & (columns < WIDTH)[None, :], other=0.0)
    return x


@triton.jit
def attend(q, k, v, out, sums, rows, cells, heads, q_s, q_h, q_r, k_s, k_h, k_n, v_s, v_h, v_n, o_s, o_h, o_r,
           WIDTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, CELLS: tl.constexpr, WHOLE: tl.constexpr):
    """Attention of ROWS rows of one head, and the binary logarithm of the sum of its weights, (S, h, R)."""
    row, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    pair = tl.program_id(1)
    s, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    queries = tile(q + s * q_s + h * q_h, row, q_r, c, rows, WIDTH, False)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    attended = tl.zeros((ROWS, D), tl.float32)
    for begin in range(0, cells, CELLS):
        n = begin + tl.arange(0, CELLS)
        keys = tile(k + s * k_s + h * k_h, n, k_n, c, cells, WIDTH, WHOLE)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        if not WHOLE:
            logits = tl.where((n < cells)[None, :], logits, float("-inf"))
        before, top = top, tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits * LOG2E - (top * LOG2E)[:, None])
        shrink = tl.exp2((before - top) * LOG2E)
        total = total * shrink + tl.sum(weights, 1)
        values = tile(v + s * v_s + h * v_h, n, v_n, c, cells, WIDTH, WHOLE)
        attended = attended * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    there = row < rows
    attended = (attended / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + s * o_s + h * o_h + row[:, None] * o_r + c[None, :], attended,
             mask=there[:, None] & (c < WIDTH)[None, :])
    tl.store(sums + pair.to(tl.int64) * rows + row, top * LOG2E + tl.log2(total), mask=there)


@triton.jit
def match(q, k, sums, out, rows, cells, q_s, q_h, q_r, k_s, k_h, k_n, HEADS: tl.constexpr, WIDTH: tl.constexpr,
          D: tl.constexpr, ROWS: tl.constexpr, CELLS: tl.constexpr, WHOLE: tl.constexpr):
    """The cell of the greatest weight, summed over heads, of ROWS rows; the first of equal ones."""
    row, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    s = tl.program_id(1).to(tl.int64)
    there = row < rows
    best = tl.full((ROWS,), -1.0, tl.float32)
    cell = tl.zeros((ROWS,), tl.int32)
    for begin in range(0, cells, CELLS):
        n = begin + tl.arange(0, CELLS)
        weights = tl.zeros((ROWS, CELLS), tl.float32)
        for h in tl.static_range(HEADS):
            queries = tile(q + s * q_s + h * q_h, row, q_r, c, rows, WIDTH, False)
            keys = tile(k + s * k_s + h * k_h, n, k_n, c, cells, WIDTH, WHOLE)
            total = tl.load(sums + (s * HEADS + h) * rows + row, mask=there, other=0.0)
            logits = tl.dot(queries, tl.trans(keys), input_precision="ieee")
            weights += tl.exp2(logits * LOG2E - total[:, None])
        if not WHOLE:
            weights = tl.where((n < cells)[None, :], weights, -1.0)
        top, column = tl.max(weights, 1, return_indices=True)
        cell = tl.where(top > best, begin + column, cell)
        best = tl.maximum(top, best)
    tl.store(out + s * rows + row, cell.to(tl.int64), mask=there)


@triton.jit
def attend_in_windows(qkv, order, biases, which, out, batch, tokens, scale, b_m, b_h, b_k, b_q, HEADS: tl.constexpr,
                      WIDTH: tl.constexpr, D: tl.constexpr, T: tl.constexpr, IMAGES: tl.constexpr):
    """One head of one window of IMAGES images: its bias is read once."""
    place = tl.program_id(0)
    w, h = place // HEADS, place % HEADS
    t, c = tl.arange(0, T), tl.arange(0, D)
    cells = tl.load(order + w * T + t)
    bias = tl.load(biases + tl.load(which + w) * b_m + h * b_h + t[:, None] * b_q + t[None, :] * b_k)
    bias = bias.to(tl.float32) * LOG2E
    mask = (t < T)[:, None] & (c < WIDTH)[None, :]
    first = tl.program_id(1) * IMAGES
    for b in range(first, tl.minimum(first + IMAGES, batch)):
        at = (tokens * b + cells)[:, None] * (3 * HEADS * WIDTH) + h * WIDTH + c[None, :]
        queries = tl.load(qkv + at, mask=mask, other=0.0)
        keys = tl.load(qkv + at + HEADS * WIDTH, mask=mask, other=0.0)
        values = tl.load(qkv + at + 2 * HEADS * WIDTH, mask=mask, other=0.0)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * LOG2E) + bias
        weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
        attended = tl.dot(weights.to(values.dtype), values, input_precision="ieee") / tl.sum(weights, 1)[:, None]
        to = (tokens * b + cells)[:, None] * (HEADS * WIDTH) + h * WIDTH + c[None, :]
        tl.store(out + to, attended.to(out.dtype.element_ty), mask=mask)


@triton.jit
def blur(x, gain, bias, out, pixels, height, width, out_height, out_width, padding, share, slope,
         CHANNELS: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """[1, 3, 3, 1] in both directions, times `share`; then what `activate` does. Maps are (B, H, W, C)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = (pixel < pixels)[:, None] & (c < CHANNELS)[None, :]
    image, column = pixel // (out_height * out_width), pixel % out_width - padding
    row = pixel // out_width % out_height - padding
    made = tl.zeros((PIXELS, BLOCK), tl.float32)
    for i in tl.static_range(4):
        for j in tl.static_range(4):
            inside = (row + i >= 0) & (row + i < height) & (column + j >= 0) & (column + j < width)
            at = ((image * height + row + i) * width + column + j).to(tl.int64) * CHANNELS
            tap = tl.load(x + at[:, None] + c[None, :], mask=there & inside[:, None], other=0.0)
            made += tap.to(tl.float32) * ((1.0 if i % 3 == 0 else 3.0) * (1.0 if j % 3 == 0 else 3.0))
    made *= share
    if gain is not None:
        made *= tl.load(gain + (image * CHANNELS)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
    if bias is not None:
        made += tl.load(bias + c, mask=c < CHANNELS, other=0.0).to(tl.float32)[None, :]
    made = tl.where(made < 0, made * slope, made)
    to = pixel.to(tl.int64)[:, None] * CHANNELS + c[None, :]
    tl.store(out + to, made.to(out.dtype.element_ty), mask=there)


@triton.jit
def activate(x, gain, bias, add, out, count, area, slope, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """leaky_relu(x * gain + bias + add); maps are (B, H, W, C), gain (B, C), bias (C,). area: numbers of one image."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there, c = at < count, at % CHANNELS
    made = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    if gain is not None:
        made *= tl.load(gain + at // area * CHANNELS + c, mask=there, other=0.0).to(tl.float32)
    if bias is not None:
        made += tl.load(bias + c, mask=there, other=0.0).to(tl.float32)
    if add is not None:
        made += tl.load(add + at, mask=there, other=0.0).to(tl.float32)
    made = tl.where(made < 0, made * slope, made)
    tl.store(out + at, made.to(out.dtype.element_ty), mask=there)
