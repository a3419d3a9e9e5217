"""Compiles csrc/cuda/*.cu for every GPU architecture and fails on any warning, above all on a register spill.

    python tests/cuda/compile.py [75 80 86 89 90 100 120] [--jobs N]

Prints a line per file and architecture: seconds and the most registers of a kernel. Needs nvcc (from CUDA_HOME, PATH or
/usr/local/cuda) but neither a GPU nor torch. Exits with 2 if there is no nvcc. MAX_JOBS limits the parallel jobs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = sorted((Path(__file__).resolve().parents[2] / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# No -use_fast_math ever: it changes results. -fmad=false: what is fused is written as fused in scalar_math.h.
FLAGS = [
    "-O3",
    "-std=c++17",
    "-fmad=false",
    "-Werror=all-warnings",
    "-Xcompiler=-Wall,-Wextra",
    "-Xptxas=-v,--warn-on-spills,--warn-on-local-memory-usage,-Werror",
]


def toolkit_of(nvcc: Path) -> Path | None:
    """The toolkit that `nvcc` belongs to, asked of itself, since the one in PATH may be a script that calls another."""
    command = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    top = re.search(r"^#\$ TOP=(.+)$", run.stderr, re.MULTILINE)
    return Path(top[1]).resolve() if top else None


def find_nvcc() -> Path | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    if in_path := shutil.which("nvcc"):
        candidates.append(Path(in_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for candidate in candidates:
        if (root := toolkit_of(candidate)) and (root / "bin" / "nvcc").exists():
            return root / "bin" / "nvcc"
    return None


def nvcc_or_exit() -> Path:
    if nvcc := find_nvcc():
        return nvcc
    print("no nvcc found in CUDA_HOME, PATH or /usr/local/cuda: install the CUDA toolkit or set CUDA_HOME to it")
    sys.exit(2)


def known_architectures(nvcc: Path) -> set[int]:
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return {int(number) for number in re.findall(r"^sm_(\d+)$", listed, re.MULTILINE)}


def default_jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def compile_one(nvcc: Path, source: Path, architecture: int, output: Path, *flags: str) -> tuple[bool, float, str]:
    """Whether it compiled without a warning, in how many seconds, and what nvcc said."""
    start = time.monotonic()
    command = [nvcc, *FLAGS, *(flags or ["-c"]), f"-arch=sm_{architecture}", source, "-o", output]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.returncode == 0, time.monotonic() - start, run.stdout + run.stderr


def without_reports(log: str) -> str:
    """The log less what `ptxas -v` reports on every kernel."""
    keep = [line for line in log.splitlines() if not re.search(r"^ptxas info|bytes stack frame|^\s*$", line)]
    return "\n".join(keep)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", type=int, default=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=default_jobs())
    arguments = parser.parse_args()
    nvcc = nvcc_or_exit()
    known = known_architectures(nvcc)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = []
        for architecture in arguments.architectures:
            if architecture not in known:
                print(f"sm_{architecture}: skipped, {nvcc} does not know it")
                continue
            for source in SOURCES:
                output = Path(folder) / f"{source.stem}.{architecture}.o"
                jobs.append((source, architecture, pool.submit(compile_one, nvcc, source, architecture, output)))
        for source, architecture, job in jobs:
            passed, seconds, log = job.result()
            registers = max(map(int, re.findall(r"Used (\d+) registers", log)), default=0)
            name = f"sm_{architecture:<3} {source.name:<24}"
            print(f"{name} {seconds:5.1f} s  {registers:3d} registers  {'ok' if passed else 'FAILED'}", flush=True)
            if not passed:
                failed += 1
                print(without_reports(log))
    print(f"{len(jobs) - failed} of {len(jobs)} compiled without a warning")
    return 1 if failed or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
