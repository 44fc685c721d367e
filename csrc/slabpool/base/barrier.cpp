#include "slabpool/base/barrier.hpp"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "slabpool/base/sanitizers.hpp"

namespace slabpool {
namespace {

bool register_barrier() noexcept {
#if !SLABPOOL_TSAN
  const long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
  if (commands < 0 || (commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0) return false;
  return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
#else
  return false;
#endif
}

// Relaxed: a thread that reads the old value makes the system call, which fails again.
std::atomic<bool> g_barrier_works{register_barrier()};

}  // namespace

bool asymmetric_barrier() noexcept { return g_barrier_works.load(std::memory_order_relaxed); }

bool barrier_all_threads() noexcept {
  if (!asymmetric_barrier()) return false;
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0) return true;
  g_barrier_works.store(false, std::memory_order_relaxed);
  return false;
}

}  // namespace slabpool
