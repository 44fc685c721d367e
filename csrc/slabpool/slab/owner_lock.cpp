#include "slabpool/slab/owner_lock.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>

#include "slabpool/memory/system_files.hpp"

namespace slabpool {
namespace {

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
