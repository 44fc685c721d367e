"""Rules by which sessions keep what requests made: turns, names, budgets, and refused keeps.

What is kept bears the stamp of its array. After every call that asks for memory, the model learns from the
pool which sessions were evicted.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import precondition, rule

import slabpool
from tests.laws.machine import DEVICES_OF_ONE, PICK, Machine
from tests.laws.model import KeptModel, RequestModel, SessionModel, TensorsModel, View, flat, stamped

NAMES = st.sampled_from(["kv", "kv", "hidden"])


class SessionRules(Machine):
    """Opens sessions and turns, keeps, reads, drops and closes."""

    def _session(self, pick: int) -> SessionModel:
        return self.model.sessions[pick % len(self.model.sessions)]

    @rule(id=st.sampled_from(["r", 7, "7"]), budget=st.sampled_from([None, None, 5000, 400_000]))
    def open_session(self, id: str | int, budget: int | None) -> None:
        living = next((s for s in self.model.sessions if (s.id, type(s.id)) == (id, type(id))), None)
        if living is None:
            made = self.pool.session(id, budget=budget)
            assert len(made) == 0 and not made.closed
            self.model.sessions.append(SessionModel(id, made, budget, idle_since=next(self.model._steps)))
        elif budget is not None and living.nbytes > budget:
            with pytest.raises(slabpool.QuotaExceededError):
                self.pool.session(id, budget=budget)
        else:
            assert self.pool.session(id, budget=budget) is living.session
            living.budget = living.budget if budget is None else budget

    @precondition(lambda self: self.model.sessions)
    @rule(pick=PICK, devices=DEVICES_OF_ONE)
    def open_turn(self, pick: int, devices: list[str | int]) -> None:
        session = self._session(pick)
        handle = session.session.request(devices)
        self.model.known_devices.update(devices)
        turn = RequestModel(session.id, handle.generation, None, set(devices), set(devices), False, handle)
        self.model.requests.append(turn)
        self.model.pin(turn, session, *session.keepers)

    @precondition(lambda self: self.model.sessions and self.views)
    @rule(pick=PICK, which=PICK, part=PICK, name=NAMES)
    def keep_array(self, pick: int, which: int, part: int, name: str) -> None:
        # Prefer a tensor that can be kept.
        some = [v for v in self.views if v.block.request is not None and not v.block.request.over]
        some = some if some and which % 4 else self.views
        view = some[which % len(some)]
        if view.growing is not None and (part % 2 or not view.arrays):
            self._keep_growing(self._session(pick), name, view)
            return
        array, start = view.arrays[part % len(view.arrays)]
        what = KeptModel(
            RequestModel("", 0, None, set(), set(), False, None), view.stamp, start, array.nbytes
        )
        if array.nbytes == 0:
            with pytest.raises(slabpool.InvalidArgumentError):
                self._session(pick).session.keep(name, array)
        else:
            self._keep(self._session(pick), name, array, view.block.request, view, what)

    def _keep_growing(self, session: SessionModel, name: str, view: View) -> None:
        what = KeptModel(RequestModel("", 0, None, set(), set(), False, None), view.stamp, grows=True)
        self._keep(session, name, view.growing, view.block.request, view, what)
        if session.names.get(name) is what:
            for other in self.views:
                if other.growing is not None and other.block is view.block:
                    other.grower = view.block.request  # all of them are one tensor

    @precondition(lambda self: self.model.sessions and self.layouts)
    @rule(pick=PICK, which=PICK, name=NAMES)
    def keep_layout(self, pick: int, which: int, name: str) -> None:
        made = self.layouts[which % len(self.layouts)]
        if made.request.over:
            with pytest.raises(slabpool.RequestClosedError):
                self._session(pick).session.keep(name, made.tensors)
            return
        placeholder = RequestModel("", 0, None, set(), set(), False, None)
        self._keep(
            self._session(pick),
            name,
            made.tensors,
            made.block.request,
            made,
            KeptModel(placeholder, tensors=made),
        )

    def _keep(self, session: SessionModel, name: str, tensor: object, owner: RequestModel | None,
              held: View | TensorsModel, what: KeptModel) -> None:  # fmt: skip
        if owner is not None and owner.root.reserve:
            return  # the model could not know what returns to which reserve; tests/cpp/session covers this
        block, old = held.block, session.names.get(name)
        keep = session.session.keep
        if owner is None:
            with pytest.raises(slabpool.InvalidArgumentError, match="not in the memory of a request"):
                keep(name, tensor)  # type: ignore[arg-type]
        elif owner in session.keepers:
            keep(name, tensor)  # type: ignore[arg-type]
            what.keeper = owner
            self.model.name(session, name, what)
        elif owner.over:
            with pytest.raises(slabpool.RequestClosedError):
                keep(name, tensor)  # type: ignore[arg-type]
        elif owner.kept_as is not None:
            with pytest.raises(slabpool.InvalidArgumentError):
                keep(name, tensor)  # type: ignore[arg-type]
        else:
            instead = 0
            if old is not None and sum(kept.keeper is old.keeper for kept in session.names.values()) == 1:
                instead = old.keeper.nbytes
            if session.budget is not None and session.nbytes - instead + block.size > session.budget:
                with pytest.raises(slabpool.QuotaExceededError):
                    keep(name, tensor)  # type: ignore[arg-type]
                return
            keep(name, tensor)  # type: ignore[arg-type]
            generation = max(r.generation for r in self.pool.requests() if r.kept_as == name)
            assert generation > max(r.generation for r in self.model.requests)
            self.model.keep(session, name, generation, block, what)

    @precondition(lambda self: any(s.names for s in self.model.sessions))
    @rule(pick=PICK, name=NAMES)
    def look(self, pick: int, name: str) -> None:
        session = self._session(pick)
        kept = session.names.get(name)
        if kept is None:
            with pytest.raises(KeyError):
                session.session[name]
            return
        (block,) = kept.keeper.blocks
        if (made := kept.tensors) is not None:
            tensors = session.session[name]
            for field, stamp in made.stamps.items():
                array = flat(tensors[field])
                assert (array == stamped(stamp, 0, array.nbytes)).all()
            self.layouts.append(TensorsModel(tensors, made.layout, block, kept.keeper, dict(made.stamps)))
            return
        if kept.grows:
            tensor = session.session.writable(name)
            block.views += 1
            self.views.append(View(block, kept.stamp, [(tensor.array, 0)], tensor, kept.keeper))
            return
        array = session.session[name]
        assert array.nbytes == kept.nbytes
        block.views += 1
        self.views.append(View(block, kept.stamp, [(array, kept.start)]))

    @precondition(lambda self: any(s.names for s in self.model.sessions))
    @rule(pick=PICK, name=NAMES)
    def drop_name(self, pick: int, name: str) -> None:
        session = self._session(pick)
        if name in session.names:
            session.session.drop(name)
            self.model.unname(session, session.names.pop(name))

    @precondition(lambda self: self.model.sessions)
    @rule(pick=PICK)
    def close_session(self, pick: int) -> None:
        session = self._session(pick)
        session.session.close()
        self.model.end_session(session)
        assert session.session.closed and not session.session.evicted
