#include "slabpool/memory/limits.hpp"

#include <sys/resource.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <optional>

#include "slabpool/memory/system_files.hpp"

namespace slabpool {
namespace {

std::optional<std::uint64_t> finite_limit(int which) noexcept {
  struct rlimit limit {};
  if (getrlimit(static_cast<__rlimit_resource_t>(which), &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return std::nullopt;
  return limit.rlim_cur;
}

void add_clause(std::string& text, const std::string& clause) {
  if (!text.empty()) text += "; ";
  text += clause;
}

// "RLIMIT_AS is 4 GiB, of which 3.9 GiB is in use"
void add_limit(std::string& text, const char* name, std::optional<std::uint64_t> limit,
               std::optional<std::uint64_t> used) {
  if (!limit) return;
  std::string clause = std::string(name) + " is " + show_bytes(*limit);
  if (used) clause += ", of which " + show_bytes(*used) + " is in use";
  add_clause(text, clause);
}

std::optional<std::uint64_t> kibibytes(std::optional<std::uint64_t> value) noexcept {
  return value ? std::optional(*value << 10) : std::nullopt;
}

}  // namespace

std::uint64_t addresses_left() noexcept {
  const auto limit = finite_limit(RLIMIT_AS);
  if (!limit) return ~std::uint64_t{0};
  const std::uint64_t used =
      kibibytes(SystemFile("/proc/self/status").number_of("VmSize:")).value_or(*limit / 2);
  return *limit > used ? *limit - used : 0;
}

std::string describe_limits(bool locked) {
  std::string text;
  const SystemFile status("/proc/self/status");
  add_limit(text, "RLIMIT_AS", finite_limit(RLIMIT_AS), kibibytes(status.number_of("VmSize:")));
  add_limit(text, "RLIMIT_DATA", finite_limit(RLIMIT_DATA), kibibytes(status.number_of("VmData:")));
  if (locked) {
    const auto lck = status.number_of("VmLck:");
    const auto pin = status.number_of("VmPin:");
    add_limit(text, "RLIMIT_MEMLOCK", finite_limit(RLIMIT_MEMLOCK),
              lck || pin ? kibibytes(lck.value_or(0) + pin.value_or(0)) : std::nullopt);
  }
  if (SystemFile("/proc/sys/vm/overcommit_memory").number() == 2) {
    const SystemFile machine("/proc/meminfo");
    add_limit(text, "vm.overcommit_memory is 2, and CommitLimit",
              kibibytes(machine.number_of("CommitLimit:")),
              kibibytes(machine.number_of("Committed_AS:")));
  }
  const auto most = SystemFile("/proc/sys/vm/max_map_count").number();
  const std::uint64_t mappings = count_lines("/proc/self/maps");
  if (most && mappings >= *most / 10 * 9)
    add_clause(text, "vm.max_map_count is " + std::to_string(*most) + ", and the process has " +
                         std::to_string(mappings) + " mappings");
  if (text.empty()) {
    text = "no limit of this process is near";
    if (const auto left = kibibytes(SystemFile("/proc/meminfo").number_of("MemAvailable:")))
      text += "; the machine has " + show_bytes(*left) + " of memory available";
  }
  return text;
}

void explain_refusal(Error& error, bool locked) noexcept {
  const int number = error.system_errno;
  if (number != 0 && number != ENOMEM && number != ENOSPC && number != EAGAIN) return;
  try {
    std::string text = error.text;
    if (text.empty())
      text = std::string("the system refuses more memory or mappings (") +
             std::strerror(number != 0 ? number : ENOMEM) + ")";
    text += ": " + describe_limits(locked);
    error.text = std::move(text);
  } catch (const std::bad_alloc&) {  // the error keeps what it says
  }
}

}  // namespace slabpool
