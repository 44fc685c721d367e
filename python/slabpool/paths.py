"""Where the installed package keeps its C++ headers, its library and its CMake files.

For builds on top of the core: C and C++ programs, and Cython modules that cimport slabpool's. The paths are
those of the installed package, also in an editable install, whose Python files are in a source tree.
"""

from __future__ import annotations

import os
import sys


def _installed(*parts: str) -> str:
    # The package of an editable install has two folders; CMake's files are only in the installed one.
    roots = sys.modules["slabpool"].__path__
    for root in roots:
        path = os.path.join(root, *parts)
        if os.path.isdir(path):
            return path
    looked = ", ".join(roots)
    raise FileNotFoundError(f"the installed slabpool has no folder {'/'.join(parts)!r} (looked in {looked})")


def get_include() -> str:
    """Return the folder to put on the include path of a C or C++ compiler.

    Returns
    -------
    str
        The folder that holds ``slabpool/c_api.h``.

    Examples
    --------
    >>> import os, slabpool
    >>> os.path.isfile(os.path.join(slabpool.get_include(), "slabpool", "c_api.h"))
    True
    """
    return _installed("include")


def get_lib() -> str:
    """Return the folder of the shared library (``-L`` of a linker, and the run path).

    Returns
    -------
    str
        The folder that holds ``libslabpool``.

    Examples
    --------
    >>> import os, slabpool
    >>> any(name.startswith("libslabpool.") for name in os.listdir(slabpool.get_lib()))
    True
    """
    return _installed("lib")


def get_cmake_dir() -> str:
    """Return the folder of the CMake package, for ``-Dslabpool_DIR=``.

    Returns
    -------
    str
        The folder that holds ``slabpoolConfig.cmake``.

    Examples
    --------
    >>> import os, slabpool
    >>> os.path.isfile(os.path.join(slabpool.get_cmake_dir(), "slabpoolConfig.cmake"))
    True
    """
    return _installed("lib", "cmake", "slabpool")
