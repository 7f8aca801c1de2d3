"""The budget of the kernels is whole, and what judges machine code can fail. No NVRTC needed."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from kernel_checks.budget import Budget, Figures
from kernel_checks.compile import BUDGET, jobs
from kernel_checks.machine_code import Instruction, hot_loop, ptx_complaints, sass_complaints
from saec_gpu.backends.kernel_sources import kernel_sources, sources_folder

ROW: Figures = {"registers": 64, "stack_bytes": 0, "shared_bytes": 0, "alu_per_pair": 1.5}
LIMITS = {"add_*": {"registers": 128, "matrix": True, "products": 1, "alu_per_pair": {"90": 1.7}}}
PLACE = ("add_f32", "90")


def heard(figures: Figures, row: Figures = ROW, place: tuple[str, str] = PLACE) -> list[str]:
    return list(Budget("13.0", LIMITS, {place: row}).complaints(place, figures))


def test_the_table_holds_every_kernel_for_every_architecture() -> None:
    budget = Budget.read(BUDGET)
    kernels = list(kernel_sources().values())
    wanted = {
        (j.kernel, j.architecture) for j in jobs(kernels, sources_folder(), budget, full=True)
    }
    assert set(budget.table) == wanted


def test_each_limit_is_of_some_kernel() -> None:
    for pattern in Budget.read(BUDGET).limits:
        assert any(fnmatch(name, pattern) for name in kernel_sources()), pattern


def test_by_default_one_architecture_is_whole_and_the_others_visited() -> None:
    kernels = list(kernel_sources().values())
    chosen = [
        (j.kernel, j.architecture)
        for j in jobs(kernels, sources_folder(), Budget.read(BUDGET), full=False)
    ]
    files = {kernel.file for kernel in kernels}
    assert {k for k, a in chosen if a == "90"} == set(kernel_sources())
    for architecture in ("75", "80", "86", "89", "100", "120"):
        visited = [kernel_sources()[k].file for k, a in chosen if a == architecture]
        assert sorted(visited) == sorted(files)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    budget = Budget("13.0", LIMITS, {PLACE: ROW, ("add_f32", "120"): ROW, ("sub", "75"): ROW})
    budget.write(tmp_path / "budget.json")
    assert Budget.read(tmp_path / "budget.json") == budget


def test_a_kernel_within_its_row_is_sound() -> None:
    assert heard(ROW) == []
    assert heard({**ROW, "registers": 32, "alu_per_pair": 1.2}) == []


@pytest.mark.parametrize(
    ("figures", "row", "complaint"),
    [
        ({**ROW, "registers": 65}, ROW, "registers 65, in the table 64"),
        ({**ROW, "registers": 129}, {**ROW, "registers": 129}, "129 is above the limit of 128"),
        ({**ROW, "alu_per_pair": 1.51}, ROW, "alu_per_pair 1.51, in the table 1.5"),
        ({**ROW, "alu_per_pair": 2}, {**ROW, "alu_per_pair": 2}, "2 is above the limit of 1.7"),
        ({k: v for k, v in ROW.items() if k != "alu_per_pair"}, ROW, "no alu_per_pair was found"),
        ({**ROW, "stack_bytes": 8}, ROW, "stack_bytes 8, in the table 0"),
        (ROW, {}, "has no row in the table"),
    ],
)
def test_a_kernel_beyond_its_row_is_found(figures: Figures, row: Figures, complaint: str) -> None:
    assert complaint in "; ".join(heard(figures, row))


def test_limits_are_by_architecture() -> None:
    slow = {**ROW, "alu_per_pair": 1.9}
    assert heard(slow, slow, ("add_f32", "120")) == []
    assert heard(slow, slow) != []


def test_a_kernel_that_is_no_more_leaves_the_table() -> None:
    budget = Budget("13.0", LIMITS, {PLACE: ROW, ("sub", "75"): ROW})
    assert budget.gone(["add_f32"]) == ["sub"]
    assert set(budget.updated("13.0", {}, ["add_f32"]).table) == {PLACE}


def code_of(*lines: str) -> list[Instruction]:
    parts = [line.split(" ", 1) for line in lines]
    return [Instruction(16 * i, p[0], p[1] if len(p) > 1 else "") for i, p in enumerate(parts)]


LOOP_LINES = (
    "MOV R1,R2",
    "LDS.128 R4,[R1]",  # 0x10: the loop with the matrix instructions
    "HMMA.16816.F32 R8,R4,R6,R12",
    "HMMA.16816.F32 R16,R4,R6,R12",
    "FMNMX.FTZ R20,R8,R9,PT",
    "FMNMX.FTZ R21,R16,R17,PT",
    "IMAD.MOV.U32 R22,RZ,RZ,R21",
    "UIADD3 UR4,UR4,0x1,URZ",
    "BRA 0x10",
    "IADD3 R30,R30,0x1,RZ",
    "BRA 0x0",  # 0xa0: the loop around it
    "BRA 0xb0",  # 0xb0: the end of every kernel
)
LOOP = code_of(*LOOP_LINES)


def test_the_hot_loop_is_the_innermost_one_with_products() -> None:
    loop = hot_loop(LOOP, products=1)
    assert loop is not None
    assert loop.pairs == 8
    assert loop.pipes == {
        "tensor": 2, "alu": 2, "memory": 1, "fma": 1, "uniform": 1, "control": 1
    }  # fmt: skip
    assert loop.alu == {"FMNMX": 2}
    folded = hot_loop(LOOP, products=2)
    assert folded is not None
    assert folded.pairs == 4
    assert hot_loop(code_of("MOV R1,R2", "BRA 0x0", "HMMA.16816.F32 R8,R4,R6,R12"), 1) is None


def test_of_two_loops_with_products_the_worse_counts() -> None:
    worse = [line for line in LOOP_LINES[1:8] if not line.startswith("HMMA")]
    code = code_of(*LOOP_LINES, *worse, "HMMA.16816.F32 R8,R4,R6,R12", "BRA 0xc0")
    loop = hot_loop(code, products=1)
    assert loop is not None
    assert (loop.pairs, loop.pipes["alu"]) == (4, 2)


def test_an_unknown_instruction_counts_as_one_of_the_alu() -> None:
    (instruction,) = code_of("NEWLYMADE R1,R2")
    assert instruction.pipe == "alu"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("LDL.64 R2,[R1]", "local memory: 1 LDL.64"),
        ("STL [R1],R2", "local memory: 1 STL"),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64],R5", "float atomic: RED.E.ADD.F32"),
        ("REDG.E.ADD.F64.RN.STRONG.GPU desc[UR4][R2.64],R4", "float atomic: REDG.E.ADD.F64"),
        ("ATOMG.E.ADD.F16x2.RN.STRONG.GPU PT,R5,[R2.64],R5", "float atomic: ATOMG"),
        ("HMMA.1688.F32 R8,R4,R6,R12", "no HMMA.16816.F32; its matrix instructions: HMMA.1688"),
        ("FFMA R8,R4,R6,R12", "no HMMA.16816.F32; its matrix instructions: none"),
    ],
)
def test_wrong_instructions_are_found(line: str, complaint: str) -> None:
    assert complaint in "; ".join(sass_complaints(code_of(line), "HMMA.16816.F32"))


def test_integer_atomics_are_no_float_atomics() -> None:
    code = code_of("RED.E.ADD.64.STRONG.GPU [R2.64],R4", "ATOMS.ADD R5,[R2],R3", "LDS R1,[R2]")
    assert list(sass_complaints(code, None)) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fma.rn.f64 %fd1, %fd2, %fd3, %fd4;", "contracted float64"),
        ("cvt.ftz.f64.f32 %fd1, %f1;", "flushes to zero"),
        ("cvt.rn.ftz.f32.f64 %f1, %fd1;", "flushes to zero"),
        ("red.global.add.f32 [%rd1], %f1;", "float atomic"),
        ("atom.shared.add.f64 %fd1, [%r1], %fd2;", "float atomic"),
        ("red.relaxed.gpu.global.add.noftz.bf16x2 [%rd1], %r1;", "float atomic"),
    ],
)
def test_wrong_ptx_is_found(line: str, complaint: str) -> None:
    assert complaint in "; ".join(ptx_complaints(line))


def test_ptx_that_rounds_as_it_must_is_sound() -> None:
    sound = """
    // fma.rn.f64 stands in a comment
    cvt.f64.f32 %fd1, %f1;
    cvt.rn.f32.f64 %f1, %fd1;
    cvt.rn.ftz.f32.s32 %f1, %r1;
    add.rn.f64 %fd1, %fd2, %fd3;
    fma.rn.ftz.f32 %f1, %f2, %f3, %f4;
    atom.global.add.u64 %rd1, [%rd2], 1;
    """
    assert list(ptx_complaints(sound)) == []
