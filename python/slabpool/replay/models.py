"""Bytes of KV cache for each token, for a few published models.

Every figure is computed from the model's published ``config.json`` (named in ``source``) and bf16 elements;
nothing is measured. For other models, give the bytes per token on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from slabpool.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers in a model's configuration that decide the size of its KV cache.

    Attributes
    ----------
    layers : int
        ``num_hidden_layers``.
    kv_heads, head_dim : int
        ``num_key_value_heads`` and ``head_dim`` (or ``hidden_size / num_attention_heads``).
    latent : int
        For multi-head latent attention: elements for each token and layer, instead of keys and values
        (``kv_lora_rank + qk_rope_head_dim``). Otherwise 0.
    source : str
        The ``config.json`` with these figures.
    element_bytes : int
        Bytes of one element (2: bf16, as published).
    """

    layers: int
    kv_heads: int
    head_dim: int
    source: str
    latent: int = 0
    element_bytes: int = 2

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token, over all layers.

        ``2 * layers * kv_heads * head_dim * element_bytes``; with latent attention
        ``layers * latent * element_bytes`` (DeepSeek-V2, arXiv 2405.04434, section 2.1.4).

        Examples
        --------
        >>> from slabpool.replay.models import MODELS
        >>> MODELS["llama-3.1-8b"].bytes_per_token
        131072
        """
        elements = self.latent or 2 * self.kv_heads * self.head_dim
        return self.layers * elements * self.element_bytes


#: Shapes by name; ``--model`` accepts these names.
MODELS: dict[str, ModelShape] = {
    "qwen2.5-0.5b": ModelShape(24, 2, 64, "Qwen/Qwen2.5-0.5B config.json (hidden 896, 14 heads)"),
    "llama-3.2-1b": ModelShape(16, 8, 64, "meta-llama/Llama-3.2-1B config.json"),
    "qwen2.5-7b": ModelShape(28, 4, 128, "Qwen/Qwen2.5-7B config.json (hidden 3584, 28 heads)"),
    "mistral-7b": ModelShape(32, 8, 128, "mistralai/Mistral-7B-v0.3 config.json (hidden 4096, 32 heads)"),
    "llama-3.1-8b": ModelShape(32, 8, 128, "meta-llama/Llama-3.1-8B config.json (hidden 4096, 32 heads)"),
    "qwen3-8b": ModelShape(36, 8, 128, "Qwen/Qwen3-8B config.json"),
    "llama-2-7b": ModelShape(32, 32, 128, "meta-llama/Llama-2-7b-hf config.json (hidden 4096, 32 heads)"),
    "llama-3.1-70b": ModelShape(80, 8, 128, "meta-llama/Llama-3.1-70B config.json (hidden 8192, 64 heads)"),
    "deepseek-v3": ModelShape(
        61, 0, 0, "deepseek-ai/DeepSeek-V3 config.json (kv_lora_rank 512, qk_rope_head_dim 64)", latent=576
    ),
}


def model_shape(name: str) -> ModelShape:
    """Look up a model in `MODELS`; the case of `name` does not matter.

    Raises
    ------
    InvalidArgumentError
        There is no such model. The message lists the known ones.

    Examples
    --------
    >>> from slabpool.replay.models import model_shape
    >>> model_shape("Qwen2.5-7B").kv_heads
    4
    """
    try:
        return MODELS[name.lower()]
    except KeyError:
        raise InvalidArgumentError(
            f"no model {name!r}; known models: {', '.join(MODELS)}. For another model give --bytes-per-token"
        ) from None
