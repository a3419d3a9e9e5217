"""The install matrix covers what it says, keeps what it did, and names why a cell is missing. Nothing is built here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matrix
import pytest
from matrix import FAILED, NOT_AVAILABLE, OK, WAYS, Result, Row

ROWS = [Row(python, torch) for python in ("3.10", "3.11", "3.12") for torch in ("2.11.0", "2.13.0", "2.14.1")]
ONE = ROWS[0]


@pytest.fixture
def state(tmp_path):
    return matrix.State(tmp_path / "kept")


@pytest.fixture
def bare_run(monkeypatch, tmp_path):
    """main() with every row to be had and no environment made; answers with the cells that were carried out."""
    done = []

    def run_row(row, names, pythons, state, options, rows):
        for name in names:
            done.append((row, name))
            status = FAILED if (row, name) in failing else OK
            state.put(row, name, Result(status, "" if status == OK else "it broke", command=options.command))

    failing = set()
    monkeypatch.setattr(matrix, "run_row", run_row)
    monkeypatch.setattr(matrix, "resolve", lambda bare, python, torch: {"newest": "2.14.1"}.get(torch, torch))
    monkeypatch.setattr(matrix.Pythons, "get", lambda self, version: None)
    monkeypatch.setattr(matrix, "TABLE", tmp_path / "table.md")

    def run(*words, fails=()):
        done.clear()
        failing.clear()
        failing.update(fails)
        code = matrix.main([*words, "--kept", str(tmp_path / "kept"), "--work", str(tmp_path / "work")])
        return code, list(done)

    return run


# --- which cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 7, 9, 14])
def test_the_covering_design_has_each_row_and_each_way(rows):
    rows = [Row("3.11", str(i)) for i in range(rows)]
    cells = matrix.covering(rows, list(WAYS))
    assert set(cells) == set(rows) and all(cells.values())
    assert {way for ways in cells.values() for way in ways} == set(WAYS)
    assert sum(map(len, cells.values())) == max(len(rows), len(WAYS))
    assert all(len(set(ways)) == len(ways) for ways in cells.values())


def test_no_row_is_no_cell():
    assert matrix.covering([], list(WAYS)) == {}


def test_the_default_covers_and_a_second_run_carries_out_nothing(bare_run):
    code, done = bare_run()
    assert code == 0
    assert {row.python for row, _ in done} == set(matrix.PYTHONS)
    assert {name for _, name in done} == set(WAYS) | set(matrix.CASES)
    assert len(done) == max(len(matrix.PYTHONS) * 3, len(WAYS)) + len(matrix.CASES)  # the newest is one of the three
    assert bare_run() == (0, [])
    assert len(bare_run("--again")[1]) == len(done)


def test_all_is_every_row_in_every_way(bare_run):
    _, done = bare_run("--all")
    rows = {row for row, _ in done}
    assert {(row, name) for row in rows for name in WAYS} <= set(done)


def test_a_selection_is_what_was_asked_for(bare_run):
    _, done = bare_run("--python", "3.12", "--torch", "2.13.0", "--ways", "pip,jit")
    assert done == [(Row("3.12", "2.13.0"), "pip"), (Row("3.12", "2.13.0"), "jit")]
    _, done = bare_run("--python", "3.12", "--torch", "2.13.0,2.14.1", "--cases", "upgrade")
    assert done == [(Row("3.12", "2.13.0"), "upgrade")]


def test_the_row_of_ci_is_this_python_and_the_torch_of_make_and_writes_no_file(bare_run, monkeypatch):
    monkeypatch.setenv("TORCH", "torch==2.12.*")
    _, done = bare_run("--ci")
    row = Row("{}.{}".format(*sys.version_info[:2]), "torch==2.12.*")
    assert done == [(row, "pip"), (row, "sdist")]
    assert not matrix.TABLE.exists()


def test_the_torch_of_make_is_read_from_the_makefile(monkeypatch):
    monkeypatch.delenv("TORCH", raising=False)
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", matrix.makefile_torch())


def test_an_unknown_way_is_said(capsys):
    with pytest.raises(SystemExit):
        matrix.arguments(["--ways", "pip,conda"])
    assert "expected some of pip, editable, wheel, sdist, uv, jit, jit-sdist, got conda" in capsys.readouterr().err


# --- what is kept, and the exit code ----------------------------------------------------------------------------------


def test_what_failed_is_tried_again_and_the_rest_is_kept(bare_run):
    cell = (Row("3.11", "2.13.0"), "sdist")
    words = ("--python", "3.11", "--torch", "2.13.0", "--ways", "pip,sdist")
    assert bare_run(*words, fails=[cell])[0] == 1
    assert "| failed (a) |" in matrix.TABLE.read_text()
    assert bare_run(*words) == (0, [cell])


def test_what_is_not_available_is_no_failure_but_nothing_at_all_is():
    ok, failed, missing = (Result(status) for status in (OK, FAILED, NOT_AVAILABLE))
    assert matrix.exit_code([ok, missing]) == 0
    assert matrix.exit_code([ok, failed]) == 1
    assert matrix.exit_code([missing]) == 1
    assert matrix.exit_code([]) == 1


def test_results_are_of_one_state_of_the_sources(tmp_path, monkeypatch):
    before = matrix.packaged_hash()
    tree = tmp_path / "tree"
    kept_out = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "gelu_ext"):
        shutil.copytree(matrix.ROOT / name, tree / name, ignore=kept_out)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in"):
        shutil.copy(matrix.ROOT / name, tree)
    monkeypatch.setattr(matrix, "ROOT", tree)
    assert matrix.packaged_hash() == before
    (tree / "gelu_ext" / "_C.so").touch()
    assert matrix.packaged_hash() == before
    with open(tree / "gelu_ext" / "modules.py", "a") as file:
        file.write("# changed\n")
    assert matrix.packaged_hash() != before


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_cell_is_seconds_or_a_letter_whose_sentence_is_below(state):
    gone = Row("3.14", "2.11.0")
    state.add_rows({ONE: "", Row("3.9", "2.11.0"): "", gone: "pip finds no torch==2.11.0 for Python 3.14"})
    state.put(ONE, "pip", Result(OK, seconds=187.4, compiled=10))
    state.put(ONE, "wheel", Result(OK, seconds=31.2, compiled=4, shared=6))
    state.put(ONE, "uv", Result(NOT_AVAILABLE, "pip finds no uv"))
    state.put(ONE, "jit", Result(FAILED, "`the check` failed: no"))
    lines = matrix.render(state).splitlines()
    assert lines[0].startswith("| Python | torch | `pip install` | `pip install -e` | wheel | sdist, wheel |")
    assert lines[2].startswith("| 3.9 |")  # by number, not by letter
    assert lines[3] == (
        "| 3.10 | 2.11.0 | ok, 187 s | not run | ok, 31 s, 4 of 10 compiled | not run | not available (a) | failed (b) "
        "| not run |"
    )
    assert lines[4].count("not available (c)") == len(WAYS)
    assert [line.strip() for line in lines[6:9]] == [
        "a: pip finds no uv",
        "b: `the check` failed: no",
        "c: pip finds no torch==2.11.0 for Python 3.14",
    ]
    assert all(line.count("|") == len(WAYS) + 3 for line in lines[:5])


def test_cases_say_what_they_saw_or_that_they_did_not_run(state):
    state.add_rows({ONE: ""})
    state.put(ONE, "spaces", Result(OK, "by pip and by JIT", seconds=60))
    text = matrix.render(state)
    assert "| a path with spaces | 3.10 | 2.11.0 | ok, 60 s: by pip and by JIT |" in text
    assert "| torch upgraded after the installation | | | not run |" in text


def test_a_case_that_another_test_covers_names_a_test_that_is_there():
    text = (Path(__file__).parent / "test_build.py").read_text()
    for name in matrix.TESTED.values():
        assert f"\ndef {name}(" in text


def test_letters_go_on_after_z():
    notes = matrix.Notes()
    letters = [notes.letter(str(i)) for i in range(30)]
    assert letters[:2] + letters[25:28] == ["a", "b", "z", "aa", "ab"]
    assert notes.letter("27") == "ab"


def test_the_document_names_machine_and_commands_but_no_folder_of_it(state, tmp_path):
    options = matrix.arguments(["--ways", "pip", "--work", str(tmp_path), "--python", "3.11"])
    assert options.command == "make matrix ARGS='--ways pip --python 3.11'"
    state.put(ONE, "pip", Result(OK, command=options.command))
    state.add_rows({ONE: ""})
    text = matrix.document(state)
    assert options.command in text and f"{os.cpu_count()} cores" in text
    assert str(tmp_path) not in text
    assert max(map(len, text.split("\n\n|")[0].splitlines())) <= 200


# --- reasons ----------------------------------------------------------------------------------------------------------


def test_a_python_that_is_not_there_is_named(tmp_path):
    with pytest.raises(matrix.NotAvailable, match=r"^there is no Python 3\.99 on this machine$"):
        matrix.find_python("3.99", str(tmp_path))


def test_a_shim_that_runs_nothing_is_passed_over_and_pyenv_s_newest_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    scripts = {"shims/python3.99": "exit 127"}
    scripts |= {f"versions/{version}/bin/python": "echo 3.99" for version in ("3.99.2", "3.99.10", "3.99.x")}
    for name, text in scripts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    found = matrix.find_python("3.99", str(tmp_path / "shims"))
    assert found == tmp_path / "versions" / "3.99.10" / "bin" / "python"


def test_a_torch_that_pip_does_not_find_is_not_available_and_a_broken_pip_is_a_failure(tmp_path):
    class Bare:
        folder = tmp_path

        def pip(self, *words):
            raise matrix.Failed("`pip install` failed", self.said)

    bare = Bare()
    bare.said = "ERROR: No matching distribution found for torch==9.9.9"
    with pytest.raises(matrix.NotAvailable, match=r"^pip finds no torch==9\.9\.9 for Python 3\.11$"):
        matrix.resolve(bare, "3.11", "9.9.9")
    bare.said = "ERROR: Could not install packages due to an OSError"
    with pytest.raises(matrix.Failed):
        matrix.resolve(bare, "3.11", "9.9.9")


def test_failures_of_every_kind_become_a_sentence():
    def raises(error):
        def work():
            raise error

        return matrix.attempt(work)

    assert raises(matrix.Failed("it broke")) == Result(FAILED, "it broke")
    assert raises(matrix.NotAvailable("no uv")) == Result(NOT_AVAILABLE, "no uv")
    assert raises(OSError(28, "No space left on device")).reason == "OSError: [Errno 28] No space left on device"
    no_cuda = raises(matrix.Failed("gelu_ext: GELU_EXT_CUDA=1 asks for CUDA, but torch 2.13.0 is a CPU-only build."))
    assert no_cuda == Result(NOT_AVAILABLE, "torch 2.13.0 is a CPU-only build.")
    assert matrix.attempt(lambda: ("", (3, 4))).text == "ok, 0 s, 3 of 7 compiled"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("  error: subprocess-exited-with-error\n  gelu_ext: install torch\n  note: not\n", "gelu_ext: install torch"),
        ("gelu_ext: building\nx.cpp:3: error: no C++\nERROR: Failed to build\n", "x.cpp:3: error: no C++"),
        ("Traceback\n  File\nImportError: no module\n", "ImportError: no module"),
        ("", "it said nothing"),
    ],
)
def test_the_line_of_a_failed_command_that_says_most(output, line):
    assert matrix.telling_line(output) == line


def test_a_failed_command_is_in_the_log_with_its_output(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(matrix.Failed, match=r"^`the check` failed: ValueError: no$") as failed:
        matrix.run([sys.executable, "-c", "raise ValueError('no')"], tmp_path, dict(os.environ), log, "the check")
    assert "Traceback" in failed.value.output and "Traceback" in log.read_text()


def test_the_upgrade_is_to_another_minor_version_for_the_same_python():
    rows = dict.fromkeys(
        [Row("3.11", "2.13.0"), Row("3.11", "2.13.1"), Row("3.11", "2.14.1"), Row("3.12", "2.15.0")], ""
    )
    assert matrix.newer(rows, Row("3.11", "2.13.0")) == "2.14.1"
    assert matrix.newer(rows, Row("3.11", "2.14.1")) is None


# --- what is left behind ----------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path):
    """The answers of an environment, from which `pip uninstall` has removed all but the files that a test makes."""

    class Environment:
        prefix = tmp_path / "environment"
        files = matrix.Environment.files
        owned = ()

        def pip(self, *words):
            assert words == ("uninstall", "--yes", "gelu_ext")

        def run(self, *words, shown):
            return "\n".join(str(self.prefix / name) for name in self.owned)

        def make(self, *names):
            for name in names:
                path = self.prefix / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

    environment = Environment()
    environment.make("site/torch.py")
    return environment


def test_what_pip_leaves_behind_is_named(environment):
    before = environment.files()
    environment.make("site/stray.txt")
    with pytest.raises(matrix.Failed, match=r"^`pip uninstall` left 1 paths behind: site/stray\.txt$"):
        matrix.uninstall(environment, before)


def test_bytecode_and_empty_folders_of_the_package_count_as_left_behind(environment):
    before = environment.files()
    environment.make("site/gelu_ext/__pycache__/x.pyc")
    with pytest.raises(matrix.Failed, match=r"left 1 paths behind: site/gelu_ext$"):
        matrix.uninstall(environment, before)


def test_what_belongs_to_other_packages_is_not_left_behind(environment):
    before = environment.files()
    environment.make("site/pkg_resources/__init__.py", ".lock")  # of a setuptools that torch asked for; of uv
    environment.owned = ("site/pkg_resources/__init__.py",)
    matrix.uninstall(environment, before)


# --- the compiler that remembers --------------------------------------------------------------------------------------

COMPILER = """#!/bin/sh
echo "$@" >> {log}
case " $* " in
  *" --version "*) echo "a compiler" ;;
  *" -E "*) cat {source} ;;
  *) while [ "$1" != -o ]; do shift; done; echo object > "$2" ;;
esac
"""


@pytest.fixture
def compile_in(tmp_path):
    source, log = tmp_path / "a.cpp", tmp_path / "log"
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(log=log, source=source))
    compiler.chmod(0o755)

    def compile_in(folder, text, *flags):
        """Whether the compiler compiled."""
        source.write_text(text)
        log.write_text("")
        output = tmp_path / "a.o"
        output.unlink(missing_ok=True)
        words = [f"-I{folder}", "-DX=1", "-MMD", "-MF", "a.d", *flags, "-c", str(source), "-o", str(output)]
        command = [sys.executable, matrix.__file__, "compile", str(tmp_path / "store"), str(compiler), "--", *words]
        subprocess.run(command, check=True, env=os.environ | {"MATRIX_COMPILED": str(tmp_path / "counts")})
        assert output.read_text() == "object\n"
        return any(" -c " in line for line in log.read_text().splitlines())

    return compile_in


def test_an_object_is_shared_by_text_and_flags_wherever_the_headers_lie(compile_in, tmp_path):
    text = 'f("/{}/lib/site-packages/torch/a.h");'
    assert compile_in("one", text.format("one"), "-O3")
    assert not compile_in("two", text.format("two"), "-O3")
    assert compile_in("two", text.format("two"), "-O2")
    assert compile_in("two", text.format("two") + "g();", "-O2")
    assert (tmp_path / "counts").read_text().split() == ["compiled", "shared", "compiled", "compiled"]


def test_a_second_run_in_the_same_folder_is_refused_in_a_sentence(tmp_path):
    with matrix.alone(tmp_path), pytest.raises(SystemExit, match=r"^another run works in .*: wait for it, or name "):
        matrix.alone(tmp_path).__enter__()
    with matrix.alone(tmp_path):
        pass


def test_state_survives_a_stop_in_the_middle_of_writing(state):
    state.put(ONE, "pip", Result(OK, seconds=1))
    (state.folder / "3.10-2.11.0-pip.123").write_text("{")  # of a run that was killed
    assert state.get(ONE, "pip") == Result(OK, seconds=1)
    assert state.commands() == []
    state.add_rows({ONE: ""})
    state.add_rows({ONE: "gone"})
    assert state.rows() == {ONE: "gone"}
    assert json.loads((state.folder / "rows.json").read_text())
