"""Explorer states for property tests."""

import hypothesis.strategies as st

from randprune_lab import ExploreState
from randprune_lab.config import RANDOMNESS, SCOPES
from randprune_lab.keepcurve import TIES
from randprune_lab.sampling import SAMPLERS
from randprune_lab.state import MOMENTS, MOST_CANDIDATES, SWEEPS

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


slots = st.integers(0, MOST_CANDIDATES - 1)


positive = st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False)


states = st.builds(
    ExploreState,
    model=words,
    tensor=words,
    stage=st.integers(1, 1000),
    moment=st.sampled_from(MOMENTS),
    sparsity=st.floats(0, 1, exclude_max=True),
    scope=st.sampled_from(SCOPES),
    randomness=st.sampled_from(RANDOMNESS),
    samples=st.integers(1, 2**31 - 1),
    sampling_ratio=positive,
    target_ir=positive,
    power=st.floats(0, 1e6),
    reach=st.none() | st.floats(1, allow_infinity=False, allow_nan=False),
    ties=st.sampled_from(TIES),
    sampler=st.sampled_from(SAMPLERS),
    candidates=st.integers(1, MOST_CANDIDATES),
    rerolled=st.lists(slots, max_size=20).map(tuple),
    seed=st.integers(-(2**53), 2**53),
    pinned=st.none() | slots,
    pair=st.none() | st.tuples(slots, slots),
    window=st.floats(0.01, 1),
    sweep=st.sampled_from(SWEEPS),
)
