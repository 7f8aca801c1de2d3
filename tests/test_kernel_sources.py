"""The CUDA sources are read rightly, say what they take, and keep their rules. No CUDA needed."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from saec_gpu.backends.kernel_sources import (
    TYPES,
    KernelSource,
    kernel_sources,
    kernels_of,
    read_kernels,
    sources_folder,
)
from saec_gpu.errors import LayoutError

CHECKOUT = Path(__file__).parents[1]
KERNELS = CHECKOUT / "kernels"
FILES = sorted(KERNELS.glob("*.cu"))
SOURCES = [*FILES, *sorted(KERNELS.glob("*.cuh"))]

# The parts of a header, in this order; the first of a file's lines is `// name - what`.
PARTS = ("launch", "in", "inout", "out", "needs", "numeric", "cost", "source", "history")
ALWAYS = {"launch", "numeric", "cost"}
ROLES = ("in", "inout", "out")

PART = re.compile(r"^// ([a-z]+) +(\S.*)$")
FIELD = re.compile(
    r"^  (?:const )?\w+\*? (?P<name>\w+); +// (?P<role>IN|OUT|INOUT) +(?P<text>\S.*)$"
)
STRUCT = re.compile(r"^struct \w+ \{[^\n]*// parameters\n(.*?)^\};", re.DOTALL | re.MULTILINE)

# A product of 32 bits wraps at 2^31 rows, so one factor is widened before it.
PRODUCT = re.compile(r"\bblockIdx\.[xyz]\s*\*|\*\s*blockIdx\.[xyz]")
WIDENED = re.compile(r"\(int64\)\s*$|\bint64\([^()]*\)\s*$")
# Contraction, rounding and flushing stay as NVRTC and nvcc have them without being asked.
FAST_MATH = re.compile("use_fast_" + "math|-prec-(?:div|sqrt)|-fmad")
# port.cuh spells atomics, of integers alone; its overloads are what a kernel can call.
ATOMIC = re.compile(r"\batomic[A-Z]\w*\s*\(|\b(?:atom|red)\.[\w.]*\.f\d+")
ATOMIC_OVERLOAD = re.compile(r"\batomic_\w+\((\w+)\* \w+, ")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def header_complaints(name: str, text: str) -> Iterator[str]:
    """Yield what the comment at the head of a file lacks, or says otherwise than its struct."""
    head = re.match(r"(?://[^\n]*\n)+", text)
    lines = head[0].splitlines() if head else [""]
    if not re.match(rf"// {name} - \S", lines[0]):
        yield f"the first line is not `// {name} - what it does`"
    parts: dict[str, str] = {}
    last = None
    for line in lines[1:]:
        if (found := PART.match(line)) is not None:
            last = found[1]
            if last not in PARTS:
                yield f"unknown part {last}"
            if last in parts:
                yield f"{last} stands twice"
            parts[last] = found[2]
        elif last is not None:
            parts[last] += " " + line.removeprefix("//").strip()
    known = [part for part in parts if part in PARTS]
    if known != sorted(known, key=PARTS.index):
        yield f"parts stand in the order {known}"
    if missing := ALWAYS - parts.keys():
        yield f"no {', '.join(sorted(missing))}"
    roles: dict[str, list[str]] = {role: [] for role in ROLES}
    for line in field_lines(text):
        if (found := FIELD.match(line)) is not None:
            roles[found["role"].lower()].append(found["name"])
    for role, names in roles.items():
        if names != parts.get(role, "").split():
            yield f"{role} is {parts.get(role, '').split()}, the struct's are {names}"


def field_lines(text: str) -> list[str]:
    struct = STRUCT.search(text)
    return [line for line in struct[1].splitlines() if line.strip()] if struct else []


def field_complaints(text: str) -> Iterator[str]:
    """Yield which parameters lack their role, or the shape of what they point to."""
    for line in field_lines(text):
        found = FIELD.match(line)
        if found is None:
            yield f"not `type name;  // IN|OUT|INOUT (shape) what`: {line.strip()}"
        elif "*" in line.split(";")[0] and not re.match(r"\(|the same\b", found["text"]):
            yield f"{found['name']} has no shape: {found['text']}"


def rule_complaints(text: str) -> Iterator[str]:
    """Yield which rules the code of a file breaks."""
    code = without_comments(text)
    for found in PRODUCT.finditer(code):
        if WIDENED.search(code[: found.start()]) is None:
            yield f"32-bit product: {found[0]}"
    for pattern, what in (
        (FAST_MATH, "fast math"),
        (ATOMIC, "atomic past port.cuh"),
    ):
        for found in pattern.finditer(code):
            yield f"{what}: {found[0].strip()}"


HEADER = """\
// add - sums of rows.
//   sums[i] += values[i]
// launch  grid = n, block = 128
// in      values
//         n
// inout   sums
// numeric exact
// cost    one read
#include "port.cuh"

struct Add {  // parameters
  const float* values;  // IN    (n)
  uint64* sums;         // INOUT (n)
  int32 n;              // IN    rows
};
"""
MACRO = "#define ADD(NAME, T) SAEC_KERNEL void NAME(const Add p) {}\nADD(add_f32, float)\n"


def of(text: str = HEADER + MACRO) -> KernelSource:
    (kernel,) = kernels_of("add.cu", text)
    return kernel


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def arguments(**changed: object) -> dict[str, object]:
    values, sums = np.ones(3, np.float32), np.zeros(3, np.int64)
    return {"values": values, "sums": sums, "n": 3, **changed}


# ---- reading sources


def test_a_kernel_is_its_line_and_the_struct_of_its_file() -> None:
    kernel = of()
    assert kernel.name == "add_f32"
    assert [(p.name, p.type, p.pointer) for p in kernel.parameters] == [
        ("values", "float", True),
        ("sums", "uint64", True),
        ("n", "int32", False),
    ]
    assert kernel.unit == '// \n#define SAEC_ONE_KERNEL\n#include "add.cu"\nADD(add_f32, float)\n'


def test_the_layout_is_that_of_a_c_struct() -> None:
    class Add(ctypes.Structure):
        _fields_ = (
            ("values", ctypes.c_void_p),
            ("sums", ctypes.c_void_p),
            ("n", ctypes.c_int32),
        )

    dtype = of().dtype
    assert dtype.itemsize == ctypes.sizeof(Add)
    assert [dtype.fields[name][1] for name in ("values", "sums", "n")] == [  # type: ignore[index]
        Add.values.offset,
        Add.sums.offset,
        Add.n.offset,
    ]


def test_each_kernel_of_a_file_is_found() -> None:
    text = HEADER + MACRO + "ADD(add_f16, F16, 1, true)\nADD_ALL(add_all)\n  ADD(no, indented)\n"
    names = [kernel.name for kernel in kernels_of("add.cu", text)]
    assert names == ["add_f32", "add_f16", "add_all"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MACRO, "declares 0 structs marked // parameters"),
        (HEADER + HEADER.replace("Add", "More") + MACRO, "declares 2 structs"),
        (HEADER.replace("int32 n;", "half n; ") + MACRO, "parameter n is of the unknown type half"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        kernels_of("add.cu", text)


def test_a_unit_changes_with_whatever_it_includes(tmp_path: Path) -> None:
    # compilers keep what they made of a unit by its text alone
    (tmp_path / "add.cu").write_text(HEADER + MACRO, encoding="utf-8")
    (tmp_path / "port.cuh").write_text("// one", encoding="utf-8")
    before = read_kernels(tmp_path)["add_f32"]
    assert before.unit == read_kernels(tmp_path)["add_f32"].unit
    (tmp_path / "port.cuh").write_text("// two", encoding="utf-8")
    after = read_kernels(tmp_path)["add_f32"]
    assert before.unit != after.unit
    assert before.line == after.line


# ---- packing arguments


def test_arguments_are_packed_by_name() -> None:
    given = arguments()
    packed = of().packed(given, address)
    assert packed["values"] == given["values"].ctypes.data  # type: ignore[attr-defined]
    assert packed["n"] == 3
    assert of().packed(arguments(values=None), address)["values"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": np.ones(3)}, "takes for values an array without gaps of float32, but float64"),
        ({"values": np.ones((3, 2), np.float32)[:, 0]}, "without gaps"),
        ({"values": 3.0}, "float was given"),
        ({"sums": np.zeros(3, np.int32)}, "of uint64 or int64, but int32 was given"),
        ({"n": 3.5}, "takes for n one int32"),
        ({"n": np.ones(3, np.int32)}, "takes for n one int32"),
        ({"n": 2**31}, "n=2147483648 of kernel add_f32 does not fit int32"),
        ({"n": -(2**31) - 1}, "does not fit int32"),
        ({"rows": 3}, "unknown \\['rows'\\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        of().packed(arguments(**changed), address)


def test_a_missing_argument_is_named() -> None:
    given = arguments()
    del given["n"]
    with pytest.raises(LayoutError, match="missing are \\['n'\\]"):
        of().packed(given, address)


# ---- the sources themselves


def test_the_sources_that_are_compiled_are_those_of_the_checkout() -> None:
    folder = sources_folder()
    assert {p.name: text_of(p) for p in folder.glob("*.cu*")} == {
        p.name: text_of(p) for p in SOURCES
    }


def test_every_file_holds_kernels_and_no_name_stands_twice() -> None:
    names = [k.name for path in FILES for k in kernels_of(path.name, text_of(path))]
    assert len(names) == len(set(names))
    assert {k.file for k in kernel_sources().values()} == {path.name for path in FILES}
    assert list(kernel_sources()) == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_kernels_are_named_after_their_file(path: Path) -> None:
    for kernel in kernels_of(path.name, text_of(path)):
        assert kernel.name == path.stem or kernel.name.startswith(f"{path.stem}_")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_parameter_is_overlooked(path: Path) -> None:
    declared = without_comments("\n".join(field_lines(text_of(path)))).count(";")
    (kernel, *_) = kernels_of(path.name, text_of(path))
    assert len(kernel.parameters) == declared > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_header_says_what_its_kernels_take(path: Path) -> None:
    assert list(header_complaints(path.stem, text_of(path))) == []
    assert list(field_complaints(text_of(path))) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sources_keep_the_rules(path: Path) -> None:
    if path.name != "port.cuh":
        assert list(rule_complaints(text_of(path))) == []


def test_atomics_are_of_integers() -> None:
    taken = set(ATOMIC_OVERLOAD.findall(text_of(KERNELS / "port.cuh")))
    assert taken
    assert taken <= {"int32", "uint32", "int64", "uint64"} & TYPES.keys()


def test_nothing_asks_for_fast_math() -> None:
    asking = [CHECKOUT / "CMakeLists.txt", CHECKOUT / "pyproject.toml", *SOURCES]
    asking += sorted((CHECKOUT / "src").rglob("*.py"))
    asking += sorted((CHECKOUT / "tests" / "kernel_checks").glob("*.py"))
    assert [path.name for path in asking if FAST_MATH.search(text_of(path))] == []


# ---- the checks above can fail


def test_the_example_is_sound() -> None:
    assert list(header_complaints("add", HEADER)) == []
    assert list(field_complaints(HEADER)) == []
    assert list(rule_complaints(HEADER + MACRO)) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("// add - sums of rows.", "// sub - sums of rows.", "the first line"),
        ("// add - sums of rows.\n", "", "the first line"),
        ("// launch  grid = n, block = 128\n", "", "no launch"),
        ("// numeric exact\n", "", "no numeric"),
        ("// cost    one read\n", "// cost    one read\n// speed   high\n", "unknown part speed"),
        ("// cost    one read\n", "// cost    one read\n// cost    two\n", "cost stands twice"),
        ("// numeric exact\n// cost    one read\n", "// cost    one\n// numeric e\n", "the order"),
        ("// in      values\n", "// in      weights\n", "in is ['weights', 'n']"),
        ("// in      values\n//         n\n", "// in      n values\n", "the struct's are"),
        ("//         n\n", "", "in is ['values']"),
        ("// inout   sums\n", "// out     sums\n", "inout is []"),
    ],
)
def test_a_wrong_header_is_found(old: str, new: str, complaint: str) -> None:
    assert old in HEADER
    assert complaint in "; ".join(header_complaints("add", HEADER.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("// IN    (n)", "// (n)", "not `type name;"),
        ("  // IN    (n)", "", "not `type name;"),
        ("// IN    (n)", "// IN    values", "values has no shape"),
        ("// IN    rows", "// IN", "not `type name;"),
    ],
)
def test_a_parameter_without_role_or_shape_is_found(old: str, new: str, complaint: str) -> None:
    assert old in HEADER
    assert complaint in "; ".join(field_complaints(HEADER.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("int64 i = blockIdx.x * blockDim.x + threadIdx.x;", "32-bit product"),
        ("int i = threadIdx.x + blockDim.x * blockIdx.x;", "32-bit product"),
        ("int64 i = int64(blockIdx.x*128);", "32-bit product"),
        ("int64 i = f(1 + blockIdx.y * 3);", "32-bit product"),
        ("// nvcc\nuse(--use_fast_" + "math);", "fast math"),
        ("atomicAdd(sums + i, 1.0f);", "atomic past port.cuh"),
        ("atomicCAS(lock, 0, 1);", "atomic past port.cuh"),
        ('asm("red.global.add.f32 [%0], %1;");', "atomic past port.cuh"),
    ],
)
def test_code_against_the_rules_is_found(code: str, complaint: str) -> None:
    assert complaint in "; ".join(rule_complaints(code))


@pytest.mark.parametrize(
    "code",
    [
        "int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;",
        "int64 i = (int64)blockIdx.x * blockDim.x;",
        "int64 i = int64(RUN_FIELDS) * blockIdx.x;",
        "// blockIdx.x * 128, atomicAdd(",
        "atomic_add(sums + i, uint64(1)); /* blockIdx.x */",
    ],
)
def test_code_by_the_rules_passes(code: str) -> None:
    assert list(rule_complaints(code)) == []
