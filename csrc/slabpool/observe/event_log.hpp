// The latest events: a ring of fixed size that overwrites its oldest entries.
//
// Off unless the pool was made with one; then `if (log)` is all it costs. Writers never wait: an entry
// is claimed by its sequence number (odd while it is written), and one whose place is still being
// written by a thread a whole ring behind is dropped.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace slabpool {

enum class EventKind : std::uint32_t {
  open,
  allocate,
  free,
  ack,
  close,
  lost,
  release,
  retain,
  exhausted,
  keep,
  adopt
};

inline constexpr std::uint32_t kNoDevice = 0xffffffff;

struct Event {
  std::int64_t time_ns;
  std::uint64_t thread;  // the system's id
  EventKind kind;
  std::uint32_t device;  // kNoDevice: none
  std::uint64_t generation;
  std::uint64_t bytes;
};

class EventLog {
 public:
  explicit EventLog(std::size_t entries);

  void add(EventKind kind, std::uint64_t generation, std::uint32_t device, std::uint64_t bytes) noexcept;
  // Oldest first. Entries written meanwhile may be missing.
  std::vector<Event> read() const;

 private:
  // Every field is atomic, because a reader may look while a writer writes; the sequence number tells.
  struct Entry {
    std::atomic<std::uint64_t> sequence{0};  // 2 * index + 2 once written, odd while being written
    std::atomic<std::int64_t> time_ns{0};
    std::atomic<std::uint64_t> thread{0};
    std::atomic<std::uint64_t> kind_device{0};
    std::atomic<std::uint64_t> generation{0};
    std::atomic<std::uint64_t> bytes{0};
  };

  std::size_t count_;
  std::unique_ptr<Entry[]> entries_;
  std::atomic<std::uint64_t> next_{0};
};

}  // namespace slabpool
