"""The tutorials as files: one source for students and teachers, and prose that says what the cells say."""

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from support.notebooks import run
from support.paths import NOTEBOOK_FOLDER, TESTS

from randprune_lab.classroom import NOT_YET, RIGHT
from randprune_lab.tutorials import TEACHER, write_tutorials

NOTEBOOKS = sorted(NOTEBOOK_FOLDER.glob("*.ipynb"))
COMPARED = "nbval-check-output"
DIFFERS = "differs"  # the tag of a cell that prints what depends on the processor: nothing compares it
OWN_CODE = "08-make-it-yours"
HEADINGS = ("## Goals", "## What would break this", "## Sources")
REFERENCES = re.compile(
    r"(Eq\.|Equation|[Ss]ections?|Figures?|Tables?|Algorithm|arXiv|[Aa]ppendix|[Nn]otebooks?|[Ll]essons?|DOI)"
    r"[ \u00a0]*\(?[\w.]+"
)
MACHINE = re.compile(r"/(work|tmp|home|root|opt|Users)/|\b[A-Z]:\\")
LARGEST = 800_000  # bytes


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell has printed or shown as text."""
    texts = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(texts)


def numbers(text: str) -> set[float]:
    return {
        float(number.replace(",", "")) for number in re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?", text)
    }


def prose_numbers(markdown: str) -> set[float]:
    """The numbers that a text states; not those of headings, sources, formulas, links and of 0, 1 and 2."""
    text = re.sub(r"^#.*$", "", markdown, flags=re.MULTILINE)
    text = re.sub(r"\$[^$]*\$|\]\([^)]*\)|https?://\S+|<[^>]*>", " ", text)
    text = re.sub(r"^\d+\. ", "", text, flags=re.MULTILINE)
    return numbers(REFERENCES.sub(" ", text)) - {0.0, 1.0, 2.0}


def is_exercise(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and re.search(r"\bcheck\(", cell.source) is not None


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def verdicts(cell: nbformat.NotebookNode) -> list[str]:
    return [line for line in printed(cell).splitlines() if line == RIGHT or line.startswith(f"{NOT_YET}: ")]


def checks(source: str) -> int:
    """How many answers a cell checks."""
    return len(re.findall(r"^check\(", source, flags=re.MULTILINE))


def test_it_has_every_part(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for part in (*HEADINGS, "**Predict", "**Exercise", "<summary>Hint</summary>"):
        assert part in text, f"{path.name} lacks {part}"
    assert text.startswith(f"# {int(path.name[:2])}. ")


def test_cells_call_the_lab_and_define_next_to_nothing(path):
    if path.stem == OWN_CODE:
        pytest.skip("it defines its own network, data and criterion")
    for cell in read(path).cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.ClassDef)
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno <= 2, cell.source


def test_it_was_run_from_top_to_bottom(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not any(output.output_type == "error" for output in cell.outputs), cell.source
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.source
        assert not any("widget" in kind for output in cell.outputs for kind in output.get("data", {})), cell.source


def test_what_is_compared_has_a_stored_output(path):
    compared = [cell for cell in read(path).cells if COMPARED in cell.metadata.get("tags", ())]
    assert len(compared) >= 5
    for cell in compared:
        assert printed(cell).strip(), f"nothing is stored to compare with:\n{cell.source}"


def test_whatever_prints_is_compared_or_known_to_differ(path):
    for cell in (cell for cell in read(path).cells if cell.cell_type == "code"):
        shows = re.search(r"\b(print|show|table|check)\(|^(explore\(|panel$)", cell.source, flags=re.MULTILINE)
        tags = cell.metadata.get("tags", ())
        assert bool(shows) == (COMPARED in tags) ^ (DIFFERS in tags), cell.source
        if shows:
            assert printed(cell).strip() or "if at_hand" in cell.source, f"nothing is stored of\n{cell.source}"


def test_every_exercise_is_open_compared_and_has_a_solution(path):
    cells = read(path).cells
    for cell in filter(is_exercise, cells):
        assert COMPARED in cell.metadata.get("tags", ()), cell.source
        assert len(verdicts(cell)) == checks(cell.source) > 0, cell.source
        assert RIGHT not in verdicts(cell), cell.source
    for place, cell in enumerate(cells):  # after each exercise or prediction comes a check, before the next one
        for _ in range(cell.cell_type == "markdown" and len(re.findall(r"^\*\*(Exercise|Predict)", cell.source, re.M))):
            after = itertools.takewhile(lambda other: "**Exercise" not in other.source, cells[place + 1 :])
            assert any(map(is_exercise, after)), cell.source
    open_cells = [cell for cell in cells if cell.cell_type == "code" and re.search(r"= \.\.\.|\(\.\.\.", cell.source)]
    for cell in open_cells:
        solution = cell.metadata.get("randprune", {}).get("solution")
        assert solution, f"no solution of\n{cell.source}"
        assert "..." not in solution
        ast.parse(solution)
        assert checks(solution) == checks(cell.source), f"the solution checks something else:\n{solution}"
        same = [line for line in cell.source.splitlines() if "..." not in line]
        missing = [line for line in same if line not in solution.splitlines()]
        assert not missing, f"the solution leaves out {missing}"


def test_prose_says_only_numbers_of_the_cells_beside_it(path):
    cells = read(path).cells
    for place, cell in enumerate(cells):
        if cell.cell_type != "markdown" or cell.source.startswith("## Sources"):
            continue
        before = next((other for other in reversed(cells[:place]) if other.cell_type == "code"), None)
        after = next((other for other in cells[place:] if other.cell_type == "code"), None)
        known = set().union(*(numbers(other.source + " " + printed(other)) for other in (before, after) if other))
        known |= {100 * number for number in known} | {round(100 * number, 6) for number in known}
        unknown = prose_numbers(cell.source) - known
        assert not unknown, f"{sorted(unknown)} in\n{cell.source}"


def test_it_is_small_and_knows_no_machine(path):
    assert path.stat().st_size < LARGEST
    for cell in read(path).cells:
        assert not MACHINE.search(cell.source)
        if cell.cell_type == "code":
            assert not MACHINE.search(printed(cell)), cell.source


@pytest.mark.slow  # plain pytest runs each solution after its exercise, in nbval's kernel (conftest.py)
def test_every_solution_is_right(path, tmp_path):
    """The teacher's edition, as it is written, in a fresh kernel."""
    write_tutorials(tmp_path / "teacher", solutions=True)
    notebook = run(read(tmp_path / "teacher" / path.name), tmp_path / "teacher", tmp_path / "runs")
    asked = [cell for cell in read(path).cells if is_exercise(cell)]
    assert len(asked) == sum(map(is_exercise, notebook.cells))
    for cell in filter(is_exercise, notebook.cells):
        assert verdicts(cell) == [RIGHT] * checks(cell.source), f"{cell.source}\n{printed(cell)}"


def test_two_editions_of_one_source(tmp_path):
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    for folder, solutions in ((student, False), (teacher, True)):
        written, kept = write_tutorials(folder, solutions=solutions)
        assert [path.name for path in written] == [path.name for path in NOTEBOOKS]
        assert kept == []
        for original in (NOTEBOOK_FOLDER / "results").rglob("*"):
            assert (folder / original.relative_to(NOTEBOOK_FOLDER)).exists()
    for original in NOTEBOOKS:
        source = read(original)
        for folder, solutions in ((student, False), (teacher, True)):
            text = (folder / original.name).read_text()
            notebook = read(folder / original.name)
            nbformat.validate(notebook)
            assert '"solution"' not in text
            assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
            for before, after in zip(source.cells, notebook.cells, strict=True):
                solution = before.metadata.get("randprune", {}).get("solution")
                assert after.source.removesuffix(f"\n\n{TEACHER}") == (
                    solution if solutions and solution else before.source
                )
                folded = after.metadata.get("jupyter", {}).get("source_hidden", False)
                assert folded == (not solutions and is_exercise(before) and "..." not in before.source)
            assert (TEACHER in notebook.cells[0].source) == solutions


def test_what_a_student_wrote_is_kept(tmp_path):
    write_tutorials(tmp_path)
    mine = tmp_path / NOTEBOOKS[0].name
    mine.write_text("mine")
    (tmp_path / NOTEBOOKS[1].name).unlink()
    (tmp_path / "results" / "claims.json").write_text("mine")
    written, kept = write_tutorials(tmp_path, solutions=True)
    assert [path.name for path in written] == [NOTEBOOKS[1].name]
    assert len(kept) == len(NOTEBOOKS) - 1
    assert mine.read_text() == (tmp_path / "results" / "claims.json").read_text() == "mine"


def test_bad_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"is a file\. Pass a folder"):
        write_tutorials(tmp_path / "file")
    for inside in (NOTEBOOK_FOLDER, NOTEBOOK_FOLDER / "results", NOTEBOOK_FOLDER / "results" / "new"):
        with pytest.raises(ValueError, match="holds the originals"):
            write_tutorials(inside)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results").write_text("")
    (tmp_path / "two" / NOTEBOOKS[0].name).mkdir(parents=True)
    for name in ("one", "two"):
        with pytest.raises(ValueError, match="is no place for a file"):
            write_tutorials(tmp_path / name)
        assert len(list((tmp_path / name).iterdir())) == 1


def test_the_command_lists_and_writes_them(command, tmp_path):
    code, out, _ = command("notebooks", "--json")
    listed = json.loads(out)["notebooks"]
    assert code == 0
    assert [row["file"] for row in listed] == [path.name for path in NOTEBOOKS]
    assert all(row["title"] and len(row["goals"]) >= 2 for row in listed)
    code, out, _ = command("notebooks")
    assert code == 0
    assert all(row["title"] in out for row in listed)
    code, out, _ = command("notebooks", "--solutions", tmp_path / "teacher", "--to", tmp_path / "student")
    assert code == 0
    assert f"{len(listed)} notebooks written" in out
    assert read(tmp_path / "teacher" / NOTEBOOKS[0].name) != read(tmp_path / "student" / NOTEBOOKS[0].name)
    code, _, error = command("notebooks", "--to", tmp_path / "same", "--solutions", tmp_path / "same")
    assert code == 2
    assert "two editions need two folders" in error
    code, _, error = command("notebooks", "--to", NOTEBOOK_FOLDER)
    assert code == 2
    assert "holds the originals" in error


def test_there_are_ten():
    names = "cut-at-a-threshold from-cut-to-chance measuring-randomness choosing-a-mask a-full-run is-it-better"
    names += " glue-for-real make-it-yours sparse-from-the-start many-runs-one-answer"
    assert [path.stem for path in NOTEBOOKS] == [f"{n:02d}-{name}" for n, name in enumerate(names.split(), start=1)]


def test_where_real_data_is_not_at_hand_the_stored_results_are_shown(tmp_path, monkeypatch):
    for name in ("RANDPRUNE_TEST_DATA", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_tutorials(tmp_path)
    name = "07-glue-for-real.ipynb"
    notebook = run(read(tmp_path / name), tmp_path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/events.jsonl"))
    stored = {
        cell.id: printed(cell)
        for cell in read(NOTEBOOK_FOLDER / name).cells
        if COMPARED in cell.metadata.get("tags", ())
    }
    assert {cell.id: printed(cell) for cell in notebook.cells if cell.id in stored} == stored


@pytest.mark.parametrize(("stored", "code"), [("2\n", 0), ("3\n", 1)])
def test_a_compared_cell_that_prints_something_else_fails(tmp_path, stored, code):
    """The suite's own options, on a notebook of one cell."""
    source = "from IPython.display import display\ndisplay({'image/svg+xml': '<svg>new</svg>'}, raw=True)\nprint(1 + 1)"
    outputs = [
        nbformat.v4.new_output("display_data", {"image/svg+xml": "<svg>old\n</svg>"}),
        nbformat.v4.new_output("stream", name="stdout", text=stored),
    ]
    cell = nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=1, metadata={"tags": [COMPARED]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-c", "pyproject.toml"]
    done = subprocess.run(
        [*command, str(tmp_path / "one.ipynb")], cwd=NOTEBOOK_FOLDER.parent, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout
    assert ("mismatch" in done.stdout) == bool(code)


@pytest.mark.parametrize(("answer", "code"), [("2", 0), ("3", 1), ("1 / 0", 1)])
def test_a_solution_that_is_not_right_fails(tmp_path, answer, code):
    """It runs after its exercise, in the same kernel, and the student's cell stays as it is."""
    start = "from randprune_lab.classroom import check\ntwo = 2"
    guess, ask = "answer = {}", "answer\ncheck(answer, lambda given: given == two)"
    cells = [nbformat.v4.new_code_cell(text) for text in (start, guess.format("..."), ask)]
    cells[1].metadata["randprune"] = {"solution": guess.format(answer)}
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n0",
        "-p",
        "no:cacheprovider",
        "-c",
        "pyproject.toml",
        "-p",
        "support.notebook_cells",
    ]
    done = subprocess.run(
        [*command, str(tmp_path / "one.ipynb")],
        cwd=NOTEBOOK_FOLDER.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout
    assert f"{3 - code} passed" in done.stdout
