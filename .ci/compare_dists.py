"""Compares what the sdist and the wheels hold, for .ci/run.

The sdist must hold every file of the tree but those of CI, byte for byte; the wheel, which is built from it,
every file of the Python package but the .pyx and .pxi. A repaired wheel must not have taken in a library.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import zipfile
from pathlib import Path

LEFT_OUT_OF_SDIST = (".ci/", ".git", ".pre-commit-config.yaml", "build/")


def wheel_files(path: str) -> set[str]:
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if not name.endswith("/")}


def sdist_files(path: str) -> set[str]:
    with tarfile.open(path) as sdist:
        return {member.name.split("/", 1)[1] for member in sdist if member.isfile()}


def tree_files(root: Path) -> set[str]:
    found = {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
    }
    return {name for name in found if not name.startswith(LEFT_OUT_OF_SDIST)}


def changed(path: str, root: Path) -> list[str]:
    """Files of the sdist whose content is not the tree's."""
    found = []
    with tarfile.open(path) as sdist:
        for member in sdist:
            name = member.name.partition("/")[2]
            if member.isfile() and (root / name).is_file():
                packed = sdist.extractfile(member)
                if packed is not None and packed.read() != (root / name).read_bytes():
                    found.append(name)
    return found


def differ(what: str, one: set[str], other: set[str]) -> bool:
    for name in sorted(one ^ other):
        print(f"{what}: only in the {'first' if name in one else 'second'}: {name}", file=sys.stderr)
    return one != other


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--same-files", action="store_true", help="only compare two wheels")
    parser.add_argument("paths", nargs="+")
    options = parser.parse_args()
    if options.same_files:
        first, second = map(wheel_files, options.paths)
        if differ("wheel and repaired wheel", first, second):
            return 1
        print(f"{Path(options.paths[1]).name}: the same {len(first)} files, no outside library taken in")
        return 0

    root, sdist, wheel = options.paths
    bad = differ("tree and sdist", tree_files(Path(root)), sdist_files(sdist) - {"PKG-INFO"})
    for name in changed(sdist, Path(root)):
        print(f"sdist: not as in the tree: {name}", file=sys.stderr)
        bad = True
    first = wheel_files(wheel)
    package = {path.removeprefix("python/") for path in tree_files(Path(root)) if path.startswith("python/")}
    for name in sorted(name for name in package - first if not name.endswith((".pyx", ".pxi"))):
        print(f"wheel: lacks {name}", file=sys.stderr)
        bad = True
    strays = sorted(name for name in first if name.endswith((".pyx", ".pxi", ".cpp", ".pyc")))
    for name in strays:
        print(f"wheel: has no use for {name}", file=sys.stderr)
    if bad or strays:
        return 1
    print(f"sdist: {len(sdist_files(sdist))} files; wheel: {len(first)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
