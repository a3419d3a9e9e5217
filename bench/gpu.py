"""`make gpu`: everything that needs a GPU, in one command, from a bare checkout, and nothing that fails stops the rest.

Steps: the build, the tests that use the GPU, what only this shows (gpu_checks.py), the benchmark (gpu_cells.py, most
important cells first), compute-sanitizer where it is installed, then the cells of torch.compile. Each step and each
batch of cells is a process of its own, with a limit of time; what fails, crashes or takes too long is recorded and
passed over. Results are written after each, as JSON and as a table, into $OUT or bench/results/; a second call on the
same sources goes on where the first ran out of time.

    python bench/gpu.py                  # on the first GPU, in seven minutes from the start of the build
    python bench/gpu.py --quick          # build, 200 tests and 12 cells, in under three
    python bench/gpu.py --tune           # build, and the cells of other tunings and launch shapes
    python bench/gpu.py --resume FILE    # with the results of an earlier call, from another folder
    python bench/gpu.py --device cpu     # every step that can run without a GPU, to try the command itself
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
CELL_SECONDS = 60.0  # one that takes longer has hung, or is compiled where that is slow
# What --tune tries beside the rule: (unroll, blocks) of every kernel, each a build; launch shapes, without one.
TUNINGS = ("1,2", "1,3", "1,4", "1,6", "2,2", "2,3", "2,4", "4,2", "4,3")
LAUNCHES = ("waves=1", "waves=2", "waves=8", "passes=1", "passes=2", "passes=16", "lanes=8", "lanes=64")


class TookTooLong(Exception):
    pass


class Run:
    """One call of the command: its clock, its log, and the results of this machine and these sources."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.deadline = time.monotonic() + args.minutes * 60
        self.results = Path(os.environ.get("OUT") or BENCH / "results")
        self.results.mkdir(parents=True, exist_ok=True)
        self.log = self.results / "gpu.log"
        self.log.write_text("")
        self.path = self.results / "gpu.json"  # until it is known what machine this is
        self.data: dict[str, Any] = {"about": {}, "steps": {}, "rows": [], "done": [], "failed": []}
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def know(self, about: dict[str, Any]) -> None:
        """Takes up what an earlier call with the same machine and sources has found."""
        for suffix in (".json", ".md"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        name = "".join(c if c.isalnum() else "_" for c in str(about["device"])).strip("_")
        self.path = self.results / f"{name}_{about['sources'][:8]}{'_tune' if self.args.tune else ''}.json"
        for earlier in filter(None, (self.args.resume, self.path, BENCH / "results" / self.path.name)):
            if earlier.exists():
                found = json.loads(earlier.read_text())
                if all(found["about"].get(key) == about[key] for key in ("device", "sources", "torch")):
                    self.data = found
                    break
        self.data["about"] = about
        self.log = self.log.replace(self.path.with_suffix(".log"))
        print("  ".join(f"{key} {value}" for key, value in about.items()), flush=True)

    def save(self) -> None:
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(table(self.data))

    def command(self, seconds: float, *command: str, **variables: str) -> str:
        """What a command prints, which goes to the log as well. TookTooLong, or RuntimeError with its last words."""
        with self.log.open("a") as log:
            log.write(f"\n$ {' '.join(command)}\n")
        start = self.log.stat().st_size
        with self.log.open("a") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=self.environment | variables,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                stop(process)
                code = None
        with self.log.open(errors="replace") as log:
            log.seek(start)
            said = log.read()
        if code is None:
            raise TookTooLong(f"more than {seconds:.0f} s", said)
        if code != 0:
            raise RuntimeError(f"exit code {code}: {' '.join(said.strip().splitlines()[-3:])[-500:]}", said)
        return said

    def step(self, name: str, run: Callable[[], str]) -> bool:
        """Runs a step that has not passed yet: its result is a line, and never the end of the run."""
        if self.data["steps"].get(name, "").startswith("ok"):
            print(f"{name}: passed before", flush=True)
            return True
        start = time.monotonic()
        try:
            result = f"ok, {run()}"
        except Exception as error:
            result = f"FAILED, {type(error).__name__}: {error.args[0] if error.args else ''}"
        self.data["steps"][name] = f"{result} ({time.monotonic() - start:.0f} s)"
        print(f"{name}: {self.data['steps'][name]}", flush=True)
        self.save()
        return result.startswith("ok")


def stop(process: subprocess.Popen) -> None:
    """And all that it has started; first so that it can say what it has found."""
    for how, seconds in ((signal.SIGINT, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, how)
            process.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


# --- steps ------------------------------------------------------------------------------------------------------------


def build(run: Run) -> str:
    cuda = {"GELU_EXT_CUDA": os.environ.get("GELU_EXT_CUDA", "1")} if run.args.device == "cuda" else {}
    run.command(run.left(), sys.executable, "setup.py", "-q", "build_ext", "--inplace", **cuda)
    return "build_ext"


def tests(run: Run) -> str:
    """Those that use the GPU. Says how far they came, and which failed, also where time was not enough."""
    options = ["--uses", run.args.device, "-v", "--no-header", "--tb=short", "--maxfail=20", "-p", "no:cacheprovider"]
    if run.args.quick or run.args.device == "cpu":
        options += ["--at-most", "200"]
    seconds = min(60.0, run.left()) if run.args.quick else run.left() * 0.35
    try:
        said = run.command(seconds, sys.executable, "-m", "pytest", *options, *run.args.tests)
    except (RuntimeError, TookTooLong) as error:
        words, said = error.args
        failed = sorted(set(re.findall(r"^(\S+::.*?) (?:FAILED|ERROR)", said, re.MULTILINE)))
        passed = len(re.findall(r"::.* PASSED", said))
        named = "; ".join(failed) if failed else words
        if isinstance(error, TookTooLong):
            progress = (re.findall(r"\[ *(\d+)%\]", said) or ["0"])[-1]
            named = f"stopped at {progress} % after {seconds:.0f} s" + (f"; {named}" if failed else "")
            if not failed:
                return f"{passed} passed, {named}"
        raise RuntimeError(f"{passed} passed, {len(failed)} failed: {named}") from error
    return said.strip().splitlines()[-1].strip("= ")


def check(run: Run, name: str) -> str:
    said = run.command(min(120.0, run.left()), sys.executable, str(BENCH / "gpu_checks.py"), name, *on(run))
    return said.strip().splitlines()[-1]


def sanitizer(run: Run) -> str:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if run.args.device != "cuda":
        return "skipped: no GPU"
    if tool is None:
        return "skipped: compute-sanitizer is not installed"
    for kind in ("memcheck", "racecheck", "synccheck"):
        # Within torch's cache of memory no access is out of bounds; torch's own failed API calls are no errors.
        run.command(
            min(150.0, run.left()), tool, "--tool", kind, "--report-api-errors", "no", "--error-exitcode", "9",
            sys.executable, str(BENCH / "sanitize.py"), *on(run), PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )  # fmt: skip
    return "memcheck, racecheck and synccheck found nothing"


# --- cells ------------------------------------------------------------------------------------------------------------


def on(run: Run) -> tuple[str, str]:
    return "--device", run.args.device


def listed(run: Run, kind: str) -> list[dict[str, Any]]:
    said = run.command(60, sys.executable, run.args.worker, "--list", kind, *on(run))
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def measure(
    run: Run, cells: Iterable[dict[str, Any]], found: Callable[[dict[str, Any]], None], **variables: str
) -> None:
    """Every cell, in as few processes as there are crashes and cells that took too long, plus one."""
    todo = list(cells)
    while todo and run.left() > 10:
        worker = subprocess.Popen(
            [sys.executable, run.args.worker, *on(run)], cwd=ROOT, text=True, env=run.environment | variables,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=run.log.open("a"), start_new_session=True,
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True).start()
        while todo and run.left() > 10:
            cell = todo.pop(0)
            problem = _ask(worker, lines, cell, min(run.args.cell_seconds, run.left()), found)
            if problem:
                run.data["failed"].append({"cell": cell, "error": problem})
                print(f"FAILED {cell}: {problem}", flush=True)
                run.save()
            if worker.poll() is not None or problem.startswith("took") or "CUDA error" in problem:
                break  # no other cell is to pay for this one
        worker.stdin.close()
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            stop(worker)
    if todo:
        print(f"out of time: {len(todo)} cells are left, call again to go on", flush=True)


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _ask(
    worker: subprocess.Popen, lines: queue.Queue[str | None], cell: dict[str, Any], seconds: float,
    found: Callable[[dict[str, Any]], None],
) -> str:  # fmt: skip
    """Hands rows to ``found``; returns what went wrong, or nothing."""
    deadline = time.monotonic() + seconds
    try:
        worker.stdin.write(json.dumps(cell) + "\n")
        worker.stdin.flush()
    except OSError:
        return "the process had ended"
    while True:
        try:
            line = lines.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            stop(worker)
            return f"took more than {seconds:.0f} s"
        if line is None:
            return f"the process ended with code {worker.wait()}"
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if "done" in said:
            return ""
        if "error" in said:
            return said["error"]
        found(said)


def benchmark(run: Run, kind: str, with_compile: bool) -> None:
    """Those that no call has finished, nor failed, before."""
    before = [*run.data["done"], *(failure["cell"] for failure in run.data["failed"])]
    cells = [cell for cell in listed(run, kind) if cell["compile"] == with_compile and cell not in before]

    def found(row: dict[str, Any]) -> None:
        print(row.pop("line"), flush=True)
        run.data["rows"].append(row)
        key = {name: row[name] for name in ("op", "activation", "dtype", "rows", "cols", "compile")}
        if key not in run.data["done"]:
            run.data["done"].append(key)
        run.save()

    measure(run, cells, found)


def tune(run: Run) -> None:
    """The cells under every tuning and launch shape; what is faster than the rule by more than its noise is named."""
    cells = listed(run, "tune")
    variants: list[tuple[str, dict[str, str]]] = [("by the rule", {})]
    variants += [(launch, {"GELU_EXT_CUDA_LAUNCH": launch}) for launch in LAUNCHES]
    variants += [(f"unroll,blocks={t}", {"GELU_EXT_CUDA_TUNING": t, "GELU_EXT_JIT": "1"}) for t in TUNINGS]
    for name, variables in variants:
        if name in run.data["done"]:
            continue
        if run.left() < 30:
            print("out of time: call again to go on", flush=True)
            return

        def found(row: dict[str, Any], name: str = name) -> None:
            print(f"{name:20} {row.pop('line')}", flush=True)
            run.data["rows"].append(row | {"variant": name})

        measure(run, cells, found, **variables)
        run.data["done"].append(name)
        run.save()


# --- what is printed --------------------------------------------------------------------------------------------------


def table(data: dict[str, Any]) -> str:
    lines = ["# " + ", ".join(f"{key} {value}" for key, value in data["about"].items()), ""]
    lines += [f"- {name}: {result}" for name, result in data["steps"].items()]
    lines += [f"- FAILED {failure['cell']}: {failure['error']}" for failure in data["failed"]]
    lines += [
        "",
        "Time of the device. Share: of the bandwidth of a copy of the same bytes in the same run. x: time of the other",
        "over ours. Host: what a call takes before it returns.",
        "",
        "| op | activation | dtype | rows x cols | pass | us | share | x eager | x compile | host us | eager's | |",
        "|" + "---|" * 12,
    ]
    for row in data["rows"]:
        compiled, host = row["x"].get("compile"), row.get("host", {})
        cells = [
            row["op"], row["activation"], row["dtype"], f"{row['rows']} x {row['cols']}", row["pass"],
            f"{row['seconds']['gelu_ext']['median'] * 1e6:.2f}", f"{row['x']['copy'] * 100:.0f} %",
            f"{row['x']['eager']:.2f}" if "eager" in row["x"] else "", f"{compiled:.2f}" if compiled else "",
            *(f"{host[name] * 1e6:.1f}" if name in host else "" for name in ("gelu_ext", "eager")),
            row.get("variant", ""),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, help="when to stop, 7 (3 with --quick); call again to go on")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--resume", type=Path, metavar="FILE")
    parser.add_argument("--tests", nargs="*", default=["tests"], metavar="PATH", help="none: no tests")
    parser.add_argument("--cell-seconds", type=float, default=CELL_SECONDS, help="the limit of one cell")
    parser.add_argument("--worker", default=str(BENCH / "gpu_cells.py"), help="what lists and measures the cells")
    args = parser.parse_args(argv)
    args.minutes = args.minutes or (3.0 if args.quick else 7.0)
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(f"gpu: expected a CUDA device, got none (torch {torch.__version__}); --device cpu tries the command")
            return 2
    run = Run(args)
    if not run.step("build", lambda: build(run)):
        return 2
    try:
        said = run.command(120, sys.executable, args.worker, "--about", *on(run))
    except RuntimeError as error:
        print(error.args[1].strip().splitlines()[-1])
        return 2
    built = run.data["steps"]
    run.know(json.loads(said.strip().splitlines()[-1]))
    run.data["steps"] |= built
    if args.tune:
        tune(run)
    else:
        if args.tests:
            run.step("tests", lambda: tests(run))
        if not args.quick:
            run.step("more than 2^31 elements", lambda: check(run, "large"))
            run.step("repeatable bias gradients", lambda: check(run, "repeatable"))
            run.step("first use in a CUDA graph", lambda: check(run, "first_use_in_a_graph"))
        benchmark(run, "quick" if args.quick else "full", with_compile=False)
        if not args.quick:
            run.step("compute-sanitizer", lambda: sanitizer(run))
            benchmark(run, "full", with_compile=True)
    run.save()
    print(f"results: {run.path}, .md and .log")
    return int(bool(run.data["failed"]) or any(not result.startswith("ok") for result in run.data["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
