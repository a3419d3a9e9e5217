"""The one list of sources and flags, and the decision whether CUDA is built: for setup.py and for the JIT.

setup.py loads this file by its path, before anything is built or installed: so it imports nothing of gelu_ext, and
torch only inside functions (without torch, `make_plan` says what to run; an sdist needs none).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

__version__ = "0.2.0"  # its one home: pyproject.toml reads it from here

# Turing to Blackwell, and PTX for what is between them (11.0) and comes later. Used where no GPU is visible to ask.
DEFAULT_ARCHITECTURES, WITH_PTX = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"), "10.0"
FACTS_PREFIX = "GELU_EXT_BUILD_FACTS="
GIBIBYTES_PER_JOB = 2  # what one compiler run may take with torch's headers


class BuildError(RuntimeError):
    """What was asked for cannot be built; the message is one sentence with the reason and what to do."""


# --- sources ----------------------------------------------------------------------------------------------------------


def csrc() -> Path:
    """The C++ and CUDA sources: inside an installed package, beside it in a checkout or sdist."""
    here = Path(__file__).resolve().parent
    for folder in (here / "csrc", here.parent / "csrc"):
        if (folder / "kernels.h").exists():
            return folder
    raise BuildError(f"the C++ sources of gelu_ext are neither in {here} nor beside it: reinstall gelu_ext.")


def sources(cuda: bool) -> list[Path]:
    """Every file to compile. Their names differ: torch's JIT puts all objects in one folder."""
    patterns = ["*.cpp", "cpu/*.cpp"] + ["cuda/*.cu"] * cuda
    return [path for pattern in patterns for path in sorted(csrc().glob(pattern))]


def source_hash() -> str:
    """Of all that decides what the compiled module does: every source and header, and this file (the flags)."""
    root = csrc()
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".h", ".cuh", ".cpp", ".cu")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


# --- flags ------------------------------------------------------------------------------------------------------------


def host_flags() -> list[str]:
    """For the C++ compiler. No -std (torch adds its own) and no -march: instruction sets are chosen at run time."""
    if sys.platform == "win32":
        return ["/O2", "/openmp"]
    # Nothing vectorises below -O3, nor with errno and trap semantics; -ffp-contract=off keeps results the same for
    # every instruction set (and the same as those of the CUDA kernels run on the CPU by the tests). -g0: Python's own
    # flags ask for -g.
    flags = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden", "-Wall"]
    if "clang" not in compiler():
        flags.append("-Wno-maybe-uninitialized")  # gcc 12 sees it in its own intrinsics (its bug 105593)
    # at::parallel_for is a plain loop where the including file is compiled without OpenMP. Apple's clang has none, and
    # torch uses its own threads there.
    return flags if sys.platform == "darwin" else [*flags, "-fopenmp"]


def nvcc_flags() -> list[str]:
    """For nvcc. Contraction is written out in the sources; never -use_fast_math."""
    # torch disables the half and bfloat16 operators by macro; the kernels are compiled as plain CUDA everywhere.
    names = ["HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS"]
    return ["-O3", "-fmad=false", *(f"-U__CUDA_NO_{name}__" for name in names)]


def compiler() -> str:
    """The C++ compiler as torch chooses it, by the first line of its --version."""
    command = shlex.split(os.environ.get("CXX", "cl" if sys.platform == "win32" else "c++"))
    if not shutil.which(command[0]):
        raise BuildError(
            f"there is no C++ compiler ({command[0]!r} is not on the PATH): install one "
            "(Debian, Ubuntu: apt install g++) or name it in CXX."
        )
    return (_output([*command, "--version"]).splitlines() or [command[0]])[0]


def find_tools() -> None:
    """Puts ninja on the PATH where it is installed beside this Python, whose environment was not activated."""
    scripts = sysconfig.get_path("scripts")
    if not shutil.which("ninja") and shutil.which("ninja", path=scripts):
        os.environ["PATH"] = os.environ.get("PATH", os.defpath) + os.pathsep + scripts


def max_jobs() -> int:
    """As many compilers at once as there are cores, and memory for; MAX_JOBS overrides."""
    if os.environ.get("MAX_JOBS", "").isdigit():
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    available = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) // 2**20)
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" where there is none
        available.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) // 2**30)
    return max(1, min([cores, *(gibibytes // GIBIBYTES_PER_JOB for gibibytes in available)]))


# --- CUDA -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Toolkit:
    home: Path
    version: str  # "13.0"

    @property
    def nvcc(self) -> str:
        return str(self.home / "bin" / ("nvcc.exe" if sys.platform == "win32" else "nvcc"))

    def library(self, name: str) -> Path | None:
        folders = (self.home / folder for folder in ("lib64", "lib", "lib/x64"))
        return next((folder / name for folder in folders if (folder / name).exists()), None)


def find_toolkit() -> Toolkit | str:
    """The CUDA toolkit, or why there is none. Asks nvcc itself where it lives: the one on the PATH may be a wrapper."""
    named = next((name for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)), None)
    if named:
        nvcc = shutil.which("nvcc", path=str(Path(os.environ[named]) / "bin"))
        if not nvcc:
            return f"{named}={os.environ[named]} has no bin/nvcc"
    else:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        if not nvcc:
            return "there is no CUDA toolkit (no nvcc on the PATH or in /usr/local/cuda, and CUDA_HOME is not set)"
    version = re.search(r"release (\d+\.\d+)", _output([nvcc, "--version"]))
    if not version:
        return f"{nvcc} --version did not say which CUDA it is"
    top = re.search(r"^#\$ TOP=(.+)$", _output([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]), re.MULTILINE)
    home = Path(top[1].strip()) if top else Path(nvcc).resolve().parent.parent
    return Toolkit(Path(os.path.normpath(home)), version[1])


def decide_cuda(wanted: str | None = None) -> tuple[Toolkit | None, str]:
    """(the toolkit, "") to build with CUDA, or (None, why not).

    By toolkit and torch, never by whether a GPU is visible: images are built on machines without one. `wanted` (or
    GELU_EXT_CUDA): "auto", "1" (CUDA or BuildError), "0", or "link": for continuous integration, compile and link the
    CUDA code against a torch without CUDA, to prove that much where no CUDA torch is installed.
    """
    import torch

    wanted = wanted or os.environ.get("GELU_EXT_CUDA") or "auto"
    if wanted not in ("auto", "0", "1", "link"):
        raise BuildError(f"GELU_EXT_CUDA: expected auto, 0, 1 or link, got {wanted!r}.")
    if wanted == "0":
        return None, "switched off (GELU_EXT_CUDA=0)"
    reason = ""
    toolkit = find_toolkit()
    built_for = torch.version.cuda
    if getattr(torch.version, "hip", None):
        reason = f"torch {torch.__version__} is a ROCm build"
    elif not built_for and wanted != "link":
        reason = f"torch {torch.__version__} is a CPU-only build"
    elif isinstance(toolkit, str):
        reason = toolkit
    elif built_for and built_for.split(".")[0] != toolkit.version.split(".")[0]:
        reason = (
            f"torch {torch.__version__} was built for CUDA {built_for} and the toolkit in {toolkit.home} is CUDA "
            f"{toolkit.version} (point CUDA_HOME to a CUDA {built_for.split('.')[0]} toolkit)"
        )
    if not reason:
        return toolkit, ""
    if wanted != "auto":
        raise BuildError(f"GELU_EXT_CUDA={wanted} asks for CUDA, but {reason}.")
    return None, reason


def architectures(toolkit: Toolkit) -> str:
    """The value of TORCH_CUDA_ARCH_LIST to build for: the user's; else the visible GPUs'; else a list with PTX."""
    import torch

    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if asked and asked != "native":
        return asked
    supported = set(re.findall(r"compute_(\d+)\b", _output([toolkit.nvcc, "--list-gpu-arch"])))
    visible = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    found = sorted({f"{major}.{minor}" for major, minor in visible}, key=float)
    if asked == "native" and not found:
        raise BuildError(
            "TORCH_CUDA_ARCH_LIST=native builds for the GPUs of this machine, but none is visible: name the "
            "architectures (e.g. TORCH_CUDA_ARCH_LIST='8.0;9.0+PTX') or unset it."
        )
    if found and all(arch.replace(".", "") in supported for arch in found):
        return ";".join(found)
    known = [arch for arch in DEFAULT_ARCHITECTURES if arch.replace(".", "") in supported]
    if not known:
        raise BuildError(
            f"CUDA {toolkit.version} knows none of the default architectures ({', '.join(DEFAULT_ARCHITECTURES)}): "
            "name yours in TORCH_CUDA_ARCH_LIST."
        )
    with_ptx = WITH_PTX if WITH_PTX in known else known[-1]
    return ";".join(f"{arch}+PTX" if arch == with_ptx else arch for arch in known)


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything a build needs to know; the same for setup.py and the JIT."""

    toolkit: Toolkit | None
    facts: dict[str, str | None]  # what the compiled module will say of itself
    sources: list[Path]
    host_flags: list[str]
    nvcc_flags: list[str]

    @property
    def summary(self) -> str:
        if self.toolkit:
            return f"with CUDA {self.toolkit.version} for {self.facts['architectures']}"
        return f"for the CPU only: {self.facts['why_no_cuda']}"

    def write_facts(self, folder: Path) -> None:
        """build_facts.h, for bindings.cpp. A header, as quotes in a -D survive neither ninja nor the shell."""
        folder.mkdir(parents=True, exist_ok=True)
        literal = json.dumps(FACTS_PREFIX + json.dumps(self.facts) + "\n")
        text = f"// Generated by gelu_ext/_build.py.\n#pragma once\n#define GELU_EXT_BUILD_FACTS {literal}\n"
        header = folder / "build_facts.h"
        if not header.exists() or header.read_text() != text:  # else ninja would compile again
            header.write_text(text)

    def link_flags(self, folder: Path) -> list[str]:
        """The CUDA runtime: the shared one that torch has loaded, or a static one where torch has none."""
        import torch

        if not self.toolkit or sys.platform == "win32":
            return []
        if not torch.version.cuda:
            static = self.toolkit.library("libcudart_static.a")
            if not static:
                raise BuildError(f"GELU_EXT_CUDA=link needs libcudart_static.a, which {self.toolkit.home} lacks.")
            return [str(static), "-lrt", "-ldl", "-lpthread"]
        shared = self.toolkit.library("libcudart.so")
        if shared:
            return [f"-L{shared.parent}", "-lcudart"]
        # A toolkit with a compiler only: link to the runtime that came with torch, which has no unversioned name.
        major = torch.version.cuda.split(".")[0]
        site = Path(torch.__file__).parent.parent / "nvidia"
        found = [p for name in (f"cu{major}", "cuda_runtime") for p in site.glob(f"{name}/lib/libcudart.so.{major}*")]
        if not found:
            raise BuildError(f"there is no libcudart in {self.toolkit.home} nor beside torch: install cuda-cudart-dev.")
        link = folder.absolute() / "libcudart.so"
        link.unlink(missing_ok=True)
        link.symlink_to(found[0])
        return [f"-L{link.parent}", "-lcudart"]

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """What torch's builders read: the real toolkit (torch guesses it from the PATH), architectures, parallelism."""
        from torch.utils import cpp_extension

        changed = {"MAX_JOBS": str(max_jobs())}
        if self.toolkit:
            changed["TORCH_CUDA_ARCH_LIST"] = self.facts["architectures"]
        before = {name: os.environ.get(name) for name in changed}
        home_before = cpp_extension.CUDA_HOME
        os.environ.update(changed)
        if self.toolkit:
            cpp_extension.CUDA_HOME = str(self.toolkit.home)
        try:
            yield
        finally:
            cpp_extension.CUDA_HOME = home_before
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def make_plan(cuda: str | None = None) -> Plan:
    """Decides; builds nothing. Raises BuildError where what was asked for is impossible."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise BuildError(NO_TORCH) from error
    toolkit, why_no_cuda = decide_cuda(cuda)
    files = sources(cuda=toolkit is not None)
    facts = {
        "version": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "cuda": toolkit and toolkit.version,
        "why_no_cuda": why_no_cuda or None,
        "architectures": architectures(toolkit) if toolkit else None,
        "compiler": compiler(),
        "sources": source_hash(),
    }
    tuning = os.environ.get("GELU_EXT_CUDA_TUNING") if toolkit else None
    if tuning:
        facts["tuning"] = tuning
    with_cuda = ["-DGELU_EXT_WITH_CUDA"] if toolkit else []
    kernels = sum(path.suffix == ".cu" for path in files)
    # nvcc compiles the architectures of one file in parallel, with what the other files leave of the cores.
    extra = [f"--threads={max(1, min(8, max_jobs() // kernels))}"] if kernels else []
    if toolkit and not torch.version.cuda:  # torch then lets ninja track no headers of CUDA files
        extra.append(f"-DGELU_EXT_SOURCES=0x{facts['sources']}")
    if tuning:
        unroll, blocks = tuning.split(",")
        extra += [f"-DGELU_EXT_CUDA_UNROLL={int(unroll)}", f"-DGELU_EXT_CUDA_BLOCKS={int(blocks)}"]
    return Plan(toolkit, facts, files, host_flags() + with_cuda, nvcc_flags() + with_cuda + extra)


NO_TORCH = (
    "gelu_ext is compiled against the torch that will run it, and there is none here: install torch, then run "
    "`pip install --no-build-isolation .` (without that flag pip builds in an empty environment)."
)


def _output(command: list[str]) -> str:
    """stdout and stderr together; empty where the command does not run."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
