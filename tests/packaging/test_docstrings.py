"""Every example in a docstring of the installed package runs, and every public name has a docstring.

pytest's own --doctest-modules would import the source tree, and skips the properties of Cython classes. These
tests walk the installed package, compiled parts included.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import slabpool

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = sorted(name for name in slabpool.__all__ if callable(getattr(slabpool, name)))


def _modules() -> Iterator[ModuleType]:
    yield slabpool
    for info in pkgutil.walk_packages(slabpool.__path__, "slabpool."):
        if info.name.endswith("__main__"):
            continue
        try:
            yield importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            # A module for an optional library that is not installed here.
            if (error.name or "slabpool").startswith("slabpool"):
                raise


def _members(owner: object) -> Iterator[tuple[str, object]]:
    """Yield what a module or class defines itself: classes, routines and properties."""
    for name, member in list(vars(owner).items()):
        if isinstance(member, (staticmethod, classmethod)):
            member = member.__func__
        if inspect.ismodule(owner) and getattr(member, "__module__", None) != owner.__name__:
            continue
        if inspect.isclass(member) or inspect.isroutine(member) or inspect.isdatadescriptor(member):
            yield name, member


def _examples(owner: object, name: str, module: ModuleType) -> Iterator[doctest.DocTest]:
    doc = getattr(owner, "__doc__", None)
    if isinstance(doc, str) and ">>>" in doc:
        # A user's example must import what it uses. Only examples of private modules see their module's
        # names.
        private = module.__name__.rpartition(".")[2].startswith("_")
        names = dict(vars(module)) if private else {"__name__": "__main__"}
        yield doctest.DocTestParser().get_doctest(doc, names, name, module.__file__, 0)
    if inspect.ismodule(owner) or inspect.isclass(owner):
        for key, member in _members(owner):
            if member is not type:
                yield from _examples(member, f"{name}.{key}", module)


ALL_EXAMPLES = [example for module in _modules() for example in _examples(module, module.__name__, module)]


@pytest.mark.parametrize("example", ALL_EXAMPLES, ids=lambda example: example.name)
def test_example_runs(example: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name: str) -> None:
    public = getattr(slabpool, name)
    own = public.__doc__ or ""
    assert own.strip()
    if inspect.isclass(public) and issubclass(public, BaseException):
        return
    documented = [own]
    if inspect.isclass(public):
        documented += [getattr(member, "__doc__", None) or "" for _, member in _members(public)]
    assert any(">>>" in doc for doc in documented), "no example"


def test_compiled_properties_are_walked_too() -> None:
    # The reason for this file instead of --doctest-modules; any property of Pool, such as Pool.closed, will
    # do.
    kinds = {type(member).__name__ for _, member in _members(slabpool.Pool)}
    assert "getset_descriptor" in kinds
