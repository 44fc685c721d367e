"""A Llama of four layers with random weights, and a tokenizer, in place of what exo would download.

The weights of a tensor depend on its name alone, so every node makes the same ones for its layers.
"""

from __future__ import annotations

import importlib
import zlib
from typing import Any

import numpy as np

NAME = "slabpool-tiny"
LAYERS = 4
CONTEXT = 512  # positions of a KV cache; 2 * 512 * 4 * 32 * 4 bytes for each layer
END = 1000  # never generated: answers end by their length


class Tokenizer:
    """Bytes in, decimal numbers out."""

    eos_token_id = END

    def encode(self, text: str) -> list[int]:
        """One token per byte."""
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        """The tokens themselves, for comparing."""
        return " ".join(map(str, tokens)) + " "

    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: object) -> str:
        """The last message."""
        return conversation[-1]["content"]


def build(path: object, shard: Any, *args: object, **kwargs: object) -> Any:
    """Replaces exo's build_transformer."""
    llama = importlib.import_module("exo.inference.tinygrad.models.llama")
    tinygrad = importlib.import_module("tinygrad")
    state = importlib.import_module("tinygrad.nn.state")
    model = llama.Transformer(
        dim=256,
        hidden_dim=512,
        n_heads=8,
        n_kv_heads=4,
        n_layers=LAYERS,
        norm_eps=1e-5,
        vocab_size=256,
        max_context=CONTEXT,
        jit=True,
        shard=shard,
    )
    weights = {}
    for name, tensor in state.get_state_dict(model).items():
        if name == "freqs_cis":
            continue
        random = np.random.default_rng(zlib.crc32(name.encode()))
        scale = 1.0 if "norm" in name or "tok_embeddings" in name else 1.5 / np.sqrt(tensor.shape[-1])
        values = np.ones(tensor.shape) if "norm" in name else random.normal(0, scale, tensor.shape)
        weights[name] = tinygrad.Tensor(values.astype(np.float32))
    state.load_state_dict(model, weights, strict=False, consume=False, verbose=False)
    return llama.TransformerShard(shard, model)


async def resolve_tokenizer(name: object) -> Tokenizer:
    """Replaces exo's function of the same name."""
    return Tokenizer()


def put_in() -> None:
    """Replaces the downloads of exo, in the modules that use them."""
    models = importlib.import_module("exo.models")
    models.model_cards[NAME] = {
        "layers": LAYERS,
        "repo": {"TinygradDynamicShardInferenceEngine": NAME},
    }
    engine: Any = importlib.import_module("exo.inference.tinygrad.inference")
    engine.build_transformer = build
    engine.resolve_tokenizer = resolve_tokenizer
    api: Any = importlib.import_module("exo.api.chatgpt_api")
    api.resolve_tokenizer = resolve_tokenizer
