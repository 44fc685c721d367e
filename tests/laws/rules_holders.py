"""Rules by which holders leave and join: acks of every kind, right and wrong, and the ends of requests.

The model says what each call must answer. Wrong calls must raise that error and change nothing.
"""

from __future__ import annotations

import warnings

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import precondition, rule

import slabpool
from slabpool import Ack
from tests.laws.machine import DEVICE, DEVICES, IDS, MOSTLY, PICK, Machine
from tests.laws.model import RequestModel


class HolderRules(Machine):
    """Acknowledges, loses and adds devices, closes, cancels and drops."""

    def _pending(self, pick: int, device: int) -> tuple[RequestModel, str | int] | None:
        """A request that is not over, and a device that it waits for."""
        some = [r for r in self.model.live_requests if r.pending]
        if not some:
            return None
        request = some[pick % len(some)]
        pending = sorted(request.pending, key=repr)
        return request, pending[device % len(pending)]

    @rule(pick=PICK, device=PICK)
    def ack_one_that_waits(self, pick: int, device: int) -> None:
        if (found := self._pending(pick, device)) is not None and found[0].handle is not None:
            self._compare_ack(*found, found[0].handle.ack, found[1])

    @rule(pick=PICK, device=PICK, generation=st.booleans())
    def ack_one_that_waits_by_id(self, pick: int, device: int, generation: bool) -> None:
        if (found := self._pending(pick, device)) is None:
            return
        if generation:
            self._compare_ack(*found, self.pool.ack, found[0].id, found[1], generation=found[0].generation)
        else:
            self._ack_by_id(found[0].id, found[1])

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, device=PICK)
    def ack_again(self, pick: int, device: int) -> None:
        some = [r for r in self.model.requests if r.handle is not None and r.named - r.pending]
        if some:
            request = some[pick % len(some)]
            acked = sorted(request.named - request.pending, key=repr)
            assert request.handle is not None
            self._compare_ack(request, again := acked[device % len(acked)], request.handle.ack, again)

    @precondition(lambda self: self.model.live_requests)
    @rule(pick=PICK, close_last=st.booleans())
    def serve_to_the_end(self, pick: int, close_last: bool) -> None:
        if (request := self._request(pick, alive=True)) is None or (handle := request.handle) is None:
            return
        steps = [(handle.ack, device) for device in sorted(request.pending, key=repr)]
        for call, device in steps[:-1] if close_last else []:
            self._compare_ack(request, device, call, device)
        handle.close()
        self.model.host_leaves(request, False)
        for call, device in steps[-1:] if close_last else steps:
            self._compare_ack(request, device, call, device)
        assert request.over and handle.wait(0)

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, device=st.sampled_from([*DEVICES, "unnamed"]), alive=st.booleans(), remove=st.booleans())
    def ack_any(self, pick: int, device: str | int, alive: bool, remove: bool) -> None:
        if (request := self._request(pick, alive)) is None or request.handle is None:
            return
        self._compare_ack(
            request, device, request.handle.remove_device if remove else request.handle.ack, device
        )

    def _compare_ack(
        self, request: RequestModel, device: str | int, call: object, *args: object, **kw: object
    ) -> None:
        assert callable(call)
        expected = self.model.ack(request, device)
        if expected is None:
            with pytest.raises(slabpool.UnknownDeviceError):
                call(*args, **kw)
        else:
            assert call(*args, **kw) is expected

    @rule(id=IDS, device=st.sampled_from([*DEVICES, "unnamed"]))
    def ack_any_by_id(self, id: str | int | bytes, device: str | int) -> None:
        self._ack_by_id(id, device)

    def _ack_by_id(self, id: str | int | bytes, device: str | int) -> None:
        live, waiting = self.model.waiting(id, device)
        if device not in self.model.known_devices:
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.ack(id, device)
        elif len(waiting) > 1:
            with pytest.raises(slabpool.AmbiguousRequestError):
                self.pool.ack(id, device)
        elif waiting:
            self._compare_ack(waiting[0], device, self.pool.ack, id, device)
        elif live and not any(device in r.named for r in live):
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.ack(id, device)
        else:
            assert self.pool.ack(id, device) is Ack.LATE
            self.model.lates += 1

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, device=DEVICE, alive=st.booleans(), id=st.one_of(st.none(), IDS))
    def ack_any_by_generation(
        self, pick: int, device: str | int, alive: bool, id: str | int | bytes | None
    ) -> None:
        living = self.model.live_requests
        some = living if alive and living else self.model.requests
        request = some[pick % len(some)]
        id = request.id if id is None else id
        if device not in self.model.known_devices:
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.ack(id, device, generation=request.generation)
        elif request.over or request.kept_as is not None or (id, type(id)) != (request.id, type(request.id)):
            assert self.pool.ack(id, device, generation=request.generation) is Ack.LATE
            self.model.lates += 1
        else:
            self._compare_ack(request, device, self.pool.ack, id, device, generation=request.generation)

    @rule(device=st.sampled_from([*DEVICES, "unnamed"]))
    def device_lost(self, device: str | int) -> None:
        if device not in self.model.known_devices:
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.device_lost(device)
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.heartbeat(device)
        else:
            reserves = [r for r in self.model.live_requests if r.reserve > 0 and device in r.pending]
            if len(reserves) > 1:
                return  # the model could not know which blocks returned to which reserve
            self.pool.heartbeat(device)  # has no effect, because the leases are so short
            assert self.pool.device_lost(device) == self.model.device_lost(device)

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, device=DEVICE, alive=MOSTLY)
    def add_device(self, pick: int, device: str | int, alive: bool) -> None:
        if (request := self._request(pick, alive, host=True)) is None or request.handle is None:
            return
        if request.parent is None:  # a child names only devices of its parent
            self.model.known_devices.add(device)
        try:
            request.handle.add_device(device)
        except slabpool.RequestClosedError:
            assert not request.host
        except slabpool.DuplicateDeviceError:
            assert device in request.pending
        except slabpool.UnknownDeviceError:
            assert request.parent is not None and device not in request.parent.pending
        else:
            assert request.host and device not in request.pending
            assert request.parent is None or device in request.parent.pending, (
                "a holder that its parent lacks"
            )
            request.pending.add(device)
            request.named.add(device)

    @precondition(lambda self: self.model.live_requests)
    @rule(pick=PICK, cancel=st.booleans(), alive=MOSTLY)
    def close_request(self, pick: int, cancel: bool, alive: bool) -> None:
        if (request := self._request(pick, alive, host=True)) is None or request.handle is None:
            return
        if cancel:
            request.gave_up = request.gave_up or request.host
            request.handle.cancel()
        else:
            request.handle.close()
        self.model.host_leaves(request, cancel)
        assert request.handle.wait(0) is request.over

    @precondition(lambda self: self.model.live_requests)
    @rule(pick=PICK)
    def drop_handle(self, pick: int) -> None:
        if (request := self._request(pick, alive=True)) is None:
            return
        if any(view.growing is not None and view.grower is request for view in self.views):
            return  # a tensor that may still grow keeps the handle alive
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            request.handle = None
        assert [w.category for w in caught] == [ResourceWarning] * request.host
        self.model.host_leaves(request, False)
