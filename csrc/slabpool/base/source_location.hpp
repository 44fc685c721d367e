// A line of the user's program, for reports.
#pragma once

#include <cstdint>

namespace slabpool {

// Of a file, or of code whose lines take long to find: a binding then notes what it knows the code by, keeps that alive
// while it may be reported, and finds the line when it reports. The core reads neither.
struct SourceLocation {
  // The name of a file, which must outlive the pool's last report of it. With `in_code` what the binding knows the code by.
  const char* file = "";
  std::uint32_t line = 0;  // with `in_code` the place in the code
  bool in_code = false;
};

}  // namespace slabpool
