"""The limits of GPU.md section 2, and what is printed beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from saec_gpu.bench import roofline
from saec_gpu.bench.records import SCHEMA, append_record
from saec_gpu.bench.roofline import (
    GPUS,
    as_measured,
    bound,
    bus_seconds,
    flash_seconds,
    limits,
    main,
    measured,
    shape_of,
    table,
)

from saec_gpu.errors import ParamError

# GPU.md section 2, for an H200 at 1.5 ALU a pair, in milliseconds as printed there: memory, float16
# tensor, arg-min, bound, flash model, PCIe
PRINTED = {
    ("8000000x1024x128", "f16"): ("0.5", "2.7", "0.8", "2.7", "6", "41"),
    ("1000000000x256x16", "f32"): ("16", "10", "26", "26", "103", "1280"),
    ("1000000000x1024x16", "f32"): ("16", "41", "104", "104", "410", "1280"),
    ("1000000000x4096x16", "f32"): ("16", "166", "414", "414", "1640", "1280"),
    ("1000000000x1024x64", "f32"): ("61", "166", "104", "166", "533", "5120"),
}


def unit_of(printed: str) -> float:
    """What the last printed digit stands for; a trailing zero of a long number says nothing."""
    if "." in printed:
        return 10.0 ** -len(printed.partition(".")[2])
    digits = printed.rstrip("0") if len(printed) > 3 else printed
    return float(10 ** (len(printed) - len(digits)))


@pytest.mark.parametrize("shape", PRINTED)
def test_table_of_the_design(shape: tuple[str, str]) -> None:
    one, gpu = shape_of(*shape), GPUS["h200"]
    found = [
        *limits(one, gpu, alu_a_pair=1.5).values(),
        bound(one, gpu, alu_a_pair=1.5)[1],
        flash_seconds(one),
        bus_seconds(one, gpu),
    ]
    for seconds, printed in zip(found, PRINTED[shape], strict=True):
        # a unit of the last digit, because the rates that the table was made with are rounded too
        assert abs(1e3 * seconds - float(printed)) <= unit_of(printed), printed


def test_limits_by_hand() -> None:
    gpu = roofline.Gpu("x", "x", 1e12, 1e9, 10, 1e9, 1e8, "by hand")
    shape = shape_of("1000x20x17", "f16")
    assert limits(shape, gpu, 2.0) == {
        "memory": 1000 * (17 * 2 + 4) / 1e9,
        "matrix": 2 * 20_000 * 32 / 1e12,  # 17 columns take two steps of 16
        "arg-min": 2.0 * 20_000 / (64 * 10 * 1e9),
    }
    assert bound(shape, gpu) == ("memory", 1000 * 38 / 1e9)
    assert shape_of("1x1x8", "f32").multiplied_columns == 32  # high and low halves
    assert shape_of("1x1x16", "f32").multiplied_columns == 16


@pytest.mark.parametrize("text", ["", "8x8", "8x0x8", "8x8x8x8", "axbxc"])
def test_no_shape(text: str) -> None:
    with pytest.raises(ParamError, match="ROWSxCODEWORDSxDIM"):
        shape_of(text, "f16")


def test_unknown_names() -> None:
    with pytest.raises(ParamError, match='dtype "f8" was given; give one of f16, bf16, f32'):
        shape_of("8x8x8", "f8")
    with pytest.raises(ParamError, match='device "v100" was given; the table holds h200, h100'):
        roofline.find_gpu("v100")


def test_every_device_has_a_source_and_a_pattern_of_its_own() -> None:
    names = ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S",
             "NVIDIA GeForce RTX 4090", "Tesla T4", "NVIDIA B200"]  # fmt: skip
    assert len(names) == len(GPUS)
    for name in names:
        found = [gpu for gpu in GPUS.values() if roofline._is(gpu, {"device": name})]
        assert len(found) == 1, name
        assert found[0].source


def record(rows: str, ms: float, **others: Any) -> dict[str, Any]:
    nothing = {"ms_an_iteration": None}
    ours = {"ms_an_iteration": ms, "kernel_ms_an_iteration": {"pack": 0.25, "assign": 1.25}}
    return {
        "schema": SCHEMA, "op": "iterate", "device": "NVIDIA H200", "dry": False, "rows": rows,
        "n_fields": 1, "n_rows": 4_000_000, "dim": 128, "n_codewords": 1024, "dtype": "float16",
        "contestants": {"saec": ours, "torch": {"ms_an_iteration": 20.0}, "fastkmeans": nothing},
    } | others  # fmt: skip


def test_measured_is_the_latest_record_of_the_shape_scaled_to_its_rows() -> None:
    shape, gpu = shape_of("8000000x1024x128", "f16"), GPUS["h200"]
    others: list[dict[str, Any]] = [
        {"dry": True}, {"device": "NVIDIA H100 80GB HBM3"}, {"dim": 64}, {"dtype": "float32"},
        {"n_codewords": 256}, {"n_fields": 26}, {"op": "fit", "device": {"cpu": "x"}},
    ]  # fmt: skip
    records = [record("random", 9.0), record("random", 2.0), record("skewed", 3.0)]
    records += [record("random", 77.0, **other) for other in others]
    assert measured(shape, gpu, records) == [
        ("random", "saec", 4e-3),
        ("random", "saec, kernels alone", 3e-3),
        ("random", "torch", 40e-3),
        ("skewed", "saec", 6e-3),
        ("skewed", "saec, kernels alone", 3e-3),
        ("skewed", "torch", 40e-3),
    ]
    printed = table(shape, gpu, records, sass=1.375)
    assert "| arg-min, 1.375 ALU a pair in SASS | 0.76 |" in printed
    assert "| **bound** (matrix) | 2.65 | 100% |" in printed
    assert "| measured, random: saec | 4 | 66% |" in printed


def test_rates_can_be_the_measured_ones() -> None:
    def limit(name: str, **values: Any) -> dict[str, Any]:
        return {"op": "limit", "device": "NVIDIA L40S", "limit": name, **values}

    gpu = as_measured(
        GPUS["l40s"],
        [
            limit("device copy", gb_per_s=700.0),
            limit("mma.sync f16", tflop_per_s=300.0),
            limit("minimum_f32", giga_per_s=64 * 142 * 2.0),
            limit("host to device, pinned", gb_per_s=20.0),
            limit("device copy", gb_per_s=1.0, dry=True),
            limit("device copy", gb_per_s=1.0, device="Tesla T4"),
            limit("clocks", nvidia_smi={}),
        ],
    )
    assert (gpu.copy_bytes, gpu.matrix_flops, gpu.clock, gpu.bus_bytes) == (7e11, 3e14, 2e9, 2e10)
    assert gpu.source == "measured by bench/device/limits.py"


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    append_record(tmp_path / "device" / "timings.jsonl", record("random", 4.0))
    options = ["--shape", "8000000x1024x128", "--dtype", "f16", "--device", "h200"]
    main([*options, "--results", str(tmp_path), "--measured-limits"])
    printed = capsys.readouterr().out
    assert "measured, random: saec, kernels alone" in printed
    assert "flash-kmeans's assignment" in printed
    main([*options[:-1], "t4", "--results", str(tmp_path)])
    assert "flash" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["roofline", "--shape", "8"])
    with pytest.raises(SystemExit, match='error: shape "8" was given'):
        main()
