"""jit.load(): builds the extension from its sources with torch.utils.cpp_extension.load. Explicit, never at import.

Every attempt has a folder of its own, and a finished one is announced by renaming a one-line file into place. So a
build that was killed leaves nothing that a later one waits for or trips over (torch before 2.14 would wait for ever for
its lock file), and an orphaned compiler writes where nobody looks. A lock that the kernel drops with its process makes
several processes build once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from . import _build, _native

NAME = "gelu_ext_jit"
FINISHED = "finished"  # holds the name of the folder of the finished build


def load(
    *, cuda: bool | None = None, build_directory: str | os.PathLike[str] | None = None, verbose: bool = False
) -> ModuleType:
    """Returns the native module: the one that gelu_ext runs on already, else one built from source for it to run on.

    cuda: True (or an error that says why not), False, or None: if there is a CUDA toolkit and torch was built for CUDA;
        GELU_EXT_CUDA=1, 0 says the same from outside.
    build_directory: where builds are kept; by default torch's folder for extensions (TORCH_EXTENSIONS_DIR). Builds for
        another torch, CUDA, Python, architecture or state of the sources live side by side in it.
    verbose: show the compiler at work.

    An installed gelu_ext has loaded its compiled module on import, and that is what is returned: a process can register
    the operators only once. GELU_EXT_JIT=1 in the environment leaves the installed module alone.

    >>> native = gelu_ext.jit.load()  # at once, where a compiled module is installed
    >>> "gelu" in native.activations()
    True
    """
    if _native.module is not None:
        if cuda and not _native.facts["cuda"]:
            raise _build.BuildError(
                f"gelu_ext runs on {_native.location} already, which was built without CUDA "
                f"({_native.facts['why_no_cuda']}): set GELU_EXT_JIT=1 before importing it, or build that one again."
            )
        return _native.module
    if _native.registered_by_another():
        raise _build.BuildError("this process has loaded another build of gelu_ext already, and can hold only one.")
    plan = _build.make_plan({None: None, True: "1", False: "0"}[cuda])
    _check_tools(plan)
    folder = _keyed_folder(plan, build_directory)
    with _one_builder(folder):
        path = _finished(folder)
        if path:
            native = _native.import_from(path, NAME)
        else:
            native, path = _build_in(folder, plan, verbose)
    _native.use(native, path)
    return native


def _check_tools(plan: _build.Plan) -> None:
    import torch
    from torch.utils import cpp_extension

    _build.find_tools()
    if not cpp_extension.is_ninja_available():
        raise _build.BuildError("gelu_ext.jit.load() needs ninja, which is not on the PATH: run `pip install ninja`.")
    if plan.toolkit and not torch.version.cuda:
        raise _build.BuildError("GELU_EXT_CUDA=link is for setup.py: the JIT builds CUDA code for a CUDA torch only.")


def _keyed_folder(plan: _build.Plan, build_directory: str | os.PathLike[str] | None) -> Path:
    from torch.utils import cpp_extension

    root = build_directory or os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    # The facts are all that a build depends on; torch and Python are spelled out for who looks into the folder.
    key = hashlib.sha256(repr((sorted(plan.facts.items()), plan.host_flags)).encode()).hexdigest()[:16]
    tag = f"{sys.implementation.cache_tag}-torch{plan.facts['torch']}-{key}"
    folder = Path(root).expanduser().absolute() / "gelu_ext" / tag
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _build.BuildError(
            f"gelu_ext.jit.load() cannot write to {folder} ({error.strerror}): set TORCH_EXTENSIONS_DIR or pass "
            "build_directory."
        ) from error
    return folder


def _finished(folder: Path) -> Path | None:
    with contextlib.suppress(FileNotFoundError):
        path = folder / (folder / FINISHED).read_text().strip() / f"{NAME}.so"
        return path if path.exists() else None
    return None


def _build_in(folder: Path, plan: _build.Plan, verbose: bool) -> tuple[ModuleType, Path]:
    from torch.utils import cpp_extension

    for unfinished in folder.glob("build-*"):  # of a killed process: this one holds the lock
        shutil.rmtree(unfinished, ignore_errors=True)
    attempt = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
    plan.write_facts(attempt)
    print(f"gelu_ext: building {plan.summary}, in {attempt} (a minute or two, once)", file=sys.stderr)
    quote = shlex.quote if sys.platform != "win32" else str
    openmp = [flag for flag in plan.host_flags if flag == "-fopenmp"]
    try:
        with plan.environment(), _quoted_torch_path():
            native = cpp_extension.load(
                NAME,
                [str(path) for path in plan.sources],
                extra_cflags=plan.host_flags,
                extra_cuda_cflags=plan.nvcc_flags,
                extra_ldflags=openmp + [quote(flag) for flag in plan.link_flags(attempt)],
                extra_include_paths=[str(_build.csrc()), str(attempt)],
                build_directory=str(attempt),
                verbose=verbose,
                with_cuda=plan.toolkit is not None,
            )
    except BaseException:
        # torch remembers the attempt by its inputs and would not compile again after a failure in this process.
        cpp_extension.JIT_EXTENSION_VERSIONER.entries.pop(NAME, None)
        shutil.rmtree(attempt, ignore_errors=True)
        raise
    announcement = folder / f"{FINISHED}.{os.getpid()}"
    announcement.write_text(attempt.name)
    announcement.replace(folder / FINISHED)
    return native, attempt / f"{NAME}.so"


@contextlib.contextmanager
def _one_builder(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. Where there is none (Windows, some network drives) two processes build: harmless."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / "lock", "a+") as lock:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                print(
                    f"gelu_ext: process {lock.read() or '?'} is building in {folder}, waiting for it", file=sys.stderr
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield  # closing the file drops the lock; so does the end of this process, however it ends


@contextlib.contextmanager
def _quoted_torch_path() -> Iterator[None]:
    """Quotes torch's own folder, which torch does not, in the shell command that links: its path may hold a space."""
    from torch.utils import cpp_extension

    before = cpp_extension.TORCH_LIB_PATH
    if sys.platform != "win32":
        cpp_extension.TORCH_LIB_PATH = shlex.quote(before)
    try:
        yield
    finally:
        cpp_extension.TORCH_LIB_PATH = before
