#include "slabpool/observe/event_log.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include "slabpool/base/clock.hpp"

namespace slabpool {
namespace {

std::uint64_t thread_id() noexcept {
  thread_local const auto id = static_cast<std::uint64_t>(syscall(SYS_gettid));
  return id;
}

}  // namespace

EventLog::EventLog(std::size_t entries) : count_(entries), entries_(new Entry[entries]) {}

void EventLog::add(EventKind kind, std::uint64_t generation, std::uint32_t device,
                   std::uint64_t bytes) noexcept {
  // Relaxed: it only hands out places.
  const std::uint64_t index = next_.fetch_add(1, std::memory_order_relaxed);
  Entry& entry = entries_[index % count_];
  std::uint64_t before = entry.sequence.load(std::memory_order_relaxed);
  // Acquire keeps the fields' stores below behind the claim.
  if ((before & 1) != 0 || before > 2 * index ||
      !entry.sequence.compare_exchange_strong(before, 2 * index + 1, std::memory_order_acquire,
                                              std::memory_order_relaxed)) {
    return;
  }
  // Release, so that a reader that sees any of them sees the odd sequence number as well.
  entry.time_ns.store(now_ns(), std::memory_order_release);
  entry.thread.store(thread_id(), std::memory_order_release);
  entry.kind_device.store(std::uint64_t{static_cast<std::uint32_t>(kind)} << 32 | device,
                          std::memory_order_release);
  entry.generation.store(generation, std::memory_order_release);
  entry.bytes.store(bytes, std::memory_order_release);
  entry.sequence.store(2 * index + 2, std::memory_order_release);
}

std::vector<Event> EventLog::read() const {
  std::vector<Event> events;
  const std::uint64_t end = next_.load(std::memory_order_relaxed);
  for (std::uint64_t index = end > count_ ? end - count_ : 0; index < end; ++index) {
    const Entry& entry = entries_[index % count_];
    if (entry.sequence.load(std::memory_order_acquire) != 2 * index + 2) continue;
    Event event{};
    // Acquire keeps the second look at the sequence number behind them.
    event.time_ns = entry.time_ns.load(std::memory_order_acquire);
    event.thread = entry.thread.load(std::memory_order_acquire);
    const std::uint64_t kind_device = entry.kind_device.load(std::memory_order_acquire);
    event.kind = static_cast<EventKind>(kind_device >> 32);
    event.device = static_cast<std::uint32_t>(kind_device);
    event.generation = entry.generation.load(std::memory_order_acquire);
    event.bytes = entry.bytes.load(std::memory_order_acquire);
    if (entry.sequence.load(std::memory_order_relaxed) == 2 * index + 2) events.push_back(event);
  }
  return events;
}

}  // namespace slabpool
