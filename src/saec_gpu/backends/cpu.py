"""The CPU backend: threads that take tiles of every field from one list."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.checks import (
    check_codes,
    check_codewords,
    check_columns,
    check_threads,
    check_weights,
)
from saec_gpu.backends.cpu_changes import Sums, run_changes
from saec_gpu.backends.cpu_filter import GROUP, LEADS, PANEL, WORST, bound_factor
from saec_gpu.backends.cpu_first_pass import (
    FirstForm,
    FirstForms,
    first_form,
    is_worth,
    laid_out,
    pays,
    pays_for,
    run_first_pass,
    scratch,
)
from saec_gpu.backends.cpu_kept import Bounds, Frame, KeptRows, KeptStore
from saec_gpu.backends.cpu_layout import aligned, in_panels, panels_of, rows_of_panels
from saec_gpu.backends.cpu_tiles import (
    EVERY,
    SLOT_CODEWORDS,
    SLOT_COLUMNS,
    SLOT_DIM,
    SLOT_FIELDS,
    SLOT_PANEL,
    SLOT_SCORES,
    SLOT_WIDE,
    SLOT_WORDS,
    TILE_BOUNDS,
    TILE_COLUMNS,
    TILE_ROWS,
    TILE_SLOT,
    run_tiles,
)
from saec_gpu.backends.filter_frame import filter_frame, repeated_codewords
from saec_gpu.backends.host_store import HostStore
from saec_gpu.backends.protocol import Assignment, StorePlan
from saec_gpu.backends.simd import ROW_LANES
from saec_gpu.data import Chunk, Codebook, Float32, Int64, Partial, carry
from saec_gpu.layout import Segment

SHARE_OF_MEMORY = 0.5  # of what is free now; the rest is left to the caller
CARRY_ROWS = 2**30  # a low limb is below 2³² a row, so int64 holds twice as many rows


@dataclass(eq=False)
class _Accumulators:
    """One thread's sums of all slots: its own, so without locks; integers, so any split adds up."""

    sums: Int64
    sums_low: Int64
    weight_sums: Int64
    weight_sums_low: Int64
    counts: Int64
    rechecked: Int64
    looked_at: Int64

    def carry(self) -> None:
        """Bring the low limbs below 2³² again."""
        for high, low in (
            (self.sums, self.sums_low),
            (self.weight_sums, self.weight_sums_low),
        ):
            high[: len(low)], low[:] = carry(high[: len(low)], low)


@dataclass(frozen=True, eq=False)
class _Bounds:
    """Bounds that a pass uses and renews.

    `places` tells of a segment its first bound, its panels, its first drift, and whether all hold;
    `orders` how codewords of a slot stand in panels; `slow` are fields for which the first pass
    left too much to do.
    """

    bounds: Float32
    drifts: Float32
    places: Mapping[Segment, tuple[int, int, int, bool]]
    orders: Mapping[int, Int64]
    slow: Collection[str]


NO_BOUNDS = _Bounds(np.zeros(0, np.float32), np.zeros(0, np.float32), {}, {}, ())
NOWHERE = (-1, 0, 0, False)


@dataclass(frozen=True, eq=False)
class _Former:
    """Codes of the last pass, and of which slots only what has changed since is to be added."""

    codes: NDArray[np.uint32]
    slots: Sequence[int]


NO_FORMER = _Former(np.zeros(0, np.uint32), ())


@dataclass(eq=False)
class CpuCodebooks:
    """Codebooks as the kernels read them, one slot a field, and each thread's accumulators."""

    slot_of: dict[str, int]
    codebooks: tuple[Codebook, ...]
    slots: Int64
    factors: Float32
    panels: Float32
    scores: Float32
    order: Int64
    centres: Float32
    words: Float32
    first: FirstForms
    column_scales: NDArray[np.float64]
    weight_scales: NDArray[np.float64]
    threads: list[_Accumulators] = field(default_factory=list)
    rows_since_carry: int = 0

    @property
    def any_wide(self) -> bool:
        """Return whether any slot sums in two limbs."""
        return bool(self.slots[:, SLOT_WIDE].any())

    def frame(self, number: int) -> Frame:
        """Return one slot's codewords as the filter sees them."""
        column, dim = (int(n) for n in self.slots[number, [SLOT_COLUMNS, SLOT_DIM]])
        return Frame(
            self.codebooks[number].codewords,
            self.factors[number, 0],
            self.centres[column : column + dim],
        )

    def repeated(self, number: int) -> bool:
        """Return whether a codeword of one slot equals an earlier one."""
        _, scores = self.parts(number)
        return bool((self.scores[scores] == WORST).any())

    def reordered(
        self, orders: Mapping[int, Int64], forms: FirstForms
    ) -> tuple[Float32, Float32, Int64, Int64, FirstForms]:
        """Return panels, scores, order, its inverse and forms, with some slots in an order."""
        if not orders:
            return self.panels, self.scores, self.order, self.order, forms
        panels, scores = aligned(len(self.panels), np.float32), self.scores.copy()
        panels[:] = self.panels
        order, place = self.order.copy(), self.order.copy()
        pairs, biases = aligned(len(forms.pairs), np.int16), forms.biases.copy()
        pairs[:] = forms.pairs
        for number, own_order in orders.items():
            dim, n_codewords, panel, score = (
                int(n)
                for n in self.slots[number, [SLOT_DIM, SLOT_CODEWORDS, SLOT_PANEL, SLOT_SCORES]]
            )
            own = slice(score, score + n_codewords)
            _reorder(panels, panel, dim, own_order)
            scores[own] = self.scores[own][own_order]
            order[own] = own_order
            place[own] = np.argsort(own_order)
            if forms.places[number] >= 0:
                _reorder(pairs, int(forms.places[number]), (dim + 1) // 2, own_order)
                biases[own] = biases[own][own_order]
        return panels, scores, order, place, forms._replace(pairs=pairs, biases=biases)

    def first_forms(self, slow: Collection[str]) -> FirstForms:
        """Return what the first pass reads, without some fields."""
        places = self.first.places.copy()
        places[[self.slot_of[name] for name in slow if name in self.slot_of]] = -1
        return self.first._replace(places=places)

    def slow_fields(self) -> list[str]:
        """Return the fields for which the first pass left too much to do."""
        looked_at = np.sum([thread.looked_at for thread in self.threads], axis=0)
        return [
            name
            for name, slot in self.slot_of.items()
            if not is_worth(
                looked_at[slot, 0], looked_at[slot, 1], self.slots[slot, SLOT_CODEWORDS]
            )
        ]

    def totals(self) -> tuple[Int64, Int64, Int64]:
        """Return sums, weight sums and counts of all slots and threads, in one limb."""
        threads = self.accumulators(1)
        return (
            np.sum([thread.sums for thread in threads], axis=0),
            np.sum([thread.weight_sums for thread in threads], axis=0),
            np.sum([thread.counts for thread in threads], axis=0),
        )

    def parts(self, number: int) -> tuple[slice, slice]:
        """Return where one slot's sums stand, and its weight sums, counts and scores."""
        dim, n_codewords, score, word = (
            int(n) for n in self.slots[number, [SLOT_DIM, SLOT_CODEWORDS, SLOT_SCORES, SLOT_WORDS]]
        )
        return slice(word, word + n_codewords * dim), slice(score, score + n_codewords)

    def adds_to(self, sums: Sums, number: int) -> bool:
        """Return whether sums of the last pass are of the same kind as one slot's."""
        fixed_point = self.codebooks[number].fixed_point
        return sums.fits(fixed_point, int(self.slots[number, SLOT_CODEWORDS]))

    def add(self, number: int, sums: Sums) -> None:
        """Add sums of the last pass to one slot's."""
        thread = self.accumulators(1)[0]
        words, scores = self.parts(number)
        thread.sums[words] += sums.sums
        thread.weight_sums[scores] += sums.weight_sums
        thread.counts[scores] += sums.counts

    def sums_since(
        self, before: tuple[Int64, Int64, Int64], fields: Collection[str]
    ) -> dict[str, Sums]:
        """Return what was added to the slots of fields that are summed in one limb."""
        sums, weight_sums, counts = (
            now - then for now, then in zip(self.totals(), before, strict=True)
        )
        found = {}
        for name in fields:
            number = self.slot_of.get(name)
            fixed_point = None if number is None else self.codebooks[number].fixed_point
            if number is not None and fixed_point is not None and not fixed_point.wide:
                words, scores = self.parts(number)
                found[name] = Sums(fixed_point, sums[words], weight_sums[scores], counts[scores])
        return found

    def accumulators(self, n_threads: int) -> list[_Accumulators]:
        """Return accumulators for as many threads, made when first needed."""
        n_words, n_scores = len(self.words), len(self.scores)
        low = self.any_wide
        while len(self.threads) < n_threads:
            self.threads.append(
                _Accumulators(
                    aligned(n_words, np.int64),
                    np.zeros(n_words if low else 0, np.int64),
                    np.zeros(n_scores, np.int64),
                    np.zeros(n_scores if low else 0, np.int64),
                    np.zeros(n_scores, np.int64),
                    np.zeros(len(self.slots), np.int64),
                    np.zeros((len(self.slots), 2), np.int64),
                )
            )
        return self.threads


def _reorder(panels: NDArray[Any], start: int, columns: int, order: Int64) -> None:
    """Bring the codewords of one slot into an order."""
    laid = slice(start, start + in_panels(len(order)) * columns)
    panels[laid] = panels_of(rows_of_panels(panels[laid], columns)[order])


def _filter_form(
    codebook: Codebook, first_pass: bool
) -> tuple[np.float32, float, Float32, Float32, Float32, FirstForm | None]:
    """Return scale, A, centre, centred codewords and scores of cpu_filter, and a first form."""
    codewords = codebook.codewords
    n_codewords, dim = codewords.shape
    scale, centre = filter_frame(codebook, 0)
    exact = codewords * np.float64(scale) - centre
    # rounded once, as fma does it: the product is exact and float64 holds the difference well
    centred = exact.astype(np.float32)
    norms = np.einsum("kj,kj->k", centred, centred, dtype=np.float64)
    factor = bound_factor(dim)
    scores = (factor * norms - 0.5 * norms).astype(np.float32)
    # a codeword equal to an earlier one can never win a tie: leave it out, or no row of either
    # would be proved
    repeated = np.zeros(n_codewords, bool)
    if len(np.unique(norms)) < n_codewords:
        repeated = repeated_codewords(codewords)
        scores[repeated] = WORST
        centred[repeated] = 0.0
    first = first_form(exact, repeated) if first_pass else None
    return scale, factor, centre, centred, scores, first


class CpuBackend:
    """Assignment and accumulation with Numba on the host's cores.

    Parameters
    ----------
    threads : int or None
        Threads to use; None takes every core this process may run on.
    first_pass : bool or None
        Whether codes are sought in bytes first (cpu_first_pass): never, for every field that can
        be, or where this host is faster with it and there is work enough. Codes are the same.
    """

    name = "cpu"
    reads_held = 2  # one in use, one being read
    row_dtypes: Collection[str] = ("float32",)

    def __init__(self, threads: int | None = None, *, first_pass: bool | None = None) -> None:
        available = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
        check_threads(threads)
        self.threads = threads if threads is not None else available or 1
        self._first_pass = first_pass

    def memory_budget(self) -> int:
        """Return half of the memory that is free now, in bytes."""
        return int(SHARE_OF_MEMORY * _free_memory())

    def open_store(self, plan: StorePlan) -> HostStore:
        """Return an empty store."""
        return KeptStore(plan, self.reads_held)

    def load_rows(self, chunk: Chunk) -> Chunk:
        """Return the chunk itself: its rows are in memory already."""
        return chunk

    def load_codebooks(self, codebooks: Mapping[str, Codebook]) -> CpuCodebooks:
        """Return the codebooks, scaled, centred and laid out for the threads."""
        check_codewords(codebooks)
        n_slots = len(codebooks)
        slots = np.zeros((n_slots, SLOT_FIELDS), np.int64)
        factors = np.zeros((n_slots, 2), np.float32)
        weight_scales = np.zeros(n_slots)
        totals = np.zeros(4, np.int64)  # panels, scores, words, columns laid out so far
        for slot, codebook in zip(slots, codebooks.values(), strict=True):
            n_codewords, dim = codebook.codewords.shape
            padded = in_panels(n_codewords)
            wide = codebook.fixed_point is not None and codebook.fixed_point.wide
            slot[:] = [dim, n_codewords, *totals, wide]
            totals += [padded * dim, padded, n_codewords * dim, dim]
        panels = aligned(int(totals[0]), np.float32)
        scores = aligned(int(totals[1]), np.float32)
        scores[:] = WORST
        order = np.zeros(totals[1], np.int64)
        words = np.zeros(totals[2], np.float32)
        centres = np.zeros(totals[3], np.float32)
        column_scales = np.zeros(totals[3])
        forms = []
        for number, codebook in enumerate(codebooks.values()):
            dim, n_codewords, panel, score, word, column, _ = (int(n) for n in slots[number])
            with_first = pays(n_codewords, dim) if self._first_pass is None else self._first_pass
            scale, factor, centre, centred, own_scores, first = _filter_form(codebook, with_first)
            forms.append(first)
            by_panel = panels_of(centred)
            panels[panel : panel + len(by_panel)] = by_panel
            scores[score : score + n_codewords] = own_scores
            order[score : score + n_codewords] = np.arange(n_codewords)
            words[word : word + n_codewords * dim] = codebook.codewords.reshape(-1)
            centres[column : column + dim] = centre
            factors[number] = scale, factor
            column_scales[column : column + dim], weight_scales[number] = codebook.sum_factors()
        slot_of = {name: number for number, name in enumerate(codebooks)}
        return CpuCodebooks(
            slot_of, tuple(codebooks.values()), slots, factors, panels, scores, order, centres,
            words, laid_out(forms, slots[:, SLOT_SCORES], len(scores)), column_scales,
            weight_scales,
        )  # fmt: skip

    def assign(
        self, rows: Chunk, codebooks: CpuCodebooks, *, distances: bool = False
    ) -> Assignment:
        """Return the nearest codeword of each row, and its distance when asked."""
        codes = np.zeros(rows.layout.n_rows, np.uint32)
        found = np.zeros(rows.layout.n_rows if distances else 0)
        self._run(rows, codebooks, codes, found, given=False, accumulate=False)
        return Assignment(codes, found if distances else None)

    def assign_later(
        self, rows: Chunk, codebooks: CpuCodebooks, *, distances: bool = False
    ) -> Callable[[], Assignment]:
        """Return what gives the codes: all is done already."""
        found = self.assign(rows, codebooks, distances=distances)
        return lambda: found

    def assign_accumulate(self, rows: Chunk, codebooks: CpuCodebooks) -> None:
        """Add rows to the partials of their nearest codewords.

        Of kept rows, only codewords are looked at that can have become the nearest since the last
        pass.
        """
        if not isinstance(rows, KeptRows):
            codes = np.empty(rows.layout.n_rows, np.uint32)
            self._run(rows, codebooks, codes, np.zeros(0), given=False, accumulate=True)
            return
        memory, kept = rows.memory, {}
        for segment in rows.layout.segments:
            slot = codebooks.slot_of.get(segment.field)
            if slot is not None:
                found = memory.begin(segment, codebooks.codebooks[slot].codewords)
                if found is not None and not codebooks.repeated(slot):
                    check_columns(segment, int(codebooks.slots[slot, SLOT_DIM]))
                    found.bring_to(codebooks.frame(slot))
                    kept[segment] = found
        orders = {codebooks.slot_of[segment.field]: one.order for segment, one in kept.items()}
        bounds = _gathered(memory.bounds(), kept, orders, memory.slow)
        last = {
            name: sums
            for name, sums in memory.sums.items()
            if name in codebooks.slot_of and codebooks.adds_to(sums, codebooks.slot_of[name])
        }
        former = NO_FORMER
        if last:
            former = _Former(memory.codes.copy(), [codebooks.slot_of[name] for name in last])
        before = codebooks.totals()
        memory.forget()  # until the pass has ended well
        self._run(
            rows, codebooks, memory.codes, np.zeros(0), given=False, accumulate=True,
            bounds=bounds, former=former,
        )  # fmt: skip
        for segment, found in kept.items():
            found.frame = codebooks.frame(codebooks.slot_of[segment.field])
        for name, sums in last.items():
            codebooks.add(codebooks.slot_of[name], sums)
        memory.sums = codebooks.sums_since(before, {s.field for s in rows.layout.segments})
        memory.slow.update(codebooks.slow_fields())

    def accumulate(self, rows: Chunk, codes: NDArray[np.uint32], codebooks: CpuCodebooks) -> None:
        """Add rows to the partials of the codewords that `codes` names.

        Raises
        ------
        LayoutError
            There are not as many codes as rows, or a code is not below its field's number of
            codewords.
        """
        n_codewords = {
            name: int(codebooks.slots[slot, SLOT_CODEWORDS])
            for name, slot in codebooks.slot_of.items()
        }
        check_codes(rows.layout, codes, n_codewords)
        self._run(rows, codebooks, codes, np.zeros(0), given=True, accumulate=True)

    def partials(self, codebooks: CpuCodebooks) -> dict[str, Partial]:
        """Return all that was accumulated since the codebooks were loaded."""
        threads = codebooks.accumulators(1)
        for thread in threads:
            thread.carry()
        return {
            name: functools.reduce(
                operator.add, [_partial(codebooks, number, thread) for thread in threads]
            )
            for name, number in codebooks.slot_of.items()
            if codebooks.codebooks[number].fixed_point is not None
        }

    def rechecked(self, codebooks: CpuCodebooks) -> dict[str, int]:
        """Return how many rows of each field the filter did not prove since then."""
        threads = codebooks.accumulators(1)
        return {
            name: sum(int(thread.rechecked[number]) for thread in threads)
            for name, number in codebooks.slot_of.items()
        }

    def _run(
        self,
        chunk: Chunk,
        codebooks: CpuCodebooks,
        codes: NDArray[np.uint32],
        distances: NDArray[np.float64],
        *,
        given: bool,
        accumulate: bool,
        bounds: _Bounds = NO_BOUNDS,
        former: _Former = NO_FORMER,
    ) -> None:
        """Hand the chunk's tiles to the threads and wait for them."""
        found = list(_tiles(chunk, codebooks, bounds.places, given=given))
        tiles = np.array(found, np.int64).reshape(-1, TILE_COLUMNS)
        if len(tiles) == 0:
            return
        n_threads = min(self.threads, len(tiles))
        accumulators = codebooks.accumulators(n_threads)
        codebooks.rows_since_carry += chunk.layout.n_rows
        if accumulate and codebooks.rows_since_carry > CARRY_ROWS:
            for thread in accumulators:
                thread.carry()
            codebooks.rows_since_carry = chunk.layout.n_rows
        weights = chunk.weights if chunk.weights is not None else np.zeros(0)
        counters = np.zeros((5, 1), np.int64)
        max_dim = int(codebooks.slots[:, SLOT_DIM].max())
        kept = tiles[tiles[:, TILE_BOUNDS] >= 0]
        changing = np.isin(tiles[:, TILE_SLOT], former.slots)
        waiting = np.empty(chunk.layout.n_rows if len(kept) else 0, np.int32)
        forms = codebooks.first_forms(bounds.slow)
        if self._first_pass is None and not pays_for(tiles, codebooks.slots, forms):
            forms.places[:] = -1
        panels, scores, order, place, forms = codebooks.reordered(bounds.orders, forms)

        def find_kept(own: _Accumulators) -> None:
            from saec_gpu.backends.cpu_kept_tiles import run_kept_tiles

            most_groups, most_rows, most_values = _most_kept(codebooks, kept)
            run_kept_tiles(
                counters[0], tiles, codebooks.slots, codebooks.factors, chunk.values, panels,
                scores, order, place, codebooks.centres, codebooks.words, codes, bounds.bounds,
                bounds.drifts, forms.places >= 0, waiting, own.rechecked,
                aligned(max_dim * ROW_LANES, np.float32), aligned(ROW_LANES, np.int32),
                aligned(LEADS * ROW_LANES, np.float32),
                aligned(most_groups * ROW_LANES, np.float32), aligned(most_values, np.float32),
                aligned(most_rows + PANEL, np.float32), aligned(most_rows + PANEL, np.float32),
                aligned(most_rows, np.int32), aligned(most_rows + PANEL, np.int32),
                aligned(most_rows + PANEL, np.int32), aligned(most_rows + PANEL, np.float32),
                aligned(2 * (most_rows + PANEL), np.float32),
            )  # fmt: skip

        def find_first(own: _Accumulators) -> None:
            most_codewords = int(codebooks.slots[:, SLOT_CODEWORDS].max())
            run_first_pass(
                counters[1], tiles, codebooks.slots, codebooks.factors, chunk.values,
                codebooks.centres, codebooks.words, order, forms, codes, waiting, bounds.bounds,
                bounds.drifts, own.rechecked, own.looked_at, scratch(max_dim, most_codewords),
            )  # fmt: skip

        def find_and_add(
            own: _Accumulators, counter: Int64, some: Int64, *, accumulate: bool
        ) -> None:
            run_tiles(
                counter, some, codebooks.slots, codebooks.factors, chunk.values, weights,
                codebooks.panels, codebooks.scores, codebooks.order, codebooks.centres,
                codebooks.words, codebooks.column_scales, codebooks.weight_scales, codes, distances,
                accumulate, own.sums, own.sums_low, own.weight_sums, own.weight_sums_low,
                own.counts, own.rechecked, aligned(max_dim * ROW_LANES, np.float32),
                aligned(ROW_LANES, np.int32), aligned(LEADS * ROW_LANES, np.float32),
            )  # fmt: skip

        def work(own: _Accumulators) -> None:
            find_and_add(own, counters[2], tiles[~changing], accumulate=accumulate)

        def find_rest(own: _Accumulators) -> None:
            find_and_add(own, counters[3], tiles[changing], accumulate=False)

        def change(own: _Accumulators) -> None:
            run_changes(
                counters[4], tiles[changing], codebooks.slots, chunk.values, weights,
                codebooks.column_scales, codebooks.weight_scales, codes, former.codes, own.sums,
                own.weight_sums, own.counts,
            )  # fmt: skip

        steps = [find_kept] if len(kept) else []
        if not given and (forms.places[tiles[:, TILE_SLOT]] >= 0).any():
            steps.append(find_first)
        steps.append(work)
        if changing.any():
            steps += [find_rest, change]
        if n_threads == 1:
            for step in steps:
                step(accumulators[0])
            return
        with ThreadPoolExecutor(n_threads) as pool:
            for step in steps:
                list(pool.map(step, accumulators[:n_threads]))


def _most_kept(codebooks: CpuCodebooks, kept: Int64) -> tuple[int, int, int]:
    """Return the most groups, rows and values of a tile of kept rows."""
    slots = codebooks.slots[kept[:, TILE_SLOT]]
    n_groups = -(-int(slots[:, SLOT_CODEWORDS].max()) // GROUP)
    n_rows = kept[:, TILE_ROWS]
    return n_groups, int(n_rows.max()), int((n_rows * slots[:, SLOT_DIM]).max())


def _gathered(
    all_bounds: Float32,
    kept: Mapping[Segment, Bounds],
    orders: Mapping[int, Int64],
    slow: Collection[str],
) -> _Bounds:
    """Return the bounds of segments as the kernel takes them."""
    places, n_drifts = {}, 0
    for segment, one in kept.items():
        n_panels = len(one.drifts)
        places[segment] = (one.start, n_panels, n_drifts, one.frame is not None)
        n_drifts += n_panels
    drifts = [np.zeros(0, np.float32), *(one.drifts for one in kept.values())]
    return _Bounds(all_bounds, np.concatenate(drifts), places, orders, slow)


def _tiles(
    chunk: Chunk,
    codebooks: CpuCodebooks,
    bounds: Mapping[Segment, tuple[int, int, int, bool]],
    *,
    given: bool,
) -> Iterator[list[int]]:
    """Yield the tile table's rows, costliest first so that no thread ends on a long one."""
    segments = [s for s in chunk.layout.segments if s.field in codebooks.slot_of]
    slots = codebooks.slots
    segments.sort(
        key=lambda s: -int(slots[codebooks.slot_of[s.field], : SLOT_CODEWORDS + 1].prod())
    )
    for segment in segments:
        number = codebooks.slot_of[segment.field]
        dim = int(slots[number, SLOT_DIM])
        check_columns(segment, dim)
        fixed_point = codebooks.codebooks[number].fixed_point
        weighted = fixed_point is not None and fixed_point.weighted
        check_weights(segment, weighted=weighted, given=chunk.weights is not None)
        start, n_panels, drift, known = bounds.get(segment, NOWHERE)
        for first, n_rows in segment.tiles():
            row = segment.first_row + first
            value = segment.first_value + first * segment.dim
            bound = start + first * n_panels
            weight = row if weighted else -1
            found = start >= 0 or given
            yield [number, n_rows, value, weight, row, bound, drift, known, found, EVERY]


def _partial(codebooks: CpuCodebooks, number: int, thread: _Accumulators) -> Partial:
    """Return one thread's partial of one slot."""
    n_codewords, dim = codebooks.codebooks[number].codewords.shape
    wide = bool(codebooks.slots[number, SLOT_WIDE])
    fixed_point = codebooks.codebooks[number].fixed_point
    words, scores = codebooks.parts(number)
    counts = thread.counts[scores].copy()
    weight_sums = thread.weight_sums[scores].copy()
    if fixed_point is not None and not fixed_point.weighted and not wide:
        # rint(1·2^t) a row: the kernel only counts
        weight_sums = counts << fixed_point.weight_shift
    return Partial(
        thread.sums[words].reshape(n_codewords, dim).copy(),
        weight_sums,
        counts,
        thread.sums_low[words].reshape(n_codewords, dim).copy() if wide else None,
        thread.weight_sums_low[scores].copy() if wide else None,
    )


def _free_memory() -> int:
    """Return the bytes that can be had without swapping, as the system tells it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
