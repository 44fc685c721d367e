// Why a call failed, for calls whose caller needs more than a status: one value instead of a status, errno and a text.
//
// Calls that fail often, or on the hot path, return a Status alone.
#pragma once

#include <cerrno>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "slabpool/base/status.hpp"

namespace slabpool {

struct Error {
  Status status = Status::ok;
  int system_errno = 0;  // 0: the system did not say
  std::string text;      // in the words of the layer that failed; may be empty

  // The text that `make()` returns; without memory for it the error keeps the status alone.
  template <typename Make>
  void set_text(Make&& make) noexcept {
    try {
      text = std::forward<Make>(make)();
    } catch (const std::bad_alloc&) {
      text.clear();
    }
  }

  // The system refused `what`; errno says why.
  void set_errno(const char* what) noexcept {
    const int number = errno;
    status = Status::system_refused;
    system_errno = number;
    set_text([&] { return std::string(what) + ": " + std::strerror(number); });
  }
};

}  // namespace slabpool
