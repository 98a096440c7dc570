"""Where candidates are judged: so far one after another, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from randprune_lab.events import Score
from randprune_lab.masks import Masks
from randprune_lab.training import Diverged, Phase, Session


def one_after_another(
    session: Session, draw: Callable[[int], Masks], candidates: Sequence[int], stage: int
) -> Iterator[tuple[int, Score | None, str | None]]:
    """EMEP of each candidate: apply its mask, train shortly at the early learning rate, score, restore.

    Yields the candidate, its score on the deciding split, or None and why it failed. All start from the weights that
    the model has now, which it has again after each.
    """
    config = session.config
    start = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    for candidate in candidates:
        score, failed = None, None
        try:
            phase = Phase(session, "emep", stage, draw(candidate), lambda _: config.early_learning_rate)
            for epoch in range(config.emep_epochs):
                phase.epoch(epoch)
            score = phase.score(config.emep_epochs - 1)
        except Diverged as error:
            failed = str(error)
        finally:
            session.model.load_state_dict(start)
        yield candidate, score, failed
