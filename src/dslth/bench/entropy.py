"""How few bits the masks of a run could take: empirical entropies, with one count table per layer and round.

The tables themselves are not counted, so no coder that knows the same past gets below, whatever it learns; a coder that
knows more (longer histories, ages of weights) may.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ORDERS", "conditional_bits", "mask_bits"]

Bits = NDArray[np.uint8]
ORDERS = (1, 2)
"""How many of the last masks the entropy is conditioned on."""


def conditional_bits(bits: Bits, given: Sequence[Bits]) -> float:
    """Return ``sum over contexts c and values b of -n(c,b) log2(n(c,b)/n(c))``, in bits, of flat arrays of 0 and 1.

    The context of a weight is its values in ``given``; without any, the result is the entropy of the density.
    """
    context = np.zeros(bits.shape, np.intp)
    for other in given:
        context = 2 * context + other
    counts = np.bincount(2 * context + bits, minlength=2 << len(given)).reshape(-1, 2).astype(float)
    shares = np.divide(counts, counts.sum(1, keepdims=True), out=np.ones_like(counts), where=counts > 0)
    return float(-(counts * np.log2(shares)).sum() + 0.0)


def mask_bits(masks: Iterable[Sequence[Bits]]) -> list[list[float]]:
    """Return the entropy in bits of each mask, a list of layers, given the last one and given the last two (ORDERS).

    The first masks are conditioned on as many as there are.
    """
    last: deque[Sequence[Bits]] = deque(maxlen=max(ORDERS))  # newest first
    by_round = []
    for mask in masks:
        by_round.append(
            [
                sum(
                    conditional_bits(layer, [past[number] for past in list(last)[:order]])
                    for number, layer in enumerate(mask)
                )
                for order in ORDERS
            ]
        )
        last.appendleft(mask)
    return by_round
