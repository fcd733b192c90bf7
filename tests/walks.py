"""Masks that flip a little from one round to the next, and forecasts of them."""

import numpy as np

from dslth.coding.forecast import Forecast
from dslth.masks import BitMask

SIZES = (13, 640, 7, 1)


def drawn(seed, density, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return BitMask.from_arrays(rng.random(n) < density for n in sizes)


def flipped(mask, seed, share):
    rng = np.random.default_rng(seed)
    return BitMask.from_arrays(layer.astype(bool) ^ (rng.random(len(layer)) < share) for layer in mask.arrays())


def walk(seed, steps, share=0.02, sizes=SIZES, density=0.5):
    masks = [drawn(seed, density, sizes)]
    for step in range(steps):
        masks.append(flipped(masks[-1], (seed, step), share))
    return masks


def forecast_of(sizes, seed=None):
    """A forecast from random first scores; without a seed nothing is known of them."""
    rng = np.random.default_rng(seed)
    magnitudes = [np.zeros(n, np.float32) if seed is None else rng.random(n, np.float32) for n in sizes]
    return Forecast(magnitudes, [n // 2 for n in sizes])
