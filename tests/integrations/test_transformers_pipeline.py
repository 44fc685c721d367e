"""A model split over two device processes, on one shared pool: the same tokens as in one process.

The owner allocates the keys and values of every layer (`SlabCache.lend`), and a hidden state for each step.
The devices write into that memory by reference, and acknowledge.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slabpool
from tests.integrations.transformer_models import make_config, make_model
from tests.process.devices import Device
from tests.waiting import until

torch = pytest.importorskip("torch", reason="needs torch: pip install 'slabpool[transformers]'")
transformers = pytest.importorskip(
    "transformers", minversion="5.23", reason="needs transformers 5.23: pip install 'slabpool[transformers]'"
)

from slabpool.transformers import LayerRefs, PeerCache, SlabCache  # noqa: E402

LAYERS, HALF, HIDDEN = 4, 2, 32
DEVICES = ("cpu0", "cpu1")

# ---- in the devices

_parts: dict[tuple[str, int], Any] = {}
_caches: dict[int, PeerCache] = {}


def _part(family: str, half: int) -> Any:
    """A model without the layers of the other half; the hidden state leaves the first half unnormalised."""
    if (family, half) not in _parts:
        torch.set_num_threads(1)
        model = make_model(family, num_hidden_layers=LAYERS)
        mine = slice(half * HALF, (half + 1) * HALF)
        model.model.layers = model.model.layers[mine]
        if getattr(model.config, "layer_types", None) is not None:
            model.model.config.layer_types = model.config.layer_types[mine]  # by index in `layers`
        if half == 0:
            model.model.norm = torch.nn.Identity()
        _parts[family, half] = model
    return _parts[family, half]


def load(peer: slabpool.Peer, family: str, half: int) -> int:
    """Loads the model; the device is then ready to run."""
    return len(_part(family, half).model.layers)


def step(
    peer: slabpool.Peer,
    number: int,
    family: str,
    half: int,
    room: list[LayerRefs],
    tokens: Any,
    hidden: slabpool.TensorRef,
) -> Any:
    """One half of a step of request `number`: from tokens to a hidden state, or from that to the next
    tokens."""
    model = _part(family, half)
    cache = _caches.get(number) or _caches.setdefault(number, PeerCache(peer, make_config(family)))
    cache.take(room)
    with torch.inference_mode():
        if half == 0:
            out = model.model(torch.from_numpy(tokens), past_key_values=cache).last_hidden_state
            peer.open(hidden, writable=True)[:] = out.numpy()
            answer = None
        else:
            given = torch.from_numpy(peer.open(hidden, writable=True))
            out = model.model(inputs_embeds=given, past_key_values=cache).last_hidden_state
            answer = model.lm_head(out[:, -1]).argmax(-1).numpy()
            del given
    del out
    peer.ack(hidden)
    return answer


def finish(peer: slabpool.Peer, number: int, request: slabpool.TensorRef) -> slabpool.Ack:
    """The device acknowledges request `number`."""
    _caches.pop(number, None)
    return peer.ack(request)


# ---- the owner


class Served:
    """A request that the two devices serve."""

    def __init__(self, pool: slabpool.Pool, crew: list[Device], number: int, family: str, ids: Any) -> None:
        self.crew, self.number, self.family, self.ids = crew, number, family, ids
        self.req = pool.request("chat-42", devices=DEVICES)
        self.cache = SlabCache(self.req, make_config(family, num_hidden_layers=LAYERS), limit=256)
        self.cache.early_initialization(len(ids), 2, 8, torch.float32, torch.device("cpu"))
        self.tokens, self.new = ids, ids

    def step(self) -> None:
        """One more token of each sequence."""
        count = self.new.shape[1]
        with self.req.child(DEVICES) as child:
            hidden = child.ref(child.empty((len(self.ids), count, HIDDEN), np.float32))
        for half, device in enumerate(self.crew):
            room = self.cache.lend(count, range(half * HALF, (half + 1) * HALF))
            tokens = self.new if half == 0 else None
            answer = device.ask(step, self.number, self.family, half, room, tokens, hidden)
        self.new = answer[:, None]
        self.tokens = np.concatenate([self.tokens, self.new], axis=1)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[slabpool.Pool, list[Device]]]:
    """A shared pool and its two devices, the same for all tests, because torch takes seconds to start."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(place))
        with slabpool.Pool("64MiB", memory="shared", name="pipeline") as pool:
            crew = [Device(pool.name, name, "spawn") for name in DEVICES]
            yield pool, crew
            for device in crew:
                if not device.pipe.closed:
                    device.stop()
        assert list(Path(place, "slabpool").iterdir()) == []


def _prompt(batch: int, length: int, seed: int) -> Any:
    torch.manual_seed(seed)
    return torch.randint(2, 96, (batch, length)).numpy()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_two_processes_give_the_tokens_of_one(ring: tuple[slabpool.Pool, list[Device]], family: str) -> None:
    pool, crew = ring
    for half, device in enumerate(crew):
        assert device.ask(load, family, half) == HALF
    whole = make_model(family, num_hidden_layers=LAYERS)
    prompts = [_prompt(1, 30, 1), _prompt(2, 5, 2)]
    served = [Served(pool, crew, number, family, ids) for number, ids in enumerate(prompts)]
    for _ in range(20):  # in turns, so that each device has both at the same time
        for one in served:
            one.step()
    for one, ids in zip(served, prompts, strict=True):
        given = torch.from_numpy(ids)
        expected = whole.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=20, do_sample=False
        )
        assert np.array_equal(one.tokens, expected.numpy())
        assert len(set(one.tokens[0, -20:].tolist())) > 3
        assert one.cache.get_seq_length() == ids.shape[1] + 19
        one.cache.close()
        one.req.close()
        live = pool.stats().live
        request = one.req.ref()
        assert live > 0
        assert crew[0].ask(finish, one.number, request) is slabpool.Ack.PENDING
        assert pool.stats().live == live
        assert crew[1].ask(finish, one.number, request) is slabpool.Ack.RELEASED
    assert pool.stats().live == 0


def test_errors_name_what_was_not_lent(ring: tuple[slabpool.Pool, list[Device]]) -> None:
    pool, crew = ring
    one = Served(pool, crew, 7, "llama", _prompt(1, 4, 5))
    none: list[LayerRefs] = []
    with one.req.child(DEVICES) as child:
        hidden = child.ref(child.empty((1, 4, HIDDEN), np.float32))
    with pytest.raises(slabpool.InvalidArgumentError, match="layer 0 was not lent"):
        crew[0].ask(step, 7, "llama", 0, none, one.ids, hidden)
    room = one.cache.lend(4, [0, 1])
    crew[0].ask(step, 7, "llama", 0, room, one.ids, hidden)
    long = _prompt(1, 300, 6)
    with one.req.child(DEVICES) as child:
        hidden = child.ref(child.empty((1, 300, HIDDEN), np.float32))
    with pytest.raises(slabpool.InvalidArgumentError, match=r"SlabCache\.lend .*, and PeerCache\.take"):
        crew[0].ask(step, 7, "llama", 0, none, long, hidden)
    with pytest.raises(slabpool.InvalidArgumentError, match="no layer 4"):
        one.cache.lend(1, [4])
    with pytest.raises(slabpool.InvalidArgumentError, match="count must be"):
        one.cache.lend(-1)
    with pytest.raises(slabpool.InvalidArgumentError, match="early_initialization"):
        SlabCache(one.req, make_config("llama")).lend(1)
    request = one.req.ref()
    one.cache.close()
    one.req.close()
    for device in crew:
        device.ask(finish, 7, request)
    assert pool.stats().live == 0
    with pytest.raises(slabpool.StaleReferenceError):
        crew[0].ask(step, 8, "llama", 0, room, one.ids, hidden)


def test_a_killed_device_releases_its_layers(ring: tuple[slabpool.Pool, list[Device]]) -> None:
    pool, crew = ring
    one = Served(pool, crew, 9, "llama", _prompt(1, 10, 8))
    one.step()
    crew[1].kill()
    until(lambda: one.req.pending == {"cpu0"})
    with pytest.raises(slabpool.UnknownDeviceError):
        one.step()
    request = one.req.ref()
    one.cache.close()
    one.req.close()
    assert pool.stats().live > 0
    assert crew[0].ask(finish, 9, request) is slabpool.Ack.RELEASED
    assert pool.stats().live == 0
