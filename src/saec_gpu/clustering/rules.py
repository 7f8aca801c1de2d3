"""Codes by error and length: the rule `cost`, in place of the nearest codeword (DEFINITIONS G).

Entropy-constrained assignment (Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization",
IEEE Trans. ASSP 37(1), 1989, doi 10.1109/29.17498) for codes in levels (levels.py), where all codes
of a level are of one length. With λ, the weighted error that a bit is worth, and p_l = f64(λ ·
length of level l): within each level a row's nearest codeword is found as ever, ties to the lower
index; of the levels that of least f64(f64(w · dist) + p_l) is taken, ties to the lower level. w is
the row's weight, 1 where a field has none or all are zero. So rows that are never looked up take
the shortest codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.protocol import Assignment, Backend
from saec_gpu.clustering.lloyd import moved_codewords
from saec_gpu.clustering.selection import Selection
from saec_gpu.clustering.statistics import fixed_point
from saec_gpu.data import Codebook, Float32, Float64, Int64, Statistics
from saec_gpu.errors import ArtifactError
from saec_gpu.layout import Layout
from saec_gpu.levels import Levels, shorter_levels

# Codewords, levels and codes follow from each other; after so many rounds they change little.
ROUNDS = 8
GREATEST_BIT_PRICE = 2.0**900  # beyond any weighted error, and its products are finite


@dataclass(frozen=True)
class CostRule:
    """How the codes of a field are chosen by error and length.

    Attributes
    ----------
    bit_price : float
        λ, the weighted squared distance that a bit of a code is worth.
    levels : Levels
        Whose bits cut the codes into classes of one length.
    weighted : bool
        Whether the rows' weights count; False: each counts as 1.
    """

    bit_price: float
    levels: Levels
    weighted: bool

    def prices(self) -> list[float]:
        """Return p_l of each level."""
        return [self.bit_price * float(length) for length in self.levels.lengths]


def rule_of(record: Mapping[str, Any], levels: Levels | None) -> CostRule | None:
    """Return the rule that a manifest's record of a field names; None: the nearest codeword.

    Raises
    ------
    ArtifactError
        The rule has no such price, or needs levels and the field's codes have none.
    """
    if record.get("rule") != "cost":
        return None
    price = record.get("bit_price")
    if levels is None or not (type(price) is float and 0.0 < price < math.inf):
        raise ArtifactError(
            f"codes by error and length have the price {price!r} a bit and levels {levels}; a "
            "finite number above 0 and levels are needed: the manifest was altered"
        )
    return CostRule(price, levels, weighted=record.get("weights") == "given")


class RuledCodebooks:
    """Codebooks where a backend works with them, and the rules by which rows get their codes.

    Parameters
    ----------
    backend : Backend
    codebooks : mapping of name to Codebook
    rules : mapping of name to CostRule
        Fields without one have the codes of the nearest.
    """

    def __init__(
        self,
        backend: Backend,
        codebooks: Mapping[str, Codebook],
        rules: Mapping[str, CostRule],
    ) -> None:
        self._backend = backend
        self._rules = rules
        layers: list[dict[str, Codebook]] = [{}]
        for name, codebook in codebooks.items():
            firsts = rules[name].levels.first_codes if name in rules else (0,)
            ends = (*firsts[1:], len(codebook.codewords))
            layers += [{} for _ in range(len(firsts) - len(layers))]
            for layer, first, end in zip(layers, firsts, ends, strict=False):
                words = codebook.codewords[first:end]
                layer[name] = Codebook(words, middle=codebook.middle)
        self._layers = [(layer.keys(), backend.load_codebooks(layer)) for layer in layers]

    def assign(self, rows: Any, weights: Float64 | None) -> Assignment:
        """Return code of each row by its field's rule, and the distance to that codeword."""
        return self.assign_later(rows, weights)()

    def assign_later(self, rows: Any, weights: Float64 | None) -> Callable[[], Assignment]:
        """Begin what `assign` does; return what waits for it, to be called once.

        Parameters
        ----------
        rows : rows of the backend
        weights : float64 (n_rows,) or None
            In the host's memory; None: each is 1.
        """
        layout: Layout = rows.layout
        fields = {segment.field for segment in layout.segments}
        begun = [
            self._backend.assign_later(rows, layer, distances=True)
            for number, (names, layer) in enumerate(self._layers)
            if number == 0 or not fields.isdisjoint(names)
        ]
        return lambda: self._least(layout, [finished() for finished in begun], weights)

    def _least(
        self, layout: Layout, found: list[Assignment], weights: Float64 | None
    ) -> Assignment:
        if len(found) == 1:
            return found[0]
        codes, distances = found[0].codes.copy(), np.array(found[0].distances)
        for segment in layout.segments:
            rule = self._rules.get(segment.field)
            if rule is None:
                continue
            rows = segment.rows
            own = weights[rows] if rule.weighted and weights is not None else 1.0
            prices = rule.prices()
            least = own * distances[rows] + prices[0]
            for level in range(1, len(prices)):
                others = found[level]
                assert others.distances is not None
                cost = own * others.distances[rows] + prices[level]
                less = cost < least
                least[less] = cost[less]
                first = np.uint32(rule.levels.first_codes[level])
                codes[rows][less] = others.codes[rows][less] + first
                distances[rows][less] = others.distances[rows][less]
        return Assignment(codes, distances)


def constrained(
    backend: Backend,
    rows: Any,
    codewords: Mapping[str, Float32],
    bit_prices: Mapping[str, float],
    selections: Mapping[str, Selection],
    statistics: Mapping[str, Statistics],
    n_rows: Mapping[str, int],
) -> dict[str, tuple[Float32, CostRule | None]]:
    """Return codewords trained on with codes by cost, most used first, and each field's rule.

    Parameters
    ----------
    backend : Backend
    rows : rows of the backend
        Of the selections, as `chunk_of_selections` has them.
    codewords : mapping of name to float32 (k, dim)
        Trained for codes of the nearest. Other fields are passed over.
    bit_prices : mapping of name to float
        λ of each field.
    selections : mapping of name to Selection
    statistics : mapping of name to Statistics
        Of the selections.
    n_rows : mapping of name to int
        Rows of the whole field.

    Returns
    -------
    found : dict of name to (float32 (k, dim), CostRule or None)
        None where codes in levels take no fewer bytes than in planes: codes of the nearest.

    Notes
    -----
    `ROUNDS` times: codes by the present rule, the nearest at first; update and repair (DEFINITIONS
    E, F); codewords by the rows that codes of all rows are estimated to give them, descending, ties
    to the lower index; levels of these numbers.
    """
    if not codewords:
        return {}
    # of the rows themselves, not of all that they stand for
    weights = np.concatenate([one.weights / one.multiplicity for one in selections.values()])
    fixed = {name: fixed_point(statistics[name]) for name in codewords}
    words, rules = dict(codewords), dict[str, CostRule]()
    for _ in range(ROUNDS):
        books = {name: Codebook(own, fixed[name]) for name, own in words.items()}
        codes = RuledCodebooks(backend, books, rules).assign(rows, weights).codes
        loaded = backend.load_codebooks(books)
        backend.accumulate(rows, codes, loaded)
        partials = backend.partials(loaded)
        for segment in rows.layout.segments:
            name = segment.field
            if name not in words:
                continue
            uses = estimated_uses(
                codes[segment.rows], len(words[name]), selections[name], n_rows[name],
                rules.pop(name, None),
            )  # fmt: skip
            order = np.lexsort((np.arange(len(uses)), -uses))
            moved = moved_codewords(
                backend, words[name], partials[name], fixed[name], statistics[name]
            )
            words[name] = moved[order]
            levels = shorter_levels(uses[order])
            if levels is not None:
                rules[name] = CostRule(bit_prices[name], levels, selections[name].weighted)
    return {name: (own, rules.get(name)) for name, own in words.items()}


def estimated_uses(
    codes: NDArray[np.uint32],
    n_codewords: int,
    selection: Selection,
    n_rows: int,
    rule: CostRule | None,
) -> Int64:
    """Return how many rows of the field have each code, int64 (k,), as a selection tells.

    `codes` are those of the selection's rows, uint32 (m,). By a rule, rows of weight 0 that are not
    in the selection have the shortest codes.
    """
    weightless = 0 if rule is None else selection.weightless
    counts = np.bincount(codes, selection.multiplicity, n_codewords)
    uses: Int64 = np.rint(counts * ((n_rows - weightless) / np.cumsum(counts)[-1])).astype(np.int64)
    if rule is not None:
        prices = rule.prices()
        uses[rule.levels.first_codes[prices.index(min(prices))]] += weightless
    return uses
