"""What the machine code of a kernel must and must not hold.

Instructions are counted by the pipe that executes them on sm_80 and later: a slow path that a
compiler takes in silence changes no result, only these numbers.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Pipes by the first part of an opcode. Whatever is not listed counts as "alu", the pipe that the
# budget limits, so that an instruction nobody thought of is not free.
_PIPES = {
    "tensor": "HMMA IMMA DMMA QMMA OMMA HGMMA IGMMA QGMMA",
    # IMAD.MOV and IMAD.SHL too: the compiler moves work there to relieve the ALU
    "fma": "FFMA FADD FMUL FFMA2 FADD2 FMUL2 FFMA32I FADD32I FMUL32I IMAD IMUL HFMA2 HADD2 HMUL2",
    "f64": "DADD DMUL DFMA DSETP DMNMX",
    "xu": "MUFU I2F F2I F2F FRND POPC FLO BREV",
    "memory": "LDS LDSM STS STSM LDG STG LD ST LDL STL LDC LDCU LDGSTS ATOM ATOMG ATOMS RED REDG "
    "REDUX SHFL MATCH MEMBAR ERRBAR CCTL FENCE",
    "control": "BRA BRX BRXU JMP JMX EXIT BSSY BSYNC BREAK BMOV BAR WARPSYNC NOP CALL RET YIELD "
    "DEPBAR LDGDEPBAR NANOSLEEP KILL RPCMOV PREEXIT ELECT ACQBULK",
    "uniform": "R2UR S2R S2UR CS2R CS2UR VOTEU",  # and what begins with U
}
_PIPE = {opcode: pipe for pipe, opcodes in _PIPES.items() for opcode in opcodes.split()}

# Keys that one lane gets from one matrix instruction of 16 rows and 8 codewords.
KEYS = 4

_FLOAT_ATOMIC = re.compile(r"^(?:RED|REDG|ATOM|ATOMG|ATOMS)\..*(?:F16|BF16|F32|F64)")
_PTX_FLOAT_ATOMIC = re.compile(
    r"\b(?:atom|red|multimem\.red)\.[\w.:]*\b(?:b?f16|b?f16x2|f32|f64)\b"
)
_PTX_FTZ_F64 = re.compile(r"\bcvt\.(?=[\w.]*\bftz\b)[\w.]*\bf64\b[\w.]*")
_PTX_FMA_F64 = re.compile(r"\bfma\.r[nzmp]\.f64\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its place in bytes, its opcode with modifiers, its operands."""

    address: int
    opcode: str
    operands: str

    @property
    def pipe(self) -> str:
        """Return the pipe that executes it."""
        name = self.opcode.split(".")[0]
        return _PIPE.get(name, "uniform" if name.startswith("U") else "alu")

    @property
    def target(self) -> int | None:
        """Return where a branch goes to, if this is one with a fixed target."""
        last = self.operands.rsplit(",")[-1]
        return int(last, 16) if self.opcode.startswith("BRA") and last.startswith("0x") else None


@dataclass(frozen=True)
class Loop:
    """An innermost loop around matrix instructions.

    Attributes
    ----------
    pairs : float or None
        Pairs of row and codeword that one lane sees in an iteration, where that is known.
    pipes : mapping of str to int
        Instructions of an iteration, by pipe.
    alu : mapping of str to int
        Those of the ALU, by opcode.
    """

    pairs: float | None
    pipes: Counter[str]
    alu: Counter[str]


def disassembled(cubin: bytes) -> list[Instruction]:
    """Return the instructions of a cubin that holds one kernel."""
    from cuda import pathfinder

    nvdisasm = pathfinder.find_nvidia_binary_utility("nvdisasm")
    if nvdisasm is None:
        raise FileNotFoundError("nvdisasm: install tests/kernel_checks/requirements.txt")
    with tempfile.NamedTemporaryFile() as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run(
            [nvdisasm, "--emit-json", file.name], capture_output=True, text=True, check=True
        )
    return instructions(shown.stdout)


def instructions(shown: str) -> list[Instruction]:
    """Return the instructions of what `nvdisasm --emit-json` prints of a cubin of one function."""
    functions = json.loads(shown)[1]
    if len(functions) != 1:
        names = [f["function-name"] for f in functions]
        raise ValueError(f"one function was expected in a cubin, not {names}")
    listed = functions[0]["sass-instructions"]
    width = functions[0]["length"] // len(listed)
    return [
        Instruction(i * width, shown["opcode"], shown.get("operands", ""))
        for i, shown in enumerate(listed)
    ]


def hot_loop(code: Sequence[Instruction], products: int | None) -> Loop | None:
    """Return the innermost loop with matrix instructions; of several, that with most ALU work.

    `products` is how many matrix instructions, one after the other, make one key; None where only
    the run knows.
    """
    spans = sorted(
        (branch.address - target, target, branch.address)
        for branch in code
        if (target := branch.target) is not None and target < branch.address
    )
    innermost: list[tuple[int, int]] = []
    loops: list[Loop] = []
    for _, start, stop in spans:  # shorter ones first
        body = [i for i in code if start <= i.address <= stop]
        pipes = Counter(i.pipe for i in body)
        if pipes["tensor"] and not any(start <= a and b <= stop for a, b in innermost):
            innermost.append((start, stop))
            pairs = None if products is None else KEYS * pipes["tensor"] / products
            alu = Counter(i.opcode.split(".")[0] for i in body if i.pipe == "alu")
            loops.append(Loop(pairs, pipes, alu))
    return max(loops, key=lambda loop: loop.pipes["alu"] / loop.pipes["tensor"], default=None)


def matrix_instruction(architecture: str) -> str:
    """Return the opcode that float16 products with float32 sums must have become."""
    return "HMMA.1688.F32" if is_narrow(architecture) else "HMMA.16816.F32"


def is_narrow(architecture: str) -> bool:
    """Return whether one matrix instruction takes 8 columns of a row there, not 16."""
    return int(architecture.rstrip("a")) < 80


def sass_complaints(code: Sequence[Instruction], needed: str | None) -> Iterator[str]:
    """Yield what is wrong with the instructions; `needed` is an opcode that must be there."""
    opcodes = Counter(i.opcode for i in code)
    if needed is not None and needed not in opcodes:
        matrix = sorted(o for o in opcodes if _PIPE.get(o.split(".")[0]) == "tensor")
        yield f"no {needed}; its matrix instructions: {', '.join(matrix) or 'none'}"
    for opcode in sorted(opcodes):
        if opcode.split(".")[0] in ("LDL", "STL"):
            yield f"local memory: {opcodes[opcode]} {opcode}"
        if _FLOAT_ATOMIC.match(opcode):
            yield f"float atomic: {opcode}"


def ptx_complaints(ptx: str) -> Iterator[str]:
    """Yield what is wrong with the PTX of a kernel.

    Sums must not depend on order, so no float is added atomically; exact code rounds each operation
    on its own, so nothing in float64 is contracted; and a float32 that is flushed to zero on its
    way to or from float64 is another number.
    """
    text = re.sub(r"//.*", "", ptx)
    for pattern, what in (
        (_PTX_FLOAT_ATOMIC, "float atomic"),
        (_PTX_FMA_F64, "contracted float64"),
        (_PTX_FTZ_F64, "conversion that flushes to zero"),
    ):
        for found, times in sorted(Counter(pattern.findall(text)).items()):
            yield f"{what}: {times} {found}"


def parameter_complaints(ptx: str, size: int) -> Iterator[str]:
    """Yield whether the kernel takes another number of bytes than a launch would give it."""
    taken = re.findall(r"\.param \.align \d+ \.b8 \w+\[(\d+)\]", ptx)
    if taken != [str(size)]:
        yield f"parameters: a launch gives {size} bytes, the kernel takes {taken}"
