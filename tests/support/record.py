"""A pytest plugin: tests that never ran make the run fail, and whoever started it can read which have run."""

import collections
import contextlib
import json
import os

import pytest

from support.run_groups import DEFAULT, GROUPS, RECORD


class Record:
    """Counts the tests that are to run, and those that have; of all workers together.

    Both are written as they happen, lines of JSON, to the file that the environment names in ``RECORD``: a pytest that
    is killed cannot say it in the end.
    """

    def __init__(self, config):
        self.config, self.wanted, self.done = config, set(), set()
        path = os.environ.get(RECORD)
        self.file = open(path, "a", buffering=1) if path else None  # noqa: SIM115, it lives as long as pytest

    def _write(self, **line):
        if self.file is not None:
            with contextlib.suppress(OSError):  # a full disk: pytest itself says it
                self.file.write(json.dumps(line) + "\n")

    def _will_run(self, names):
        if not self.config.option.collectonly and not self.wanted:
            self.wanted = set(names)
            self._write(wanted=len(self.wanted))

    def pytest_collection_finish(self, session):
        if session.items:  # with xdist the workers collect
            self._will_run(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids):
        self._will_run(ids)

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown" and report.nodeid not in self.done:
            self.done.add(report.nodeid)
            self._write(ran=report.nodeid)

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == pytest.ExitCode.OK and self.wanted - self.done:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        reports = terminalreporter.getreports
        for report in [*reports("passed"), *reports("failed")]:
            for name, text in report.user_properties if report.when == "call" else ():
                if name == "measured":
                    terminalreporter.write_line(text)
        skipped = collections.Counter(
            report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
            for report in reports("skipped")
        )
        counts = {kind: len(reports(kind)) for kind in ("passed", "failed", "error", "skipped", "xfailed")}
        self._write(counts=counts, skipped=dict(skipped))
        for reason, number in skipped.most_common():
            terminalreporter.write_line(f"skipped {number}: {reason}")
        missing = len(self.wanted - self.done)
        if missing:
            terminalreporter.write_line(
                f"{missing} of {len(self.wanted)} tests never ran, or did not end.", red=True, bold=True
            )
        everywhere = self.config.args_source is pytest.Config.ArgsSource.TESTPATHS
        if everywhere and self.config.option.markexpr == DEFAULT:
            terminalreporter.write_line("Not among these, each by a command of its own:")
            for group in GROUPS.values():
                terminalreporter.write_line(f"  pytest {group.arguments:<50} {group.holds}")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(config))
