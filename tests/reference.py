"""The oracle: DEFINITIONS.md A-H for one field, in plain loops, independent of the package.

Python floats are IEEE float64 and Python ints are exact, so every line means what it says. The
built-in `sum` is never used on floats: since Python 3.12 it compensates for rounding.
Rows are (n, dim), rounded once to float32; codewords float32 (k, dim); weights None are all 1.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float32]  # rows (n, dim) or codewords (k, dim)
SEED_LIMIT = 4096  # codewords that D draws one by one; more come in rounds


class Statistics(NamedTuple):
    """B: what one pass over a field finds."""

    n: int
    minimum: list[float]  # per column
    maximum: list[float]
    exponents: dict[int, int]  # binary exponent of a positive weight -> how often
    distinct: list[int] | None  # first row of each distinct value; None: more than k


class FixedPoint(NamedTuple):
    """B: the exponents of the sums; `t` scales weights, `s[j]` scales weight times column j."""

    bits: int
    b: int
    e_min: int
    t: int
    a: list[int]
    s: list[int]


@dataclass(frozen=True)
class Sample:
    """C: the sampled rows in row order, their weights omega, the threshold, their priorities."""

    index: list[int]
    omega: list[float]
    tau: float
    q: list[float]


class Partial(NamedTuple):
    """B: exact sums (k, dim), weight sums (k,), rows (k,) of the rows seen, per codeword."""

    sums: list[list[int]]
    weight_sums: list[int]
    counts: list[int]


class Fit(NamedTuple):
    """G: what is stored; `counts` are rows per stored codeword in the last fit pass."""

    codewords: Table
    codes: list[int]
    iterations: int
    stopped: str  # "shift", "max_iter" or "distinct"
    counts: list[int]
    without_rows: list[int]  # stored codewords that the last assignment gave no row


def as_rows(rows: Any) -> Table:
    """B: rows rounded once to float32; ValueError if one is then not finite."""
    with np.errstate(over="ignore"):  # an overflow becomes infinity, refused below
        rounded = np.array(rows).astype(np.float32)
    if rounded.ndim != 2:
        raise ValueError(f"rows have shape {rounded.shape}, need (n, dim)")
    if not np.isfinite(rounded).all():
        raise ValueError("a value is not finite after rounding to float32")
    return rounded


def field_weights(weights: Any, n: int) -> list[float]:
    """B: the weights of a whole field as float64, checked; all zero or None: all 1."""
    if weights is None:
        return [1.0] * n
    array = np.asarray(weights).astype(np.float64)
    if array.shape != (n,):
        raise ValueError(f"weights have shape {array.shape}, need ({n},)")
    values: list[float] = array.tolist()
    for w in values:
        if w != 0 and not math.ldexp(1.0, -400) <= w <= math.ldexp(1.0, 400):  # NaN fails too
            raise ValueError(f"weight {w} is neither 0 nor in [2**-400, 2**400]")
    return values if any(w > 0 for w in values) else [1.0] * n


def total(values: Iterable[float]) -> float:
    """Sum in ascending order from 0.0, each addition rounded."""
    s = 0.0
    for value in values:
        s = s + value
    return s


def stream(purpose: str, seed: int, field: str) -> np.random.Philox:
    """A: the bit stream of one purpose, seed and field name."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{field}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def uniform(raw: int) -> float:
    """A: U(r), in [0, 1)."""
    return math.ldexp(float(raw >> 11), -53)


def statistics(rows: Any, weights: Any, k: int) -> Statistics:
    """B: count, range per column, exponents of the weights, distinct rows while at most k."""
    values = as_rows(rows).tolist()
    columns = list(zip(*values, strict=True))
    exponents: dict[int, int] = {}
    for w in field_weights(weights, len(values)):
        if w > 0:
            e = math.frexp(w)[1]
            exponents[e] = exponents.get(e, 0) + 1
    first: dict[tuple[float, ...], int] = {}  # -0.0 and 0.0 are one key
    for i, x in enumerate(values):
        first.setdefault(tuple(x), i)
    distinct = list(first.values()) if len(first) <= k else None
    minimum, maximum = [min(c) for c in columns], [max(c) for c in columns]
    return Statistics(len(values), minimum, maximum, exponents, distinct)


def least_power(p: Fraction) -> int:
    """B, H: the least integer b with 2**b >= p, for p > 0."""
    b = 0
    while Fraction(2) ** b < p:
        b += 1
    while Fraction(2) ** (b - 1) >= p:
        b -= 1
    return b


def fixed_point(
    exponents: Mapping[int, int], minimum: Sequence[float], maximum: Sequence[float]
) -> FixedPoint:
    """B: exponents under which no total of the field overflows; one a column."""
    p = Fraction(0)
    for e, count in exponents.items():
        p += count * Fraction(2) ** e
    b = least_power(p)
    e_min = min(exponents)
    bits = 94 if b - e_min > 38 else 62
    t = bits - b
    a = [
        math.frexp(max(abs(low), abs(high)))[1]  # 0 for a column of zeros
        for low, high in zip(minimum, maximum, strict=True)
    ]
    return FixedPoint(bits, b, e_min, t, a, [t - a_j for a_j in a])


def rint_scaled(value: float, exponent: int) -> int:
    """B, H: rint(ldexp(value, exponent)) as an exact integer, half to even."""
    return round(math.ldexp(value, exponent))


def partial(rows: Any, weights: Any, codes: Sequence[int], k: int, fixed: FixedPoint) -> Partial:
    """B: sums of the given rows; weights as they stand, so that zeros of one part stay zeros."""
    values = as_rows(rows).tolist()
    w = [1.0] * len(values) if weights is None else np.asarray(weights, np.float64).tolist()
    sums = [[0] * len(fixed.s) for _ in range(k)]
    weight_sums = [0] * k
    counts = [0] * k
    for i, x in enumerate(values):
        c = int(codes[i])
        for j, x_j in enumerate(x):
            sums[c][j] += rint_scaled(w[i] * x_j, fixed.s[j])
        weight_sums[c] += rint_scaled(w[i], fixed.t)
        counts[c] += 1
    return Partial(sums, weight_sums, counts)


def sample_size(n: int, k: int) -> int:
    """C: m, the most rows a sample holds."""
    return min(n, max(32 * min(k, SEED_LIMIT), 2 * k))


def priority(w: float, raw: int) -> float:
    """C: q of a row of weight w whose draw is raw."""
    return w / math.ldexp(float(raw >> 11) + 1.0, -53)


def sample(rows: Any, weights: Any, k: int, seed: int, field: str) -> Sample:
    """C: the m rows of greatest priority, ties to the lower row, in row order."""
    n = len(as_rows(rows))
    w = field_weights(weights, n)
    raws = stream("sample", seed, field).random_raw(n)  # the i-th is advance(i // 4), i % 4
    q = [priority(w[i], int(raws[i])) for i in range(n)]
    ranked = sorted((i for i in range(n) if w[i] > 0), key=lambda i: (-q[i], i))
    m = sample_size(n, k)
    tau = q[ranked[m]] if len(ranked) > m else 0.0
    index = sorted(ranked[:m])
    return Sample(index, [max(w[i], tau) for i in index], tau, [q[i] for i in index])


def first_of(drawn: Sample, w: Sequence[float], m: int) -> Sample:
    """C: the m rows of greatest priority of a sample, as a sample of m rows has them."""
    if len(drawn.index) <= m:
        return drawn
    q = dict(zip(drawn.index, drawn.q, strict=True))
    ranked = sorted(q, key=lambda i: (-q[i], i))
    tau, index = q[ranked[m]], sorted(ranked[:m])
    return Sample(index, [max(w[i], tau) for i in index], tau, [q[i] for i in index])


def dist(x: Sequence[float], c: Sequence[float]) -> float:
    """DESIGN.md 1: squared distance in float64, columns ascending, every operation rounded."""
    s = 0.0
    for x_j, c_j in zip(x, c, strict=True):
        t = float(x_j) - float(c_j)
        s = s + t * t
    return s


def seeds(sample: Sample, rows: Any, k: int, seed: int, field: str) -> Table:
    """D: at most k rows of the sample, bit for bit."""
    table = as_rows(rows)
    x = table[sample.index].tolist()
    draws = stream("seed", seed, field)
    chosen: list[int] = []
    p = list(sample.omega)
    least = [math.inf] * len(x)
    while len(chosen) < min(k, SEED_LIMIT):
        cumulative, s = [], 0.0
        for p_i in p:
            s = s + p_i
            cumulative.append(s)
        if s == 0:
            break
        target = uniform(int(draws.random_raw())) * s
        i = 0
        while not cumulative[i] > target:
            i += 1
        chosen.append(i)
        least = [min(old, dist(x_i, x[i])) for old, x_i in zip(least, x, strict=True)]
        p = [omega * nearby for omega, nearby in zip(sample.omega, least, strict=True)]
    rounds = stream("rounds", seed, field)
    while len(chosen) < k and any(p):
        q = [priority(p_i, int(rounds.random_raw())) for p_i in p]
        ranked = sorted((i for i in range(len(x)) if p[i] > 0), key=lambda i: (-q[i], i))
        added = ranked[: min(len(chosen), k - len(chosen))]
        chosen += added
        for i, x_i in enumerate(x):
            least[i] = min([least[i], *(dist(x_i, x[j]) for j in added)])
            p[i] = sample.omega[i] * least[i]
    return table[[sample.index[i] for i in chosen]]


def nearest(row: Sequence[float], codewords: Sequence[Sequence[float]]) -> tuple[int, float]:
    """DESIGN.md 2: the codeword of least distance, ties to the lower index, and that distance."""
    code, least = -1, math.inf
    for c, codeword in enumerate(codewords):
        d = dist(row, codeword)
        if d < least:
            code, least = c, d
    return code, least


def assign(rows: Any, codewords: Any) -> tuple[list[int], list[float]]:
    """DESIGN.md 2: code and distance of every row."""
    words = as_rows(codewords).tolist()
    found = [nearest(x, words) for x in as_rows(rows).tolist()]
    return [code for code, _ in found], [d for _, d in found]


def update(
    codewords: Any,
    partial: Partial,
    fixed: FixedPoint,
    minimum: Sequence[float],
    maximum: Sequence[float],
    sample: Sample,
    rows: Any,
) -> Table:
    """E and F: weighted means within the range of the data, then empty codewords refilled."""
    new, live = moved(codewords, partial, fixed, minimum, maximum)
    return repaired(new, live, sample, as_rows(rows))


def moved(
    codewords: Any,
    partial: Partial,
    fixed: FixedPoint,
    minimum: Sequence[float],
    maximum: Sequence[float],
) -> tuple[Table, list[int]]:
    """E: weighted means within the range of the data, and which codewords have one."""
    new = as_rows(codewords).copy()
    live: list[int] = []
    for c, weight_sum in enumerate(partial.weight_sums):
        if weight_sum == 0:
            continue
        live.append(c)
        for j, a_j in enumerate(fixed.a):
            mean = math.ldexp(float(partial.sums[c][j]) / float(weight_sum), a_j)
            mean = min(max(mean, minimum[j]), maximum[j])
            new[c, j] = np.float32(mean) + np.float32(0)  # no -0.0
    return new, live


def repaired(codewords: Table, used: Sequence[int], sample: Sample, table: Table) -> Table:
    """F: the codewords that are not used refilled, ascending."""
    new, live = codewords.copy(), list(used)
    for c in [c for c in range(len(new)) if c not in live]:
        words = new[live].tolist()
        g = [
            omega * nearest(table[i].tolist(), words)[1]
            for i, omega in zip(sample.index, sample.omega, strict=True)
        ]
        worst = g.index(max(g))  # the first of the greatest: ties to the lower row
        if g[worst] > 0:
            new[c] = table[sample.index[worst]]
            live.append(c)
    return new


def variance(sample: Sample, rows: Any) -> float:
    """G: V, the weighted variance of the sample, mean over columns."""
    x = as_rows(rows)[sample.index].tolist()
    omega_sum = total(sample.omega)
    by_column: list[float] = []
    for column in zip(*x, strict=True):
        pairs = list(zip(sample.omega, column, strict=True))
        m = total(omega * x_i for omega, x_i in pairs) / omega_sum
        by_column.append(total(omega * ((x_i - m) * (x_i - m)) for omega, x_i in pairs))
    return total(by_column) / omega_sum / len(by_column)


def shift(new: Any, old: Any) -> float:
    """G: the squared movement; inner sum over columns, outer over codewords."""
    pairs = zip(as_rows(new).tolist(), as_rows(old).tolist(), strict=True)
    return total(dist(new_c, old_c) for new_c, old_c in pairs)


def bfloat16_from_above(x: float) -> float:
    """codewords.py: the least bfloat16 not below x > 0."""
    unit = max(math.frexp(x)[1] - 8, -133)  # 8 significant bits; the least bfloat16 is 2**-133
    return math.ldexp(float(math.ceil(math.ldexp(x, -unit))), unit)


def int8_codeword(codeword: Sequence[float]) -> tuple[list[int], float]:
    """codewords.py: q and scale of one codeword."""
    greatest = max(abs(c_j) for c_j in codeword)
    if greatest == 0:
        return [0] * len(codeword), 0.0
    scale = bfloat16_from_above(greatest / 127)
    return [round(c_j / scale) for c_j in codeword], scale


def as_stored(codewords: Any, dtype: str) -> Table:
    """codewords.py: what stored codewords decode to; OverflowError beyond float16."""
    table = as_rows(codewords)
    decoded: list[list[float]] = []
    for codeword in table.tolist():
        if dtype == "int8":
            q, scale = int8_codeword(codeword)
            decoded.append([q_j * scale for q_j in q])  # exact: 7 bits times 8
        elif dtype == "float16":
            decoded.append([struct.unpack("<e", struct.pack("<e", c_j))[0] for c_j in codeword])
        else:
            decoded.append(codeword)
    return np.array(decoded, np.float32).reshape(table.shape)


def lloyd(
    table: Table,
    w: Sequence[float],
    codewords: Table,
    found: Statistics,
    drawn: Sample,
    tol: float,
    max_iter: int,
) -> tuple[Table, list[int], int, str]:
    """E to G: codewords, their rows in the last pass, passes, and the rule that ended them."""
    fixed = fixed_point(found.exponents, found.minimum, found.maximum)
    threshold = tol * variance(drawn, table)
    iterations, stopped = 0, "max_iter"
    while stopped == "max_iter" and iterations < max_iter:
        codes, _ = assign(table, codewords)
        sums = partial(table, w, codes, len(codewords), fixed)
        old = codewords
        codewords = update(old, sums, fixed, found.minimum, found.maximum, drawn, table)
        iterations += 1
        if shift(codewords, old) <= threshold:
            stopped = "shift"
    return codewords, sums.counts, iterations, stopped


def fit(
    rows: Any,
    weights: Any,
    k: int,
    seed: int = 0,
    field: str = "x",
    tol: float = 1e-4,
    max_iter: int = 25,
    initial: Any = None,
    codewords_dtype: str = "float32",
) -> Fit:
    """B to G: what is stored for the field; `initial` codewords take the place of D."""
    if k < 1 or max_iter < 1:
        raise ValueError(f"k is {k} and max_iter is {max_iter}; both must be at least 1")
    table = as_rows(rows)
    w = field_weights(weights, len(table))
    found = statistics(table, w, k)
    if found.distinct is not None:
        codewords = as_stored(table[found.distinct], codewords_dtype)
        codes, _ = assign(table, codewords)
        counts = [codes.count(c) for c in range(len(codewords))]
        without_rows = [c for c in range(len(codewords)) if c not in codes]
        return Fit(codewords, codes, 0, "distinct", counts, without_rows)
    drawn = sample(table, w, k, seed, field)
    codewords = seeds(drawn, table, k, seed, field) if initial is None else as_rows(initial)
    moved = lloyd(table, w, codewords, found, drawn, tol, max_iter)
    codewords, counts, iterations, stopped = moved
    order = sorted(range(len(codewords)), key=lambda c: (-counts[c], c))
    codewords = as_stored(codewords[order], codewords_dtype)
    codes, _ = assign(table, codewords)
    without_rows = [c for c in range(len(codewords)) if c not in codes]
    counts = [counts[c] for c in order]
    return Fit(codewords, codes, iterations, stopped, counts, without_rows)


def next_hour(
    rows: Any,
    weights: Any,
    last: Any,
    last_codes: Sequence[int],
    k: int,
    *,
    margin: float,
    max_iter: int,
    field: str,
    codewords_dtype: str,
    seed: int = 0,
    tol: float = 1e-4,
) -> tuple[Table, list[int]]:
    """What an update stores: codewords that go on from the `last` ones, and codes by the margin.

    `last_codes` holds -1 for rows that had none.
    """
    table = as_rows(rows)
    w = field_weights(weights, len(table))
    found = statistics(table, w, k)
    drawn = sample(table, w, k, seed, field)
    words = as_rows(last).tolist()
    counted: list[int] = []
    served: list[float] = []
    for x, before in zip(table.tolist(), last_codes, strict=True):
        code, least = before, dist(x, words[before]) if before >= 0 else math.inf
        if least > nearest(x, words[:32])[1]:
            code, least = nearest(x, words)
        counted.append(code)
        served.append(least)
    begun = np.zeros((max(k, len(last)), table.shape[1]), np.float32)
    begun[: len(last)] = last
    relocate(table, w, drawn, begun, len(last), counted, served)
    fixed = fixed_point(found.exponents, found.minimum, found.maximum)
    sums = partial(table, w, counted, len(begun), fixed)
    codewords, _ = moved(begun, sums, fixed, found.minimum, found.maximum)
    if max_iter:
        codewords, _, _, _ = lloyd(table, w, codewords, found, drawn, tol, max_iter)
    stored = as_stored(codewords, codewords_dtype)
    words = stored.tolist()
    codes: list[int] = []
    for x, before in zip(table.tolist(), last_codes, strict=True):
        code, least = nearest(x, words)
        stays = before >= 0 and dist(x, words[before]) <= (1.0 + margin) * least
        codes.append(before if stays else code)
    return stored, codes


def relocate(
    table: Table,
    w: Sequence[float],
    drawn: Sample,
    codewords: Table,
    before: int,
    codes: list[int],
    served: list[float],
) -> None:
    """clustering/relocation.py: idle codewords begin anew, in place, with the codes of rows."""
    rows = table.tolist()
    mass = [total(w[i] for i, c in enumerate(codes) if c == code) for code in range(before)]
    lightest = sorted(range(before), key=lambda code: (mass[code], code))
    may_move = min(-(-before // 4), 4096, before - 1)
    idle = sorted(lightest[: max(may_move, mass.count(0.0))])
    busy = [code for code in range(before) if code not in idle]
    words = codewords[busy].tolist()
    elsewhere = {i: nearest(rows[i], words) for i, code in enumerate(codes) if code in idle}
    price = {
        code: total(w[i] * (d - served[i]) for i, (_, d) in elsewhere.items() if codes[i] == code)
        for code in idle
    }
    price |= dict.fromkeys(range(before, len(codewords)), 0.0)
    few = first_of(drawn, w, 16 * len(price))
    least = [served[i] for i in few.index]
    anew: list[int] = []
    for code in sorted(price, key=lambda code: (price[code], code)):
        costs = [omega * d for omega, d in zip(few.omega, least, strict=True)]
        worst = costs.index(max(costs))  # the first of the greatest: ties to the lower row
        if costs[worst] == 0.0 or costs[worst] <= 4.0 * price[code]:
            break
        anew.append(code)
        codewords[code] = table[few.index[worst]]
        least = [
            min(d, dist(rows[i], codewords[code].tolist()))
            for i, d in zip(few.index, least, strict=True)
        ]
    for i, (there, d) in elsewhere.items():
        if codes[i] in anew:
            codes[i], served[i] = busy[there], d
    for i, x in enumerate(rows):
        if anew:
            there, d = nearest(x, codewords[anew].tolist())
            if d < served[i]:
                codes[i], served[i] = anew[there], d


def most_central(codewords: Any, uses: Sequence[int]) -> int:
    """codewords.py: the codeword nearest to the mean of the rows as they are served."""
    words = as_rows(codewords).tolist()
    rows = total(float(n) for n in uses)
    means = [
        total(float(n) * c_j for n, c_j in zip(uses, column, strict=True)) / rows
        for column in zip(*words, strict=True)
    ]
    return nearest(np.array(means).astype(np.float32).tolist(), words)[0]


def errors(rows: Any, weights: Any, codewords: Any, codes: Sequence[int]) -> tuple[float, float]:
    """H: `sse` and `weighted_sse`: the float64 nearest to the exact sum of the float64 terms."""
    table, words = as_rows(rows), as_rows(codewords).tolist()
    dists = [dist(x, words[int(codes[i])]) for i, x in enumerate(table.tolist())]
    w = field_weights(weights, len(dists))
    terms = [w_i * d for w_i, d in zip(w, dists, strict=True)]
    return float(sum(map(Fraction, dists))), float(sum(map(Fraction, terms)))


# Budgets: clustering/curves.py and clustering/budget.py.


def curve_point(
    rows: Any, weights: Any, k: int, most: int, seed: int, field: str, dtype: str
) -> tuple[float, list[int]]:
    """Σ f64(w·dist) and rows of each codeword, of k codewords as a curve measures them.

    Three passes over the rows of a coreset from the seeds that `most` codewords begin with. Codes
    are by the codewords before they are stored, distances to them as stored.
    """
    table = as_rows(rows)
    w = field_weights(weights, len(table))
    drawn = sample(table, w, most, seed, field)
    codewords = seeds(drawn, table, k, seed, field)
    moved = lloyd(table, w, codewords, statistics(table, w, 0), drawn, 1e-3, 3)
    codes, _ = assign(table, moved[0])
    counts = [codes.count(c) for c in range(len(moved[0]))]
    return errors(table, w, as_stored(moved[0], dtype), codes)[1], counts


# Codes by error and length: clustering/rules.py.


def assign_by_cost(
    rows: Any, weights: Any, codewords: Any, bits: Sequence[int], bit_price: float
) -> tuple[list[int], list[float]]:
    """Code and distance of every row; weights as they stand, None are all 1.

    The nearest codeword of each level, then the level of least weighted distance and price.
    """
    words = as_rows(codewords).tolist()
    table = as_rows(rows).tolist()
    w = [1.0] * len(table) if weights is None else np.asarray(weights, np.float64).tolist()
    codes, distances = [], []
    for i, x in enumerate(table):
        least = math.inf
        first = 0
        for level, own in enumerate(bits):
            last = level == len(bits) - 1
            bitmaps = level if last else level + 1
            price = bit_price * float(bitmaps + own)
            end = len(words) if last else first + 2**own
            code, d = nearest(x, words[first:end])
            cost = w[i] * d
            cost = cost + price
            if cost < least:
                least, best, distance = cost, first + code, d
            first = end
        codes.append(best)
        distances.append(distance)
    return codes, distances


def constrained(
    rows: Any,
    weights: Any,
    codewords: Any,
    bit_price: float,
    field: str,
    seed: int,
    rounds: int,
    shorter: Callable[[list[int]], Any],
) -> tuple[Table, Any]:
    """Codewords and bits of levels after rounds on all rows of a field.

    `shorter` gives the bits of the levels of so many rows a code, or None for planes.
    """
    table, words = as_rows(rows), as_rows(codewords)
    w = field_weights(weights, len(table))
    found = statistics(table, w, 0)
    fixed = fixed_point(found.exponents, found.minimum, found.maximum)
    drawn = sample(table, w, len(words), seed, field)
    bits = None
    for _ in range(rounds):
        if bits is None:
            codes, _ = assign(table, words)
        else:
            codes, _ = assign_by_cost(table, w, words, bits, bit_price)
        sums = partial(table, w, codes, len(words), fixed)
        moved = update(words, sums, fixed, found.minimum, found.maximum, drawn, table)
        order = sorted(range(len(words)), key=lambda c: (-sums.counts[c], c))
        words = moved[order]
        bits = shorter([sums.counts[c] for c in order])
    return words, bits


Option = tuple[int, float]  # bytes and distortion


def lower_hull(options: Sequence[Option]) -> list[Option]:
    """The options that no other one undercuts and no chord of two others, by bytes."""

    def undercut(one: Option) -> bool:
        return any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in options)

    def chord(low: Option, high: Option, nbytes: int) -> Fraction:
        slope = (Fraction(high[1]) - Fraction(low[1])) / (high[0] - low[0])
        return Fraction(low[1]) + slope * (nbytes - low[0])

    def above_a_chord(one: Option) -> bool:
        return any(
            low[0] < one[0] < high[0] and chord(low, high, one[0]) <= Fraction(one[1])
            for low in options
            for high in options
        )

    return sorted({one for one in options if not undercut(one) and not above_a_chord(one)})


def greedy(hulls: Mapping[str, Sequence[Option]], scales: Mapping[str, float], budget: int) -> Any:
    """Steps along hulls by what a byte spares, ties by name; one too dear ends its hull.

    Returns the place on each hull, and the names whose hull was ended, in that order.
    """
    places = dict.fromkeys(hulls, 0)
    ended: list[str] = []
    while True:
        gains = {}
        for name, hull in hulls.items():
            if name not in ended and places[name] + 1 < len(hull):
                low, high = hull[places[name]], hull[places[name] + 1]
                gains[name] = scales[name] * ((low[1] - high[1]) / (high[0] - low[0]))
        if not gains:
            return places, ended
        name = min(gains, key=lambda one: (-gains[one], one))
        places[name] += 1
        if sum(hulls[one][place][0] for one, place in places.items()) > budget:
            places[name] -= 1
            ended.append(name)


def least_distortion(
    fields: Sequence[Sequence[Option]], scales: Sequence[float], budget: int
) -> float:
    """The least scaled distortion of one option a field, of all combinations within the budget."""
    return min(
        sum(scale * option[1] for scale, option in zip(scales, options, strict=True))
        for options in itertools.product(*fields)
        if sum(option[0] for option in options) <= budget
    )
