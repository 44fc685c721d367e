"""Tiny models of the supported families, with random weights that are the same in every process."""

from __future__ import annotations

from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large enough for tokens to differ
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,  # with tied random weights a token predicts itself for ever
}
WINDOW = 8
# Family: class of the configuration, class of the model, and its special options.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"num_hidden_layers": 4}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"num_hidden_layers": 2}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"num_hidden_layers": 2, "head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"num_hidden_layers": 2, "sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"num_hidden_layers": 4, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
}


def make_config(family: str, **more: Any) -> Any:
    """The configuration of a family's model."""
    import transformers

    config, _, own = FAMILIES[family]
    return getattr(transformers, config)(**{**COMMON, **own, **more})


def make_model(family: str, **more: Any) -> Any:
    """A model of the family; equal arguments give equal weights."""
    import torch
    import transformers

    torch.manual_seed(11)
    model = getattr(transformers, FAMILIES[family][1])(make_config(family, **more))
    return model.eval()
