#include "slabpool/slab/owner_lock.hpp"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>

#include "slabpool/memory/system_files.hpp"

#if defined(__SANITIZE_THREAD__)
#define SLABPOOL_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLABPOOL_TSAN 1
#endif
#endif

namespace slabpool {
namespace {

bool register_barrier() noexcept {
#if !defined(SLABPOOL_TSAN)
  const long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
  if (commands < 0 || (commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0) return false;
  return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
#else
  return false;
#endif
}

// Relaxed: a thread that reads the old value makes the system call, which fails again.
std::atomic<bool> g_barrier_works{register_barrier()};

// Whether /proc numbers threads as this process does: it does not if /proc is of an outer PID namespace.
bool own_numbers() noexcept {
  const SystemFile status("/proc/self/status");
  const std::string_view text = status.text();
  const std::size_t at = text.find("\nNSpid:\t");
  if (at == std::string_view::npos) return false;
  const std::string_view line = text.substr(at + 8, text.find('\n', at + 8) - (at + 8));
  return line.find('\t') == std::string_view::npos;  // one number for each namespace
}

}  // namespace

bool asymmetric_barrier() noexcept { return g_barrier_works.load(std::memory_order_relaxed); }

bool barrier_all_threads() noexcept {
  if (!asymmetric_barrier()) return false;
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0) return true;
  g_barrier_works.store(false, std::memory_order_relaxed);
  return false;
}

bool was_off_processor(int thread) noexcept {
  if (syscall(SYS_tgkill, getpid(), thread, 0) != 0) return errno == ESRCH;
  char number[16];
  const auto end = std::to_chars(number, number + sizeof number, thread).ptr;
  // "running" for a thread that runs or waits for a processor. Otherwise the kernel has waited until the thread was off
  // (wait_task_inactive), and prints where.
  const SystemFile where("/proc/self/task/", {number, static_cast<std::size_t>(end - number)},
                         "/syscall");
  return !where.text().empty() && where.text().substr(0, 7) != "running" && own_numbers();
}

}  // namespace slabpool
