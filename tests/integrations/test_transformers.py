"""SlabCache compared with the library's own cache: the same model gives the same tokens in every mode."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import slabpool
from tests.integrations.transformer_models import FAMILIES, WINDOW, make_config, make_model
from tests.waiting import PATIENCE, once, until, waits

torch = pytest.importorskip("torch", reason="needs torch: pip install 'slabpool[transformers]'")
transformers = pytest.importorskip(
    "transformers", minversion="5.23", reason="needs transformers 5.23: pip install 'slabpool[transformers]'"
)

from slabpool.transformers import SlabCache  # noqa: E402
from tests.integrations import typed_transformers  # noqa: E402

NEW = 14  # generated tokens: with a prompt of 12 well over a window of 8; the buffer moves at 79
MODELS: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that threads slow them down
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pool() -> Iterator[slabpool.Pool]:
    """A pool that is empty and consistent at the end of each test."""
    with slabpool.Pool("32MiB") as pool:
        yield pool
        gc.collect()
        assert pool._verify() is None
        stats = pool.stats()
        assert (stats.live, stats.retained, stats.requests_open) == (0, 0, 0)


def model_of(family: str) -> Any:
    if family not in MODELS:
        MODELS[family] = make_model(family)
    return MODELS[family]


def prompt(batch: int = 1, length: int = 12, seed: int = 3, padded: bool = False) -> dict[str, Any]:
    """Random tokens; with `padded`, padding of different lengths on the left."""
    torch.manual_seed(seed)
    ids = torch.randint(2, 96, (batch, length))
    mask = torch.ones_like(ids)
    if padded:
        for row in range(batch):
            ids[row, : 3 * row] = 0
            mask[row, : 3 * row] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    torch.manual_seed(5)
    return model.generate(**inputs, **options)


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 1.4, "top_k": 40},
    "beams": {"num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_in_a_padded_batch(pool: slabpool.Pool, family: str, way: str) -> None:
    model, inputs = model_of(family), prompt(3, padded=True)
    expected = generate(model, inputs, **WAYS[way])
    assert len(set(expected[0, 12:].tolist())) > 3  # otherwise equal tokens would prove little
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=64)
        assert torch.equal(generate(model, inputs, past_key_values=cache, **WAYS[way]), expected)
        assert pool.stats().live == cache.nbytes > 0


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_window_moves_through_bounded_memory(pool: slabpool.Pool, family: str) -> None:
    model, inputs = model_of(family), prompt(2)
    new = 3 * (WINDOW - 1 + 64)  # the buffer becomes full and starts again three times
    expected = generate(model, inputs, max_new_tokens=new, min_new_tokens=new)
    sliding = sum(layer.is_sliding for layer in transformers.DynamicCache(config=model.config).layers)
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=512)
        assert torch.equal(
            generate(model, inputs, max_new_tokens=new, min_new_tokens=new, past_key_values=cache), expected
        )
        row = 2 * 2 * 8 * 4  # bytes: batch, heads, dim, float32
        full = 2 * (len(model.config.layer_types) - sliding if family == "gemma3" else 0)
        pages = 16 << 10
        bound = 2 * sliding * -(-(WINDOW - 1 + 64) * row // pages) * pages
        bound += full * -(-(12 + new) * row // pages) * pages * 9 // 8 + full * pages
        assert cache.nbytes <= bound
        assert cache.get_seq_length() == 12 + new - 1


@pytest.mark.parametrize("length", [3, WINDOW - 1, WINDOW, 100])
@pytest.mark.parametrize("steps", [1, 5, 80])
def test_a_sliding_layer_equals_the_librarys(pool: slabpool.Pool, length: int, steps: int) -> None:
    """Updates of any length: shorter than the window, as long as the buffer, longer than both."""
    config = make_config("mistral", num_hidden_layers=1)
    with pool.request("chat") as req:
        ours = SlabCache(req, config, limit=64)
        theirs = transformers.DynamicCache(config=config)
        torch.manual_seed(0)
        for count in (length, 1, steps, 1, 2, steps, 75, 1, 30, 30, 30):
            keys, values = torch.randn(2, 1, 2, count, 8)
            assert ours.get_mask_sizes(count, 0) == theirs.get_mask_sizes(count, 0)
            for mine, other in zip(ours.update(keys, values, 0), theirs.update(keys, values, 0), strict=True):
                assert torch.equal(mine, other)
            assert torch.equal(ours.layers[0].keys, theirs.layers[0].keys)
            assert ours.get_seq_length() == theirs.get_seq_length()
        ours.close()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_prompt_is_reused(pool: slabpool.Pool, family: str) -> None:
    model, inputs = model_of(family), prompt(1, 6)
    first = generate(model, inputs, max_new_tokens=3, min_new_tokens=3)
    longer = {"input_ids": torch.cat([first, prompt(1, 4, seed=9)["input_ids"]], dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    expected = generate(model, longer)
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=64)
        assert torch.equal(
            generate(model, inputs, max_new_tokens=3, min_new_tokens=3, past_key_values=cache), first
        )
        twin = copy.deepcopy(cache)
        assert twin.get_seq_length() == cache.get_seq_length() == 8
        # The conversation continues twice from the same place.
        for one in (cache, twin):
            assert torch.equal(generate(model, longer, past_key_values=one), expected)
        assert twin.nbytes > 0
        twin.close()
        cache.close()
        assert pool.stats().live == 0


def test_crop_goes_back(pool: slabpool.Pool) -> None:
    model, inputs = model_of("llama"), prompt(1, 8)
    expected = generate(model, inputs)
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=64)
        generate(model, {k: torch.cat([v, v], 1) for k, v in inputs.items()}, past_key_values=cache)
        cache.crop(8 - 1 - cache.get_seq_length())  # all but the last token of the prompt
        assert cache.get_seq_length() == 7
        assert torch.equal(generate(model, inputs, past_key_values=cache), expected)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_assisted_decoding(pool: slabpool.Pool, family: str) -> None:
    """The cache goes back after each wrong guess, also in a window, where rows that left it are needed
    again."""
    model, inputs = model_of(family), prompt(1, 6)
    inputs = {k: v.repeat(1, 5) for k, v in inputs.items()}
    expected = generate(model, inputs)
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=128)
        guessed = generate(model, inputs, prompt_lookup_num_tokens=3, past_key_values=cache)
        assert torch.equal(guessed, expected)


def test_after_reset_another_batch_size_works(pool: slabpool.Pool) -> None:
    model = model_of("gemma2")
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=64)
        for batch in (2, 2, 1, 3):
            inputs = prompt(batch, seed=batch)
            expected = generate(model, inputs)
            assert torch.equal(generate(model, inputs, past_key_values=cache), expected)
            gc.collect()
            assert pool.stats().live == cache.nbytes  # no memory of the other batch is left
            cache.reset()
            assert cache.get_seq_length() == 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_batches_are_repeated_selected_and_reordered(pool: slabpool.Pool, family: str) -> None:
    config = model_of(family).config
    changes: list[Callable[[Any], None]] = [
        lambda cache: cache.batch_repeat_interleave(3),
        lambda cache: cache.reorder_cache(torch.tensor([5, 0, 0, 3, 2, 1])),
        lambda cache: cache.batch_select_indices(torch.tensor([0, 4])),
        lambda cache: cache.reorder_cache(torch.tensor([0, 1])),
    ]
    with pool.request("chat") as req:
        ours, theirs = SlabCache(req, config, limit=64), transformers.DynamicCache(config=config)
        batch = 2
        for change in (None, *changes):
            if change is not None:
                change(ours)
                change(theirs)
                batch = theirs.layers[0].keys.shape[0]
            for index in range(len(theirs.layers)):
                keys, values = torch.randn(2, batch, 2, 7, 8)
                given, wanted = ours.update(keys, values, index), theirs.update(keys, values, index)
                assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))
                assert torch.equal(ours.layers[index].values, theirs.layers[index].values)
            del given, wanted
        gc.collect()
        assert pool.stats().live == ours.nbytes  # the memory of six sequences has returned
        ours.close()


def test_bfloat16(pool: slabpool.Pool) -> None:
    model = make_model("llama").to(torch.bfloat16)
    inputs = prompt(2, padded=True)
    expected = generate(model, inputs)
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=64)
        assert torch.equal(generate(model, inputs, past_key_values=cache), expected)
        assert cache.layers[0].keys.dtype is torch.bfloat16


def test_it_continues_after_inference_mode(pool: slabpool.Pool) -> None:
    """inference_mode marks the tensors made in it as read-only outside of it."""
    model, inputs = model_of("gemma2"), prompt()
    expected = generate(model, inputs)
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=64)
        with torch.inference_mode():
            model(inputs["input_ids"][:, :5], past_key_values=cache)
        assert torch.equal(generate(model, inputs, past_key_values=cache), expected)


def test_eager_attention_too(pool: slabpool.Pool) -> None:
    model = make_model("qwen3", attn_implementation="eager")
    inputs = prompt(2, padded=True)
    expected = generate(model, inputs)
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=64)
        assert torch.equal(generate(model, inputs, past_key_values=cache), expected)


def test_nothing_is_copied_when_it_grows(pool: slabpool.Pool) -> None:
    config = make_config("llama", num_hidden_layers=1)
    with pool.request("chat") as req:
        cache = SlabCache(req, config)
        old, _ = cache.update(torch.ones(2, 2, 5, 8), torch.ones(2, 2, 5, 8), 0)
        for step in range(500):
            new, _ = cache.update(torch.full((2, 2, 1, 8), 2.0), torch.ones(2, 2, 1, 8), 0)
            assert new.data_ptr() == old.data_ptr()
            assert new.shape == (2, 2, 6 + step, 8)
        assert (old == 1).all()
        assert (new[:, :, 5:] == 2).all()
        cache.close()


# ---- holders


def test_memory_comes_back_with_the_last_ack(pool: slabpool.Pool) -> None:
    model, inputs = model_of("gemma2"), prompt()
    req = pool.request("chat", devices=["gpu0", "gpu1"])
    cache = SlabCache(req, model.config, limit=64)
    generate(model, inputs, past_key_values=cache)
    taken = cache.nbytes
    cache.close()
    req.close()
    assert pool.stats().live == taken
    assert req.ack("gpu0") is slabpool.Ack.PENDING
    assert pool.stats().live == taken
    assert req.ack("gpu1") is slabpool.Ack.RELEASED
    assert pool.stats().live == 0


def test_memory_of_a_dropped_cache_comes_back_before_the_requests_end(pool: slabpool.Pool) -> None:
    model = model_of("llama")
    with pool.request("chat") as req:
        for _ in range(3):
            generate(model, prompt(), past_key_values=SlabCache(req, model.config, limit=64))
            gc.collect()
            assert pool.stats().live == 0
        scores = generate(
            model, prompt(), past_key_values=SlabCache(req, model.config), return_dict_in_generate=True
        )
        assert pool.stats().live > 0  # the result keeps it
        del scores


def test_a_live_tensor_keeps_its_memory(pool: slabpool.Pool) -> None:
    config = make_config("llama", num_hidden_layers=1)
    with pool.request("chat") as req:
        cache = SlabCache(req, config, limit=64)
        keys, _ = cache.update(torch.full((1, 2, 3, 8), 7.0), torch.ones(1, 2, 3, 8), 0)
        cache.close()
        assert cache.closed
        del _
    assert pool.stats().live == 0
    assert pool.stats().retained > 0
    assert (keys == 7).all()
    del keys
    assert pool.stats().retained == 0


def test_closing_the_request_while_it_generates(pool: slabpool.Pool) -> None:
    model, inputs = model_of("llama"), prompt()
    reached, closed = threading.Event(), threading.Event()

    def criterion(ids: Any, scores: Any, **more: Any) -> Any:
        if ids.shape[1] == 15:
            reached.set()
            assert closed.wait(PATIENCE)
        return torch.zeros(len(ids), dtype=torch.bool)

    req = pool.request("chat", devices=["gpu0"])
    cache = SlabCache(req, model.config, limit=64)

    def close() -> None:
        assert reached.wait(PATIENCE)
        req.close()
        closed.set()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(slabpool.RequestClosedError, match=r"'chat' generation .* keep the request open"):
        generate(
            model,
            inputs,
            past_key_values=cache,
            stopping_criteria=transformers.StoppingCriteriaList([criterion]),
        )
    closer.join()
    assert cache.get_seq_length() == 14  # every layer is at the same position
    assert {layer.get_seq_length() for layer in cache.layers} == {14}
    cache.close()
    assert req.ack("gpu0") is slabpool.Ack.RELEASED


def test_a_silent_device_does_not_stop_it(pool: slabpool.Pool) -> None:
    model = model_of("llama")
    req = pool.request("chat", devices=["gpu0"], lease=0.01)
    until(lambda: req.state is slabpool.RequestState.IN_DOUBT)
    cache = SlabCache(req, model.config, limit=64)
    assert torch.equal(generate(model, prompt(), past_key_values=cache), generate(model, prompt()))
    cache.close()
    req.close()
    req.ack("gpu0")


# ---- running out


def test_a_step_that_runs_out_changes_no_layer_and_can_be_repeated(pool: slabpool.Pool) -> None:
    config = make_config("llama", num_hidden_layers=4)
    with pool.request("chat") as req:
        cache = SlabCache(req, config, limit=20_000)

        def step(count: int) -> None:
            for index in range(4):
                keys = torch.full((1, 2, count, 8), float(index))
                cache.update(keys, keys, index)

        step(1000)
        free = pool.capacity - pool.stats().live
        hog = pool.empty(free - (1 << 20), "u1")  # leaves enough for two of the layers
        with pytest.raises(slabpool.PoolExhausted):
            step(4000)
        assert {layer.get_seq_length() for layer in cache.layers} == {1000}
        assert all((layer.keys == index).all() for index, layer in enumerate(cache.layers))
        del hog
        step(4000)
        assert {layer.get_seq_length() for layer in cache.layers} == {5000}
        assert all((layer.values == index).all() for index, layer in enumerate(cache.layers))
        cache.close()


def test_a_prompt_that_does_not_fit_leaves_an_empty_cache(pool: slabpool.Pool) -> None:
    model = model_of("llama")
    with pool.request("chat", quota="160KiB") as req:
        cache = SlabCache(req, model.config, limit=512)
        with pytest.raises(slabpool.QuotaExceededError):
            generate(model, prompt(4, 100), past_key_values=cache)
        assert {layer.get_seq_length() for layer in cache.layers} == {0}
        cache.reset()
        assert torch.equal(generate(model, prompt(), past_key_values=cache), generate(model, prompt()))


def test_a_cache_waits_for_memory_if_asked_to(pool: slabpool.Pool) -> None:
    config = make_config("llama", num_hidden_layers=1)
    hog = [pool.empty(pool.capacity - (64 << 10), "u1")]
    with pool.request("chat") as req:
        cache = SlabCache(req, config, limit=20_000, timeout=2 * PATIENCE)
        giver = once(waits(threading.get_ident()), hog.clear)
        cache.update(torch.ones(1, 2, 8000, 8), torch.ones(1, 2, 8000, 8), 0)
        giver.join()
        assert cache.get_seq_length() == 8000
        cache.close()


def test_growing_beyond_the_limit_is_refused(pool: slabpool.Pool) -> None:
    model = model_of("llama")
    with pool.request("chat") as req:
        cache = SlabCache(req, model.config, limit=20)
        with pytest.raises(slabpool.TensorTooLargeError, match="at most 20 along axis 2"):
            generate(model, prompt(), past_key_values=cache)
        assert {layer.get_seq_length() for layer in cache.layers} == {20}
        assert cache.limit == 20
        assert SlabCache(req, model.config).limit == model.config.max_position_embeddings


# ---- refusals


def test_the_typed_sample_runs(pool: slabpool.Pool) -> None:
    with pool.request("chat") as req:
        assert typed_transformers.use_cache(req, make_config("llama")) == []


def test_bad_arguments_are_refused(pool: slabpool.Pool) -> None:
    config = make_config("llama", num_hidden_layers=1)
    row = torch.ones(2, 2, 1, 8)
    with pool.request("chat") as req:
        with pytest.raises(slabpool.InvalidTypeError, match="needs a Request, got Pool"):
            SlabCache(pool, config)  # type: ignore[arg-type]
        with pytest.raises(slabpool.InvalidTypeError, match="must be the model's"):
            SlabCache(req, {})
        for limit in (0, -1):
            with pytest.raises(slabpool.InvalidArgumentError, match="limit must be 1 or more"):
                SlabCache(req, config, limit=limit)
        with pytest.raises(slabpool.InvalidTypeError, match="limit must be a number"):
            SlabCache(req, config, limit=2.5)  # type: ignore[arg-type]
        cache = SlabCache(req, config, limit=64)
        cache.update(row, row, 0)
        for keys in (row[:1], row[:, :1], row[..., :1], row.double()):
            with pytest.raises(slabpool.InvalidArgumentError, match="serves one batch"):
                cache.update(keys, keys, 0)
        with pytest.raises(slabpool.InvalidTypeError, match="inference_mode"):
            cache.update(row.clone().requires_grad_(), row, 0)
        with pytest.raises(slabpool.InvalidTypeError, match="in host memory"):
            SlabCache(req, config).update(row.to("meta"), row.to("meta"), 0)
        assert cache.get_seq_length() == 1
        with pytest.raises(slabpool.InvalidTypeError, match="deepcopy"):
            copy.copy(cache)
        with pytest.raises(slabpool.InvalidTypeError, match="pickled"):
            pickle.dumps(cache)
        assert "1 of 64 positions" in repr(cache)
        cache.close()
        cache.close()
        assert "closed" in repr(cache)
        with pytest.raises(slabpool.RequestClosedError, match="make another one"):
            cache.update(row, row, 0)
        hybrid = transformers.Qwen3NextConfig(num_hidden_layers=4)
        with pytest.raises(slabpool.InvalidTypeError, match="use DynamicCache"):
            SlabCache(req, hybrid)
    with pytest.raises(slabpool.RequestClosedError):
        SlabCache(req, config)


def test_a_refused_copy_leaves_no_memory(pool: slabpool.Pool) -> None:
    config = make_config("llama", num_hidden_layers=2)
    with pool.request("chat", quota="1MiB") as req:
        cache = SlabCache(req, config, limit=20_000)
        for index in range(2):
            cache.update(torch.ones(1, 2, 3000, 8), torch.ones(1, 2, 3000, 8), index)
        before = pool.stats().live
        with pytest.raises(slabpool.QuotaExceededError):
            copy.deepcopy(cache)
        with pytest.raises(slabpool.QuotaExceededError):
            cache.batch_repeat_interleave(3)
        gc.collect()
        assert pool.stats().live == before
        assert cache.get_seq_length() == 3000
        assert cache.layers[1].keys.shape == (1, 2, 3000, 8)
        cache.close()
