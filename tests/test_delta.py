"""The old artifact and a delta are the new one, byte for byte; anything else is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import saec_gpu as saec
from saec_gpu import delta as module
from saec_gpu.artifact_writer import EncodedField, write_artifact
from saec_gpu.errors import ArtifactError
from saec_gpu.levels import encode_in_levels, shorter_levels
from saec_gpu.packing import PlaneWriter
from test_cli import run


def all_bytes(artifact: saec.Artifact) -> dict[str, bytes]:
    return {name: (artifact.path / name).read_bytes() for name in artifact.files}


def artifact_of(
    folder: Path, name: str, fields: dict[str, tuple[int, Any] | None], rng: np.random.Generator
) -> saec.Artifact:
    """Return an artifact whose fields have these numbers of codewords and codes; None: whole."""
    encoded = []
    for field, content in fields.items():
        if content is None:
            rows = rng.standard_normal((4, 2)).astype(np.float32)
            encoded.append(EncodedField(field, 4, 2, "float32", "identity", rows))
            continue
        k, codes = content
        path = folder / f"{name}-{field}.npy"
        with PlaneWriter(path, len(codes), k) as writer:
            writer.append(codes)
        levels = shorter_levels(np.bincount(codes, minlength=k)) if len(codes) else None
        if levels is not None:
            encode_in_levels(path, k, levels)
        encoded.append(
            EncodedField(
                field,
                len(codes),
                2,
                "float16",
                "planes" if levels is None else "levels",
                rng.standard_normal((k, 2)).astype(np.float32),
                path,
                levels=levels,
            )
        )
    run_record = {"name": name}
    return write_artifact(
        folder / f"{name}.saec", encoded, parameters={}, run=run_record, overwrite=False
    )


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_last_and_delta_are_new(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("delta")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def fields() -> dict[str, tuple[int, Any] | None]:
        found: dict[str, tuple[int, Any] | None] = {"always": None}
        for name in data.draw(st.lists(st.sampled_from("abcd"), unique=True, min_size=1)):
            k = data.draw(st.sampled_from([1, 2, 3, 255, 256, 257, 70_000]))
            n_rows = data.draw(st.integers(0, 70))
            high = data.draw(st.sampled_from([1, k]))  # codes that differ little take levels
            found[name] = (k, rng.integers(0, high, n_rows).astype(np.uint32))
        return found

    last = artifact_of(folder, "last", fields(), rng)
    new = artifact_of(folder, "new", fields(), rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEP_ROWS", 16)
        path = saec.write_delta(last, new.path, folder / "x.delta")
        made = saec.apply_delta(last.path, path, folder / "made.saec")
    assert all_bytes(made) == all_bytes(new)
    again = saec.apply_delta(last, saec.write_delta(last, new, folder / "y.delta"))
    assert all_bytes(again) == all_bytes(new)
    assert again.path == last.path
    assert saec.apply_delta(again, path).manifest == new.manifest  # applied already
    assert sorted(one.name for one in folder.iterdir() if not one.name.endswith(".npy")) == [
        "last.saec", "made.saec", "new.saec", "x.delta", "y.delta",
    ]  # fmt: skip


@pytest.fixture
def pair(rng: np.random.Generator, tmp_path: Path) -> tuple[saec.Artifact, saec.Artifact]:
    codes = rng.integers(0, 300, 5000).astype(np.uint32)
    last = artifact_of(tmp_path, "last", {"x": (300, codes), "y": None}, rng)
    codes[::100] = 7
    return last, artifact_of(tmp_path, "new", {"x": (300, codes), "y": None}, rng)


def test_a_delta_repeats_to_the_byte_and_is_small(
    pair: tuple[saec.Artifact, saec.Artifact], tmp_path: Path
) -> None:
    one = saec.write_delta(*pair, tmp_path / "1.delta").read_bytes()
    assert saec.write_delta(*pair, tmp_path / "2.delta").read_bytes() == one
    with zipfile.ZipFile(tmp_path / "1.delta") as file:
        sizes = {info.filename: info.compress_size for info in file.infolist()}
    assert sizes["changed/0"] + sizes["codes/0"] < 120  # 50 codes among 5000, each the same
    assert "codes/1" not in sizes


def test_it_begins_at_one_artifact_alone(
    pair: tuple[saec.Artifact, saec.Artifact], tmp_path: Path
) -> None:
    last, new = pair
    path = saec.write_delta(new, last, tmp_path / "back.delta")
    before = all_bytes(last)
    with pytest.raises(ArtifactError, match="begins at the artifact"):
        saec.apply_delta(last, path, tmp_path / "x.saec")
    assert all_bytes(saec.apply_delta(new, path, tmp_path / "x.saec")) == before
    with pytest.raises(ArtifactError, match="exists"):
        saec.apply_delta(new, path, tmp_path / "x.saec")
    saec.apply_delta(new, path, tmp_path / "x.saec", overwrite=True)


def changed(path: Path, member: str, change: Callable[[bytes], bytes | None]) -> None:
    """Write a zip file anew with one member changed, or left out."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            new = change(content) if name == member else content
            if new is not None:
                file.writestr(name, new)


def with_head(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


@pytest.mark.parametrize(
    ("member", "change", "words"),
    [
        ("delta.json", lambda content: b"[]", "no delta of saec"),
        ("delta.json", lambda content: b"{", "no delta of saec"),
        ("delta.json", lambda content: None, "no delta, or it is damaged"),
        ("delta.json", with_head(format="zip"), "no delta of saec"),
        ("delta.json", with_head(format_version=2), "reads up to 1: upgrade"),
        ("delta.json", with_head(last=5), "no delta of saec"),
        ("manifest.json", lambda content: content.replace(b"5000", b"5001"), "altered"),
        ("manifest.json", lambda content: None, "damaged"),
        ("codebooks.safetensors", lambda content: content[:-1] + b"!", "is damaged: codebooks"),
        ("codebooks.safetensors", lambda content: None, "is damaged: codebooks"),
        ("changed/0", lambda content: content[:-1], "damaged"),
        ("changed/0", lambda content: b"\0" + content[1:], "damaged"),
        ("codes/0", lambda content: content[:-2], "damaged"),
        ("codes/0", lambda content: b"\xff\xff" + content[2:], "code|damaged"),
        ("codes/0", lambda content: None, "damaged"),
    ],
)
def test_a_damaged_delta_changes_nothing(
    pair: tuple[saec.Artifact, saec.Artifact],
    tmp_path: Path,
    member: str,
    change: Callable[[bytes], bytes | None],
    words: str,
) -> None:
    last, new = pair
    path = saec.write_delta(last, new, tmp_path / "x.delta")
    changed(path, member, change)
    before = all_bytes(last)
    with pytest.raises(ArtifactError, match=words):
        saec.apply_delta(last, path)
    assert all_bytes(saec.load(last.path)) == before
    assert not (tmp_path / "last.saec.writing").exists()


def test_what_is_no_delta(pair: tuple[saec.Artifact, saec.Artifact], tmp_path: Path) -> None:
    last, new = pair
    with pytest.raises(ArtifactError, match="there is no delta"):
        saec.apply_delta(last, tmp_path / "none.delta")
    whole = saec.write_delta(last, new, tmp_path / "x.delta").read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2]):
        (tmp_path / "cut.delta").write_bytes(content)
        with pytest.raises(ArtifactError, match="is no delta, or it is damaged"):
            saec.apply_delta(last, tmp_path / "cut.delta")
    with pytest.raises(ArtifactError, match="could not be written"):
        saec.write_delta(last, new, tmp_path / "no" / "x.delta")


def test_another_name_in_place_of_the_run_is_found(
    pair: tuple[saec.Artifact, saec.Artifact], tmp_path: Path
) -> None:
    last, new = pair
    path = saec.write_delta(last, new, tmp_path / "x.delta")
    path.write_bytes(path.read_bytes().replace(b"run.json", b"ruN.json"))
    with pytest.raises(ArtifactError, match="damaged"):
        saec.apply_delta(last, path, tmp_path / "made.saec")


def test_an_artifact_without_its_run_has_a_delta(
    pair: tuple[saec.Artifact, saec.Artifact], tmp_path: Path
) -> None:
    last, new = pair
    (new.path / "run.json").unlink()
    path = saec.write_delta(last, saec.load(new.path), tmp_path / "x.delta")
    made = saec.apply_delta(last, path, tmp_path / "made.saec")
    assert all_bytes(made) == all_bytes(saec.load(new.path))


def test_a_flipped_byte_is_found(
    pair: tuple[saec.Artifact, saec.Artifact], rng: np.random.Generator, tmp_path: Path
) -> None:
    last, new = pair
    path = saec.write_delta(last, new, tmp_path / "x.delta")
    whole = bytearray(path.read_bytes())
    expected, found = all_bytes(new), 0
    for place in rng.integers(0, len(whole), 60):
        whole[place] ^= 0x10
        path.write_bytes(whole)
        try:
            made = saec.apply_delta(last, path, tmp_path / "made.saec", overwrite=True)
        except ArtifactError:
            found += 1
        else:  # a byte that nothing depends on, such as a date
            same = {name: made.path.joinpath(name).read_bytes() for name in expected}
            assert same | {"run.json": b""} == expected | {"run.json": b""}
        whole[place] ^= 0x10
    assert found > 30


def test_the_commands(pair: tuple[saec.Artifact, saec.Artifact], tmp_path: Path) -> None:
    last, new = pair
    out = tmp_path / "x.delta"
    assert "the new artifact has" in run("delta", last.path, new.path, "--out", out).stdout
    shown = json.loads(run("delta", last.path, new.path, "--out", out, "--json").stdout)
    assert shown == {
        "out": str(out), "bytes": out.stat().st_size, "artifact_bytes": new.disk_bytes,
    }  # fmt: skip
    made = tmp_path / "made.saec"
    assert run("apply", last.path, out, "--out", made).exit_code == 0
    assert all_bytes(saec.load(made)) == all_bytes(new)
    assert run("apply", last.path, out, "--out", made).exit_code == 1
    assert run("apply", last.path, out, "--out", made, "--overwrite").exit_code == 0
    ended = json.loads(run("apply", new.path, last.path / "manifest.json", "--json").stdout)
    assert ended["error"]["type"] == "ArtifactError"
