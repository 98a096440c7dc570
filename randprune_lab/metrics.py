"""What a task is measured by; scikit-learn's and scipy's own functions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, its usual name
from torch import Tensor

from randprune_lab.checks import check_option

METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
}  # with the names that people read
NO_LABEL = math.nan  # of a regression's row that only distillation learns from


def measure(name: str, logits: Tensor, labels: Tensor) -> float:
    """One metric of answers (rows x classes, or rows x 1 for a regression) against labels; larger is better.

    f1 is that of class 1; a correlation that is not defined, since all answers are equal, counts as 0.
    """
    check_option("metric", name, METRICS)
    if name == "accuracy":
        return float((logits.argmax(dim=1) == labels.to(logits.device)).double().mean())
    truth = labels.cpu().numpy()
    if name in ("spearman", "pearson"):
        from scipy.stats import pearsonr, spearmanr

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant answers: said by NaN
            correlate: Any = spearmanr if name == "spearman" else pearsonr
            value = float(correlate(logits[:, 0].double().cpu().numpy(), truth).statistic)
        return value if math.isfinite(value) else 0.0
    from sklearn.metrics import f1_score, matthews_corrcoef

    chosen = logits.argmax(dim=1).cpu().numpy()
    return float(f1_score(truth, chosen, zero_division=0.0) if name == "f1" else matthews_corrcoef(truth, chosen))


def task_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats; for decimal labels the mean squared error, to which a row without label adds nothing.

    The mean is over all rows, so that a labelled one weighs the same in every batch. ``label_smoothing``: the share of
    each label that is spread evenly over all classes (Szegedy et al. 2016).
    """
    if not labels.is_floating_point():
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    known = ~labels.isnan()
    errors = torch.where(known, logits[:, 0] - labels.nan_to_num(), 0.0)
    return errors.square().mean()
