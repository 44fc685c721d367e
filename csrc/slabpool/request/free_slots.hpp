// The slots of a request table that no request has.
//
// Two parts: a small stack, from which opening a request takes a slot and to which its end returns it, and a set for all
// others. Slots move between the two kMoved at a time, when the stack is full or empty. A walk over the requests visits every
// slot that is not in the set: those in use, and at most kNear free ones. So a walk costs what is in use now and not what
// once was, and the hot path keeps no index for it. Not synchronised: the table's mutex guards it. Allocates nothing.
// Invariants:
//   a slot that was added is in use, in near_, in far_, or withdrawn;
//   walked_ has the slots that are in use or in near_.
#pragma once

#include <algorithm>
#include <cstdint>

#include "slabpool/request/slot.hpp"
#include "slabpool/request/slot_set.hpp"

namespace slabpool {

class FreeSlots {
 public:
  static constexpr std::uint32_t kNone = SlotSet::kNone;
  static constexpr std::uint32_t kNear = 32;
  static constexpr std::uint32_t kGroup = SlotSet::kGroup;  // slots that are withdrawn together

  // A slot that was never free; it is in use from now on.
  void add(std::uint32_t slot) noexcept { walked_.insert(slot); }
  // A free slot, in use from now on; kNone: there is none.
  std::uint32_t pop() noexcept {
    if (near_count_ == 0) [[unlikely]] {
      if (far_count_ == 0) return kNone;
      bring_near();
    }
    return near_[--near_count_];
  }
  void push(std::uint32_t slot) noexcept {
    if (near_count_ == kNear) [[unlikely]]
      put_away();
    near_[near_count_++] = slot;
  }
  // Makes every free slot one that may be withdrawn.
  void put_all_away() noexcept {
    while (near_count_ > kMoved) put_away();
    for (; near_count_ > 0; ++far_count_) {
      far_.insert(near_[--near_count_]);
      walked_.erase(near_[near_count_]);
    }
  }
  // Whether all slots of a group are free, and far.
  bool is_idle(std::uint32_t group) const noexcept { return far_.has_all(group); }
  // Takes the slots of such a group away; give() brings them back.
  void withdraw(std::uint32_t group) noexcept {
    far_.erase_all(group);
    far_count_ -= kGroup;
  }
  void give(std::uint32_t group) noexcept {
    far_.insert_all(group);
    far_count_ += kGroup;
  }
  std::uint32_t count() const noexcept { return near_count_ + far_count_; }
  // The first slot from `slot` on that a walk visits; kNone: there is none.
  std::uint32_t next(std::uint32_t slot) noexcept { return walked_.next(slot); }

 private:
  static constexpr std::uint32_t kMoved = kNear / 2;

  // The smallest slots of the set, the smallest on top: so slots in use stay close together.
  [[gnu::noinline, gnu::cold]] void bring_near() noexcept {
    std::uint32_t slot = 0;
    while (near_count_ < kMoved && far_count_ != 0) {
      slot = far_.next(slot);
      far_.erase(slot);
      walked_.insert(slot);
      --far_count_;
      near_[near_count_++] = slot++;
    }
    std::reverse(near_, near_ + near_count_);
  }
  // The slots that were returned first.
  [[gnu::noinline, gnu::cold]] void put_away() noexcept {
    for (std::uint32_t i = 0; i < kMoved; ++i) {
      far_.insert(near_[i]);
      walked_.erase(near_[i]);
    }
    far_count_ += kMoved;
    near_count_ -= kMoved;
    std::copy_n(near_ + kMoved, near_count_, near_);
  }

  std::uint32_t near_[kNear]{};
  std::uint32_t near_count_ = 0;
  std::uint32_t far_count_ = 0;
  SlotSet far_;
  SlotSet walked_;
};

}  // namespace slabpool
