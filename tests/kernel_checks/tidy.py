"""Look for indices that lose bits in the CUDA kernels, with clang-tidy, as the emulator reads them.

    python tests/kernel_checks/tidy.py [--kernels FOLDER]

Needs clang-tidy (a wheel of PyPI) beside this Python, and a C++ library. A planted mistake of each
kind must be found first.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
CHECKS = ("bugprone-implicit-widening-of-multiplication-result", "bugprone-narrowing-conversions")
CONFIG = f"""
Checks: '-*,{",".join(CHECKS)}'
HeaderFilterRegex: '.*'
CheckOptions:
  # nearly all of a kernel is a template
  bugprone-narrowing-conversions.WarnWithinTemplateInstantiation: true
  # CUDA's places of threads and blocks are unsigned, and small
  bugprone-narrowing-conversions.IgnoreConversionFromTypes: 'unsigned int;uint32'
  bugprone-implicit-widening-of-multiplication-result.IgnoreConstantIntExpr: true
"""
_COMPLAINT = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):(?P<column>\d+): (?:warning|error): (?P<text>.*)$",
    re.MULTILINE,
)

# (the code of a kernel, what is said of it, or None)
PLANTED = (
    ("int64 at = i * n; p.values[at] = 0;", "implicit widening"),
    ("p.values[i * n] = 0;", "used as a pointer offset"),
    ("int32 row = many; p.values[row] = 0;", "narrowing conversion"),
    ("float sum = 0; sum += p.wide; p.values[0] = sum;", "narrowing conversion"),
    ("int64 at = int64(i) * n; p.values[at] = 0;", None),
    ("float held[8]; held[2 * i] = 1; p.values[0] = held[n * i];", None),
)


def complaints(path: Path, include: Path) -> Iterator[str]:
    """Yield what clang-tidy finds in a file and its headers.

    An offset of 32 bits is enough in registers and shared memory; only where it is added to a
    parameter, `p.name`, does it reach into global memory.
    """
    program = Path(sys.executable).with_name("clang-tidy")
    flags = ["-xc++", "-std=c++17", "-DSAEC_EMULATED", f"-I{include}", "-Wno-unknown-pragmas"]
    done = subprocess.run(
        [program, "--quiet", f"--config={CONFIG}", path, "--", *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    seen = set()
    for found in _COMPLAINT.finditer(done.stdout):
        said = f"{found['file']}:{found['line']}:{found['column']}: {found['text']}"
        line = Path(found["file"]).read_text(encoding="utf-8").splitlines()[int(found["line"]) - 1]
        reaches = line[int(found["column"]) - 1 :].startswith("p.")
        if "used as a pointer offset" in said and not reaches:
            continue
        if "/emulation/" not in found["file"] and said not in seen:
            seen.add(said)
            yield said
    if done.returncode and not seen:
        yield f"{path}: clang-tidy failed:\n{done.stdout}{done.stderr}"


def planted_complaints(folder: Path) -> Iterator[str]:
    """Yield which planted mistakes are not found, and what is said of sound code."""
    for i, (code, wanted) in enumerate(PLANTED):
        path = folder / f"planted_{i}.cu"
        path.write_text(
            "using int32 = int; using int64 = long long;\n"
            "struct P { float* values; double wide; };\n"
            "template <class T> void kernel(P p, int32 i, int32 n, T many) {\n"
            f"  {code}\n}}\ntemplate void kernel<int64>(P, int32, int32, int64);\n",
            encoding="utf-8",
        )
        said = "; ".join(complaints(path, folder))
        if (wanted is None and said) or (wanted is not None and wanted not in said):
            yield f"planted {code!r}: wanted {wanted or 'nothing'}, said {said or 'nothing'}"


def main() -> int:
    """Print what is found; return 1 if that is anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kernels", type=Path, default=CHECKOUT / "kernels")
    given = parser.parse_args()
    files = sorted(given.kernels.glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder:
        wrong = list(planted_complaints(Path(folder)))
    for path in files:
        wrong += complaints(path, given.kernels)
    wrong = sorted(set(wrong))
    for complaint in wrong:
        print(complaint)
    print(f"{len(PLANTED)} planted and {len(files)} files looked at, {len(wrong)} complaints")
    return 1 if wrong or not files else 0


if __name__ == "__main__":
    sys.exit(main())
