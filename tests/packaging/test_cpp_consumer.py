"""A C++ engine builds on the installed core: find_package(slabpool), slabpool::Pool, run."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable
from pathlib import Path

import slabpool

CMAKE = """\
cmake_minimum_required(VERSION 3.16)
project(engine LANGUAGES CXX)
find_package(slabpool {version} CONFIG REQUIRED)
add_executable(engine engine.cpp)
target_link_libraries(engine PRIVATE slabpool::slabpool)
"""

ENGINE = """\
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "slabpool/pool/pool.hpp"

int main() {
  slabpool::Error error;
  slabpool::PoolOptions options;
  options.capacity = std::uint64_t{64} << 20;
  const auto pool = slabpool::Pool::create(options, error);
  if (pool == nullptr) return 2;

  const std::uint32_t device = pool->devices().add("sgpu0").value();
  slabpool::OpenSpec spec;
  spec.id = "schat-42";
  spec.devices = {&device, 1};
  slabpool::Handle handle;
  if (pool->open(spec, handle) != slabpool::Status::ok) return 3;

  slabpool::AllocateSpec tensor;
  tensor.nbytes = 100'000;
  tensor.request = handle;
  const slabpool::Allocation made = pool->allocate(tensor);
  if (made.block == nullptr) return 4;
  std::memset(made.block->data, 0x5a, tensor.nbytes);
  const auto live = pool->stats().live;
  pool->drop_view(*made.block);

  pool->close_request(handle, false);
  const bool early = pool->released(handle);
  const auto acked = pool->ack(handle, device);
  std::printf("live %d early %d ack %d released %d after %llu\\n", live >= tensor.nbytes, early,
              static_cast<int>(acked.result), pool->released(handle),
              static_cast<unsigned long long>(pool->stats().live));
}
"""


def test_find_package_builds_an_engine(require_program: Callable[..., str], tmp_path: Path) -> None:
    cmake = require_program("cmake")
    require_program("c++", "g++", "clang++")
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(version=importlib.metadata.version("slabpool")))
    (tmp_path / "engine.cpp").write_text(ENGINE)
    build = tmp_path / "build"

    def run(*command: str) -> str:
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
        return result.stdout

    configure = [cmake, "-S", str(tmp_path), "-B", str(build), f"-Dslabpool_DIR={slabpool.get_cmake_dir()}"]
    run(*configure, "-DCMAKE_BUILD_TYPE=Debug")
    run(cmake, "--build", str(build))
    assert run(str(build / "engine")) == "live 1 early 0 ack 1 released 1 after 0\n"


def test_another_version_is_refused(require_program: Callable[..., str], tmp_path: Path) -> None:
    cmake = require_program("cmake")
    require_program("c++", "g++", "clang++")
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(version="99.0"))
    configure = [cmake, "-S", str(tmp_path), "-B", str(tmp_path / "build")]
    result = subprocess.run(
        [*configure, f"-Dslabpool_DIR={slabpool.get_cmake_dir()}"], capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "99.0" in result.stderr
