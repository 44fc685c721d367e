"""Rules by which tensors move from one request to another, and refused moves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis.stateful import precondition, rule

import slabpool
from tests.laws.machine import MOSTLY, PICK, Machine
from tests.laws.model import Block, RequestModel


class MovingRules(Machine):
    """Moves tensors between requests."""

    @precondition(lambda self: self.views)
    @rule(pick=PICK, which=PICK, part=PICK, alive=MOSTLY)
    def adopt_array(self, pick: int, which: int, part: int, alive: bool) -> None:
        if (target := self._request(pick, alive, host=True)) is None:
            return
        # Prefer a tensor that can move.
        some = [v for v in self.views if v.block.request is not None and not v.block.request.over]
        some = some if some and which % 4 else self.views
        view = some[which % len(some)]
        if view.growing is not None and (part % 2 or not view.arrays):
            if self._adopt(target, view.growing, view.block):
                for other in self.views:
                    if other.growing is not None and other.block is view.block:
                        other.grower = target  # all of them are one tensor
            return
        array, _ = view.arrays[part % len(view.arrays)]
        if array.nbytes == 0:
            with pytest.raises(slabpool.InvalidArgumentError, match="no bytes"):
                self._handle(target).adopt(array)
        else:
            self._adopt(target, array, view.block)

    @precondition(lambda self: self.layouts)
    @rule(pick=PICK, which=PICK, alive=MOSTLY)
    def adopt_layout(self, pick: int, which: int, alive: bool) -> None:
        if (target := self._request(pick, alive, host=True)) is None:
            return
        made = self.layouts[which % len(self.layouts)]
        if made.request.over:
            with pytest.raises(slabpool.RequestClosedError):
                self._handle(target).adopt(made.tensors)
        elif self._adopt(target, made.tensors, made.block):
            made.request = target

    @staticmethod
    def _handle(request: RequestModel) -> slabpool.Request:
        assert request.handle is not None
        return request.handle

    def _adopt(self, target: RequestModel, tensor: Any, block: Block) -> bool:
        owner = block.request
        adopt = self._handle(target).adopt
        error: type[Exception] | None = None
        if owner is None:
            error = slabpool.InvalidArgumentError
        elif owner.root.reserve or target.root.reserve:
            return False  # the model could not know what returns to which reserve; tests/cpp/pool covers this
        elif not target.host or owner.over:
            error = slabpool.RequestClosedError
        elif owner is target or owner.kept_as is not None:
            error = slabpool.InvalidArgumentError
        elif (
            target.root.quota is not None
            and owner.root is not target.root
            and target.root.used + block.size > target.root.quota
        ):
            error = slabpool.QuotaExceededError
        if error is not None:
            with pytest.raises(error):
                adopt(tensor)
            return False
        adopt(tensor)
        self.model.adopt(block, target)
        return True
