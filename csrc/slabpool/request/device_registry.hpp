// The names of devices, and the number of each in this pool.
//
// A name is bytes with a kind in front (text or number), so that the text "0" and the number 0 are two devices.
// A pool has kMaxDevices numbers. A number goes to another name only by retire(), which is called when no number is free:
// until then a name keeps its number, used or not, so that nothing is paid for names while there is room.
// Invariants:
//   a number that is held, or kept for good, is not retired;
//   retire() decides with mutex_ held, so a number that was held until a request named it is found in that request.
// Order of locks: retire() looks at the table of requests, so mutex_ comes before the table's mutex. No other call takes a
// lock with mutex_ held.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "slabpool/base/assert.hpp"
#include "slabpool/memory/virtual_array.hpp"
#include "slabpool/request/holder_set.hpp"

namespace slabpool {

class DeviceRegistry {
 public:
  // Throws std::bad_alloc. All of `heard_` is open, because heard() takes any number.
  DeviceRegistry() : heard_(kMaxDevices) {
    if (!heard_.open(0, kMaxDevices)) throw std::bad_alloc();
  }

  // The number of a name, a new one if it is not known, for good; empty if no number is free. Throws std::bad_alloc, and
  // then nothing has changed.
  std::optional<std::uint32_t> add(std::string_view name) {
    const std::lock_guard lock(mutex_);
    const std::optional<std::uint32_t> number = number_of(name);
    if (number) known_[*number].for_good = true;
    return number;
  }
  // The same; the number is held until drop(). Calls count.
  std::optional<std::uint32_t> hold(std::string_view name) {
    const std::lock_guard lock(mutex_);
    const std::optional<std::uint32_t> number = number_of(name);
    if (number) ++known_[*number].holds;
    return number;
  }
  // Holds a number that a name has now. The caller excludes retire().
  void hold(std::uint32_t device) noexcept {
    const std::lock_guard lock(mutex_);
    SLABPOOL_ASSERT(device < known_.size() && known_[device].name != nullptr,
                    "only the number of a name is held", device);
    ++known_[device].holds;
  }
  void drop(std::uint32_t device) noexcept {
    const std::lock_guard lock(mutex_);
    SLABPOOL_ASSERT(device < known_.size() && known_[device].holds != 0,
                    "a number that is held is dropped", device);
    --known_[device].holds;
  }

  // Takes back the number of each name that is neither held nor in use, and adds it to `retired`, largest first.
  // `in_use(wanted, used)` adds to `used` those of `wanted` that are in use, `forget(marks)` forgets those whose number is
  // taken back; both are called with mutex_ held. Throws std::bad_alloc, and then nothing has changed.
  template <typename InUse, typename Forget>
  void retire(std::vector<std::uint32_t>& retired, InUse&& in_use, Forget&& forget) {
    const std::lock_guard lock(mutex_);
    free_.reserve(kMaxDevices);
    retired.reserve(retired.size() + kMaxDevices);
    HolderMarks wanted;
    for (std::uint32_t number = 0; number < known_.size(); ++number) {
      const Known& known = known_[number];
      if (known.name != nullptr && known.holds == 0 && !known.for_good) wanted.add(device_bit(number));
    }
    HolderMarks used;
    in_use(wanted, used);
    if (used.contain(wanted)) return;
    HolderMarks gone;
    for (auto number = static_cast<std::uint32_t>(known_.size()); number-- > 0;) {
      if (!wanted.has(device_bit(number)) || used.has(device_bit(number))) continue;
      Known& known = known_[number];
      numbers_.erase(numbers_.find(*known.name));
      known.name = nullptr;
      heard_[number].store(0, std::memory_order_relaxed);  // a sign of life of the old name
      gone.add(device_bit(number));
      free_.push_back(number);
      retired.push_back(number);
    }
    forget(gone);
  }

  // Allocates nothing: acks look up the names of devices.
  std::optional<std::uint32_t> find(std::string_view name) const noexcept {
    const std::lock_guard lock(mutex_);
    const auto found = numbers_.find(name);
    return found != numbers_.end() ? std::optional(found->second) : std::nullopt;
  }
  std::string name(std::uint32_t device) const {
    const std::lock_guard lock(mutex_);
    return device < known_.size() && known_[device].name != nullptr ? *known_[device].name
                                                                    : std::string();
  }
  // Numbers given so far, those that were taken back included: every number of a name is below it.
  std::uint32_t size() const {
    const std::lock_guard lock(mutex_);
    return static_cast<std::uint32_t>(known_.size());
  }
  // How many more names there is room for without retire().
  std::uint32_t room() const {
    const std::lock_guard lock(mutex_);
    return kMaxDevices - static_cast<std::uint32_t>(numbers_.size());
  }

  // When a device last gave a sign of life (monotonic ns). Relaxed: leases are seconds.
  void heard(std::uint32_t device, std::int64_t now_ns) noexcept {
    if (device >= kMaxDevices) return;  // no device has that number
    heard_[device].store(now_ns, std::memory_order_relaxed);
  }
  std::int64_t last_heard(std::uint32_t device) const noexcept {
    return heard_[device].load(std::memory_order_relaxed);
  }

 private:
  struct Hash {
    using is_transparent = void;  // finds a string_view without making a string of it
    std::size_t operator()(std::string_view name) const noexcept {
      return std::hash<std::string_view>{}(name);
    }
  };

  struct Known {
    const std::string* name = nullptr;  // a key of numbers_; null: the number is free
    std::uint32_t holds = 0;
    bool for_good = false;
  };

  std::optional<std::uint32_t> number_of(std::string_view name) {  // under mutex_
    const auto found = numbers_.find(name);
    if (found != numbers_.end()) return found->second;
    if (free_.empty() && known_.size() == kMaxDevices) return std::nullopt;
    if (free_.empty() && known_.size() == known_.capacity()) known_.reserve(2 * known_.size() + 8);
    const auto number = free_.empty() ? static_cast<std::uint32_t>(known_.size()) : free_.back();
    // A node of the map does not move.
    const std::string* key = &numbers_.emplace(name, number).first->first;
    if (free_.empty()) {
      known_.push_back({key});
    } else {
      free_.pop_back();
      known_[number] = {key};
    }
    return number;
  }

  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::uint32_t, Hash, std::equal_to<>> numbers_;
  std::vector<Known> known_;         // by number
  std::vector<std::uint32_t> free_;  // numbers that were taken back, the smallest last
  VirtualArray<std::atomic<std::int64_t>> heard_;
};

}  // namespace slabpool
