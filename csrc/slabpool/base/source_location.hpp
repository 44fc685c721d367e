// A line of the user's program, for reports.
#pragma once

#include <cstdint>

namespace slabpool {

// `file` must outlive the pool's last report of it.
struct SourceLocation {
  const char* file = "";
  std::uint32_t line = 0;
};

}  // namespace slabpool
