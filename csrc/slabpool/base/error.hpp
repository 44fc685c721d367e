// Why a call failed: a status, the system's errno where a system call failed, and a text where there is more to say.
#pragma once

#include <cerrno>
#include <cstring>
#include <new>
#include <string>
#include <string_view>

#include "slabpool/base/status.hpp"

namespace slabpool {

struct Error {
  Status status = Status::ok;
  int system_errno = 0;  // 0: no system call failed
  std::string text;      // for the user; empty: the status and system_errno say everything

  // Both helpers return false, so that a function can end with `return error.fail(...)`. If there is no memory for
  // the text, it stays empty and the rest is set all the same.
  bool fail(Status why, std::string_view what = {}) noexcept {
    status = why;
    system_errno = 0;
    say(what);
    return false;
  }
  // For a system call that has just failed, or with the errno `number`. The text becomes "what: the system's words", or
  // stays empty without `what`.
  bool fail_errno(std::string_view what = {}, int number = errno) noexcept {
    status = Status::system_refused;
    system_errno = number;
    say(what);
    if (!what.empty()) {
      say_more(": ");
      say_more(std::strerror(number));
    }
    return false;
  }

 private:
  void say(std::string_view what) noexcept {
    try {
      text.assign(what);
    } catch (const std::bad_alloc&) {
      text.clear();
    }
  }
  void say_more(const char* what) noexcept {
    try {
      text += what;
    } catch (const std::bad_alloc&) {  // a shorter text
    }
  }
};

}  // namespace slabpool
