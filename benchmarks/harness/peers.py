"""The libraries that slabpool is compared with: whether each is installed, and which version.

A peer that is missing, or that does not load, is left out of the tables and named with the reason. Nothing
is installed from here.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import functools
import importlib.metadata
import shutil
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """A Python module (with the distributions it may come from), a library that can replace malloc, or a
    program."""

    name: str
    module: str = ""
    distribution: str = ""
    library: str = ""
    program: str = ""
    #: Name of the Debian package, for libraries and programs.
    package: str = ""


PEERS = {
    peer.name: peer
    for peer in (
        Peer("numpy", module="numpy", distribution="numpy"),
        Peer("torch", module="torch", distribution="torch"),
        Peer("cupy", module="cupy", distribution="cupy-cuda13x cupy-cuda12x"),
        Peer("pyarrow", module="pyarrow", distribution="pyarrow"),
        Peer(
            "lmcache", module="lmcache.v1.memory_allocators.tensor_memory_allocator", distribution="lmcache"
        ),
        Peer("mooncake", module="mooncake.store", distribution="mooncake-transfer-engine-non-cuda"),
        Peer("ray", module="ray", distribution="ray"),
        Peer("transformers", module="transformers.models.llama", distribution="transformers"),
        Peer("mimalloc", library="mimalloc", package="libmimalloc2.0"),
        Peer("jemalloc", library="jemalloc", package="libjemalloc2"),
        Peer("tcmalloc", library="tcmalloc_minimal", package="libtcmalloc-minimal4"),
        Peer("valgrind", program="valgrind", package="valgrind"),
    )
}


@functools.cache
def missing(name: str) -> str | None:
    """Why the peer cannot take part, or None if it can."""
    peer = PEERS[name]
    if peer.library:
        if ctypes.util.find_library(peer.library) is None:
            return f"no lib{peer.library} on this machine (Debian: {peer.package})"
        return None
    if peer.program:
        found = shutil.which(peer.program) is not None
        return None if found else f"no {peer.program} on this machine (Debian: {peer.package})"
    # In a separate process: loading the peer must neither change what is measured nor end the harness.
    tried = subprocess.run([sys.executable, "-c", f"import {peer.module}"], capture_output=True, text=True)
    if tried.returncode == 0:
        return None
    lines = tried.stderr.strip().splitlines() or [f"import ended with status {tried.returncode}"]
    return lines[-1]


def preload_path(name: str) -> str:
    """The value of LD_PRELOAD that loads the peer."""
    found = ctypes.util.find_library(PEERS[name].library)
    if found is None:
        raise FileNotFoundError(missing(name))
    return found


def version(name: str) -> str:
    """Version of the distribution or of the Debian package; "unknown" if neither states one."""
    peer = PEERS[name]
    if peer.distribution:
        for name in peer.distribution.split():
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                return importlib.metadata.version(name)
        return "unknown"
    if shutil.which("dpkg-query") is None:
        return "unknown"
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f=${Version}", peer.package], capture_output=True, text=True
    )
    return asked.stdout.strip() or "unknown"
