// An event loop's side of the queue, for tests on one thread: waiters that are woken through a descriptor.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "slabpool/wait/queue.hpp"

namespace slabpool::test {

class Loop {
 public:
  Loop() : target{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)} { EXPECT_GE(target.fd, 0); }
  ~Loop() { (void)::close(target.fd); }
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Reads the descriptor: whether it was readable.
  bool readable() const {
    std::uint64_t count = 0;
    return read(target.fd, &count, sizeof count) == sizeof count;
  }

  WakeTarget target;
};

}  // namespace slabpool::test
