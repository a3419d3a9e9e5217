"""Reads the machine code of CUDA kernels: disassembles a cubin, finds the main loop, sorts instructions by pipe."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

# Opcodes by the pipe that executes them.
PIPES = {
    "fma": "FFMA FFMA2 FADD FADD2 FMUL FMUL2",
    "heavy": "IMAD HFMA2 HADD2 HMUL2 IMUL",
    "alu": "FMNMX FMNMX3 FSEL FSET FSETP LOP3 SHF PRMT IADD IADD3 ISETP LEA MOV SEL F2FP VIADD VIADDMNMX VIMNMX IMNMX "
    "PLOP3 P2R R2P IABS BMSK SGXT FCHK VOTE",
    "mufu": "MUFU F2F F2I I2F I2FP POPC FLO BREV",
    "memory": "LDG STG LDS STS LDC LDCU",
    "uniform": "S2R S2UR R2UR CS2R ULDC UMOV UIADD3 UIMAD USHF ULOP3 ULEA UISETP USEL UPRMT UP2UR UPLOP3 UMOV USGXT",
    "control": "BRA EXIT NOP BSYNC BSSY BREAK BAR WARPSYNC SHFL DEPBAR YIELD RET CALL BMOV RPCMOV NANOSLEEP BPT",
    "double": "DFMA DADD DMUL DSETP DMNMX",
}
PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes.split()}


def pipe_of(instruction: str) -> str | None:
    return PIPE_OF.get(opcode_of(instruction).split(".")[0])


def find_nvdisasm(nvcc: Path) -> Path | None:
    folders = [Path(os.environ["NVDISASM"])] if os.environ.get("NVDISASM") else []
    if in_path := shutil.which("nvdisasm"):
        folders.append(Path(in_path).parent)
    folders.append(nvcc.parent)
    if (spec := importlib.util.find_spec("triton")) and spec.origin:
        folders.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    return next((folder / "nvdisasm" for folder in folders if (folder / "nvdisasm").exists()), None)


def functions_of(nvdisasm: Path, cubin: Path) -> dict[str, list[tuple[int | str, str]]]:
    """Name -> [(address, instruction) or (label, "")]."""
    text = subprocess.run([nvdisasm, "-c", "-hex", cubin], capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[tuple[int | str, str]]] = {}
    current = None
    for line in text.splitlines():
        if match := re.match(r"\s*\.section\s+\.text\.([^,\s]+)", line):
            current = functions.setdefault(match[1], [])
        elif current is not None and (match := re.match(r"\s*(\.L_\S+):", line)):
            current.append((match[1], ""))
        elif current is not None and (match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s*/\*\s*0x", line)):
            current.append((int(match[1], 16), match[2].rstrip(" ;")))
    return functions


def opcode_of(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def main_loop(lines: list[tuple[int | str, str]]) -> list[str]:
    """The largest loop that loads and stores, without its NOPs."""
    labels, pending, code = {}, [], []
    for where, instruction in lines:
        if isinstance(where, str):
            pending.append(where)
        else:
            labels.update(dict.fromkeys(pending, where))
            pending = []
            code.append((where, instruction))
    best: list[str] = []
    for address, instruction in code:
        target = re.search(r"\bBRA\S*\s.*`\((\.L_\S+)\)", instruction)
        if not target or labels.get(target[1], address) >= address:
            continue
        body = [text for where, text in code if labels[target[1]] <= where <= address and opcode_of(text) != "NOP"]
        opcodes = {opcode_of(text).split(".")[0] for text in body}
        if {"LDG", "STG"} <= opcodes and len(body) > len(best):
            best = body
    return best


def loads_together(loop: list[str]) -> int:
    """Loads in a row, not interrupted by a use of one of them; the loop may start between them and their first use."""
    if "LDG" not in " ".join(loop):
        return 0
    first = next(i for i, text in enumerate(loop) if opcode_of(text).startswith("LDG"))
    together, loaded = 0, set()
    for text in loop[first:]:
        operands = [int(number) for number in re.findall(r"(?<!U)\bR(\d+)", text)]
        if opcode_of(text).startswith("LDG"):
            together += 1
            loaded |= set(range(operands[0], operands[0] + 4))
        elif loaded & set(operands):
            break
    return together
