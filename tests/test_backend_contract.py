"""What every backend must do, to the bit: one class, run for each name given with --backends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
from builders import (
    Piece,
    as_table,
    chunk_of_pieces,
    chunks_of,
    column,
    definition,
    fixed_points,
    opened,
    rows_of,
    weights_of,
    whole,
)
from conftest import EMULATED
from saec_gpu.backends import open_backend
from saec_gpu.backends.cpu import CpuBackend, CpuCodebooks
from saec_gpu.backends.protocol import Assignment, Backend, StorePlan
from saec_gpu.data import Chunk, Codebook, FixedPoint, chunk_of
from saec_gpu.errors import LayoutError, ParamError
from saec_gpu.layout import TILE_ROWS, lay_out
from saec_gpu.sources.stored import storage_dtype

# (rows, dim, codewords): fields that end anywhere in a block, a tile and a group of codewords
RAGGED = [
    (1, 1, 1),
    (31, 3, 2),
    (0, 5, 3),
    (97, 17, 17),
    (64, 16, 4),
    (1025, 7, 5),
    (130, 64, 20),
    (5, 33, 257),
]


class RaggedFields:
    """Fields of many shapes in one chunk, every second one weighted, and what the oracle says."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.pieces: list[Piece] = []
        self.codebooks: dict[str, Codebook] = {}
        self.oracle: dict[str, reference.FixedPoint] = {}
        for number, (n, dim, k) in enumerate(RAGGED):
            name = f"field {number}"
            rows = rows_of("normal", rng, n, dim)
            weights = weights_of("whole", rng, n) if number % 2 else None
            ours, self.oracle[name] = fixed_points(rows, weights) if n else _no_sums(dim)
            self.pieces.append(Piece(name, rows, weights))
            self.codebooks[name] = Codebook(rows_of("normal", rng, k, dim), ours)

    def expected(self, piece: Piece, codes: list[int]) -> reference.Partial:
        n_codewords = len(self.codebooks[piece.field].codewords)
        fixed = self.oracle[piece.field]
        return reference.partial(piece.rows, piece.weights, codes, n_codewords, fixed)


def _no_sums(dim: int) -> tuple[FixedPoint, reference.FixedPoint]:
    """Exponents for a field without rows, of which nothing is ever added."""
    zeros = [0] * dim
    return (
        FixedPoint(62, 60, np.zeros(dim, np.int64), False),
        reference.FixedPoint(62, 2, 1, 60, zeros, zeros),
    )


def assign(
    backend: Backend, chunk: Chunk, codebooks: Mapping[str, Codebook]
) -> tuple[list[int], list[float]]:
    """Codes and distances of a whole chunk."""
    loaded = backend.load_codebooks(codebooks)
    found = backend.assign(backend.load_rows(chunk), loaded, distances=True)
    assert found.codes.dtype == np.uint32
    assert found.distances is not None
    assert found.distances.dtype == np.float64
    return found.codes.tolist(), found.distances.tolist()


def accumulated(
    backend: Backend, chunks: list[Chunk], codebooks: Mapping[str, Codebook]
) -> dict[str, reference.Partial]:
    """Partials of all chunks' rows under their nearest codewords, as Python integers."""
    loaded = backend.load_codebooks(codebooks)
    for chunk in chunks:
        backend.assign_accumulate(backend.load_rows(chunk), loaded)
    return {name: whole(partial) for name, partial in backend.partials(loaded).items()}


class TestBackend:
    """The contract, which a backend takes on by its name in `known_backends`."""

    @pytest.fixture
    def backend(self, backend_name: str) -> Backend:
        return opened(backend_name, threads=2)

    def test_signatures_are_those_of_the_protocol(self, backend: Backend) -> None:
        methods = inspect.getmembers(Backend, inspect.isfunction)
        public = {name: method for name, method in methods if not name.startswith("_")}
        assert len(public) == 10
        for name, method in public.items():
            wanted = inspect.signature(method).parameters.values()
            found = inspect.signature(getattr(type(backend), name)).parameters.values()
            assert [(p.name, p.kind, p.default) for p in found] == [
                (p.name, p.kind, p.default) for p in wanted
            ], name

    def test_knows_its_name_and_a_budget(self, backend: Backend, backend_name: str) -> None:
        assert backend.name == ("cupy" if backend_name in EMULATED else backend_name)
        assert backend.memory_budget() >= 2**20

    def test_codes_and_distances_are_the_oracle_s(
        self, backend: Backend, rng: np.random.Generator
    ) -> None:
        # RELIABILITY 35, 36
        fields = RaggedFields(rng)
        chunk = chunk_of_pieces(fields.pieces)
        codes, distances = assign(backend, chunk, fields.codebooks)
        assert len(codes) == chunk.layout.n_rows
        for piece, segment in zip(fields.pieces, chunk.layout.segments, strict=True):
            found = reference.assign(piece.rows, fields.codebooks[piece.field].codewords)
            assert (codes[segment.rows], distances[segment.rows]) == found

    def test_assignments_begun_together_end_in_any_order(
        self, backend: Backend, rng: np.random.Generator
    ) -> None:
        rows = rows_of("normal", rng, 300, 5)
        codebooks = backend.load_codebooks({"x": Codebook(rows[:9])})
        parts = [rows[:97], rows[97:131], rows[131:]]
        chunks = [backend.load_rows(chunk_of("x", np.ascontiguousarray(p))) for p in parts]
        begun = [backend.assign_later(chunk, codebooks, distances=True) for chunk in chunks]
        for number in (2, 0, 1):
            found = begun[number]()
            codes, distances = reference.assign(parts[number], rows[:9])
            assert found.codes.tolist() == codes
            assert found.distances is not None
            assert found.distances.tolist() == distances

    def test_a_store_gives_rows_of_every_dtype_that_it_holds(
        self, backend: Backend, rng: np.random.Generator
    ) -> None:
        assert "float32" in backend.row_dtypes
        for dtype in backend.row_dtypes:
            table = as_table(dtype, rows_of("normal", rng, 300, 5))
            rows, stored = table.astype(np.float32), table.view(storage_dtype(dtype))
            codebooks = backend.load_codebooks({"x": Codebook(rows[:9])})
            codes, _ = reference.assign(rows, rows[:9])
            plan = StorePlan(lay_out([("x", 0, 200, 5)]), stored.dtype, 100, 500, weighted=False)
            store = backend.open_store(plan)
            for start in (0, 100, 200):
                layout = lay_out([("x", start, 100, 5)])
                chunk = store.room(layout, stays=start < 200)
                chunk.rows(layout.segments[0])[:] = stored[start : start + 100]
                found = backend.assign(store.put(chunk, stays=start < 200), codebooks)
                assert found.codes.tolist() == codes[start : start + 100]
            assert backend.assign(store.whole(), codebooks).codes.tolist() == codes[:200]
            part = store.part(lay_out([("x", 37, 60, 5)]))
            assert backend.assign(part, codebooks).codes.tolist() == codes[37:97]

    def test_distances_are_given_only_when_asked_for(self, backend: Backend) -> None:
        loaded = backend.load_codebooks({"x": Codebook(column(0, 5))})
        found = backend.assign(backend.load_rows(chunk_of("x", column(1, 4))), loaded)
        assert found.codes.tolist() == [0, 1]
        assert found.distances is None

    def test_ties_go_to_the_lower_codeword(
        self, backend: Backend, rng: np.random.Generator
    ) -> None:
        rows, codewords = rows_of("grid", rng, 97, 3), rows_of("grid", rng, 20, 3)
        exact = definition(rows, codewords)
        assert (np.sort(exact, axis=1)[:, 0] == np.sort(exact, axis=1)[:, 1]).any()
        codes, _ = assign(backend, chunk_of("x", rows), {"x": Codebook(codewords)})
        assert codes == reference.assign(rows, codewords)[0]

    def test_partials_are_the_oracle_s(self, backend: Backend, rng: np.random.Generator) -> None:
        fields = RaggedFields(rng)
        found = accumulated(backend, [chunk_of_pieces(fields.pieces)], fields.codebooks)
        assert found.keys() == fields.codebooks.keys()
        for piece in fields.pieces:
            codes, _ = reference.assign(piece.rows, fields.codebooks[piece.field].codewords)
            assert found[piece.field] == fields.expected(piece, codes)

    @pytest.mark.parametrize("weights", ["whole", "one in ten 2^40", "wide", "widest"])
    @pytest.mark.parametrize("kind", ["columns", "huge", "subnormal"])
    def test_sums_of_columns_and_weights_far_apart(
        self, backend: Backend, rng: np.random.Generator, kind: str, weights: str
    ) -> None:
        rows, codewords = rows_of(kind, rng, 97, 17), rows_of(kind, rng, 3, 17)
        own = weights_of(weights, rng, 97)
        ours, oracle = fixed_points(rows, own)
        assert ours.wide == (weights != "whole")
        codes, _ = reference.assign(rows, codewords)
        found = accumulated(backend, [chunk_of("x", rows, own)], {"x": Codebook(codewords, ours)})
        assert found["x"] == reference.partial(rows, own, codes, 3, oracle)

    def test_wide_and_narrow_fields_share_a_chunk(
        self, backend: Backend, rng: np.random.Generator
    ) -> None:
        pieces = [
            Piece(f"field {number}", rows_of("normal", rng, 40, 3), weights_of(kind, rng, 40))
            for number, kind in enumerate(["whole", "wide", "none", "widest", "whole"])
        ]
        exponents = {p.field: fixed_points(p.rows, p.weights) for p in pieces}
        codebooks = {p.field: Codebook(p.rows[:4], exponents[p.field][0]) for p in pieces}
        found = accumulated(backend, [chunk_of_pieces(pieces)], codebooks)
        for p in pieces:
            codes, _ = reference.assign(p.rows, p.rows[:4])
            expected = reference.partial(p.rows, p.weights, codes, 4, exponents[p.field][1])
            assert found[p.field] == expected

    def test_fields_without_a_codebook_are_passed_over(
        self, backend: Backend, rng: np.random.Generator
    ) -> None:
        # also: a field that has stopped is frozen, whatever the others do
        fields = RaggedFields(rng)
        chunk = chunk_of_pieces(fields.pieces)
        moving = {f"field {number}": fields.codebooks[f"field {number}"] for number in (6, 1, 3)}
        codes, distances = assign(backend, chunk, moving)
        everything, _ = assign(backend, chunk, fields.codebooks)
        sums = accumulated(backend, [chunk], moving)
        assert sums.keys() == moving.keys()
        for piece, segment in zip(fields.pieces, chunk.layout.segments, strict=True):
            if piece.field in moving:
                assert codes[segment.rows] == everything[segment.rows]
                assert sums[piece.field] == fields.expected(piece, codes[segment.rows])
            else:
                assert set(codes[segment.rows]) <= {0}
                assert set(distances[segment.rows]) <= {0.0}

    def test_no_field_has_a_codebook(self, backend: Backend) -> None:
        chunk = chunk_of("x", column(1, 2))
        assert assign(backend, chunk, {}) == ([0, 0], [0.0, 0.0])
        assert accumulated(backend, [chunk], {}) == {}

    def test_a_chunk_without_rows_adds_nothing(self, backend: Backend) -> None:
        ours, _ = fixed_points(column(1, 2), None)
        codebooks = {"x": Codebook(column(1, 2), ours)}
        nothing = reference.Partial([[0], [0]], [0, 0], [0, 0])
        for chunk in (chunk_of_pieces([]), chunk_of("x", np.zeros((0, 1), np.float32))):
            assert assign(backend, chunk, codebooks) == ([], [])
            assert accumulated(backend, [chunk], codebooks) == {"x": nothing}
        assert accumulated(backend, [], codebooks) == {"x": nothing}

    @pytest.mark.parametrize("dim", [2, 64, 1500])
    @pytest.mark.parametrize("beyond", [-1, 0, 1])
    def test_a_field_ends_anywhere_in_a_tile(
        self, backend: Backend, rng: np.random.Generator, dim: int, beyond: int
    ) -> None:
        (segment,) = lay_out([("a", 0, TILE_ROWS, dim)]).segments
        n = next(segment.tiles())[1] + beyond
        # what follows it lies far away, so that a row too many would be seen
        pieces = [
            Piece("a", rows_of("normal", rng, n, dim)),
            Piece("b", rows_of("offset", rng, 5, dim)),
        ]
        exponents = {p.field: fixed_points(p.rows, p.weights) for p in pieces}
        codebooks = {p.field: Codebook(p.rows[:1], exponents[p.field][0]) for p in pieces}
        found = accumulated(backend, [chunk_of_pieces(pieces)], codebooks)
        for p in pieces:
            codes = [0] * len(p.rows)
            expected = reference.partial(p.rows, p.weights, codes, 1, exponents[p.field][1])
            assert found[p.field] == expected

    def test_two_runs_of_one_field_in_a_chunk(
        self, backend: Backend, rng: np.random.Generator
    ) -> None:
        rows, weights = rows_of("normal", rng, 100, 3), weights_of("whole", rng, 100)
        assert weights is not None
        ours, oracle = fixed_points(rows, weights)
        between = Piece("y", rows_of("normal", rng, 7, 5))
        chunk = chunk_of_pieces(
            [Piece("x", rows[70:], weights[70:], 70), between, Piece("x", rows[:70], weights[:70])]
        )
        codes, _ = reference.assign(rows, rows[:9])
        codebooks = {"x": Codebook(rows[:9], ours)}
        assert assign(backend, chunk, codebooks)[0] == [*codes[70:], *[0] * 7, *codes[:70]]
        found = accumulated(backend, [chunk], codebooks)
        assert found == {"x": reference.partial(rows, weights, codes, 9, oracle)}

    @pytest.mark.parametrize("weights", ["none", "whole", "wide"])
    def test_partials_of_parts_add_up(
        self, backend: Backend, rng: np.random.Generator, weights: str
    ) -> None:
        rows, own = rows_of("normal", rng, 200, 3), weights_of(weights, rng, 200)
        ours, oracle = fixed_points(rows, own)
        codebook = {"x": Codebook(rows[:7], ours)}
        codes, _ = reference.assign(rows, rows[:7])
        parts = []
        for part in (slice(0, 130), slice(130, 131), slice(131, 200)):
            loaded = backend.load_codebooks(codebook)
            own_part = None if own is None else own[part]
            chunk = chunk_of_pieces([Piece("x", rows[part], own_part, part.start)])
            backend.assign_accumulate(backend.load_rows(chunk), loaded)
            parts.append(backend.partials(loaded)["x"])
        expected = reference.partial(rows, own, codes, 7, oracle)
        for a, b, c in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
            assert whole(parts[a] + parts[b] + parts[c]) == expected
        assert accumulated(backend, list(chunks_of([Piece("x", rows, own)], 33)), codebook) == {
            "x": expected
        }

    def test_partials_are_of_all_since_loading(self, backend: Backend) -> None:
        rows = column(1, 2, 9)
        ours, oracle = fixed_points(rows, None)
        loaded = backend.load_codebooks({"x": Codebook(column(1, 9), ours)})
        resident = backend.load_rows(chunk_of("x", rows))
        for times in (1, 2, 3):
            backend.assign_accumulate(resident, loaded)
            expected = reference.partial(
                np.tile(rows, (times, 1)), None, [0, 0, 1] * times, 2, oracle
            )
            assert whole(backend.partials(loaded)["x"]) == expected
            assert whole(backend.partials(loaded)["x"]) == expected

    def test_assign_alone_adds_nothing(self, backend: Backend) -> None:
        ours, _ = fixed_points(column(1, 9), None)
        loaded = backend.load_codebooks(
            {"x": Codebook(column(1, 9), ours), "y": Codebook(column(1))}
        )
        backend.assign(backend.load_rows(chunk_of("x", column(1, 9))), loaded)
        partials = backend.partials(loaded)
        assert list(partials) == ["x"]  # y has no fixed point
        assert whole(partials["x"]) == reference.Partial([[0], [0]], [0, 0], [0, 0])

    def test_sums_of_given_codes(self, backend: Backend, rng: np.random.Generator) -> None:
        fields = RaggedFields(rng)
        chunk = chunk_of_pieces(fields.pieces)
        codes = np.zeros(chunk.layout.n_rows, np.uint32)
        for piece, segment in zip(fields.pieces, chunk.layout.segments, strict=True):
            n_codewords = len(fields.codebooks[piece.field].codewords)
            codes[segment.rows] = rng.integers(0, n_codewords, len(piece.rows))
        given = codes.copy()
        loaded = backend.load_codebooks(fields.codebooks)
        backend.accumulate(backend.load_rows(chunk), codes, loaded)
        found = backend.partials(loaded)
        for piece, segment in zip(fields.pieces, chunk.layout.segments, strict=True):
            expected = fields.expected(piece, codes[segment.rows].tolist())
            assert whole(found[piece.field]) == expected
        assert codes.tolist() == given.tolist()

    def test_a_given_code_out_of_range_names_the_row(self, backend: Backend) -> None:
        ours, _ = fixed_points(column(1, 2, 3), None)
        pieces = [Piece("a", column(1, 2, 3)), Piece("b", column(1, 2, 3), start=2**40)]
        chunk = chunk_of_pieces(pieces)
        loaded = backend.load_codebooks({p.field: Codebook(column(1, 2), ours) for p in pieces})
        codes = np.array([0, 1, 0, 1, 2, 0], np.uint32)
        with pytest.raises(LayoutError, match=rf'row {2**40 + 1} of field "b".* 2.*2 codewords'):
            backend.accumulate(backend.load_rows(chunk), codes, loaded)
        for partial in backend.partials(loaded).values():
            assert whole(partial) == reference.Partial([[0], [0]], [0, 0], [0, 0])
        # the same code is nobody's business where the field has no codebook
        loaded = backend.load_codebooks({"a": Codebook(column(1, 2), ours)})
        backend.accumulate(backend.load_rows(chunk), codes, loaded)
        assert whole(backend.partials(loaded)["a"]).counts == [2, 1]

    def test_codes_and_rows_of_another_shape_are_refused(self, backend: Backend) -> None:
        rows = np.ones((3, 2), np.float32)
        codebooks = backend.load_codebooks({"x": Codebook(rows[:1])})
        loaded = backend.load_rows(chunk_of("x", rows))
        with pytest.raises(LayoutError, match=r"shape \(2,\) were given for 3 rows"):
            backend.accumulate(loaded, np.zeros(2, np.uint32), codebooks)
        other = backend.load_rows(chunk_of("x", np.ones((3, 4), np.float32)))
        with pytest.raises(LayoutError, match='field "x" have 4 columns, its codewords 2'):
            backend.assign(other, codebooks)

    def test_a_codebook_without_codewords_is_refused(self, backend: Backend) -> None:
        codebooks = {"x": Codebook(column(1)), "y": Codebook(np.zeros((0, 3), np.float32))}
        with pytest.raises(LayoutError, match=r'field "y" .* 0 codewords of 3 columns; give at'):
            backend.load_codebooks(codebooks)

    def test_weighted_sums_of_rows_without_weights_are_refused(self, backend: Backend) -> None:
        ours, _ = fixed_points(column(1, 2), np.array([1.0, 2.0]))
        loaded = backend.load_codebooks({"x": Codebook(column(1, 2), ours)})
        rows = backend.load_rows(chunk_of("x", column(1, 2)))
        with pytest.raises(LayoutError, match='rows of field "x" were given without weights'):
            backend.assign_accumulate(rows, loaded)

    def test_threads_change_nothing(self, backend_name: str, rng: np.random.Generator) -> None:
        # RELIABILITY 39
        fields = RaggedFields(rng)
        short = chunk_of_pieces(fields.pieces)
        n = 2 * TILE_ROWS + 7  # a tile for each of three threads
        rows, weights = rows_of("heavy", rng, n, 3), weights_of("wide", rng, n)
        ours, _ = fixed_points(rows, weights)
        fields.pieces.append(Piece("long", rows, weights))
        fields.codebooks["long"] = Codebook(rows[:5], ours)
        chunk = chunk_of_pieces(fields.pieces)
        one, *others = (opened(backend_name, threads=threads) for threads in (1, 2, 3))
        codes = assign(one, chunk, fields.codebooks)
        sums = accumulated(one, [chunk, short], fields.codebooks)
        for other in others:
            assert assign(other, chunk, fields.codebooks) == codes
            assert accumulated(other, [chunk, short], fields.codebooks) == sums

    def test_no_threads_are_an_error(self, backend_name: str) -> None:
        with pytest.raises(ParamError, match="threads=0 was given; give 1 or more"):
            opened(backend_name, threads=0)

    def test_a_row_alone_gets_the_code_it_gets_among_others(
        self, backend: Backend, rng: np.random.Generator
    ) -> None:
        # RELIABILITY 41
        rows, codewords = rows_of("offset", rng, 97, 17), rows_of("offset", rng, 20, 17)
        codebooks = {"x": Codebook(codewords)}
        codes, distances = assign(backend, chunk_of("x", rows), codebooks)
        for i in range(len(rows)):
            alone = assign(backend, chunk_of("x", rows[i : i + 1]), codebooks)
            assert alone == ([codes[i]], [distances[i]])

    def test_rechecked_rows_are_counted(self, backend: Backend, rng: np.random.Generator) -> None:
        rows = rows_of("normal", rng, 100, 2)
        ours, _ = fixed_points(rows, None)
        tied = np.zeros((30, 2), np.float32)  # as far from (1, 0) as from (−1, 0)
        pieces = [Piece("x", rows), Piece("tied", tied), Piece("none", tied)]
        far = np.array([[1, 0], [-1, 0]], np.float32)
        loaded = backend.load_codebooks({"x": Codebook(far, ours), "tied": Codebook(far, ours)})
        resident = backend.load_rows(chunk_of_pieces(pieces))
        assert backend.rechecked(loaded) == {"x": 0, "tied": 0}
        backend.assign_accumulate(resident, loaded)
        first = backend.rechecked(loaded)
        assert first.keys() == {"x", "tied"}
        assert first["x"] <= 100
        # a tie cannot be proved; a backend that looks at every row exactly rechecks none
        assert first["tied"] in (0, 30)
        backend.assign(resident, loaded)
        assert backend.rechecked(loaded) == {name: 2 * count for name, count in first.items()}

    def test_nothing_given_is_written_to(self, backend: Backend, rng: np.random.Generator) -> None:
        fields = RaggedFields(rng)
        chunk = chunk_of_pieces(fields.pieces)
        assert chunk.weights is not None
        codewords = [codebook.codewords for codebook in fields.codebooks.values()]
        arrays: list[NDArray[Any]] = [chunk.values, chunk.weights, *codewords]
        copies = [array.copy() for array in arrays]
        assign(backend, chunk, fields.codebooks)
        accumulated(backend, [chunk], fields.codebooks)
        for array, copy in zip(arrays, copies, strict=True):
            assert array.tobytes() == copy.tobytes()


# The contract can fail: each backend below has one planted fault that one of its tests must see.


class TiesToTheHigher(CpuBackend):
    def load_codebooks(self, codebooks: Mapping[str, Codebook]) -> CpuCodebooks:
        return super().load_codebooks(
            {
                name: Codebook(np.ascontiguousarray(c.codewords[::-1]), c.fixed_point)
                for name, c in codebooks.items()
            }
        )

    def assign(
        self, rows: Chunk, codebooks: CpuCodebooks, *, distances: bool = False
    ) -> Assignment:
        found = super().assign(rows, codebooks, distances=distances)
        (codebook,) = codebooks.codebooks
        return Assignment(
            (len(codebook.codewords) - 1 - found.codes).astype(np.uint32), found.distances
        )


class OffByOneRow(CpuBackend):
    def assign(
        self, rows: Chunk, codebooks: CpuCodebooks, *, distances: bool = False
    ) -> Assignment:
        found = super().assign(rows, codebooks, distances=distances)
        return Assignment(np.roll(found.codes, 1), found.distances)


class SinglePrecision(CpuBackend):
    def assign(
        self, rows: Chunk, codebooks: CpuCodebooks, *, distances: bool = False
    ) -> Assignment:
        found = super().assign(rows, codebooks, distances=distances)
        assert found.distances is not None
        return Assignment(found.codes, found.distances.astype(np.float32).astype(np.float64))


class LosesTheLastRow(CpuBackend):
    def assign_accumulate(self, rows: Chunk, codebooks: CpuCodebooks) -> None:
        pieces = [Piece(s.field, rows.rows(s)) for s in rows.layout.segments]
        pieces[-1] = Piece(pieces[-1].field, pieces[-1].rows[:-1])
        shorter = chunk_of_pieces(pieces)
        weights = None if rows.weights is None else rows.weights[:-1]
        super().assign_accumulate(Chunk(shorter.layout, shorter.values, weights), codebooks)


class IgnoresWeights(CpuBackend):
    def load_codebooks(self, codebooks: Mapping[str, Codebook]) -> CpuCodebooks:
        def unweighted(fixed: FixedPoint | None) -> FixedPoint | None:
            if fixed is None:
                return None
            return FixedPoint(fixed.bits, fixed.weight_shift, fixed.column_exponents, False)

        return super().load_codebooks(
            {n: Codebook(c.codewords, unweighted(c.fixed_point)) for n, c in codebooks.items()}
        )


class BendsBadCodes(CpuBackend):
    def accumulate(self, rows: Chunk, codes: NDArray[np.uint32], codebooks: CpuCodebooks) -> None:
        super().accumulate(rows, np.minimum(codes, 1), codebooks)


class OtherSignature(CpuBackend):
    def assign(self, rows: Chunk, codebooks: CpuCodebooks, *, distances: bool = True) -> Assignment:
        return super().assign(rows, codebooks, distances=distances)


PLANTED: list[tuple[type[CpuBackend], Callable[..., None]]] = [
    (TiesToTheHigher, TestBackend.test_ties_go_to_the_lower_codeword),
    (OffByOneRow, TestBackend.test_codes_and_distances_are_the_oracle_s),
    (SinglePrecision, TestBackend.test_codes_and_distances_are_the_oracle_s),
    (LosesTheLastRow, TestBackend.test_partials_are_the_oracle_s),
    (IgnoresWeights, TestBackend.test_partials_are_the_oracle_s),
    (BendsBadCodes, TestBackend.test_a_given_code_out_of_range_names_the_row),
    (OtherSignature, TestBackend.test_signatures_are_those_of_the_protocol),
]


@pytest.mark.parametrize(("faulty", "test"), PLANTED)
def test_the_contract_sees_a_planted_fault(
    rng: np.random.Generator, faulty: type[CpuBackend], test: Callable[..., None]
) -> None:
    # a failed assertion, or `pytest.raises` that nothing was raised in
    given: dict[str, Any] = {"backend": faulty(2)}
    if "rng" in inspect.signature(test).parameters:
        given["rng"] = rng
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(TestBackend(), **given)
    given["backend"] = CpuBackend(2)
    test(TestBackend(), **given)


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ParamError, match='backend="abacus" was given; the backends are cpu'):
        open_backend("abacus")


def test_auto_chooses_a_known_backend() -> None:
    assert open_backend("auto").name == "cpu"
