"""What a compiled kernel is: registers, spills, shared memory, widths of its memory accesses.

PTX tells which argument a load reads, the cubin what the assembler made of it. The programs that
read a cubin (cuobjdump, nvdisasm, ptxas) are parts of Triton.
"""

import math
import os
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton import knobs

from audiogen_fast.launches.record import Launch

Widths = Mapping[str, Mapping[int, int]]

CONSTANT = "constant"
VECTOR = 16
"""Bytes of the widest access that every generation has; narrower ones waste issue slots."""


@dataclass(frozen=True)
class MachineCode:
    """One compiled kernel."""

    capability: int
    registers: int
    """Of each thread."""
    spilled_bytes: int
    """Bytes of registers that are stored to and loaded from memory, in each thread."""
    shared_bytes: int
    """Shared memory of each program."""
    threads: int
    loads: Widths
    """Argument -> bytes of one access of one thread -> number of such instructions."""
    stores: Widths
    matrix: Mapping[str, int]
    """Matrix instruction of PTX -> how many."""

    @property
    def widest_load(self) -> int:
        """Bytes; 0 without loads."""
        return max((width for widths in self.loads.values() for width in widths), default=0)


def read(compiled: Any, capability: int) -> MachineCode:
    """Read a kernel that `compile_launch` made."""
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", content=cubin)
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    loads, stores = accesses(ptx, _parameters(compiled.src.signature))
    matrix = re.findall(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b[\w.:]*", ptx)
    return MachineCode(
        capability=capability,
        registers=registers,
        spilled_bytes=_spills(ptx, stack) if stack else 0,
        shared_bytes=compiled.metadata.shared,
        threads=32 * compiled.metadata.num_warps,
        loads=loads,
        stores=stores,
        matrix=dict(Counter(matrix)),
    )


def narrow_loads(launch: Launch, code: MachineCode, share: float = 0.1) -> dict[str, int]:
    """Arguments that could be read 16 bytes at a time and are not -> their widest load.

    Only those count that hold at least `share` of the bytes of all arguments that are read, and
    whose rows are contiguous, start at addresses divisible by 16 and are long enough.
    """
    read_arguments = {name: p for name, p in launch.pointers.items() if name in code.loads}
    total = sum(pointer.nbytes for pointer in read_arguments.values())
    narrow = {}
    for name, pointer in read_arguments.items():
        widest = max(code.loads[name])
        if widest < VECTOR and pointer.nbytes >= share * total and _allows_vectors(pointer):
            narrow[name] = widest
    return narrow


def instructions(cubin: bytes) -> Counter[str]:
    """Machine instructions with their modifiers, as `LDG.E.128`, and how many of each."""
    listing = _run(knobs.nvidia.nvdisasm.path, "-c", "-ndf", content=cubin)
    found = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", listing, re.M)
    return Counter(found)


def accesses(ptx: str, arguments: list[str]) -> tuple[Widths, Widths]:
    """Loads and stores of global memory by argument: name -> bytes of one access -> how many.

    Atomic operations are neither: their widths are not a matter of layout. An address belongs to
    the argument whose pointer it was computed from, or to 'constant', the
    compiler's own tables. Accesses that cannot be traced are under '?'.
    """
    origin = _origins(ptx, arguments)
    loads: dict[str, Counter[int]] = defaultdict(Counter)
    stores: dict[str, Counter[int]] = defaultdict(Counter)
    for kind, width, register in _memory_instructions(ptx):
        found = {"load": loads, "store": stores}[kind]
        found[origin.get(register, "?")][width] += 1
    return {k: dict(v) for k, v in loads.items()}, {k: dict(v) for k, v in stores.items()}


_ACCESS = re.compile(
    r"\b(ld|st)(?:\.\w+(?:::\w+)*)*?\.global[\w.:]*?(?:\.v(\d))?\.[a-z]+(\d+)\b[^\[\n]*"
    r"\[\s*(%rd\d+)"
)
_COPY = re.compile(
    r"\bcp\.async\.c[ag]\.shared\.global[\w.:]*\s*"
    r"\[[^\]]*\],\s*\[\s*(%rd\d+)[^\]]*\],\s*(0x[0-9a-f]+|\d+)"
)


def _memory_instructions(ptx: str) -> Iterator[tuple[str, int, str]]:
    for name, vector, bits, register in _ACCESS.findall(ptx):
        yield {"ld": "load", "st": "store"}[name], int(vector or 1) * int(bits) // 8, register
    for register, size in _COPY.findall(ptx):
        yield "load", int(size, 0), register


def _origins(ptx: str, arguments: list[str]) -> dict[str, str]:
    """64-bit register -> the argument that its address was computed from."""
    origin = {}
    for register, index in re.findall(r"ld\.param\.[bu]64\s+(%rd\d+), \[\w+_param_(\d+)\]", ptx):
        if int(index) < len(arguments):
            origin[register] = arguments[int(index)]
    # Tables of the compiler's own, such as the bits of 2 / pi for large phases.
    constants = re.findall(r"mov\.[bu]64\s+(%rd\d+), ([A-Za-z_]\w*);", ptx)
    origin.update({register: CONSTANT for register, _ in constants})
    # Only sums, copies and choices carry an address; an offset is made by other instructions.
    moves = re.findall(
        r"\b(?:add|sub|mov|selp|cvta[.\w]*|mad\.wide|mad\.lo|or)\.[bus](?:64|32)\s+(%rd\d+), (.*);",
        ptx,
    )
    changed = True
    while changed:  # loops carry addresses backwards
        changed = False
        for target, sources in moves:
            if target not in origin:
                known = [origin[r] for r in re.findall(r"%rd\d+", sources) if r in origin]
                if known:
                    origin[target] = known[0]
                    changed = True
    return origin


def _parameters(signature: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that exist at run time, in order; of a tuple, once for each item."""

    def leaves(kind: Any) -> int:
        if isinstance(kind, tuple | list):
            return sum(leaves(item) for item in kind)
        return kind != "constexpr"

    return [name for name, kind in signature.items() for _ in range(leaves(kind))]


def _allows_vectors(pointer: Any) -> bool:
    size = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}.get(pointer.dtype)
    size = 1 if pointer.dtype.startswith("float8") else size
    if size is None or pointer.misalignment or 1 not in pointer.strides:
        return False
    inner = max(n for n, stride in zip(pointer.shape, pointer.strides, strict=True) if stride == 1)
    others = [s for s in pointer.strides if s != 1]
    # Triton's own rule for a stride is 16 elements.
    return inner * size % VECTOR == 0 and math.gcd(*others, 16) == 16


def _spills(ptx: str, stack: int) -> int:
    """Bytes of spills in a kernel that has a stack, which may also be an array of its own."""
    architecture = re.search(r"\.target (\w+)", ptx)[1]
    for tool in (knobs.nvidia.ptxas, knobs.nvidia.ptxas_blackwell):  # one knows this PTX version
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
            source.write(ptx)
            source.flush()
            command = [tool.path, "-v", f"--gpu-name={architecture}", source.name]
            run = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True)
        report = run.stdout + run.stderr
        if run.returncode == 0:
            frame, *spills = (
                int(re.search(rf"(\d+) bytes {what}", report)[1])
                for what in ("stack frame", "spill stores", "spill loads")
            )
            # Another frame than the cubin's comes of other options: then count all of it.
            return sum(spills) if frame == stack else stack
    raise RuntimeError(f"ptxas does not assemble the PTX of a compiled kernel:\n{report}")


def _run(program: str, *arguments: str, content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(content)
        command = [program, *arguments, str(path)]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{Path(program).name} failed: {run.stderr or run.stdout}")
    return run.stdout
