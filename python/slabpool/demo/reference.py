"""The expected tokens: the same decoder on one thread with plain numpy memory, no ring and no pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slabpool.demo.model import Decoder


def generate(model: Decoder, prompt: Sequence[int], count: int) -> list[int]:
    """Generate `count` tokens after `prompt`, greedily.

    Parameters
    ----------
    model : Decoder
    prompt : sequence of int
        Tokens.
    count : int
        Tokens to generate.

    Returns
    -------
    list of int

    Examples
    --------
    >>> from slabpool.demo.model import Decoder, ModelConfig
    >>> from slabpool.demo.reference import generate
    >>> model = Decoder(ModelConfig(), seed=0)
    >>> generate(model, [256, 72], 3) == generate(model, [256, 72], 5)[:3]
    True
    """
    shape = model.kv_shape(len(prompt) + count)
    caches = [(np.empty(shape, np.float32), np.empty(shape, np.float32)) for _ in range(model.config.layers)]
    tokens: list[int] = []
    step, start = list(prompt), 0
    while len(tokens) < count:
        hidden = model.run_layers(model.embed(step), 0, caches, start)
        start += len(step)
        step = [model.next_token(hidden)]
        tokens += step
    return tokens
