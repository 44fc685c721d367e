"""The model table, compared with figures worked out by hand from the published configs."""

from __future__ import annotations

import pytest

from slabpool.errors import InvalidArgumentError
from slabpool.replay.models import MODELS, model_shape

# Keys and values: 2 x layers x kv heads x head dimension x 2 bytes of bf16, multiplied out by hand.
BY_HAND = {
    "qwen2.5-0.5b": 12_288,  # 2 x 24 x 2 x 64 x 2
    "llama-3.2-1b": 32_768,  # 2 x 16 x 8 x 64 x 2
    "qwen2.5-7b": 57_344,  # 2 x 28 x 4 x 128 x 2
    "mistral-7b": 131_072,  # 2 x 32 x 8 x 128 x 2
    "llama-3.1-8b": 131_072,  # 2 x 32 x 8 x 128 x 2
    "qwen3-8b": 147_456,  # 2 x 36 x 8 x 128 x 2
    "llama-2-7b": 524_288,  # 2 x 32 x 32 x 128 x 2
    "llama-3.1-70b": 327_680,  # 2 x 80 x 8 x 128 x 2
    "deepseek-v3": 70_272,  # 61 x (512 + 64) x 2: one latent and one rotary key per layer
}


def test_every_model_was_checked_by_hand() -> None:
    assert set(BY_HAND) == set(MODELS)


@pytest.mark.parametrize(("name", "bytes_per_token"), BY_HAND.items())
def test_bytes_per_token(name: str, bytes_per_token: int) -> None:
    assert MODELS[name].bytes_per_token == bytes_per_token


@pytest.mark.parametrize("name", MODELS)
def test_source_names_a_config(name: str) -> None:
    assert "/" in MODELS[name].source
    assert "config.json" in MODELS[name].source


def test_names_are_found_in_any_case_and_unknown_ones_listed() -> None:
    assert model_shape("Llama-3.1-8B") is MODELS["llama-3.1-8b"]
    with pytest.raises(InvalidArgumentError, match=r"gpt-5.*llama-3\.1-8b"):
        model_shape("gpt-5")
