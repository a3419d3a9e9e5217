"""Claims about the build: what is decided, what is said where it cannot work, and that packages and JIT builds do.

Real builds here are of a tiny extension (a second to compile) with this project's own setup.py, _build, _native and
jit. Most of them, and builds of the extension itself, run with GELU_EXT_SLOW_TESTS=1 only.
"""

import importlib.machinery
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from gelu_ext import _build, _native

ROOT = Path(__file__).resolve().parent.parent
TORCH = str(torch.__version__)
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]

TINY = r"""
#include <Python.h>
#include "build_facts.h"
#include "kernels.h"
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "tiny"};
extern "C" __attribute__((visibility("default"))) PyObject* JOIN(PyInit_, TORCH_EXTENSION_NAME)() {
  PyObject* m = PyModule_Create(&definition);
  PyModule_AddStringConstant(m, "build_facts", GELU_EXT_BUILD_FACTS);
  PyModule_AddIntConstant(m, "answer", ANSWER);
  return m;
}
"""
BUILT_BY_JIT = "import gelu_ext; gelu_ext.jit.load(); print(gelu_ext._native.answer)"


@pytest.fixture
def tiny(tmp_path):
    """A checkout with sources that compile in a second, in a folder whose name has a space."""
    root = tmp_path / "with space"
    (root / "csrc").mkdir(parents=True)
    (root / "gelu_ext").mkdir()
    (root / "csrc" / "bindings.cpp").write_text(TINY)
    (root / "csrc" / "kernels.h").write_text("#define ANSWER 42\n")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, root)
    (root / "README.md").write_text("tiny")
    for name in ("_build.py", "_native.py", "jit.py"):
        shutil.copy(ROOT / "gelu_ext" / name, root / "gelu_ext")
    (root / "gelu_ext" / "__init__.py").write_text("from . import _native, jit\n")
    return root


def environment(root, **changes):
    names = {"PYTHONPATH": str(root), "TORCH_EXTENSIONS_DIR": str(root.parent / "builds"), **changes}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GELU_EXT_", "CUDA_", "TORCH_CUDA"))}
    return clean | {"GELU_EXT_CUDA": "0"} | names


def run(root, *command, check=True, **changes):
    """Runs Python there; returns its stdout and stderr in one string."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root.parent,
        env=environment(root, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def first_use(root, **changes):
    """What is said at the first use of a native name, also where the package is installed."""
    code = "import sys, torch; sys.path = [p for p in sys.path if 'site-packages' not in p]; import gelu_ext; "
    return run(root, "-c", code + "gelu_ext._native.answer", check=False, **changes).splitlines()[-1]


# --- sources and flags ------------------------------------------------------------------------------------------------


def test_every_source_is_compiled_and_object_names_do_not_collide():
    listed = _build.sources(cuda=True)
    everything = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu") and "fit" not in p.parts]
    assert sorted(listed) == sorted(everything)
    assert len({p.name for p in listed}) == len(listed)
    assert not [p for p in _build.sources(cuda=False) if p.suffix == ".cu"]


def test_flags_leave_the_instruction_set_the_standard_and_the_rounding_alone():
    flags = " ".join(_build.host_flags() + _build.nvcc_flags())
    for unwanted in ("-march", "-mtune", "-std", "fast-math", "fast_math", "-Ofast"):
        assert unwanted not in flags


def test_the_source_hash_sees_headers(tiny, monkeypatch):
    monkeypatch.setattr(_build, "csrc", lambda: tiny / "csrc")
    before = _build.source_hash()
    (tiny / "csrc" / "kernels.h").write_text("#define ANSWER 43\n")
    assert _build.source_hash() != before


def test_facts_survive_quotes_and_an_unchanged_header_is_not_rewritten(tmp_path):
    plan = _build.Plan(None, {"compiler": 'a "b" \\ c', "torch": TORCH}, [], [], [])
    plan.write_facts(tmp_path)
    header = tmp_path / "build_facts.h"
    # Every C++ escape that json.dumps can produce here is one of Python's.
    literal = eval(header.read_text().split("GELU_EXT_BUILD_FACTS ", 1)[1])
    (tmp_path / "binary").write_bytes(b"\0\1" + literal.encode() + b"\0")
    assert _native.read_facts(tmp_path / "binary") == plan.facts
    os.utime(header, (0, 0))
    plan.write_facts(tmp_path)
    assert header.stat().st_mtime == 0


def test_no_compiler_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(_build.BuildError, match=r"no C\+\+ compiler \('no-such-compiler' is not on the PATH\)"):
        _build.compiler()


def test_parallel_jobs_are_bounded_by_memory(monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    assert 1 <= _build.max_jobs() <= os.cpu_count()
    monkeypatch.setattr(_build, "GIBIBYTES_PER_JOB", 10**6)
    assert _build.max_jobs() == 1
    monkeypatch.setenv("MAX_JOBS", "7")
    assert _build.max_jobs() == 7


# --- CUDA -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A CUDA 13.0 toolkit that only answers questions, behind a wrapper script on the PATH."""
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "GELU_EXT_CUDA"):
        monkeypatch.delenv(name, raising=False)
    home, wrapper = tmp_path / "cuda-13.0", tmp_path / "wrapper"
    (home / "bin").mkdir(parents=True)
    wrapper.mkdir()
    answers = {
        "--version": "Cuda compilation tools, release 13.0, V13.0.88",
        "--dryrun": f"#$ TOP={home}/bin/..",
        "--list-gpu-arch": "compute_75\ncompute_80\ncompute_90\ncompute_100",
    }
    cases = "".join(f"{question}) echo '{answer}' ;;\n" for question, answer in answers.items())
    for path, text in (
        (home / "bin" / "nvcc", f"case $1 in\n{cases}esac"),
        (wrapper / "nvcc", f'exec "{home}/bin/nvcc" "$@"'),
    ):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return _build.Toolkit(home, "13.0")


def test_an_nvcc_that_is_a_wrapper_leads_to_the_real_toolkit(toolkit):
    assert _build.find_toolkit() == toolkit


def test_cuda_is_decided_by_toolkit_and_torch_where_no_gpu_is_visible(toolkit):
    assert not torch.cuda.device_count()
    assert _build.decide_cuda() == (toolkit, "")


@pytest.mark.parametrize(
    ("torch_cuda", "home", "reason"),
    [
        (None, None, f"torch {TORCH} is a CPU-only build"),
        ("12.8", None, "is CUDA 13.0 (point CUDA_HOME to a CUDA 12 toolkit)"),
        ("13.0", "/nonexistent", "CUDA_HOME=/nonexistent has no bin/nvcc"),
    ],
)
def test_impossible_cuda_is_a_reason_by_default_and_an_error_if_asked_for(
    toolkit, monkeypatch, torch_cuda, home, reason
):
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    if home:
        monkeypatch.setenv("CUDA_HOME", home)
    decided, why_not = _build.decide_cuda()
    assert decided is None
    with pytest.raises(_build.BuildError, match=f"^GELU_EXT_CUDA=1 asks for CUDA, but .*{re.escape(reason)}"):
        _build.decide_cuda("1")
    assert why_not


def test_no_toolkit_is_a_reason(toolkit, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    decided, why_not = _build.decide_cuda()
    assert decided is None
    assert why_not.startswith("there is no CUDA toolkit (no nvcc on the PATH")


def test_cuda_can_be_switched_off_and_the_switch_is_checked(toolkit, monkeypatch):
    monkeypatch.setenv("GELU_EXT_CUDA", "0")
    assert _build.decide_cuda() == (None, "switched off (GELU_EXT_CUDA=0)")
    monkeypatch.setenv("GELU_EXT_CUDA", "yes")
    with pytest.raises(_build.BuildError, match="GELU_EXT_CUDA: expected auto, 0, 1 or link, got 'yes'"):
        _build.decide_cuda()


def test_cuda_code_can_be_linked_for_a_torch_without_cuda(toolkit, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _build.decide_cuda("link") == (toolkit, "")


def test_architectures_are_a_list_with_ptx_where_no_gpu_is_visible(toolkit, monkeypatch):
    assert _build.architectures(toolkit) == "7.5;8.0;9.0;10.0+PTX"  # what this nvcc knows of the default list
    newer = "compute_75\ncompute_100\ncompute_120"  # 10.0's PTX serves 11.0, which code for 12.0 does not
    older = "compute_75\ncompute_90"
    real = _build._output
    for known, expected in ((newer, "7.5;10.0+PTX;12.0"), (older, "7.5;9.0+PTX")):
        answer = {"--list-gpu-arch": known}
        monkeypatch.setattr(_build, "_output", lambda command, answer=answer: answer.get(command[1]) or real(command))
        assert _build.architectures(toolkit) == expected
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper 8.6+PTX")
    assert _build.architectures(toolkit) == "Hopper 8.6+PTX"


def test_architectures_are_those_of_the_visible_gpus(toolkit, monkeypatch):
    capabilities = [(9, 0), (8, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    assert _build.architectures(toolkit) == "8.0;9.0"
    capabilities[1] = (13, 0)  # newer than this nvcc: only PTX can serve it
    assert _build.architectures(toolkit) == "7.5;8.0;9.0;10.0+PTX"


def test_native_without_a_gpu_is_said_in_a_sentence(toolkit, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "native")
    with pytest.raises(_build.BuildError, match=r"TORCH_CUDA_ARCH_LIST=native .* none is visible: name "):
        _build.architectures(toolkit)


def test_the_environment_of_a_build_is_put_back(toolkit, monkeypatch):
    from torch.utils import cpp_extension

    monkeypatch.delenv("MAX_JOBS", raising=False)
    before = cpp_extension.CUDA_HOME
    with _build.Plan(toolkit, {"architectures": "9.0"}, [], [], []).environment():
        assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0"
        assert int(os.environ["MAX_JOBS"]) >= 1
        assert str(toolkit.home) == cpp_extension.CUDA_HOME
    assert before == cpp_extension.CUDA_HOME
    assert not {"TORCH_CUDA_ARCH_LIST", "MAX_JOBS"} & os.environ.keys()


# --- what an import says ----------------------------------------------------------------------------------------------


def test_without_a_compiled_module_the_first_use_says_what_to_run(tiny):
    said = first_use(tiny)
    assert said.startswith(f"ImportError: gelu_ext has no compiled module in {tiny / 'gelu_ext'}: run `")
    assert said.endswith(f"setup.py build_ext --inplace` in {tiny}, or call gelu_ext.jit.load().")


def test_a_module_for_another_python_is_named(tiny):
    (tiny / "gelu_ext" / "_C.cpython-27-x86_64-linux-gnu.so").touch()
    assert "was compiled for another Python (_C.cpython-27-x86_64-linux-gnu.so): run `" in first_use(tiny)


def test_a_build_for_another_torch_is_refused_before_it_is_loaded(tiny):
    facts = _build.FACTS_PREFIX + '{"torch": "2.7.1+cu128"}\n'
    (tiny / "gelu_ext" / f"_C{SUFFIX}").write_bytes(b"\x7fELF" + facts.encode())
    assert f"cannot be loaded: it was built for torch 2.7.1+cu128 and this is torch {TORCH}; run `" in first_use(tiny)


def test_a_broken_module_is_said_in_a_sentence(tiny):
    facts = _build.FACTS_PREFIX + f'{{"torch": "{TORCH}"}}\n'
    (tiny / "gelu_ext" / f"_C{SUFFIX}").write_bytes(facts.encode() * 100)
    said = first_use(tiny)
    assert said.startswith("ImportError: the compiled gelu_ext in ")
    assert "cannot be loaded (" in said and "): run `" in said


def test_operators_of_another_build_in_the_process_are_not_registered_twice(tiny):
    (tiny / "gelu_ext" / f"_C{SUFFIX}").write_text(_build.FACTS_PREFIX + f'{{"torch": "{TORCH}"}}\n')
    define = "t = torch.library.Library('gelu_ext', 'DEF'); t.define('bias_gelu(Tensor x) -> Tensor')"
    code = f"import torch; {define}; import gelu_ext"
    said = run(tiny, "-c", code + "; gelu_ext._native.answer", check=False)
    assert "this process has loaded another build of gelu_ext already, and can hold only one" in said


# --- installed --------------------------------------------------------------------------------------------------------


def pip(root, *arguments):
    return run(root, "-m", "pip", "--disable-pip-version-check", *arguments, PYTHONPATH="")


@pytest.mark.slow
def test_sdist_wheel_install_jit_from_the_installed_sources_and_a_checkout_beside_it(tiny):
    run(tiny, "-c", f"import os; os.chdir({str(tiny)!r}); import runpy, sys; sys.argv = ['setup.py', '-q', 'sdist']; "
        "runpy.run_path('setup.py')")  # fmt: skip
    (sdist,) = (tiny / "dist").glob("*.tar.gz")
    out = tiny.parent
    pip(tiny, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(sdist))
    (wheel,) = out.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"gelu_ext/_C{SUFFIX}", "gelu_ext/csrc/bindings.cpp", "gelu_ext/csrc/kernels.h"} <= set(names)
    site = out / "installed here"
    pip(tiny, "install", "-q", "--no-deps", "--target", str(site), str(wheel))

    code = "import gelu_ext; print(gelu_ext._native.answer, gelu_ext._native.location)"
    installed = site / "gelu_ext" / f"_C{SUFFIX}"
    assert run(site, "-c", code) == f"42 {installed}\n"
    # jit.load() finds that one, and GELU_EXT_JIT=1 leaves it alone.
    assert "building" not in run(site, "-c", BUILT_BY_JIT)
    assert "GELU_EXT_JIT=1 leaves the compiled module to gelu_ext.jit.load()" in first_use(site, GELU_EXT_JIT="1")
    assert "building for the CPU only" in run(site, "-c", BUILT_BY_JIT, GELU_EXT_JIT="1")

    # Python in the checkout, where nothing is built: the installed module serves as long as it is of the same sources.
    both = {"PYTHONPATH": f"{tiny}:{site}"}
    assert run(tiny, "-c", code, **both) == f"42 {installed}\n"
    with open(tiny / "csrc" / "kernels.h", "a") as header:
        header.write("// changed\n")
    assert f"the one in {installed.parent} was built from other sources: run `" in first_use(tiny, **both)


@pytest.mark.slow
def test_a_build_without_torch_says_what_to_run(tiny):
    without = tiny.parent / "without"
    (without / "torch").mkdir(parents=True)
    (without / "torch" / "__init__.py").write_text("raise ModuleNotFoundError('No module named torch')\n")
    said = run(
        tiny,
        "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(without), str(tiny),
        check=False, PYTHONPATH=str(without),
    )  # fmt: skip
    assert "install torch, then run `pip install --no-build-isolation .`" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_cuda_asked_for_and_impossible_stops_the_build(tiny):
    said = run(
        tiny,
        "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tiny.parent), str(tiny),
        check=False, PYTHONPATH="", GELU_EXT_CUDA="1", CUDA_HOME="/nonexistent",
    )  # fmt: skip
    assert "gelu_ext: GELU_EXT_CUDA=1 asks for CUDA, but " in said


# --- JIT --------------------------------------------------------------------------------------------------------------


def test_jit_builds_once_and_again_when_a_header_changes(tiny):
    first, second = run(tiny, "-c", BUILT_BY_JIT), run(tiny, "-c", BUILT_BY_JIT)
    assert "building for the CPU only" in first and first.endswith("42\n")
    assert "building" not in second and second.endswith("42\n")  # a CUDA torch without a GPU says that, too
    (tiny / "csrc" / "kernels.h").write_text("#define ANSWER 43\n")
    assert run(tiny, "-c", BUILT_BY_JIT).endswith("43\n")


@pytest.mark.slow
def test_two_processes_build_once(tiny):
    command = [sys.executable, "-c", BUILT_BY_JIT]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, cwd=tiny.parent, env=environment(tiny), **pipes) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert all(text.endswith("42\n") for text in said), said
    assert sum("building for the CPU only" in text for text in said) == 1, said


@pytest.mark.slow
def test_a_killed_build_does_not_hang_the_next_one(tiny):
    slow, compiling = tiny.parent / "slow-compiler", tiny.parent / "compiling"
    slow.write_text(f'#!/bin/sh\ncase " $* " in *" -c "*) touch "{compiling}"; sleep 100 ;; esac\nexec c++ "$@"\n')
    slow.chmod(0o755)
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILT_BY_JIT],
        cwd=tiny.parent,
        env=environment(tiny, CXX=str(slow)),
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not compiling.exists():
            assert time.monotonic() < deadline and builder.poll() is None
            time.sleep(0.05)
        os.kill(builder.pid, signal.SIGKILL)  # only Python: its compiler lives on
        builder.wait()
        assert run(tiny, "-c", BUILT_BY_JIT).endswith("42\n")
    finally:
        os.killpg(builder.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_failed_build_can_be_repeated_in_the_same_process(tiny):
    code = f"""
import gelu_ext, pathlib
header = pathlib.Path({str(tiny / "csrc" / "kernels.h")!r})
for text in ("no C++", "#define ANSWER 42"):
    header.write_text(text)
    try:
        gelu_ext.jit.load()
    except RuntimeError as error:
        assert "kernels.h" in str(error)
        header.write_text("")
print(gelu_ext._native.answer)
"""
    assert run(tiny, "-c", code).endswith("42\n")


def test_jit_without_ninja_says_what_to_install(tiny):
    code = "from torch.utils import cpp_extension; cpp_extension.is_ninja_available = lambda: False; " + BUILT_BY_JIT
    said = run(tiny, "-c", code, check=False)
    assert "gelu_ext.jit.load() needs ninja, which is not on the PATH: run `pip install ninja`" in said


def test_jit_says_which_folder_it_cannot_write_to(tiny):
    taken = tiny.parent / "a file"
    taken.touch()
    said = run(tiny, "-c", BUILT_BY_JIT, check=False, TORCH_EXTENSIONS_DIR=str(taken))
    assert f"cannot write to {taken}/gelu_ext/" in said and "set TORCH_EXTENSIONS_DIR or pass build_directory" in said


# --- the extension itself ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_extension_itself_from_sdist_to_an_installed_wheel_and_from_the_jit(tmp_path):
    source = tmp_path / "source"
    keep_out = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=keep_out)
    pip(source, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    python = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gelu_ext").rglob("*.py")}
    assert python <= set(zipfile.ZipFile(wheel).namelist())
    site = tmp_path / "site"
    pip(source, "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    code = "import torch, gelu_ext; print(gelu_ext.bias_gelu(torch.ones(2))); print(gelu_ext.build_info())"
    said = run(site, "-c", code)
    assert "tensor([0.8413, 0.8413])" in said and str(site) in said
    said = run(site, "-c", "import gelu_ext; gelu_ext.jit.load();" + code, GELU_EXT_JIT="1")
    assert "tensor([0.8413, 0.8413])" in said and str(tmp_path / "builds") in said
