#include "slabpool/base/assert.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace slabpool {

void assertion_failed(const char* file, int line, const char* condition) noexcept {
  assertion_failed(file, line, condition, "%s", "");
}

void assertion_failed(const char* file, int line, const char* condition, const char* message,
                      ...) noexcept {
  char text[512];
  va_list arguments;
  va_start(arguments, message);
  (void)std::vsnprintf(text, sizeof text, message, arguments);
  va_end(arguments);
  std::fprintf(stderr, "slabpool: invariant broken at %s:%d: %s %s\n", file, line, condition, text);
  std::abort();
}

}  // namespace slabpool
