#!/usr/bin/env python3
"""Measures the errors of every form and type against their bars: builds accuracy.cpp for each arithmetic and runs it.

    python tests/native/run_accuracy.py [--all]

Needs g++ (or CXX); no GPU, no torch. Half a minute; several with --all: every float32 in +-[2^-6, 16].
"""

import os
import platform
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
    "-pthread",
]


def arithmetics() -> dict[str, list[str]]:
    """What accuracy.cpp is to be compiled with, and why."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"host": [], "device (modelled)": ["-DGELU_EXT_MODEL_DEVICE"]}
    found = {"host without FMA": []}
    if Path("/proc/cpuinfo").exists() and " fma " in Path("/proc/cpuinfo").read_text():
        fma = ["-mfma", "-mavx2"]
        found |= {"host with FMA": fma, "device (modelled)": [*fma, "-DGELU_EXT_MODEL_DEVICE"]}
    return found


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
