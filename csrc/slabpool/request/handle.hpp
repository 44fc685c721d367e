// A request as callers name it: two integers that may cross processes. A stale handle is recognised by its generation.
#pragma once

#include <cstdint>

namespace slabpool {

struct Handle {
  std::uint32_t slot = 0;
  std::uint64_t generation = 0;  // 0: no request. A pool never uses a generation twice
};

}  // namespace slabpool
