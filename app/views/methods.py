"""All methods side by side, and where the masks of two of them agree on the network of the demo."""

from __future__ import annotations

import dataclasses

import streamlit as st
from asking import ask, judge
from common import link, page, plain, said
from drawing import draw
from live_panel import demo

from randprune_lab import contrast
from randprune_lab.config import AT_START
from randprune_lab.contrast import Pick, Question
from randprune_lab.criteria import CRITERIA
from randprune_lab.lessons import Reveal
from randprune_lab.places import DEMO

FIELDS = tuple(field.name for field in dataclasses.fields(Pick))


@st.cache_data(show_spinner="Scoring ...")
def _reveal(number: int) -> Reveal:
    return contrast.QUESTIONS[number].reveal()


def _side_by_side() -> None:
    methods, criteria = st.tabs(["Methods", "Criteria"])
    with methods:
        rows = [
            {
                "method": f"**{row['method']}**",
                "chooses its mask": row["mask"],
                "by": row["by"],
                "epochs": f"{row['dense']}\u00a0+\u00a0{row['judging']}\u00a0+\u00a0{row['tuning']}",
                "what it does": plain(row["says"]),
            }
            for row in contrast.method_rows()
        ]
        st.table(rows, border="horizontal")
        st.caption(
            "Epochs: of the dense network + of judging candidates + under the mask, for a run with default settings. "
            "By: the criterion; any means that it is a setting of its own."
        )
    with criteria:
        rows = [
            {
                "criterion": f"**{row['criterion']}**",
                "batches": str(row["batches"]),
                "rounds": str(row["rounds"]),
                "masks from": "ranks" if row["signed"] else "order of rounds" if row["rounds"] > 1 else "scores",
                "what stays": plain(row["says"]),
            }
            for row in contrast.criterion_rows()
        ]
        st.table(rows, border="horizontal")
        st.caption("Batches: of training examples that it looks at, for each stage; 0: it needs no data.")


def _question(number: int, asked: Question) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        predicted = ask(asked.text, asked.question, asked.options, f"methods-{number}")
    with right:
        if predicted is None:
            st.caption("What happens is shown here once you have predicted it.")
        else:
            judge(_reveal(number), predicted)
            st.button("Show these masks below", on_click=_go, args=(asked.pick,), key=f"show-{number}")


def _asked_for() -> Pick:
    """What the address asks for; where that cannot be compared, the first thing to look at."""
    query = {name: st.query_params[name] for name in FIELDS if name in st.query_params}
    try:
        pick = Pick(**query | {"sparsity": float(query.get("sparsity", Pick.sparsity))})  # type: ignore[arg-type]
    except ValueError:
        return Pick()
    return pick if pick.sparsity in contrast.SPARSITIES else dataclasses.replace(pick, sparsity=Pick.sparsity)


def _go(pick: Pick) -> None:
    st.query_params.update({name: str(value) for name, value in dataclasses.asdict(pick).items()})


def _picked() -> None:
    _go(Pick(**{name: st.session_state[name] for name in FIELDS}))


def _choose(pick: Pick) -> None:
    st.session_state.update(dataclasses.asdict(pick))  # the address rules
    first, second, third = st.columns(3)
    first.selectbox("method of mask 1", contrast.COMPARED, key="method", on_change=_picked)
    second.selectbox(
        "criterion of mask 1", CRITERIA, key="criterion", on_change=_picked, disabled=pick.method in AT_START
    )
    third.selectbox("criterion of mask 2", CRITERIA, key="other", on_change=_picked)
    st.select_slider("sparsity s", contrast.SPARSITIES, key="sparsity", on_change=_picked)


def _compare(pick: Pick) -> None:
    st.markdown(f"Both masks are cut from the network as it is **{pick.moment}**.")
    with st.spinner("Scoring ..."):
        found = contrast.overlaps(pick)
    titles = {"layer": "Each layer as sparse as the next", "global": "One threshold for all layers"}
    for column, (scope, overlap) in zip(st.columns(2, gap="medium"), found.items(), strict=True):
        with column:
            draw(contrast.layers_chart, overlap.rows, titles[scope], overlap.sentence)
            st.caption(plain(overlap.sentence))
    if pick.moment == contrast.AFTER:
        label = "Look at the weights near the cut in Explore"
        link(label, "explore", model=DEMO, sparsity=pick.sparsity, randomness="fixed")


page(
    "Methods", "Every way to a sparse network that this lab knows: when it chooses its mask, by what, and at what cost."
)
st.subheader("Side by side", anchor=False)
_side_by_side()
try:
    demo()  # its training, if it was never trained before
    st.subheader("Predict", anchor=False)
    for number, (tab, asked) in enumerate(
        zip(st.tabs([asked.title for asked in contrast.QUESTIONS]), contrast.QUESTIONS, strict=True)
    ):
        with tab:
            _question(number, asked)
    st.subheader("Two masks of one network", anchor=False)
    st.markdown(
        "Mask 1 is the first that a run of the method would draw, mask 2 a plain one by another criterion. How many of "
        "their kept weights do they share, and what is left of each layer?"
    )
    pick = _asked_for()
    _choose(pick)
    _compare(pick)
except (ValueError, OSError) as error:
    said(error)
