"""A question: predict, reveal, and see why. What Learn and Methods share."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from randprune_lab.lessons import Reveal


def ask(text: str, question: str, options: Sequence[str], place: str) -> str | None:
    """The question; what was predicted, once that may be judged.

    Args:
        text: what to look at, markdown.
        question: what to predict.
        options: the answers to choose from.
        place: tells this question from all others of the app.
    """
    revealed = st.session_state.setdefault("revealed", {})
    st.markdown(text)
    predicted = st.radio(
        f"**{question}**",
        options,
        index=options.index(revealed[place]) if place in revealed else None,
        key=f"prediction-{place}",
        disabled=place in revealed,
    )
    if place not in revealed and st.button(
        "Reveal",
        type="primary",
        disabled=predicted is None,
        help="Choose an answer first." if predicted is None else None,
        key=f"reveal-{place}",
    ):
        revealed[place] = predicted
        st.rerun()
    return str(revealed[place]) if place in revealed else None


def judge(found: Reveal, predicted: str) -> None:
    """What really happens, and why."""
    (st.success if predicted == found.option else st.warning)(found.verdict(predicted))
    st.markdown(f"{found.sentence}\n\n{found.why}")
