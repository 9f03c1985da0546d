"""Triton kernels of `nbtune_kernels.attention`, where their arithmetic is written down: a program takes some rows."""

from nbtune_kernels._runtime import jit, tl


@jit
def _tanh(x, APPROX: tl.constexpr):
    if APPROX:  # one instruction, to 11 bits: more than bf16 has
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )  # fmt: skip
    else:
        return 2 * tl.sigmoid(2 * x) - 1


@jit
def _bend(t, inner, outer, CAP: tl.constexpr, APPROX: tl.constexpr):
    """Return scores in units of log 2, and how steep the cap is there."""
    if CAP:
        th = _tanh(t * inner, APPROX)
        return th * outer, 1 - th * th
    else:
        return t * outer, 1.0


@jit
def _scores(
    rows, columns, i, j, inner, outer, slope,
    CAP: tl.constexpr, SLOPES: tl.constexpr, APPROX: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return scores of each of `rows` with each of `columns`, of queries `i` and keys `j`, as `_bend` gives them."""
    s, steep = _bend(tl.dot(rows, tl.trans(columns), input_precision=PRECISION), inner, outer, CAP, APPROX)
    if SLOPES:
        s -= slope * (i - j)
    return s, steep


@jit
def _seen(i, j, length, window, WINDOW: tl.constexpr):
    keep = (i >= j) & (j < length)
    if WINDOW:
        keep &= i - j < window
    return keep


@jit
def _tile(ptr, row, token, d, length, D: tl.constexpr, BD: tl.constexpr):
    """Load rows of one head, `[rows, BD]`; what is outside is 0."""
    keep = (row < length)[:, None]
    if D != BD:
        keep = keep & (d < D)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * token + d[None, :], keep, other=0.0)


@jit
def _put(ptr, row, token, d, length, value, D: tl.constexpr, BD: tl.constexpr):
    keep = (row < length)[:, None]
    if D != BD:
        keep = keep & (d < D)[None, :]
    tl.store(ptr + row.to(tl.int64)[:, None] * token + d[None, :], value.to(ptr.dtype.element_ty), keep)


@jit
def _forward_blocks(
    acc, total, top, q, k_ptr, v_ptr, k_token, v_token, i, d, lo, hi, length, window, inner, outer, slope,
    MASK: tl.constexpr, CAP: tl.constexpr, SLOPES: tl.constexpr, WINDOW: tl.constexpr, APPROX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for start in range(lo, hi, BN):
        j = start + tl.arange(0, BN)
        k = _tile(k_ptr, j, k_token, d, length, D, BD)
        s, _steep = _scores(q, k, i[:, None], j[None, :], inner, outer, slope, CAP, SLOPES, APPROX, PRECISION)
        if MASK:
            s = tl.where(_seen(i[:, None], j[None, :], length, window, WINDOW), s, -1.0e30)
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        less = tl.exp2(top - new)
        total = total * less + tl.sum(p, 1)
        v = _tile(v_ptr, j, v_token, d, length, D, BD)
        acc = tl.dot(p.to(v.dtype), v, acc * less[:, None], input_precision=PRECISION)
        top = new
    return acc, total, top


@jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, cu_ptr, slopes_ptr, q_token, q_head, k_token, k_head, v_token, v_head, o_token,
    n_tokens, window, inner, outer,
    GROUP: tl.constexpr, CAP: tl.constexpr, SLOPES: tl.constexpr, WINDOW: tl.constexpr, APPROX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.load(cu_ptr + tl.program_id(1)).to(tl.int64)
    length = (tl.load(cu_ptr + tl.program_id(1) + 1) - first).to(tl.int32)
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM  # the longest first
    if start >= length:
        return
    head = tl.program_id(2)
    d = tl.arange(0, BD)
    i = start + tl.arange(0, BM)
    q = _tile(q_ptr + first * q_token + head * q_head, i, q_token, d, length, D, BD)
    k_at = k_ptr + first * k_token + (head // GROUP) * k_head
    v_at = v_ptr + first * v_token + (head // GROUP) * v_head
    slope = tl.load(slopes_ptr + head) * 1.4426950408889634 if SLOPES else 0.0
    acc = tl.zeros((BM, BD), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    top = tl.full((BM,), -1.0e30, tl.float32)
    lo = 0
    hi = tl.minimum(start + BM, length)
    whole = start // BN * BN  # every row sees all before it
    if WINDOW:
        lo = tl.maximum(0, start - window + 1) // BN * BN
        whole = lo
    else:
        acc, total, top = _forward_blocks(
            acc, total, top, q, k_at, v_at, k_token, v_token, i, d, lo, whole, length, window, inner, outer, slope,
            False, CAP, SLOPES, WINDOW, APPROX, D, BD, BN, PRECISION,
        )  # fmt: skip
    acc, total, top = _forward_blocks(
        acc, total, top, q, k_at, v_at, k_token, v_token, i, d, whole, hi, length, window, inner, outer, slope,
        True, CAP, SLOPES, WINDOW, APPROX, D, BD, BN, PRECISION,
    )  # fmt: skip
    _put(o_ptr + first * o_token + head * D, i, o_token, d, length, acc / total[:, None], D, BD)
    tl.store(lse_ptr + head * n_tokens + first + i, top + tl.log2(total), i < length)


@jit
def delta_kernel(
    o_ptr, do_ptr, delta_ptr, o_token, d_token, d_head, n_tokens, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr
):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1)
    d = tl.arange(0, BD)
    o = _tile(o_ptr + head * D, i, o_token, d, n_tokens, D, BD).to(tl.float32)
    do = _tile(do_ptr + head * d_head, i, d_token, d, n_tokens, D, BD).to(tl.float32)
    tl.store(delta_ptr + head.to(tl.int64) * n_tokens + i, tl.sum(o * do, 1), i < n_tokens)


@jit
def _keys_blocks(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, q_token, d_token, j, d, lo, hi, length, window, inner, outer,
    slope,
    MASK: tl.constexpr, CAP: tl.constexpr, SLOPES: tl.constexpr, WINDOW: tl.constexpr, APPROX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr, WANT_DK: tl.constexpr,
    WANT_DV: tl.constexpr,
):  # fmt: skip
    for start in range(lo, hi, BM):
        i = start + tl.arange(0, BM)
        q = _tile(q_ptr, i, q_token, d, length, D, BD)
        lse = tl.load(lse_ptr + i, i < length, other=1.0e30)
        s, steep = _scores(k, q, i[None, :], j[:, None], inner, outer, slope, CAP, SLOPES, APPROX, PRECISION)
        p = tl.exp2(s - lse[None, :])
        if MASK:
            p = tl.where(_seen(i[None, :], j[:, None], length, window, WINDOW), p, 0.0)
        do = _tile(do_ptr, i, d_token, d, length, D, BD)
        if WANT_DV:
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        if WANT_DK:
            delta = tl.load(delta_ptr + i, i < length, other=0.0)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            dt = p * (dp - delta[None, :]) * steep
            dk = tl.dot(dt.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@jit
def keys_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, cu_ptr, slopes_ptr, q_token, q_head, k_token,
    k_head, v_token, v_head, d_token, d_head, o_token, n_tokens, window, inner, outer, scale,
    GROUP: tl.constexpr, CAP: tl.constexpr, SLOPES: tl.constexpr, WINDOW: tl.constexpr, APPROX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
    WANT_DK: tl.constexpr, WANT_DV: tl.constexpr,
):  # fmt: skip
    first = tl.load(cu_ptr + tl.program_id(1)).to(tl.int64)
    length = (tl.load(cu_ptr + tl.program_id(1) + 1) - first).to(tl.int32)
    start = tl.program_id(0) * BN
    if start >= length:
        return
    kv_head = tl.program_id(2)
    d = tl.arange(0, BD)
    j = start + tl.arange(0, BN)
    k = _tile(k_ptr + first * k_token + kv_head * k_head, j, k_token, d, length, D, BD)
    v = _tile(v_ptr + first * v_token + kv_head * v_head, j, v_token, d, length, D, BD) if WANT_DK else k
    dk = tl.zeros((BN, BD), tl.float32)
    dv = tl.zeros((BN, BD), tl.float32)
    lo = start // BM * BM
    hi = length
    if WINDOW:
        hi = tl.minimum(length, start + BN + window - 1)
        whole = hi
    else:
        whole = tl.minimum((start + BN + BM - 2) // BM * BM, length)  # from here on every row sees all of the block
    for g in range(GROUP):
        head = kv_head * GROUP + g
        q_at = q_ptr + first * q_token + head * q_head
        do_at = do_ptr + first * d_token + head * d_head
        at = head.to(tl.int64) * n_tokens + first
        slope = tl.load(slopes_ptr + head) * 1.4426950408889634 if SLOPES else 0.0
        dk, dv = _keys_blocks(
            dk, dv, k, v, q_at, do_at, lse_ptr + at, delta_ptr + at, q_token, d_token, j, d, lo, whole, length, window,
            inner, outer, slope, True, CAP, SLOPES, WINDOW, APPROX, D, BD, BM, PRECISION, WANT_DK, WANT_DV,
        )  # fmt: skip
        if not WINDOW:
            dk, dv = _keys_blocks(
                dk, dv, k, v, q_at, do_at, lse_ptr + at, delta_ptr + at, q_token, d_token, j, d, whole, hi, length,
                window, inner, outer, slope, False, CAP, SLOPES, WINDOW, APPROX, D, BD, BM, PRECISION, WANT_DK, WANT_DV,
            )  # fmt: skip
    out = first * o_token + kv_head * D
    if WANT_DK:
        _put(dk_ptr + out, j, o_token, d, length, dk * scale, D, BD)
    if WANT_DV:
        _put(dv_ptr + out, j, o_token, d, length, dv, D, BD)


@jit
def _queries_blocks(
    dq, q, do, lse, delta, k_ptr, v_ptr, k_token, v_token, i, d, lo, hi, length, window, inner, outer, slope,
    MASK: tl.constexpr, CAP: tl.constexpr, SLOPES: tl.constexpr, WINDOW: tl.constexpr, APPROX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for start in range(lo, hi, BN):
        j = start + tl.arange(0, BN)
        k = _tile(k_ptr, j, k_token, d, length, D, BD)
        v = _tile(v_ptr, j, v_token, d, length, D, BD)
        s, steep = _scores(q, k, i[:, None], j[None, :], inner, outer, slope, CAP, SLOPES, APPROX, PRECISION)
        p = tl.exp2(s - lse[:, None])
        if MASK:
            p = tl.where(_seen(i[:, None], j[None, :], length, window, WINDOW), p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        dt = p * (dp - delta[:, None]) * steep
        dq = tl.dot(dt.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@jit
def queries_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, cu_ptr, slopes_ptr, q_token, q_head, k_token, k_head,
    v_token, v_head, d_token, d_head, o_token, n_tokens, window, inner, outer, scale,
    GROUP: tl.constexpr, CAP: tl.constexpr, SLOPES: tl.constexpr, WINDOW: tl.constexpr, APPROX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.load(cu_ptr + tl.program_id(1)).to(tl.int64)
    length = (tl.load(cu_ptr + tl.program_id(1) + 1) - first).to(tl.int32)
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    if start >= length:
        return
    head = tl.program_id(2)
    d = tl.arange(0, BD)
    i = start + tl.arange(0, BM)
    q = _tile(q_ptr + first * q_token + head * q_head, i, q_token, d, length, D, BD)
    do = _tile(do_ptr + first * d_token + head * d_head, i, d_token, d, length, D, BD)
    at = head.to(tl.int64) * n_tokens + first + i
    lse = tl.load(lse_ptr + at, i < length, other=1.0e30)
    delta = tl.load(delta_ptr + at, i < length, other=0.0)
    k_at = k_ptr + first * k_token + (head // GROUP) * k_head
    v_at = v_ptr + first * v_token + (head // GROUP) * v_head
    slope = tl.load(slopes_ptr + head) * 1.4426950408889634 if SLOPES else 0.0
    dq = tl.zeros((BM, BD), tl.float32)
    lo = 0
    hi = tl.minimum(start + BM, length)
    whole = start // BN * BN
    if WINDOW:
        lo = tl.maximum(0, start - window + 1) // BN * BN
        whole = lo
    else:
        dq = _queries_blocks(
            dq, q, do, lse, delta, k_at, v_at, k_token, v_token, i, d, lo, whole, length, window, inner, outer, slope,
            False, CAP, SLOPES, WINDOW, APPROX, D, BD, BN, PRECISION,
        )  # fmt: skip
    dq = _queries_blocks(
        dq, q, do, lse, delta, k_at, v_at, k_token, v_token, i, d, whole, hi, length, window, inner, outer, slope,
        True, CAP, SLOPES, WINDOW, APPROX, D, BD, BN, PRECISION,
    )  # fmt: skip
    _put(dq_ptr + first * o_token + head * D, i, o_token, d, length, dq * scale, D, BD)
