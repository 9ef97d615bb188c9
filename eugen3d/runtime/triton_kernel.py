"""The kernel behind `TritonChain`. It imports Triton, so it is itself imported at first use (see `load_kernel`).

A program takes ROWS rows through all steps of a chain. What a step sees is a tuple of tiles (ROWS, TILE) in registers,
since Triton can load a part of a matrix from memory but not cut one out of a tensor that it holds: a width of 130 is
three tiles of 64, a concatenation is the tiles of both, and the products of every degree are tiles of their own. The
loops over steps and tiles are unrolled when the kernel is compiled, for one chain.

A step's matrix lies in blocks (TILE, TILE), input by output, all those of an output tile one after the other; tiles
that are not full are padded with zeros.
"""

from typing import no_type_check

import triton
import triton.language as tl

# Triton reads the source of these functions: they take no run-time type checks.


@triton.jit
@no_type_check
def _project(tiles, weights, vectors, matrix, vector, tile, ROWS: tl.constexpr, TILE: tl.constexpr,
             PRECISION: tl.constexpr, WIDENS: tl.constexpr):  # fmt: skip
    """Tile `tile` of W h + b, (ROWS, TILE) float32, for the matrix and bias at these offsets."""
    columns = tl.arange(0, TILE)
    block = columns[:, None] * TILE + columns[None, :]
    bias = tl.load(vectors + vector + tile * TILE + columns)
    sums = tl.zeros((ROWS, TILE), tl.float32) + bias[None, :]
    for i in tl.static_range(len(tiles)):
        weight = tl.load(weights + matrix + (tile * len(tiles) + i) * TILE * TILE + block)
        if WIDENS:
            sums += tl.dot(tiles[i].to(tl.float32), weight.to(tl.float32), input_precision=PRECISION)
        else:
            sums = tl.dot(tiles[i], weight, sums, input_precision=PRECISION)
    return sums


@triton.jit
@no_type_check
def _norm(tiles, ROWS: tl.constexpr):
    """The Euclidean norm of every row, (ROWS,) float32; a norm that overflows is the largest number, a NaN stays."""
    square = tl.zeros((ROWS,), tl.float32)
    for i in tl.static_range(len(tiles)):
        value = tiles[i].to(tl.float32)
        square += tl.sum(value * value, axis=1)
    norm = tl.sqrt(square)
    return tl.where(norm > 3.4028234663852886e38, 3.4028234663852886e38, norm)


@triton.jit
@no_type_check
def _softplus(u):
    """log(1 + exp(u)); above 20 torch returns the input, too."""
    small = tl.exp(tl.where(u > 20, 20.0, u))
    # log(1 + s), accurate for small s without log1p (Goldberg 1991, theorem 4).
    one_more = 1 + small
    log = tl.where(one_more == 1, small, tl.log(one_more) * (small / (one_more - 1)))
    return tl.where(u > 20, u, log)


@triton.jit
@no_type_check
def _activate(u, ACTIVATION: tl.constexpr):
    """Φ(u) as torch has it; NaN goes through."""
    if ACTIVATION == "relu":
        u = tl.where(u < 0, 0.0, u)
    elif ACTIVATION == "gelu":
        u = 0.5 * u * (1 + tl.erf(u * 0.7071067811865476))
    elif ACTIVATION == "softplus":
        u = _softplus(u)
    elif ACTIVATION == "softplus-100":
        u = _softplus(100 * u) * 0.01
    elif ACTIVATION == "sine":
        u = tl.sin(u)
    return u


@triton.jit
@no_type_check
def _step(tiles, weights, vectors, STEPS: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
          PRECISION: tl.constexpr, WIDENS: tl.constexpr):  # fmt: skip
    """Step number STEP: the tiles of Φ(products(W h + b + ‖F h + f‖ n)) for the tiles of h."""
    columns = tl.arange(0, TILE)
    if STEPS[STEP].norm == "input":
        norm = _norm(tiles, ROWS)
    elif STEPS[STEP].norm == "factor":
        factor = ()
        for i in tl.static_range(tl.constexpr(STEPS[STEP].num_factor_tiles)):
            u = _project(tiles, weights, vectors, STEPS[STEP].factor_matrix, STEPS[STEP].factor_offset, i, ROWS, TILE,
                         PRECISION, WIDENS)  # fmt: skip
            factor = factor + (u,)
        norm = _norm(factor, ROWS)
    projections = ()
    for i in tl.static_range(tl.constexpr(STEPS[STEP].num_projection_tiles)):
        u = _project(tiles, weights, vectors, STEPS[STEP].matrix, STEPS[STEP].bias, i, ROWS, TILE, PRECISION, WIDENS)
        if STEPS[STEP].norm != "none":
            weight = tl.load(vectors + STEPS[STEP].norm_weight + i * TILE + columns)
            u += norm[:, None] * weight[None, :]
        projections = projections + (u,)
    outputs = ()
    for i in tl.static_range(tl.constexpr(len(STEPS[STEP].products))):
        product = projections[STEPS[STEP].products[i][0]]
        for j in tl.static_range(1, tl.constexpr(len(STEPS[STEP].products[i]))):
            product = product * projections[STEPS[STEP].products[i][j]]
        product = _activate(product, tl.constexpr(STEPS[STEP].activation))
        if STEPS[STEP].widths[i] < TILE:  # what is beyond counts in no norm
            product = tl.where((columns < STEPS[STEP].widths[i])[None, :], product, 0.0)
        outputs = outputs + ((product if STEPS[STEP].is_last else product.to(weights.dtype.element_ty)),)
    return outputs


@triton.jit(do_not_specialize=["num_rows"])
@no_type_check
def chain_kernel(x, y, weights, vectors, num_rows, IN_FEATURES: tl.constexpr, OUT_FEATURES: tl.constexpr,
                 STEPS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
                 WIDENS: tl.constexpr):  # fmt: skip
    """Evaluate a chain.

    Args:
        x: rows, (num_rows, IN_FEATURES), contiguous, of any floating point type.
        y: the results, (num_rows, OUT_FEATURES), contiguous, of any floating point type.
        weights: the blocks of all matrices, of the type that products are taken in.
        vectors: biases and norm weights, float32, padded to whole tiles.
        STEPS: a tuple of `KernelStep`.
        ROWS: rows of a program, a power of two from 16.
        TILE: columns of a tile, a power of two from 16.
        PRECISION: `input_precision` of float32 products, "ieee" or "tf32".
        WIDENS: whether operands are cast to float32 first, which changes no product.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, TILE)
    inputs = ()
    for i in tl.static_range((IN_FEATURES + TILE - 1) // TILE):
        column = i * TILE + columns
        inside = (rows < num_rows)[:, None] & (column < IN_FEATURES)[None, :]
        tile = tl.load(x + rows[:, None] * IN_FEATURES + column[None, :], mask=inside, other=0.0)
        inputs = inputs + (tile.to(weights.dtype.element_ty),)
    tiles = inputs
    for s in tl.static_range(len(STEPS)):
        if STEPS[s].concatenates:
            tiles = inputs + tiles
        tiles = _step(tiles, weights, vectors, STEPS, s, ROWS, TILE, PRECISION, WIDENS)
    offset = 0
    for i in tl.static_range(len(tiles)):
        width = STEPS[len(STEPS) - 1].widths[i]
        inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
        tl.store(y + rows[:, None] * OUT_FEATURES + offset + columns[None, :], tiles[i], mask=inside)
        offset += width


IS_INTERPRETED = not isinstance(chain_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs the kernel, on a CPU: TRITON_INTERPRET=1 was set when Triton was imported."""
