"""`import slabpool` loads little beyond numpy, and nothing more when memory is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

HEAVY = (
    "asyncio",
    "ssl",
    "email",
    "zipfile",
    "socket",
    "concurrent.futures",
    "logging",
    "json",
    "pathlib",
    "tempfile",
)


def fresh(code: str) -> Any:
    """What a new interpreter prints as JSON. `json` is imported last, so that it is not counted."""
    setup = (
        "import sys, numpy\nnumpys = set(sys.modules)\nimport slabpool\nours = set(sys.modules) - numpys\n"
    )
    code = f"{setup}{code}\nimport json\nprint(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_loads_few_modules_beyond_those_of_numpy() -> None:
    ours = fresh("found = sorted(ours)")
    assert "slabpool._core.pool" in ours  # it counts what slabpool loads
    heavy = [name for name in ours if any(name == one or name.startswith(f"{one}.") for one in HEAVY)]
    assert heavy == []
    # The bar for modules that are not slabpool's own is 15 % of numpy's 140.
    others = [name for name in ours if name.split(".")[0] != "slabpool"]
    assert len(others) <= 21, others
    assert len(ours) <= 60, ours


REFUSALS = """
def refused(call):
    try:
        call()
    except slabpool.SlabpoolError as error:
        str(error), repr(error)
        return type(error).__name__
    return "nothing was refused"

pool = slabpool.Pool("1MiB")
request = pool.request("r", devices=["a", "b"])
array = request.empty(600_000, "u1")
session = pool.session("s")
before = set(sys.modules)
kinds = [
    refused(lambda: pool.empty(2 << 20, "u1")),
    refused(lambda: pool.empty(600_000, "u1")),
    refused(lambda: request.empty(600_000, "u1")),
    refused(lambda: pool.request("x", reserve=600_000)),
    refused(lambda: request.ack("nobody")),
    refused(lambda: pool.request("x", ["a", "a"])),
    refused(lambda: session.keep("array", numpy.zeros(10))),
    refused(lambda: slabpool.Pool("no size")),
    refused(pool.close),
]
found = [kinds, sorted(set(sys.modules) - before)]
"""


def test_a_refusal_imports_nothing() -> None:
    kinds, imported = fresh(REFUSALS)
    assert kinds == [
        "TensorTooLargeError",
        "PoolExhausted",
        "PoolExhausted",
        "PoolExhausted",
        "UnknownDeviceError",
        "DuplicateDeviceError",
        "InvalidArgumentError",
        "InvalidArgumentError",
        "PoolBusyError",
    ]
    assert imported == []


def test_help_imports_no_other_library() -> None:
    found = fresh(
        "import pydoc, sys\n"
        "before = set(sys.modules)\n"
        "others = ['torch', 'cupy', 'cuda', 'numba', 'tinygrad', 'transformers', 'exo']\n"
        "sys.modules.update(dict.fromkeys(others))  # as if they were not installed\n"
        "text = pydoc.plain(pydoc.render_doc(slabpool))\n"
        "loaded = [n for n in sys.modules if n.startswith('slabpool.') and n.split('.')[1] in others]\n"
        "listed = all(f'    {n}' in text for n in ('cuda_core', 'torch', 'cupy'))\n"
        "found = [listed, loaded, 'class Request(' in text]"
    )
    assert found == [True, [], True]


def test_what_is_loaded_on_first_use_is_there() -> None:
    found = fresh(
        "import importlib.metadata\n"
        "same = slabpool.__version__ == importlib.metadata.version('slabpool')\n"
        "listed = {'attach', '__version__', 'Pressure'} <= set(dir(slabpool))\n"
        "from slabpool import *\n"
        "found = [same, listed, attach is slabpool.attach, attach.__module__]"
    )
    assert found == [True, True, True, "slabpool.shared.attach"]


def test_a_part_that_cannot_be_loaded_is_an_error_of_slabpool() -> None:
    found = fresh("""
import builtins
causes = [ImportError("no module"), OSError(24, "Too many open files"), MemoryError()]
load = builtins.__import__
def refuse(name, *rest):
    if name == "dataclasses":
        raise cause
    return load(name, *rest)
found = []
for cause in causes:
    builtins.__import__ = refuse
    try:
        slabpool.Pool("1MiB", memory="shared")
    except slabpool.SystemRefusedError as error:
        found.append((str(error), error.errno, error.__cause__ is cause))
    finally:
        builtins.__import__ = load
slabpool.Pool("1MiB", memory="shared").close()
""")
    begin = "the part of slabpool that serves shared pools cannot be loaded: "
    assert [text.startswith(begin) for text, _, _ in found] == [True] * 3, found
    assert [text.removeprefix(begin).split(";")[0] for text, _, _ in found] == [
        "no module",
        "Too many open files",
        "Cannot allocate memory",
    ]
    assert [number for _, number, _ in found] == [None, 24, 12]
    assert all(chained for _, _, chained in found)
