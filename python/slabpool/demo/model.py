"""A small Llama-shaped decoder in numpy float32, with random weights from a seed.

It has RMSNorm, rotary positions, grouped-query attention, SwiGLU and greedy decoding. The decoder owns only
its weights; the caller passes the key and value caches. The ring and the reference run the same operations on
the same shapes in the same order, so their tokens can be compared exactly. The matrices are small enough that
BLAS libraries do not split them over threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

F32: TypeAlias = npt.NDArray[np.float32]
#: Keys and values of one layer, each ``(kv_heads, length, head_dim)``.
KvPair: TypeAlias = tuple[F32, F32]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of the decoder, named as in published Llama configurations."""

    layers: int = 6
    dim: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    ffn_dim: int = 80
    vocab: int = 257
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: F32  # (dim,)
    qkv: F32  # (dim, (heads + 2 * kv_heads) * head_dim)
    out: F32  # (heads * head_dim, dim)
    ffn_norm: F32  # (dim,)
    gate_up: F32  # (dim, 2 * ffn_dim)
    down: F32  # (ffn_dim, dim)


class Decoder:
    """The weights, and the parts of a forward pass: embed, run a range of layers, choose the next token.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        Seed of the random weights.

    Examples
    --------
    >>> import numpy as np
    >>> from slabpool.demo.model import Decoder, ModelConfig
    >>> model = Decoder(ModelConfig(), seed=0)
    >>> caches = [(np.empty(model.kv_shape(8), np.float32), np.empty(model.kv_shape(8), np.float32))
    ...           for _ in range(model.config.layers)]
    >>> hidden = model.run_layers(model.embed([256, 72, 105]), 0, caches, start=0)
    >>> hidden.shape, 0 <= model.next_token(hidden) < 257
    ((3, 32), True)
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config = config
        rng = np.random.default_rng(seed)

        def matrix(rows: int, columns: int, gain: float = 1.0) -> F32:
            values: F32 = rng.standard_normal((rows, columns), dtype=np.float32)
            values *= np.float32(gain / np.sqrt(rows))
            return values

        def norm() -> F32:
            values: F32 = rng.standard_normal(config.dim, dtype=np.float32)
            values *= np.float32(0.1)
            values += 1
            return values

        c = config
        self._embedding = rng.standard_normal((c.vocab, c.dim), dtype=np.float32)
        self._layers = [
            _Layer(
                attention_norm=norm(),
                # Twice the usual gain sharpens attention, so that a wrong cache gives wrong tokens.
                qkv=matrix(c.dim, (c.heads + 2 * c.kv_heads) * c.head_dim, gain=2.0),
                out=matrix(c.heads * c.head_dim, c.dim),
                ffn_norm=norm(),
                gate_up=matrix(c.dim, 2 * c.ffn_dim),
                down=matrix(c.ffn_dim, c.dim),
            )
            for _ in range(c.layers)
        ]
        self._final_norm = norm()
        self._head = matrix(c.dim, c.vocab)
        half = c.head_dim // 2
        self._frequencies = c.rope_base ** (-np.arange(half, dtype=np.float64) / half)
        self._scale = np.float32(1 / np.sqrt(c.head_dim))
        self._eps = np.float32(c.norm_eps)

    def kv_shape(self, length: int) -> tuple[int, int, int]:
        """Return the shape of one layer's keys, and of its values, for `length` tokens."""
        return (self.config.kv_heads, length, self.config.head_dim)

    def embed(self, tokens: Sequence[int]) -> F32:
        """Return the input of the first layer, of shape ``(len(tokens), dim)``."""
        return self._embedding[list(tokens)]

    def run_layers(self, hidden: F32, first: int, caches: Sequence[KvPair], start: int) -> F32:
        """Run ``len(caches)`` layers.

        Parameters
        ----------
        hidden : ndarray of float32, shape (n, dim)
            Not modified.
        first : int
            Index of the first layer.
        caches : sequence of pairs of ndarray
            Keys and values of each layer. Positions ``start`` to ``start + n`` are written, earlier ones are
            read.
        start : int
            Position of the first row of `hidden` in its sequence.

        Returns
        -------
        ndarray of float32, shape (n, dim)
            New memory, not shared with `hidden` or `caches`.
        """
        n = hidden.shape[0]
        angles = np.arange(start, start + n, dtype=np.float64)[:, None] * self._frequencies
        cos = np.cos(angles).astype(np.float32)[:, None, :]
        sin = np.sin(angles).astype(np.float32)[:, None, :]
        mask = _causal_mask(n, start) if n > 1 else None
        for layer, cache in zip(self._layers[first : first + len(caches)], caches, strict=True):
            hidden = hidden + self._attention(layer, hidden, cache, start, cos, sin, mask)
            hidden = hidden + self._feed_forward(layer, hidden)
        return hidden

    def next_token(self, hidden: F32) -> int:
        """Return the most likely token after the last row of `hidden`, the output of the last layer."""
        logits = self._rms_norm(hidden[-1:], self._final_norm) @ self._head
        return int(np.argmax(logits))

    def _attention(
        self,
        layer: _Layer,
        hidden: F32,
        cache: KvPair,
        start: int,
        cos: F32,
        sin: F32,
        mask: F32 | None,
    ) -> F32:
        c = self.config
        n, end = hidden.shape[0], start + hidden.shape[0]
        group = c.heads // c.kv_heads
        qkv = self._rms_norm(hidden, layer.attention_norm) @ layer.qkv
        qkv = qkv.reshape(n, c.heads + 2 * c.kv_heads, c.head_dim)
        # One call rotates queries and keys.
        rotated = _rotate(qkv[:, : c.heads + c.kv_heads], cos, sin)
        keys, values = cache
        keys[:, start:end] = rotated[:, c.heads :].transpose(1, 0, 2)
        values[:, start:end] = qkv[:, c.heads + c.kv_heads :].transpose(1, 0, 2)

        # (n, heads, d) -> (kv_heads, group * n, d): the heads that share keys become rows of one product.
        by_group = rotated[:, : c.heads].reshape(n, c.kv_heads, group, c.head_dim).transpose(1, 2, 0, 3)
        queries = by_group.reshape(c.kv_heads, group * n, c.head_dim)
        scores = np.matmul(queries, keys[:, :end].transpose(0, 2, 1))
        scores *= self._scale
        if mask is not None:
            per_head = scores.reshape(c.kv_heads, group, n, end)
            per_head += mask
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.matmul(scores, values[:, :end]).reshape(c.kv_heads, group, n, c.head_dim)
        result: F32 = mixed.transpose(2, 0, 1, 3).reshape(n, c.heads * c.head_dim) @ layer.out
        return result

    def _feed_forward(self, layer: _Layer, hidden: F32) -> F32:
        both = self._rms_norm(hidden, layer.ffn_norm) @ layer.gate_up
        gate, up = both[:, : self.config.ffn_dim], both[:, self.config.ffn_dim :]
        result: F32 = (gate / (1 + np.exp(-gate)) * up) @ layer.down
        return result

    def _rms_norm(self, hidden: F32, weight: F32) -> F32:
        mean_square = np.mean(hidden * hidden, axis=-1, keepdims=True)
        result: F32 = hidden / np.sqrt(mean_square + self._eps) * weight
        return result


def split_layers(layers: int, devices: int) -> list[range]:
    """Split layers into contiguous ranges, one for each device; the first ranges get the remainder.

    Raises
    ------
    ValueError
        `devices` is not from 1 to `layers`.

    Examples
    --------
    >>> from slabpool.demo.model import split_layers
    >>> split_layers(6, 4)
    [range(0, 2), range(2, 4), range(4, 5), range(5, 6)]
    """
    if not 1 <= devices <= layers:
        raise ValueError(f"{layers} layers need from 1 to {layers} devices, got {devices}")
    base, extra = divmod(layers, devices)
    ranges = []
    first = 0
    for device in range(devices):
        last = first + base + (device < extra)
        ranges.append(range(first, last))
        first = last
    return ranges


def _causal_mask(n: int, start: int) -> F32:
    """Return the mask ``(n, start + n)``: minus infinity for positions after the row's own, else 0."""
    columns = np.arange(start + n)
    rows = np.arange(start, start + n)
    mask: F32 = np.where(columns[None, :] > rows[:, None], np.float32(-np.inf), np.float32(0))
    return mask


def _rotate(heads: F32, cos: F32, sin: F32) -> F32:
    """Apply rotary positions to ``(n, heads, head_dim)``; a head's halves are the axes of the rotation."""
    half = heads.shape[-1] // 2
    left, right = heads[..., :half], heads[..., half:]
    rotated = np.empty_like(heads)
    rotated[..., :half] = left * cos - right * sin
    rotated[..., half:] = right * cos + left * sin
    return rotated
