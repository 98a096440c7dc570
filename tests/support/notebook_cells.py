"""A pytest plugin: what the cells of the tutorials need, which nbval makes tests of. They have no fixtures.

After a cell that checks answers the teacher's edition of it runs in the same kernel: every answer must be right.
"""

import pytest

ANSWER_SECONDS = 250  # that a cell has, as for nbval

# In names of its own, with a copy of each of numpy's generators: what comes after draws what it drew before.
ALONE = """
exec({!r}, {{
    name: __import__("copy").deepcopy(thing) if hasattr(thing, "bit_generator") else thing
    for name, thing in globals().items()
}})
"""


def printed_by(kernel, source: str) -> str:
    """What a cell prints in nbval's kernel, where it leaves nothing behind."""
    asked = kernel.execute_cell_input(ALONE.format(source), allow_stdin=False)
    printed, error = "", ""
    while True:
        message = kernel.get_message("iopub", timeout=ANSWER_SECONDS)
        if message["parent_header"].get("msg_id") != asked:
            continue
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                printed += content["text"]
            case "error":
                error = "\n".join(content["traceback"])
            case "status" if content["execution_state"] == "idle":
                break
    kernel.await_reply(asked, timeout=ANSWER_SECONDS)
    assert not error, error
    return printed


class Cells:
    """The plugin, as an object: hooks of a conftest.py would not see the cells, which lie elsewhere."""

    def __init__(self):
        self.notebook, self.guesses = None, []  # the teacher's, of cells that the next check is of

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        with pytest.MonkeyPatch.context() as patch:
            if item.path.suffix == ".ipynb":
                folder = item.config._tmp_path_factory.getbasetemp()
                patch.setenv("RANDPRUNE_RUNS", str(folder / item.path.stem))  # not beside the notebook
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        result = yield
        if item.path.suffix != ".ipynb":
            return result
        if item.parent is not self.notebook:
            self.notebook, self.guesses = item.parent, []
        solution = item.cell.metadata.get("randprune", {}).get("solution", "")
        teachers = solution or item.cell.source
        wanted = sum(line.startswith("check(") for line in teachers.splitlines())
        if solution and not wanted:
            self.guesses.append(solution)
        elif wanted:
            source, self.guesses = "\n".join([*self.guesses, teachers]), []
            lines = printed_by(item.parent.kernel, source).splitlines()
            assert lines.count("right") == wanted, f"{source}\nprints\n{lines}"
        return result


def pytest_configure(config):
    config.pluginmanager.register(Cells())
