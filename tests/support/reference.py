"""The layer maths once more, slowly, in numpy float64, from DESIGN 3.1-3.3 alone: nothing here imports the package.

Weights come in as flat arrays, masks go out as bool arrays, True = kept.
"""

import numpy as np


def keep_of(size, sparsity):
    return size - round(sparsity * size)


def by_magnitude(weight, alive):
    """The indices of all weights: largest magnitude first, lowest index among equals, what does not exist last."""
    magnitude = np.where(alive, np.abs(weight), -1.0)
    return np.argsort(-magnitude, kind="stable")


def mask_of(indices, size):
    mask = np.zeros(size, dtype=bool)
    mask[indices] = True
    return mask


def deterministic_mask(weight, sparsity, alive=None):
    """The keep largest; without ``alive`` every weight exists, so that zeros fill up."""
    weight = np.asarray(weight, dtype=np.float64)
    alive = np.ones(weight.size, dtype=bool) if alive is None else alive
    return mask_of(by_magnitude(weight, alive)[: keep_of(weight.size, sparsity)], weight.size)


def support_of(weight, sparsity, reach, alive=None):
    """The indices that can be drawn: the round(reach * keep) largest that exist, all of them for reach None."""
    weight = np.asarray(weight, dtype=np.float64)
    alive = weight != 0 if alive is None else alive
    living = by_magnitude(weight, alive)[: alive.sum()]
    return living if reach is None else living[: round(reach * keep_of(weight.size, sparsity))]


def selection_logs(weight, power):
    """Log p up to a constant; 0**power is never chosen before anything else is, and 0**0 is 1."""
    if power == 0:
        return np.zeros(len(weight))
    with np.errstate(divide="ignore"):
        return power * np.log(np.abs(weight))


def draw_once(logs, keep, rng):
    """One draw without replacement of ``keep`` places: the smallest E / p, compared by their logarithms."""
    waiting = np.log(rng.standard_exponential(len(logs))) - logs
    return np.argpartition(waiting, keep - 1)[:keep]


def draw_one_by_one(logs, keep, rng):
    """The same by the definition, for tiny tensors: choose one, renormalise the p of the others, choose the next."""
    p = np.exp(logs - logs.max())
    chosen = []
    for _ in range(keep):
        chosen.append(rng.choice(len(p), p=p / p.sum()))
        p[chosen[-1]] = 0.0
    return np.array(chosen)


def ensemble_mask(weight, sparsity, *, samples, power, reach, ties, rng, alive=None, draw=draw_once):
    """Draw ``samples`` times, count, keep the highest counts; ties at random, or larger magnitude then lowest index."""
    weight = np.asarray(weight, dtype=np.float64)
    keep = keep_of(weight.size, sparsity)
    support = support_of(weight, sparsity, reach, alive)  # largest first: a stable sort leaves ties in this order
    logs = selection_logs(weight[support], power)
    counts = np.zeros(len(support), dtype=np.int64)
    for _ in range(samples):
        counts[draw(logs, keep, rng)] += 1
    order = rng.permutation(len(support)) if ties == "random" else np.arange(len(support))
    order = order[np.argsort(-counts[order], kind="stable")]
    return mask_of(support[order[:keep]], weight.size)


def introduced_randomness(mask, reference):
    """Eq. 1: (C_pruned - C_s) / C_s."""
    pruned, shared = np.sum(~reference), np.sum(~mask & ~reference)
    if pruned == shared:
        return 0.0
    return np.inf if shared == 0 else (pruned - shared) / shared
