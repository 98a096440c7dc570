"""What the tutorials call: it never raises, and it says the same everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from randprune_lab import MagnitudeHistogram, candidate_generator, figures, pictures
from randprune_lab.classroom import check, show, table


def said(capsys) -> str:
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("open_answer", [..., (1, ...), [..., ...]])
def test_no_answer_yet(capsys, open_answer):
    check(open_answer, lambda _: 1 / 0)
    assert said(capsys) == "not yet: put your answer in place of the three dots, and run the cell again."


def test_right_and_wrong(capsys):
    check(3, lambda answer: answer == 3, "count again")
    assert said(capsys) == "right"
    check(4, lambda answer: answer == 3, "count again")
    assert said(capsys) == "not yet: count again."
    check((1, 2), lambda pair: pair[0] < pair[1])
    assert said(capsys) == "right"


def test_an_answer_of_the_wrong_kind(capsys):
    check("half", lambda answer: answer < 1, "a number!")
    text = said(capsys)
    assert text.startswith("not yet: your answer cannot be checked (TypeError: ")
    assert text.endswith("a number!")


def test_a_tensor_is_an_answer(capsys):
    import torch

    check(torch.ones(3), lambda answer: answer.equal(torch.ones(3)))
    assert said(capsys) == "right"
    check(torch.ones(3), lambda answer: answer == 1, "one verdict")  # ambiguous: more than one truth
    assert said(capsys).startswith("not yet: your answer cannot be checked (RuntimeError")


class Unfriendly:
    def __bool__(self):
        raise ZeroDivisionError("no\ntruth")

    def __eq__(self, other):
        raise KeyError

    __hash__ = None


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers()), st.floats()))
def test_it_never_raises(answer):
    check(answer, lambda given: given[0] > 1)
    check(answer, lambda _: Unfriendly())
    check(Unfriendly(), lambda given: given == 1)


def test_table(capsys):
    rows = [{"n": 147456, "share": 0.123456, "name": "one", "kept": True}, {"n": 5, "share": None, "name": "second"}]
    table(rows)
    assert capsys.readouterr().out.splitlines() == [
        "      n   share    name  kept",
        "147,456  0.1235     one   yes",
        "      5       -  second     -",
    ]
    table(rows, "name", "n")
    assert capsys.readouterr().out.splitlines()[1] == "   one  147,456"
    table([])
    assert said(capsys) == ""


def test_show_keeps_a_picture_and_prints_its_sentence(capsys, monkeypatch):
    import torch
    from IPython.display import display  # noqa: F401, so that it can be replaced

    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append((data, raw)))
    histogram = MagnitudeHistogram.of(torch.randn(20_000, generator=candidate_generator(0, 1, 1, "x")))
    marks = figures.threshold_rows(histogram, (0.52,))
    show(pictures.threshold_chart(figures.magnitude_rows(histogram, (0.52,)), marks))
    ((data, raw),) = shown
    assert raw
    assert data["image/svg+xml"].startswith("<svg")
    assert "<script" not in data["image/svg+xml"]
    assert data["text/plain"] == pictures.threshold_sentence(marks)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines) == data["text/plain"]
    assert all(len(line) <= 88 for line in lines)
