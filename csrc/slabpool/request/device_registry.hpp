// The names of devices, and the number of each in this pool.
//
// A name is bytes with a kind in front (text or number), so that the text "0" and the number 0 are two devices.
// Invariant: numbers are given in the order in which names are first seen, and never change.
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

#include "slabpool/memory/virtual_array.hpp"
#include "slabpool/request/holder_set.hpp"

namespace slabpool {

class DeviceRegistry {
 public:
  // Throws std::bad_alloc. All of `heard_` is open, because heard() takes any number.
  DeviceRegistry() : heard_(kMaxDevices) {
    if (!heard_.open(0, kMaxDevices)) throw std::bad_alloc();
  }

  // The number of a name, a new one if it is not known; empty if there are kMaxDevices names already. Throws
  // std::bad_alloc, and then nothing has changed.
  std::optional<std::uint32_t> add(std::string_view name) {
    const std::lock_guard lock(mutex_);
    const auto found = numbers_.find(name);
    if (found != numbers_.end()) return found->second;
    if (names_.size() == kMaxDevices) return std::nullopt;
    const auto number = static_cast<std::uint32_t>(names_.size());
    if (names_.size() == names_.capacity()) names_.reserve(2 * names_.size() + 8);
    // A node of the map does not move.
    names_.push_back(&numbers_.emplace(name, number).first->first);
    return number;
  }
  // Allocates nothing: acks look up the names of devices.
  std::optional<std::uint32_t> find(std::string_view name) const noexcept {
    const std::lock_guard lock(mutex_);
    const auto found = numbers_.find(name);
    return found != numbers_.end() ? std::optional(found->second) : std::nullopt;
  }
  std::string name(std::uint32_t device) const {
    const std::lock_guard lock(mutex_);
    return device < names_.size() ? *names_[device] : std::string();
  }
  std::uint32_t size() const {
    const std::lock_guard lock(mutex_);
    return static_cast<std::uint32_t>(names_.size());
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

  mutable std::mutex mutex_;  // a leaf in the order of locks
  std::unordered_map<std::string, std::uint32_t, Hash, std::equal_to<>> numbers_;
  std::vector<const std::string*> names_;  // keys of numbers_
  VirtualArray<std::atomic<std::int64_t>> heard_;
};

}  // namespace slabpool
