"""The decoder is right: compared with a slow one written with loops, and step by step with all at once."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from slabpool.demo import reference
from slabpool.demo.model import F32, Decoder, KvPair, ModelConfig, split_layers

PROMPT = (256, *b"Why is the sky dark at night?")


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(ModelConfig(), seed=7)


def caches(model: Decoder, length: int, layers: int | None = None) -> list[KvPair]:
    shape = model.kv_shape(length)
    count = model.config.layers if layers is None else layers
    return [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in range(count)]


F64: TypeAlias = npt.NDArray[np.float64]


def slow_forward(model: Decoder, tokens: tuple[int, ...]) -> F64:
    """The same model from its definition: float64, one head and one position at a time, no cache."""
    c = model.config
    weight = {
        name: [getattr(layer, name).astype(np.float64) for layer in model._layers]
        for name in ("attention_norm", "qkv", "out", "ffn_norm", "gate_up", "down")
    }

    def norm(row: F64, gain: F64) -> F64:
        result: F64 = row / np.sqrt(np.mean(row**2) + c.norm_eps) * gain
        return result

    def turn(head: F64, position: int) -> F64:
        half = c.head_dim // 2
        result: F64 = head.copy()
        for i in range(half):
            angle = position * c.rope_base ** (-i / half)
            x, y = head[i], head[i + half]
            result[i] = x * np.cos(angle) - y * np.sin(angle)
            result[i + half] = y * np.cos(angle) + x * np.sin(angle)
        return result

    rows = [model._embedding[token].astype(np.float64) for token in tokens]
    for layer in range(c.layers):
        queries, keys, values = [], [], []
        for position, row in enumerate(rows):
            heads = (norm(row, weight["attention_norm"][layer]) @ weight["qkv"][layer]).reshape(
                -1, c.head_dim
            )
            queries.append([turn(head, position) for head in heads[: c.heads]])
            keys.append([turn(head, position) for head in heads[c.heads : c.heads + c.kv_heads]])
            values.append(heads[c.heads + c.kv_heads :])
        for position, row in enumerate(rows):
            mixed = []
            for head in range(c.heads):
                shared = head // (c.heads // c.kv_heads)
                scores = np.array(
                    [
                        queries[position][head] @ keys[past][shared] / np.sqrt(c.head_dim)
                        for past in range(position + 1)
                    ]
                )
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed.append(sum(w * values[past][shared] for past, w in enumerate(weights)))
            rows[position] = row + np.concatenate(mixed) @ weight["out"][layer]
        for position, row in enumerate(rows):
            gate, up = np.split(norm(row, weight["ffn_norm"][layer]) @ weight["gate_up"][layer], 2)
            rows[position] = row + (gate / (1 + np.exp(-gate)) * up) @ weight["down"][layer]
    return np.array(rows)


def test_forward_matches_the_definition(model: Decoder) -> None:
    fast = model.run_layers(model.embed(PROMPT), 0, caches(model, len(PROMPT)), start=0)
    np.testing.assert_allclose(fast, slow_forward(model, PROMPT), rtol=2e-3, atol=2e-4)


def test_token_by_token_equals_all_at_once(model: Decoder) -> None:
    whole = model.run_layers(model.embed(PROMPT), 0, caches(model, len(PROMPT)), start=0)
    kept = caches(model, len(PROMPT))
    rows = [model.run_layers(model.embed([token]), 0, kept, start) for start, token in enumerate(PROMPT)]
    np.testing.assert_allclose(np.concatenate(rows), whole, rtol=2e-3, atol=2e-4)


def test_generation_equals_full_recompute(model: Decoder) -> None:
    tokens = list(PROMPT)
    for _ in range(8):
        hidden = model.run_layers(model.embed(tokens), 0, caches(model, len(tokens)), start=0)
        tokens.append(model.next_token(hidden))
    assert reference.generate(model, PROMPT, 8) == tokens[len(PROMPT) :]


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5, 6])
def test_layers_in_parts_are_bit_for_bit_the_whole(model: Decoder, devices: int) -> None:
    whole = model.run_layers(model.embed(PROMPT), 0, caches(model, 40), start=0)
    hidden = model.embed(PROMPT)
    for layers in split_layers(model.config.layers, devices):
        hidden = model.run_layers(hidden, layers.start, caches(model, 40, len(layers)), start=0)
    assert np.array_equal(hidden, whole)


def test_inputs_are_neither_written_nor_kept(model: Decoder) -> None:
    hidden: F32 = model.embed(PROMPT)
    before = hidden.copy()
    pairs = caches(model, len(PROMPT))
    result = model.run_layers(hidden, 0, pairs, start=0)
    assert np.array_equal(hidden, before)
    assert not np.shares_memory(result, hidden)
    assert not any(np.shares_memory(result, array) for pair in pairs for array in pair)


def test_caches_decide_the_tokens(model: Decoder) -> None:
    """The demo's check would prove nothing if the tokens did not depend on the contents of the caches."""
    pairs = caches(model, len(PROMPT) + 1)
    hidden = model.run_layers(model.embed(PROMPT), 0, pairs, start=0)
    step = [model.next_token(hidden)]
    right = model.run_layers(model.embed(step), 0, pairs, start=len(PROMPT))
    pairs[2][1][:, : len(PROMPT)] = 0  # the values of one layer
    wrong = model.run_layers(model.embed(step), 0, pairs, start=len(PROMPT))
    assert not np.allclose(right, wrong, atol=0.01)


def test_generations_differ_by_prompt_and_by_seed(model: Decoder) -> None:
    first = reference.generate(model, PROMPT, 12)
    assert len(set(first)) > 4
    assert reference.generate(model, PROMPT[:-1], 12) != first
    assert reference.generate(Decoder(ModelConfig(), seed=8), PROMPT, 12) != first
    assert reference.generate(Decoder(ModelConfig(), seed=7), PROMPT, 12) == first


def test_layers_are_split_without_gap_or_overlap() -> None:
    for devices in range(1, 9):
        ranges = split_layers(8, devices)
        assert [layer for part in ranges for layer in part] == list(range(8))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("devices", [0, 7])
def test_more_devices_than_layers_are_refused(devices: int) -> None:
    with pytest.raises(ValueError, match="6 layers"):
        split_layers(6, devices)
