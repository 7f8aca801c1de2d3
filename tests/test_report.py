"""A report: every number by equality, and a page that is whole, safe and read by anybody."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import browser
from saec_gpu.artifact import Artifact
from saec_gpu.artifact_writer import EncodedField, write_artifact
from saec_gpu.errors import (
    ArtifactError,
    MissingExtraError,
    NonFiniteRowError,
    ParamError,
    SourceError,
    WeightError,
)
from saec_gpu.packing import PlaneWriter
from saec_gpu.report import charts, report, report_data, sections
from saec_gpu.report.lookup_groups import GROUPS, UNSEEN, LookupGroups
from saec_gpu.report.sections import SUMMED, errors_of, use_of
from saec_gpu.sources import TableSource

HOSTILE = "<script>alert(\"$x$\")</script> & '漢字' \x1b\n\u202e"
CURVE = [
    {"codewords": 1, "dtype": "int8", "distortion": 90.0, "codebook_bytes": 4, "code_bytes": 0},
    {"codewords": 3, "dtype": "float32", "distortion": 30.0, "codebook_bytes": 24, "code_bytes": 3},
    {"codewords": 9, "dtype": "whole", "distortion": 0.0, "codebook_bytes": 72, "code_bytes": 0},
]  # fmt: skip
RUN = {
    "backend": "cpu",
    "threads": 2,
    "source": None,
    "begun": "2020-01-01T00:00:00Z",
    "versions": {"numpy": "2.0", "saec_gpu": "0.1"},
    "seconds": {"codes": 0.5, "fit": 2.0, "total": 3.25},
    "rechecked_share": {"item": 0.125},
}


def made(
    folder: Path,
    codes: Mapping[str, Sequence[int]],
    codebooks: Mapping[str, Any],
    *,
    records: Mapping[str, Mapping[str, Any]] | None = None,
    parameters: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Artifact:
    """Return an artifact of given codes and codewords; fields without codes are kept whole."""
    encoded = []
    for number, name in enumerate(sorted(codebooks)):
        codebook = np.array(codebooks[name], np.float32)
        path = None
        if name in codes:
            path = folder / f"{number}.npy"
            with PlaneWriter(path, len(codes[name]), len(codebook)) as writer:
                writer.append(np.array(codes[name]))
        encoded.append(
            EncodedField(
                name,
                len(codes.get(name, codebook)),
                codebook.shape[1],
                "float32",
                "planes" if name in codes else "identity",
                codebook,
                path,
                (records or {}).get(name, {}),
            )
        )
    return write_artifact(
        folder / "m.saec", encoded, parameters=parameters or {}, run=run or {}, overwrite=False
    )


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    records = {
        "item": {"sse": 18.0, "weighted_sse": 36.0, "codewords_asked": 3, "iterations": 7,
                 "stopped": "shift", "curve": CURVE},
    }  # fmt: skip
    return made(
        tmp_path,
        {"item": [0, 1, 2, 0, 0, 1, 0, 0, 0]},
        {"item": [[0, 0], [4, 0], [0, 8]], "shop": [[1, 2, 3]]},
        records=records,
        parameters={"seed": 0, "budget": 40, "sensitivity": {"item": 1.0}},
        run=RUN,
    )


def rows_of(artifact: Artifact) -> dict[str, NDArray[np.float32]]:
    """Return tables whose row i of item lies i away from its codeword, along the last column."""
    item = artifact["item"].lookup(np.arange(9))
    item[:, 1] += np.arange(9)
    return {"item": item, "shop": artifact["shop"].codebook}


# Groups of equal look-ups.


def groups_by_sorting(weights: NDArray[Any]) -> list[int]:
    """Return the groups by their definition, in exact arithmetic."""
    exact = [Fraction(float(weight)) for weight in weights]
    found, before, total = [UNSEEN] * len(exact), Fraction(0), sum(exact)
    for i in sorted(range(len(exact)), key=lambda i: (-exact[i], i)):
        if exact[i]:
            found[i] = min(int((before + exact[i] / 2) * GROUPS / total), GROUPS - 1)
            before += exact[i]
    return found


@pytest.mark.parametrize("n_rows", [1, 31, 1025])
@pytest.mark.parametrize("part", [1, 7, 2000])
def test_groups_are_those_of_sorting(rng: np.random.Generator, n_rows: int, part: int) -> None:
    weights = np.floor(rng.pareto(1.0, n_rows)).clip(0, 2047)
    weights[0] = 5
    parts = [weights[i : i + part] for i in range(0, n_rows, part)]
    groups = LookupGroups(parts)
    found = np.concatenate([groups.assign(one) for one in parts])
    assert found.tolist() == groups_by_sorting(weights)
    assert groups.total == weights.sum()


def test_rows_of_nearly_equal_weight_stand_in_the_order_of_rows() -> None:
    weights = 2.0**50 + np.arange(20.0)
    assert LookupGroups([weights]).assign(weights).tolist() == [i // 2 for i in range(20)]


def test_greatest_and_least_weights_have_groups() -> None:
    weights = np.array([2.0**-400, 0.0, 2.0**400])
    assert LookupGroups([weights]).assign(weights).tolist() == [9, UNSEEN, 5]
    none = np.zeros(3)
    assert LookupGroups([none]).assign(none).tolist() == [UNSEEN] * 3


# The numbers of each section.


def test_head(artifact: Artifact) -> None:
    after = 3 * 2 * 4 + 3 + 12  # codewords, nine codes of two bits, the field kept whole
    assert sections.head(artifact) == {
        "path": str(artifact.path),
        "ratio": (9 * 2 + 3) * 4 / after,
        "table_bytes": (9 * 2 + 3) * 4,
        "counted_bytes": after,
        "disk_bytes": artifact.disk_bytes,
        "fields": 2,
        "rows": 10,
        "parameters": {"seed": 0, "budget": 40, "sensitivity": {"item": 1.0}},
        "run": {key: RUN[key] for key in ("source", "begun", "backend", "threads", "versions")},
    }


def test_fields(artifact: Artifact) -> None:
    item, shop = sections.fields(artifact.manifest["fields"])
    assert item == {
        "name": "item", "rows": 9, "dim": 2, "dtype": "float32", "encoding": "planes",
        "codewords": 3, "codewords_dtype": "float32", "bits_per_row": 24 / 9, "table_bytes": 72,
        "codebook_bytes": 24, "code_bytes": 3, "counted_bytes": 27, "mean_sq_error": 2.0,
    }  # fmt: skip
    assert (shop["encoding"], shop["bits_per_row"], shop["mean_sq_error"]) == ("identity", 0, 0)


def test_fields_state_the_dtype_of_their_codewords(artifact: Artifact) -> None:
    item = artifact.manifest["fields"][0]
    assert sections.codewords_dtype(item) == "float32"
    assert sections.codewords_dtype({**item, "codewords_dtype": "int8"}) == "int8"


def test_curves(artifact: Artifact) -> None:
    item, shop = artifact.manifest["fields"]
    assert sections.curves([item, shop]) == [
        {"name": "item", "points": CURVE, "chosen": 1, "bytes": 27, "distortion": 36.0}
    ]
    whole = {**item, "encoding": "identity", "codewords": 9, "weighted_sse": None}
    (found,) = sections.curves([whole])
    assert (found["chosen"], found["distortion"]) == (2, 18.0)
    (found,) = sections.curves([{**item, "codewords_asked": 4}])
    assert found["chosen"] is None
    (found,) = sections.curves([{**item, "codewords_dtype": "float16"}])
    assert found["chosen"] is None


def test_use_of_codewords(artifact: Artifact) -> None:
    (found,) = report_data(artifact)["use"]
    share = np.array([6, 2, 1]) / 9
    assert found == {
        "name": "item", "codewords": 3, "bits_per_row": 24 / 9,
        "entropy": float(-(share * np.log2(share)).sum()),
        "even": 2 ** float(-(share * np.log2(share)).sum()),
        "used": 3, "most": 6, "median": 2.0, "ranks": [(1, 6), (2, 2), (3, 1)],
    }  # fmt: skip


def test_use_by_hand() -> None:
    assert use_of(np.full(8, 3))["entropy"] == 3.0
    assert use_of(np.full(8, 3))["even"] == 8.0
    assert json.dumps(use_of(np.array([7]))["entropy"]) == "0.0"
    many = use_of(np.arange(1000))
    assert (many["used"], many["most"], many["median"]) == (999, 999, 499.5)
    assert len(many["ranks"]) <= sections.CURVE_RANKS
    assert many["ranks"][0] == (1, 999)
    assert many["ranks"][-1] == (1000, 0)
    assert all(rows == 1000 - rank for rank, rows in many["ranks"])


def test_codes_are_counted_part_by_part(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = report_data(artifact)["use"]
    monkeypatch.setattr(sections, "READ_ROWS", 4)
    seen: list[tuple[int, int]] = []
    parts = report_data(artifact, progress=lambda at: seen.append((at.done, at.total)))["use"]
    assert parts == whole
    assert seen == [(4, 9), (8, 9), (9, 9)]


def test_run_and_update(artifact: Artifact) -> None:
    entries = artifact.manifest["fields"]
    assert sections.run(entries, RUN) == {
        "seconds": RUN["seconds"],
        "fields": [
            {"name": "item", "passes": 7, "stopped": "shift", "rechecked_share": 0.125},
        ],
    }
    assert sections.run(entries, {}) == {"seconds": {}, "fields": []}
    assert sections.update(entries) == []
    changes = {"rule": "margin", "churn": 0.25, "drift": 1.5, "staleness": 2.0}
    assert sections.update([{**entries[0], **changes}, entries[1]]) == [
        {"name": "item", "churn": 0.25, "drift": 1.5, "staleness": 2.0}
    ]


def test_errors_by_hand() -> None:
    sums = np.zeros((len(SUMMED), GROUPS + 1))
    sums[:, 0] = 1, 40, 2, 8
    sums[:, 3] = 3, 60, 6, 0
    sums[:, UNSEEN] = 4, 0, 8, 32
    found = errors_of(sums)
    assert found["groups"][0] == {
        "rows": 1, "lookups": 40, "mean_sq_error": 2, "mean_sq_norm": 8, "relative": 0.25,
    }  # fmt: skip
    assert found["groups"][3]["relative"] is None  # all rows are zero
    assert found["groups"][3]["mean_sq_error"] == 2
    assert set(found["groups"][1].values()) == {0, None}
    assert found["unseen"]["relative"] == 0.25
    assert found["all"]["rows"] == 8
    assert found["all"]["relative"] == 16 / 40


@pytest.mark.parametrize("at_once", [1, 4, 9])
def test_errors_of_an_artifact(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(sections, "READ_BYTES", at_once * 2 * 4)
    weights = np.array([0.0, 3.0, 1.0, 40.0, 0.0, 2.0, 30.0, 24.0, 0.0])
    tables = rows_of(artifact)
    most = 0

    def tell(at: Any) -> None:
        nonlocal most
        most = max(most, at.done)

    (found,) = report_data(artifact, tables, {"item": weights}, progress=tell)["errors"]
    assert most == 9
    sums = np.zeros((len(SUMMED), GROUPS + 1))
    groups = groups_by_sorting(weights)
    assert groups == [UNSEEN, 9, 9, 2, UNSEEN, 9, 5, 8, UNSEEN]
    for i, group in enumerate(groups):
        # Row i lies i away from its codeword.
        sums[:, group] += 1, weights[i], i**2, (tables["item"][i].astype(float) ** 2).sum()
    assert found == {"name": "item", **errors_of(sums)}


def test_one_read_is_bounded(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    read = TableSource.read
    sizes = []

    def watched(source: Any, field: str, start: int, out: NDArray[np.float32]) -> None:
        sizes.append(out.nbytes)
        read(source, field, start, out)

    monkeypatch.setattr(TableSource, "read", watched)
    monkeypatch.setattr(sections, "READ_BYTES", 24)
    report_data(artifact, rows_of(artifact), {"item": np.ones(9)})
    assert sizes == [24, 24, 24]


def test_data_is_json(artifact: Artifact) -> None:
    data = report_data(artifact, rows_of(artifact), {"item": np.ones(9)})
    assert list(data) == ["head", "fields", "curves", "errors", "use", "run", "update"]
    json.dumps(data, allow_nan=False)
    assert report_data(artifact)["errors"] is None


# What is refused.


def test_what_is_refused(artifact: Artifact) -> None:
    tables, weights = rows_of(artifact), {"item": np.ones(9)}
    with pytest.raises(ParamError, match="tables were given without weights"):
        report(artifact, tables)
    with pytest.raises(ParamError, match="weights were given without tables"):
        report(artifact, weights=weights)
    with pytest.raises(SourceError, match='field "item" is 9 × 2'):
        report(artifact, tables | {"item": tables["item"][:8]}, {"item": np.ones(8)})
    with pytest.raises(WeightError, match=r'row 8 of field "item" has weight -1\.0'):
        report(artifact, tables, {"item": np.array([1.0] * 8 + [-1.0])})
    tables["item"][7, 1] = np.nan
    with pytest.raises(NonFiniteRowError, match='row 7 of field "item" holds NaN'):
        report(artifact, tables, weights)


def test_altered_codes_are_refused(artifact: Artifact) -> None:
    path = artifact.path / "codes" / "0.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x03")  # the last code is 3, and there are three codewords
    with pytest.raises(ArtifactError, match="altered"):
        report(artifact)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_extra(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}.*\[report\]"):
        report(artifact)


# The page.

VOID = {"meta", "link", "br"}


class Whole(HTMLParser):
    """Reads a page, and fails where an element is not closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            text = value or ""
            if key == "id":
                self.ids.append(text)
            elif key in ("aria-labelledby", "aria-describedby"):
                self.references |= set(text.split())
            elif key in ("href", "src", "srcset", "data", "action"):
                self.links.append(text)
                if text.startswith("#"):
                    self.references.add(text[1:])
            elif key.startswith("on"):
                self.handlers.append(key)
            self.references |= set(re.findall(r"url\(#([^)]+)\)", text))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def hostile(folder: Path) -> Artifact:
    """Return an artifact with everything that a page can show, in fields of any name."""
    record = {"sse": 8.0, "curve": CURVE, "codewords_asked": 3} | {
        "rule": "margin", "churn": 0.5, "drift": 1.25, "staleness": 1.5,
    }  # fmt: skip
    return made(
        folder,
        {HOSTILE: [0, 1, 2], "none": [], "x" * 200: [0, 0, 0, 0]},
        {HOSTILE: np.eye(3), "none": np.zeros((0, 2)), "x" * 200: [[1]], "whole": np.eye(2)},
        records={HOSTILE: record, "whole": {"curve": CURVE}},
        parameters={"budget": 9, "sensitivity": {HOSTILE: 2.0}},
        run=RUN | {"source": HOSTILE, "rechecked_share": {HOSTILE: 0.0}},
    )


def hostile_page(folder: Path) -> str:
    artifact = hostile(folder)
    tables = {name: artifact[name].lookup(np.arange(artifact[name].n_rows)) for name in artifact}
    return report(artifact, tables, {HOSTILE: np.array([1, 0, 7])})


def test_page_is_whole_and_alone(tmp_path: Path) -> None:
    html = hostile_page(tmp_path)
    found = Whole(html)
    assert len(found.ids) == len(set(found.ids))
    assert found.references <= set(found.ids)
    assert found.references >= {"bytes", "bytes-chart-title", "curves-chart-desc"}
    assert [link for link in found.links if not link.startswith("#")] == ["data:,"]
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", html)
    assert found.handlers == []
    assert "script" not in found.tags
    assert found.tags.count("svg") == found.tags.count("desc") == 4
    assert found.tags.count("table") == found.tags.count("caption") == found.tags.count("thead")
    sections_found = re.findall(r'<section id="([^"]+)"', html)
    assert sections_found == [
        "bytes", "curves", "errors", "use", "seconds", "rechecked", "update",
    ]  # fmt: skip


def test_page_escapes_and_shows_every_name(tmp_path: Path) -> None:
    html = hostile_page(tmp_path)
    assert "<script" not in html
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", html)
    assert r"""<script>alert("$x$")</script> & '漢字' \x1b\n\u202e""" in Whole(html).text


def test_names_in_charts_are_no_formulas() -> None:
    assert ">$x^2$<" in charts.seconds_chart({"$x^2$": 1.0})


def test_curves_without_a_choice_are_shown(tmp_path: Path) -> None:
    assert "whole – 3 – – 16 B – –" in Whole(hostile_page(tmp_path)).text


def test_page_says_the_numbers(artifact: Artifact) -> None:
    found = Whole(report(artifact, rows_of(artifact), {"item": np.ones(9)}))
    for words in (
        "smaller 2.15 times", "bytes 84 B → 39 B", "budget 40", "sensitivity item 1.0",
        "versions numpy 2.0, saec_gpu 0.1", "made in 3 s", "item float32 planes float32 9 2 3",
        "shift 7 12.500%", "fit 2.000", "Error by frequency",
    ):  # fmt: skip
        assert words in found.text


def test_sections_without_numbers_are_not_shown(tmp_path: Path) -> None:
    html = report(made(tmp_path, {"a": [0, 1]}, {"a": [[1], [2]]}))
    assert re.findall(r'<section id="([^"]+)"', html) == ["bytes", "use"]


def test_equal_artifacts_give_equal_pages(artifact: Artifact) -> None:
    assert report(artifact) == report(artifact)


def test_charts_say_what_they_leave_out(tmp_path: Path) -> None:
    names = [f"f{i:03}" for i in range(300)]
    record = {"curve": CURVE, "codewords_asked": 3}
    artifact = made(
        tmp_path,
        {name: [0, 1, 2] for name in names},
        {name: np.eye(3) for name in names},
        records=dict.fromkeys(names, record),
    )
    html = report(artifact)
    found = Whole(html)
    assert "shows the 30 largest of 300 fields; the others together are its last line" in found.text
    assert "shows the 12 largest of 300 fields; the table has all" in found.text
    assert "shows the 30 largest of 300 fields; the table has all" in found.text
    assert "Lines are drawn of the 6 largest fields" in found.text
    assert "270 other fields together" in found.text
    assert html.count('<th scope="row" class="text">f299</th>') == 3  # of bytes, curves and use


def test_bytes_of_the_others_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "MOST_BARS", 1)
    sizes = [(1000, 10), (300, 30), (100, 10)]
    fields = [
        {"name": f"f{i}", "table_bytes": before, "counted_bytes": after}
        for i, (before, after) in enumerate(sizes)
    ]
    svg = charts.bytes_chart(fields)
    assert ">2 other fields together<" in svg
    assert re.findall(r">([\d.]+)×<", svg) == ["100", "10"]


@pytest.mark.allowed_skip(reason="Chromium comes with the system, not with a package of Python")
@pytest.mark.skipif(browser.chromium() is None, reason="Chromium is not installed")
def test_page_in_a_browser(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(hostile_page(tmp_path), encoding="utf-8")
    with browser.opened(tmp_path / "report.html") as (tab, said, asked):
        assert tab.title() == "m.saec: compression report"
        headings = tab.locator("h2").all_inner_texts()
        assert headings == [
            "Bytes by field", "Distortion curves", "Error by frequency", "Use of the codewords",
            "Seconds by stage", "Rows rechecked", "Since the last artifact",
        ]  # fmt: skip
        pictures = tab.get_by_role("img").all()
        assert len(pictures) == tab.locator("svg").count() == 4
        for picture in pictures:
            box = picture.bounding_box()
            assert box is not None
            assert 0 < box["width"] <= browser.WIDTH
        row = tab.get_by_role("row").filter(has_text="50.000%")
        assert row.locator("td").all_inner_texts() == ["50.000%", "1.2500", "1.5000"]
        ink = {}
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            ink[scheme] = tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert ink == {"light": "rgb(27, 27, 27)", "dark": "rgb(236, 236, 236)"}
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
