"""Translates Cython modules to C++ in one process, and only those whose sources changed.

A module is stale when the content of its .pyx, of a .pxd it uses, of this script or Cython's version differs
from what its output was made of; modules.json in the output folder records that. An output is written only if
it changes. The depfile names every file that was read, by absolute path, for ninja and make.

With CYTHON_CACHE_DIR set, several builds of one tree translate each module once. Not for work on the modules:
what the cache answers has no list of the .pxd files it was made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from Cython import __version__ as cython_version
from Cython.Compiler.Errors import CompileError
from Cython.Compiler.Main import CompilationOptions, compile_single, default_options

RECORD = "modules.json"


def digest(path: str) -> str:
    """Hash of a file's content, or of nothing if it is gone."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def module_name(source: str) -> str:
    """Name of a .pyx file's module, without its package."""
    return Path(source).stem


def read_depfile(depfile: Path) -> list[str]:
    """The files named in a depfile that Cython wrote, as absolute paths."""
    text = depfile.read_text(encoding="utf-8").replace("\\\n", " ")
    return sorted({os.path.abspath(name) for name in text.partition(": ")[2].split()})


def translate(source: str, module: str, output: Path, include: str) -> list[str]:
    """Translate one module; the files it was made of.

    Raises SystemExit if the module has errors, which Cython has printed.
    """
    fresh = output.with_suffix(".new.cpp")
    options = CompilationOptions(
        default_options,
        cplus=True,
        language_level=3,
        include_path=[include],
        output_file=str(fresh),
        depfile=True,
    )
    cache = None
    if "CYTHON_CACHE_DIR" in os.environ:
        from Cython.Build.Cache import Cache

        cache = Cache(os.environ["CYTHON_CACHE_DIR"])
    try:
        failed = compile_single(source, options, module, cache=cache).num_errors
    except CompileError as error:
        print(error, file=sys.stderr)
        failed = 1
    if failed:
        fresh.unlink(missing_ok=True)
        raise SystemExit(f"{source} does not translate")
    depfile = Path(f"{fresh}.dep")
    read = [source]
    if depfile.exists():  # not where the cache answered
        read = read_depfile(depfile)
        depfile.unlink()
    # The output names itself nowhere, so its content is that of a file with the final name.
    if output.exists() and output.read_bytes() == fresh.read_bytes():
        fresh.unlink()
    else:
        fresh.replace(output)
    return read


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", required=True, help="dotted name of the package the modules are in")
    parser.add_argument("--include", required=True, help="where cimports are looked up")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--depfile", required=True, type=Path)
    parser.add_argument("sources", nargs="+")
    args = parser.parse_args()

    # Cython names files in warnings and depfiles relative to here.
    os.chdir(args.include)
    recorded_at = args.output / RECORD
    try:
        record = json.loads(recorded_at.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    maker = f"{cython_version} {digest(__file__)}"
    hashes: dict[str, str] = {}

    def current(path: str) -> str:
        if path not in hashes:
            hashes[path] = digest(path)
        return hashes[path]

    made = {name: entry for name, entry in record.items() if name in map(module_name, args.sources)}
    try:
        for source in args.sources:
            name = module_name(source)
            output = args.output / f"{name}.cpp"
            known = record.get(name, {})
            files = known.get("files", {})
            if (
                not files
                or known.get("maker") != maker
                or not output.exists()
                or any(current(path) != before for path, before in files.items())
            ):
                read = translate(source, f"{args.package}.{name}", output, args.include)
                files = {path: current(path) for path in read}
            made[name] = {"maker": maker, "files": files}
    finally:
        # Also after an error: what was translated before it need not be again.
        recorded_at.write_text(json.dumps(made), encoding="utf-8")

    read = sorted({path for entry in made.values() for path in entry["files"]})
    first = args.output / f"{module_name(args.sources[0])}.cpp"
    args.depfile.write_text(
        f"{first}: \\\n" + " \\\n".join(f"  {path.replace(' ', chr(92) + ' ')}" for path in read) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
