#!/usr/bin/env python3
"""Measures every activation's errors, in each type, against bars: builds accuracy.cpp for each arithmetic and runs it.

    python tests/native/run_accuracy.py [--all]

Needs g++ (or CXX); no GPU, no torch. Half a minute; several with --all: every float32 in +-[2^-6, 16].
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().with_name("accuracy.cpp")
CSRC = SOURCE.parents[2] / "csrc"
# As the library is compiled, see gelu_ext/_build.py: contraction off, so that what is fused is what the source fuses.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-unused-function",  # of the conversions, only those of float are used here
    "-pthread",
]

# The instruction sets of csrc/cpu and what their files ask the compiler for.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-DGELU_EXT_HAS_AVX2"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")), "-DGELU_EXT_HAS_AVX512"]
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC 12 sees its own _mm512_undefined_ps() as a mistake
INSTRUCTION_SETS = {"avx2": AVX2, "avx512": AVX512}


def arithmetics() -> dict[str, list[str]]:
    """What accuracy.cpp is to be compiled with: for every instruction set that this machine can run, and the device."""
    found = {"baseline": []}
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    able = set(re.search(r"^flags\s*:(.*)$", cpuinfo + "\nflags:", re.MULTILINE)[1].split())
    for name, flags in INSTRUCTION_SETS.items():
        if {flag[2:] for flag in flags if flag.startswith("-m")} <= able:
            found[name] = flags
        else:
            print(f"--- {name}: skipped, this processor does not have it")
    return found | {"device (modelled)": [*found.get("avx2", []), "-DGELU_EXT_MODEL_DEVICE"]}


def main() -> int:
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        for name, flags in arithmetics().items():
            program = str(Path(directory) / "accuracy")
            command = [os.environ.get("CXX", "g++"), *FLAGS, *flags, f"-I{CSRC}", str(SOURCE), "-o", program]
            subprocess.run(command, check=True)
            print(f"--- {name}", flush=True)
            if subprocess.run([program, *sys.argv[1:]], check=False).returncode != 0:
                failed.append(name)
    if failed:
        print(f"not within the bars: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
