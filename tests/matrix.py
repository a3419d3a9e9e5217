"""Installs gelu_ext in every way, for every Python and torch that are to be had, and prints what worked as a table.

    make matrix                                                        # each pair in some way, each way for some pair
    make matrix ARGS=--all                                             # each pair in each way
    make matrix ARGS='--python 3.12 --torch 2.13.0 --ways pip,jit'     # a selection; --torch newest: what pip finds
    make matrix ARGS=--ci                                              # this Python and TORCH, by pip and from an sdist
    make matrix ARGS='--python 3.11 --torch 2.14.1 --ways pip --cuda'  # with CUDA: minutes more, and a row of its own

A cell is a clean virtual environment, an installation from a copy of this tree and, with another working directory, a
check: bias_gelu and geglu forward and backward against float64, the place that build_info() names, and that pip
uninstalls all of it. Everything is built without CUDA unless --cuda is said.

What is shared: the torch of a pair is installed once, and its cells have it by hard links. A C++ file whose text after
preprocessing, flags and compiler are those of a file of an earlier cell is not compiled again (the table counts what
was; --fresh compiles all). Preprocessing, linking, and every step of pip and setuptools are each cell's own.

Cells that are ok are kept in build/matrix/ by the hash of what is packaged, so a run that was stopped goes on (--again
forgets them). Exits with 1 if a cell failed, other than for what this machine or pip does not have, or if none is ok.
Needs Python only: each Python X.Y is looked for as pythonX.Y on the PATH, and among pyenv's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench" / "results" / "install_matrix.md"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCHES = ("2.11.0", "2.13.0", "2.14.1", "newest")
TOOLS = ("setuptools>=77", "wheel", "ninja")
OK, FAILED, NOT_AVAILABLE = "ok", "failed", "not available"
NO_PACKAGE = r"No matching distribution found|ResolutionImpossible|conflicting dependencies"


class Failed(Exception):
    """What did not work; the message is one sentence."""

    def __init__(self, sentence: str, output: str = ""):
        super().__init__(sentence)
        self.output = output


class NotAvailable(Exception):
    """What cannot be tried here; the message is one sentence that says what is missing."""


# --- what is tried ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A Python and a torch, by their versions, and whether the CUDA kernels are built."""

    python: str
    torch: str
    cuda: bool = False

    @property
    def order(self) -> tuple:
        numbers = [[int(number) for number in re.findall(r"\d+", text)] for text in (self.python, self.torch)]
        return (*numbers, self.cuda)

    def file(self, way: str) -> str:
        return f"{self.python}-{self.torch}{'-cuda' if self.cuda else ''}-{way}.json"


@dataclasses.dataclass(frozen=True)
class Result:
    status: str
    reason: str = ""  # one sentence where the status is not ok, or what is worth saying
    seconds: float = 0.0
    compiled: int = 0  # C++ files
    shared: int = 0  # C++ files that an earlier cell had compiled
    command: str = ""

    @property
    def text(self) -> str:
        if self.status != OK:
            return self.status
        files = self.compiled + self.shared
        return f"ok, {self.seconds:.0f} s" + (f", {self.compiled} of {files} compiled" if self.shared else "")


def covering(rows: Sequence[Row], ways: Sequence[str]) -> dict[Row, list[str]]:
    """The fewest cells that have each row and each way, ways taking turns."""
    plan: dict[Row, list[str]] = {row: [] for row in rows}
    for i in range(max(len(rows), len(ways)) if rows else 0):
        plan[rows[i % len(rows)]].append(ways[i % len(ways)])
    return plan


# --- what is kept, and the table --------------------------------------------------------------------------------------


def packaged_hash() -> str:
    """Of every file that is packaged or decides how."""
    files = [ROOT / name for name in ("setup.py", "pyproject.toml", "MANIFEST.in")]
    for folder in ("csrc", "gelu_ext"):
        kinds = (".h", ".cuh", ".cpp", ".cu", ".py", ".pyi", ".typed")
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class State:
    """The rows and results of one state of the sources, a file each; a row has a reason where it cannot be tried."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def rows(self) -> dict[Row, str]:
        path = self.folder / "rows.json"
        found = json.loads(path.read_text()) if path.exists() else []
        return {Row(**fields): why_not for fields, why_not in found}

    def add_rows(self, rows: dict[Row, str]) -> None:
        known = self.rows() | rows
        _write(self.folder / "rows.json", json.dumps([(dataclasses.asdict(row), known[row]) for row in known]))

    def get(self, row: Row, way: str) -> Result | None:
        path = self.folder / row.file(way)
        return Result(**json.loads(path.read_text())) if path.exists() else None

    def put(self, row: Row, way: str, result: Result) -> None:
        _write(self.folder / row.file(way), json.dumps(dataclasses.asdict(result)))

    def forget(self) -> None:
        for path in self.folder.glob("*.json"):
            path.unlink()

    def commands(self) -> list[str]:
        results = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        found = [json.loads(path.read_text()) for path in results if path.name != "rows.json"]
        return list(dict.fromkeys(result["command"] for result in found if result["command"]))


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a run may be stopped at any time."""
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


class Notes:
    """Sentences under a table, each once, by letters."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def letter(self, sentence: str) -> str:
        if sentence not in self.sentences:
            self.sentences.append(sentence)
        i = self.sentences.index(sentence)
        return (chr(ord("a") + i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)

    def __str__(self) -> str:
        return "".join(f"{self.letter(sentence)}: {sentence}  \n" for sentence in self.sentences)


def render(state: State) -> str:
    """The table of ways and that of cases, with the reasons below each."""
    rows = state.rows()
    notes = Notes()
    lines = [
        f"| Python | torch | {' | '.join(WAYS[way].title for way in WAYS)} |",
        "|---|---" + "|---" * len(WAYS) + "|",
    ]
    for row in sorted(rows, key=lambda row: row.order):
        cells = [_cell(state.get(row, way), rows[row], notes) for way in WAYS]
        lines.append(f"| {row.python} | {row.torch}{', CUDA' if row.cuda else ''} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n" + (f"\n{notes}" if notes.sentences else "")

    notes = Notes()
    lines = ["| case | Python | torch | result |", "|---|---|---|---|"]
    for name, case in CASES.items():
        tried = {row: result for row in sorted(rows, key=lambda row: row.order) if (result := state.get(row, name))}
        for row, result in tried.items():
            said = f"{result.text}: {result.reason}" if result.reason else result.text
            lines.append(f"| {case.title} | {row.python} | {row.torch} | {said} |")
        if not tried:
            lines.append(f"| {case.title} | | | not run |")
    lines += [f"| {title} | | | see `tests/test_build.py::{test}` |" for title, test in TESTED.items()]
    return text + "\n" + "\n".join(lines) + "\n"


def _cell(result: Result | None, why_not: str, notes: Notes) -> str:
    if why_not and not (result and result.status == OK):
        result = Result(NOT_AVAILABLE, why_not)
    if result is None:
        return "not run"
    return f"{result.text} ({notes.letter(result.reason)})" if result.reason else result.text


def document(state: State) -> str:
    commands = ", ".join(f"`{command}`" for command in state.commands())
    return f"""# Ways to install

Written by tests/matrix.py, whose head says what a cell is: {commands}.
{machine()}. gelu_ext {_version()}, packaged files {state.folder.name}.

"n of m compiled": the other C++ files were, after preprocessing, those of an earlier cell. Seconds are of a machine
with other work, and without the installation of torch.

{render(state)}"""


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    system = platform.platform()
    with contextlib.suppress(OSError):
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    return f"{cpu}, {os.cpu_count()} cores, {system}, {_first_line([*real_compiler(), '--version'])}"


def _version() -> str:
    return re.search(r'^__version__ = "(.+?)"', (ROOT / "gelu_ext" / "_build.py").read_text(), re.MULTILINE)[1]


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:
        return f"no {command[0]}"
    return (done.stdout.splitlines() or [command[0]])[0]


# --- commands and environments ----------------------------------------------------------------------------------------


def run(command: Sequence[object], cwd: Path, environment: dict[str, str], log: Path, shown: str = "") -> str:
    """Its output, which the log has as well. Raises Failed with the sentence in it that says most."""
    words = [str(word) for word in command]
    with open(log, "a") as file:
        file.write(f"\n$ {shlex.join(words)}\n")
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=2 * 3600)
    except BaseException:  # compilers, too, end with this script: ninja ends its own, which are in groups of theirs
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, how)
                process.wait(timeout=10)
        raise
    with open(log, "a") as file:
        file.write(output)
    if process.returncode:
        raise Failed(f"`{shown or shlex.join(words)}` failed: {telling_line(output)}", output)
    return output


def telling_line(output: str) -> str:
    """The line that says most of a failed command: this project's own sentence, else the last error, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"gelu_ext: (?!building)", r"\b(error|Error|ERROR)\b.*:\s*\S", ""):
        found = [line for line in lines if re.search(pattern, line)]
        # pip closes with lines that say only that something failed.
        telling = [line for line in found if not re.search(r"subprocess|not with pip|Failed (to build|building)", line)]
        if telling or found:
            return (telling or found)[-1].replace("|", "\\|")[:300]
    return "it said nothing"


def real_compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "c++")


class Environment:
    """A virtual environment in a folder that it shares with nothing but the sources it is given."""

    def __init__(
        self, folder: Path, log: Path, original: Path, *, seed: Environment | None = None, cuda=False, fresh=False
    ):
        """Of the Python `original` with the newest pip, or with what `seed` has installed, by hard links."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        self.folder, self.prefix, self.log, self.original = folder, folder / "environment", log, original
        self.compiled = folder / "compiled"  # a word for each C++ file
        self.cuda, self.fresh = cuda, fresh
        without = ["--without-pip"] if seed else []
        run([original, "-m", "venv", *without, self.prefix], folder, self.variables(), log)
        if seed:
            shutil.copytree(seed.site, self.site, copy_function=_link, symlinks=True, dirs_exist_ok=True)
        else:
            self.pip("install", "--upgrade", "pip")

    def twin(self, suffix: str) -> Environment:
        """Another of the same packages."""
        folder = self.folder.with_name(self.folder.name + suffix)
        twin = Environment(folder, self.log, self.original, seed=self, cuda=self.cuda, fresh=self.fresh)
        twin.compiled = self.compiled
        return twin

    @property
    def python(self) -> Path:
        return self.prefix / "bin" / "python"

    @property
    def site(self) -> Path:
        return next(self.prefix.glob("lib/python*/site-packages"))

    def variables(self, **changes: object) -> dict[str, str]:
        """What a command sees: nothing that would lead it to this tree or to another environment."""
        unwanted = ("GELU_EXT_", "PYTHON", "VIRTUAL_ENV", "TORCH_EXTENSIONS")
        names = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        names |= {"TMPDIR": str(self.folder / "tmp"), "TORCH_EXTENSIONS_DIR": str(self.folder / "builds")}
        names |= {"GELU_EXT_CUDA": "1" if self.cuda else "0", "MATRIX_COMPILED": str(self.compiled)}
        wrapper = self.folder.parent / "bin"
        if not self.fresh and wrapper.exists():
            names["PATH"] = f"{wrapper}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            if "CXX" in os.environ:
                names["CXX"] = str(wrapper / "c++")
        return names | {name: str(value) for name, value in changes.items()}

    def run(self, *words: object, cwd: Path | None = None, shown: str = "", **changes: object) -> str:
        return run([self.python, *words], cwd or self.folder / "tmp", self.variables(**changes), self.log, shown)

    def pip(self, *words: object, cwd: Path | None = None) -> str:
        shown = " ".join(["pip", *(Path(word).name if isinstance(word, Path) else str(word) for word in words)])
        return self.run("-m", "pip", "--disable-pip-version-check", *words, cwd=cwd, shown=shown)

    def tools(self, *names: str) -> None:
        try:
            self.pip("install", *names)
        except Failed as error:
            if re.search(NO_PACKAGE, error.output):
                raise NotAvailable(str(error)) from error
            raise

    def checkout(self, name: str = "checkout") -> Path:
        """A copy of this tree, with nothing that was built."""
        target = self.folder / name
        ignored = (".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*ignored))
        return target

    def sdist(self) -> Path:
        """A source distribution, and nothing else of the tree that it was made of."""
        source = self.checkout()
        self.run("setup.py", "-q", "sdist", "--dist-dir", self.folder / "sdist", cwd=source)
        shutil.rmtree(source)
        (found,) = (self.folder / "sdist").glob("*.tar.gz")
        return found

    def files(self) -> set[str]:
        """All of them but bytecode, which every import may add."""
        found = set()
        for folder, folders, names in os.walk(self.prefix):
            folders[:] = [name for name in folders if name != "__pycache__"]
            found |= {os.path.join(folder, name) for name in names if not name.endswith(".pyc")}
        return found

    def counts(self) -> tuple[int, int]:
        """How many C++ files were compiled, and how many were there."""
        words = self.compiled.read_text().split() if self.compiled.exists() else []
        return words.count("compiled"), words.count("shared")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


# --- a compiler that remembers ----------------------------------------------------------------------------------------


def install_compiler(work: Path) -> None:
    """<work>/bin/c++, which calls compile_once()."""
    folder = work / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    compiler = real_compiler()
    compiler[0] = shutil.which(compiler[0]) or compiler[0]
    words = [sys.executable, "-I", str(Path(__file__).resolve()), "compile", str(work / "objects"), *compiler, "--"]
    (folder / "c++").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    (folder / "c++").chmod(0o755)


def compile_once(store: Path, compiler: list[str], arguments: list[str]) -> int:
    """Runs the compiler, or copies the object that the same text, flags and compiler gave before."""
    if "-c" not in arguments or "-o" not in arguments:
        os.execvp(compiler[0], [*compiler, *arguments])
    output = Path(arguments[arguments.index("-o") + 1])
    kept, flags = [], []  # for the preprocessor; of these, what decides the machine code of a given text
    words = iter(arguments)
    for word in words:
        if word == "-c":
            continue
        if word == "-o":
            next(words)
            continue
        kept.append(word)
        if word in ("-I", "-isystem", "-D", "-U", "-MF", "-MT", "-MQ", "-include"):
            kept.append(next(words))
        elif not word.startswith(("-I", "-D", "-U", "-M")) and not word.endswith((".cpp", ".cc")):
            flags.append(word)
    done = subprocess.run([*compiler, *kept, "-E", "-P", "-MT", str(output)], stdout=subprocess.PIPE)
    if done.returncode:
        return done.returncode
    # __FILE__ in the text of an assertion: where the environment or the checkout lies is no difference.
    text = re.sub(rb'"[^"\n]*/(site-packages|csrc)/', rb'"\1/', done.stdout)
    version = subprocess.run([*compiler, "--version"], stdout=subprocess.PIPE).stdout
    key = hashlib.sha256(b"\0".join([version, *(flag.encode() for flag in flags), text])).hexdigest()
    known = store / f"{key}.o"
    shared = known.exists()
    if shared:
        shutil.copyfile(known, output)
    else:
        done = subprocess.run([*compiler, *arguments])
        if done.returncode:
            return done.returncode
        store.mkdir(parents=True, exist_ok=True)
        draft = store / f"{key}.{os.getpid()}"
        shutil.copyfile(output, draft)
        draft.replace(known)
    with open(os.environ["MATRIX_COMPILED"], "a") as log:
        log.write("shared\n" if shared else "compiled\n")
    return 0


# --- the check --------------------------------------------------------------------------------------------------------

CHECK = """
import json
import sys

import gelu_ext
import torch

if "--jit" in sys.argv:
    gelu_ext.jit.load()


def gelu(z):
    return z * 0.5 * torch.erfc(-z / 2**0.5)


def geglu(z):
    a, b = z.chunk(2, -1)
    return a * gelu(b)


def results(function, x, bias, grad_out):
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = function(x, bias)
    return [y, *torch.autograd.grad(y, (x, bias), grad_out[..., : y.shape[-1]])]


info = gelu_ext.build_info()
devices = ["cpu", "cuda"] if torch.cuda.is_available() and gelu_ext._native.with_cuda else ["cpu"]
torch.manual_seed(0)
for device in devices:
    for dtype, within in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for ours, truth in ((gelu_ext.bias_gelu, gelu), (gelu_ext.geglu, geglu)):
            x, bias, grad_out = (
                3 * torch.randn(size, dtype=torch.float64).to(device, dtype) for size in ((37, 70), (70,), (37, 70))
            )
            got = results(ours, x, bias, grad_out)
            expected = results(lambda x, b: truth(x + b), x.double(), bias.double(), grad_out.double())
            for one, other in zip(got, expected):
                assert one.dtype == dtype
                torch.testing.assert_close(one.double(), other, rtol=within, atol=within)
print(json.dumps({**info, "devices": devices}))
"""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an installation put things, and how it is used."""

    module: Path  # a folder that the compiled module is in
    files: Path  # and the Python files
    jit: bool = False
    variables: dict[str, object] = dataclasses.field(default_factory=dict)


def check(environment: Environment, place: Place, row: Row) -> str:
    """Runs CHECK elsewhere and asks where the module lies; returns what is worth saying."""
    said = environment.run("-c", CHECK, *(["--jit"] if place.jit else []), shown="the check", **place.variables)
    info = json.loads(said.splitlines()[-1])
    for what, folder in (("native_module", place.module), ("python_files", place.files)):
        if not Path(info[what]).resolve().is_relative_to(folder.resolve()):
            raise Failed(f"{what.replace('_', ' ')}: expected in {folder}, got {info[what]}")
    if info["torch_running"].split("+")[0] != row.torch.split("+")[0]:
        raise Failed(f"torch: expected {row.torch}, got {info['torch_running']}")
    if "changed" in info["sources"]:
        raise Failed(f"sources: expected those of this tree, got {info['sources']}")
    if row.cuda:
        return f"CUDA {info['cuda']} for {info['cuda_architectures']}, checked on {' and '.join(info['devices'])}"
    return ""


# The files of everything that is installed.
OWNED = """
import importlib.metadata, os
for distribution in importlib.metadata.distributions():
    for file in distribution.files or ():
        print(os.path.normpath(file.locate()))
"""


def uninstall(environment: Environment, before: set[str]) -> None:
    environment.pip("uninstall", "--yes", "gelu_ext")
    others = set(environment.run("-c", OWNED, shown="what is installed").splitlines())  # pip may have changed those too
    left = [Path(path) for path in environment.files() - before - others if Path(path).name != ".lock"]  # uv's own
    left += [path for path in environment.prefix.rglob("*gelu_ext*") if path not in left]
    if left:
        names = ", ".join(sorted(str(path.relative_to(environment.prefix)) for path in left)[:3])
        raise Failed(f"`pip uninstall` left {len(left)} paths behind: {names}")


# --- ways of installing -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Way:
    title: str
    install: Callable[[Environment], Place]  # into an environment that has torch and the tools
    tools: tuple[str, ...] = TOOLS
    installed: bool = True  # and pip uninstalls it


def installed(environment: Environment) -> Place:
    return Place(environment.site, environment.site / "gelu_ext")


def by_pip(environment: Environment) -> Place:
    source = environment.checkout()
    environment.pip("install", "--no-build-isolation", ".", cwd=source)
    shutil.rmtree(source)  # what is installed needs none of it
    return installed(environment)


def editable(environment: Environment) -> Place:
    source = environment.checkout()
    environment.pip("install", "--no-build-isolation", "--editable", ".", cwd=source)
    return Place(source / "gelu_ext", source / "gelu_ext")


def wheel(environment: Environment, source: Callable[[Environment], Path] = Environment.checkout) -> Place:
    """Built in a twin, which is gone when the wheel is installed: so it needs no tools and no sources."""
    builder = environment.twin(", builder")
    try:
        builder.tools(*TOOLS)
        wheels = environment.folder / "wheels"
        builder.pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source(builder))
    finally:
        builder.remove()
    environment.pip("install", *wheels.glob("*.whl"))
    return installed(environment)


def sdist(environment: Environment) -> Place:
    return wheel(environment, Environment.sdist)


def by_uv(environment: Environment) -> Place:
    source = environment.checkout()
    uv = ["-m", "uv", "pip", "install", "--no-cache", "--python", environment.python]  # it caches what it has built
    environment.run(*uv, "--no-build-isolation", ".", cwd=source, shown="uv pip install --no-build-isolation .")
    shutil.rmtree(source)
    return installed(environment)


def jit(environment: Environment) -> Place:
    source = environment.checkout()
    return Place(environment.folder / "builds", source / "gelu_ext", jit=True, variables={"PYTHONPATH": source})


def jit_from_sdist(environment: Environment) -> Place:
    environment.pip("install", "--no-build-isolation", environment.sdist())
    files = environment.site / "gelu_ext"
    return Place(environment.folder / "builds", files, jit=True, variables={"GELU_EXT_JIT": "1"})


WAYS = {
    "pip": Way("`pip install`", by_pip),
    "editable": Way("`pip install -e`", editable),
    "wheel": Way("wheel", wheel, tools=()),
    "sdist": Way("sdist, wheel", sdist, tools=()),
    "uv": Way("`uv pip install`", by_uv, tools=(*TOOLS, "uv")),
    "jit": Way("JIT, checkout", jit, tools=("ninja",), installed=False),
    "jit-sdist": Way("JIT, sdist", jit_from_sdist),
}


def carry_out(way: Way, row: Row, environment: Environment) -> str:
    """Installs, checks and uninstalls; returns what is worth saying."""
    if way.tools:
        environment.tools(*way.tools)
    before = environment.files()
    said = check(environment, way.install(environment), row)
    if way.installed:
        uninstall(environment, before)
    return said


# --- cases ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Bench:
    """What the cells of a row are made of."""

    row: Row
    work: Path
    bare: Environment  # has pip
    base: Environment  # has torch as well
    other_torch: str | None  # to upgrade to
    fresh: bool

    @contextlib.contextmanager
    def environment(self, seed: Environment, log: Path, name: str = "cell") -> Iterator[Environment]:
        folder = self.work / name
        try:
            log.unlink(missing_ok=True)
            yield Environment(folder, log, seed.original, seed=seed, cuda=self.row.cuda, fresh=self.fresh)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Case:
    title: str
    run: Callable[[Environment, Bench], str]  # returns what is worth saying
    torch: bool = True  # is in the environment
    folder: str = "cell"


def without_torch(environment: Environment, bench: Bench) -> str:
    sentence = build_module().NO_TORCH
    environment.tools(*TOOLS)
    source = environment.checkout()
    for options in ([], ["--no-build-isolation"]):
        try:
            environment.pip("install", "--no-deps", *options, ".", cwd=source)
        except Failed as error:
            if sentence not in error.output or "Traceback" in error.output:
                raise Failed(f"expected the sentence about torch, got: {error}") from error
        else:
            raise Failed("expected the sentence about torch, but it was installed without")
    return f'one sentence with and without build isolation, "{sentence}"'


def upgraded(environment: Environment, bench: Bench) -> str:
    """The old build is refused in a sentence, and what that says to run then works."""
    if not bench.other_torch:
        raise NotAvailable(f"there is no newer torch for Python {bench.row.python} in this run")
    environment.tools(*TOOLS)
    place = by_pip(environment)
    environment.pip("install", f"torch=={bench.other_torch}")
    new = dataclasses.replace(bench.row, torch=bench.other_torch)
    try:
        check(environment, place, new)
    except Failed as error:
        said = error.output.strip().splitlines()[-1]
    else:
        return f"works with torch {bench.other_torch} as it is"
    expected = (
        r"ImportError: .* it was built for torch \S+ and this is torch \S+; install gelu_ext again \(`pip (.+?)`\)"
    )
    advice = re.match(expected, said)
    if not advice:
        raise Failed(f"expected a sentence about torch, got: {said[:300]}")
    environment.pip(*shlex.split(advice[1]), ".", cwd=environment.checkout())
    check(environment, place, new)
    return f'one sentence, and works after `pip {advice[1]}`: "{_without_paths(said)}"'


def _without_paths(sentence: str) -> str:
    return re.sub(r"/\S+/(?=site-packages/)", ".../", sentence)


def with_spaces(environment: Environment, bench: Bench) -> str:
    for way in (WAYS["pip"], WAYS["jit"]):
        carry_out(way, bench.row, environment)
        shutil.rmtree(environment.folder / "checkout", ignore_errors=True)
    return "environment, checkout and builds in it; by pip and by JIT"


CASES = {
    "no-torch": Case("`pip install .` without torch", without_torch, torch=False),
    "spaces": Case("a path with spaces", with_spaces, folder="a path with spaces"),
    "upgrade": Case("torch upgraded after the installation", upgraded),
}
# With an extension that compiles in a second, by this project's own jit.py.
TESTED = {
    "a JIT build that was killed, then another": "test_a_killed_build_does_not_hang_the_next_one",
    "two processes that build by JIT at once": "test_two_processes_build_once",
}


# --- what there is ----------------------------------------------------------------------------------------------------

ASK = """
import sys, sysconfig, os, venv, ensurepip
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")), "has no headers (Python.h)"
print("%d.%d" % sys.version_info[:2])
"""


def find_python(version: str, path: str | None = None) -> Path:
    """pythonX.Y that runs, makes environments and has headers: this one, one on the PATH, or pyenv's newest."""
    folders = [Path(folder) for folder in (path or os.environ.get("PATH", os.defpath)).split(os.pathsep)]
    candidates = [Path(sys.executable), *(folder / f"python{version}" for folder in folders)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    releases = [folder for folder in pyenv.glob(f"{version}.*") if re.fullmatch(r"[\d.]+", folder.name)]
    releases.sort(key=lambda folder: [int(number) for number in folder.name.split(".")], reverse=True)
    candidates += [folder / "bin" / "python" for folder in releases]
    lacking = ""
    for candidate in dict.fromkeys(candidates):
        if not candidate.exists():
            continue
        done = subprocess.run([candidate, "-c", ASK], capture_output=True, text=True, env=_plain_environment())
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
        if "has no headers" in done.stderr and candidate.name == f"python{version}":
            lacking = f" with headers (Python.h); {candidate.name} has none"
    raise NotAvailable(f"there is no Python {version} on this machine{lacking}")


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def resolve(bare: Environment, python: str, torch: str) -> str:
    """The version that pip would install: of "newest", of "2.13.0", or of what pip is told ("torch==2.11.*")."""
    asked = "torch" if torch == "newest" else torch if torch.startswith("torch") else f"torch=={torch}"
    report = bare.folder / "report.json"
    try:
        bare.pip("install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", report, asked)
    except Failed as error:
        if not re.search(NO_PACKAGE, error.output):
            raise
        raise NotAvailable(f"pip finds no {'torch' if torch == 'newest' else asked} for Python {python}") from error
    return json.loads(report.read_text())["install"][0]["metadata"]["version"]


def build_module():
    """gelu_ext/_build.py by its path, as setup.py has it: it needs no torch."""
    spec = importlib.util.spec_from_file_location("_build", ROOT / "gelu_ext" / "_build.py")
    module = sys.modules["_build"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def makefile_torch() -> str:
    """What `make` installs."""
    return os.environ.get("TORCH") or re.search(r"^TORCH \?= (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]


# --- the run ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """One run has the folder: another would take its environments away. The lock ends with the process."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another run works in {work}: wait for it, or name another folder by --work") from None
        yield


@dataclasses.dataclass
class Pythons:
    """The Pythons that were found, each with an environment that has pip only."""

    work: Path
    bare: dict[str, Environment] = dataclasses.field(default_factory=dict)

    def get(self, version: str) -> Environment:
        if version not in self.bare:
            folder = self.work / f"python{version}"
            self.bare[version] = Environment(folder, self.work / f"python{version}.log", find_python(version))
        return self.bare[version]

    def rows(self, versions: Iterable[str], torches: Iterable[str], cuda: bool) -> dict[Row, str]:
        """Each pair by the version that pip would install, or as it was asked for with why it cannot be had.

        A torch for every Python, then the next torch: a run that is stopped has seen something of each early.
        """
        versions, found = list(versions), {}
        for torch in torches:
            for version in versions:
                try:
                    row, why_not = Row(version, resolve(self.get(version), version, torch), cuda), ""
                except (NotAvailable, Failed, OSError) as error:
                    row, why_not = Row(version, torch, cuda), str(error)
                found.setdefault(row, why_not)
        return found


def newer(rows: dict[Row, str], row: Row) -> str | None:
    """The next torch for the same Python that is another to the C++ interface."""
    others = [other for other in rows if not rows[other] and other.python == row.python and other.order > row.order]
    others = [other for other in others if other.torch.split(".")[:2] != row.torch.split(".")[:2]]
    return min(others, key=lambda other: other.order).torch if others else None


def attempt(work: Callable[[], tuple[str, tuple[int, int]]]) -> Result:
    started = time.monotonic()
    try:
        said, (compiled, shared) = work()
    except NotAvailable as error:
        return Result(NOT_AVAILABLE, str(error))
    except Failed as error:
        missing = re.search(r"GELU_EXT_CUDA=1 asks for CUDA, but (.+)", str(error))
        return Result(NOT_AVAILABLE, missing[1]) if missing else Result(FAILED, str(error))
    except (OSError, AssertionError, ValueError, LookupError, subprocess.SubprocessError) as error:
        return Result(FAILED, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return Result(OK, said, time.monotonic() - started, compiled, shared)


def run_cell(name: str, bench: Bench, log: Path) -> Result:
    def work() -> tuple[str, tuple[int, int]]:
        if name in WAYS:
            with bench.environment(bench.base, log) as environment:
                return carry_out(WAYS[name], bench.row, environment), environment.counts()
        case = CASES[name]
        with bench.environment(bench.base if case.torch else bench.bare, log, case.folder) as environment:
            return case.run(environment, bench), environment.counts()

    return attempt(work)


def run_row(row: Row, names: Sequence[str], pythons: Pythons, state: State, options: argparse.Namespace, rows) -> None:
    """Installs the row's torch, once, and carries out its cells; each result is kept at once."""
    work, log = options.work, state.folder / row.file("torch").replace(".json", ".log")
    bare = pythons.get(row.python)

    def keep(name: str, result: Result) -> None:
        state.put(row, name, dataclasses.replace(result, command=options.command))
        reason = f": {result.reason}" if result.reason else ""
        print(f"{row.python:5} torch {row.torch:12} {name:10} {result.text}{reason}", flush=True)

    try:
        try:
            base = Environment(work / "torch", log, bare.original, seed=bare)
            base.pip("install", f"torch=={row.torch}")
        except (Failed, OSError) as error:
            for name in names:
                keep(name, Result(FAILED, str(error)))
            return
        bench = Bench(row, work, bare, base, newer(rows, row), options.fresh)
        for name in names:
            keep(name, run_cell(name, bench, state.folder / row.file(name).replace(".json", ".log")))
            write(state, options)
    finally:
        shutil.rmtree(work / "torch", ignore_errors=True)


def write(state: State, options: argparse.Namespace) -> None:
    if not options.ci:
        TABLE.write_text(document(state))


def plan(options: argparse.Namespace, rows: Sequence[Row]) -> dict[Row, list[str]]:
    """The cells to carry out, in the rows that can be tried."""
    if options.all or options.ci or options.ways or options.cases:
        cells = {row: list(options.ways or (() if options.cases else WAYS)) for row in rows}
    else:
        cells = covering(rows, list(WAYS))
    cases = options.cases or (() if options.ways or options.ci else CASES)
    if cases and rows:
        own = "{}.{}".format(*sys.version_info[:2])
        # The upgrade needs a row that has a newer torch.
        able = [row for row in rows if newer(dict.fromkeys(rows, ""), row)] or rows
        cells[next((row for row in able if row.python == own), able[0])] += cases
    return cells


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    def some(known: dict | None = None) -> Callable[[str], list[str]]:
        def split(text: str) -> list[str]:
            found = text.split(",")
            if known is not None and (unknown := [word for word in found if word not in known]):
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
            return found

        return split

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every row in every way")
    parser.add_argument("--python", type=some(), help="Pythons, as 3.11,3.12")
    parser.add_argument("--torch", type=some(), help="versions of torch, as 2.13.0,newest")
    parser.add_argument("--ways", type=some(WAYS), help=f"of {','.join(WAYS)}")
    parser.add_argument("--cases", type=some(CASES), help=f"of {','.join(CASES)}")
    parser.add_argument("--cuda", action="store_true", help="build the CUDA kernels: CUDA_HOME names the toolkit")
    parser.add_argument("--ci", action="store_true", help="one row: this Python and the TORCH of make, pip and sdist")
    parser.add_argument("--fresh", action="store_true", help="compile every file in every cell")
    parser.add_argument("--again", action="store_true", help="forget the cells that are kept")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "matrix" / "work", help="where environments are")
    parser.add_argument("--kept", type=Path, default=ROOT / "build" / "matrix", help="where results are kept")
    options = parser.parse_args(words)
    if options.ci:
        options.python = options.python or ["{}.{}".format(*sys.version_info[:2])]
        options.torch = options.torch or [makefile_torch()]
        options.ways = options.ways or ["pip", "sdist"]
    options.work = options.work.absolute()
    said = list(sys.argv[1:] if words is None else words)
    for place in ("--work", "--kept"):  # of this machine
        while place in said:
            del said[said.index(place) : said.index(place) + 2]
    quoted = shlex.join(said)
    options.command = "make matrix" + (f" ARGS={shlex.quote(quoted)}" if said else "")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    state = State(options.kept / packaged_hash())
    if options.again:
        state.forget()
    with alone(options.work):
        return carry_out_all(options, state)


def carry_out_all(options: argparse.Namespace, state: State) -> int:
    install_compiler(options.work)
    pythons = Pythons(options.work)
    try:
        rows = pythons.rows(options.python or PYTHONS, options.torch or TORCHES, options.cuda)
        state.add_rows(rows)
        for row, why_not in rows.items():
            print(f"{row.python:5} torch {row.torch:12} {why_not or 'is to be had'}", flush=True)
        cells = plan(options, [row for row in rows if not rows[row]])
        for row, names in cells.items():
            left = [name for name in names if not ((kept := state.get(row, name)) and kept.status == OK)]
            for name in set(names) - set(left):
                print(f"{row.python:5} torch {row.torch:12} {name:10} kept: {state.get(row, name).text}", flush=True)
            if left:
                run_row(row, left, pythons, state, options, rows)
    finally:
        for environment in pythons.bare.values():
            environment.remove()
    write(state, options)
    print(f"\n{render(state)}\nlogs: {state.folder}")
    return exit_code([state.get(row, name) for row, names in cells.items() for name in names])


def exit_code(results: Iterable[Result]) -> int:
    statuses = {result.status for result in results}
    return 0 if OK in statuses and FAILED not in statuses else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:  # by <work>/bin/c++
        store, *rest = sys.argv[2:]
        at = rest.index("--")
        sys.exit(compile_once(Path(store), rest[:at], rest[at + 1 :]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that environments and compilers end with this script
    sys.exit(main())
