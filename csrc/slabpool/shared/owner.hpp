// The owner's side of a shared pool: the files that peers get, and the acks that they post there.
//
// Invariants:
//   nothing that a peer can write is used before it is checked;
//   an address that collect() may read stays mapped while the pool lives: detach() maps empty memory in a board's place;
//   count_ == number of attached devices, and attached_[0 .. count_) are their numbers, polled_[0 .. count_) their boards.
// attach() and detach() take mutex_, a leaf in the order of locks; news() and collect() take none. One thread of the pool is
// in collect() at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "slabpool/base/descriptor.hpp"
#include "slabpool/base/error.hpp"
#include "slabpool/memory/shared_file.hpp"
#include "slabpool/request/slot.hpp"
#include "slabpool/request/watchers.hpp"
#include "slabpool/shared/layout.hpp"
#include "slabpool/wait/doorbell.hpp"

namespace slabpool {

// Descriptors to hand to a peer. The owner keeps and closes them; board and bell when the peer is detached.
struct PeerFiles {
  int data = -1;   // for reading only
  int table = -1;  // for reading only
  int board = -1;
  int tally = -1;
  int bell = -1;
};

// The pool's memory, as peers get it.
struct SharedData {
  int fd = -1;        // read-only, where the memory supports that
  int writable = -1;  // may be the same
  std::uint64_t bytes = 0;
  std::string pci;   // see SharedHeader
  Descriptor owned;  // closed with the SharedOwner; without one, the descriptors outlive it
};

class SharedOwner final : public Doorbell, public HostWatchers {
 public:
  // Null where the system refuses; `error` says why. Throws std::bad_alloc.
  static std::unique_ptr<SharedOwner> create(SharedData data, Error& error);
  SharedOwner(const SharedOwner&) = delete;
  SharedOwner& operator=(const SharedOwner&) = delete;
  ~SharedOwner() override;

  SlotTable* slots() noexcept { return slots_; }
  std::uint64_t pool_id() const noexcept { return header_->pool_id; }
  std::uint64_t secret() const noexcept { return secret_; }
  int writable_data() const noexcept { return data_.writable; }

  // False if the device is attached already (system_errno EEXIST), or the system refuses.
  bool attach(std::uint32_t device, PeerFiles& files, Error& error) noexcept;
  // Whether attach() is allowed from now on; refused calls fail with ESHUTDOWN.
  void admit(bool open) noexcept {
    const std::lock_guard lock(mutex_);
    admits_ = open;
  }
  // Whether a peer is attached as the device.
  bool attached(std::uint32_t device) const noexcept {
    const std::lock_guard lock(mutex_);
    return find(device) != peers_.end();
  }
  // After a last collect(). The peer may keep its map of the board; the owner no longer reads it.
  // False if the device was not attached.
  bool detach(std::uint32_t device) noexcept;

  // Whether an ack was posted: one load per device. collect() acquires and releases the same word.
  bool news() noexcept {
    const std::uint32_t count = count_.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < count; ++i) {
      if (polled_[i].load(std::memory_order_relaxed)->news()) return true;
    }
    return false;
  }
  // Calls f(device, slot, generation) for every ack that was posted since the last call.
  template <typename F>
  void collect(F&& f) {
    // Acquire pairs with attach(): the board is mapped. A device that is detached meanwhile may be missed or met twice;
    // Pool::detach_peer() collects before it detaches, and an ack counts once.
    const std::uint32_t count = count_.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint32_t device = attached_[i].load(std::memory_order_relaxed);
      board(device).collect(
          [&](std::uint32_t slot, std::uint64_t generation) { f(device, slot, generation); });
    }
  }
  // Before a device is named again for a request that it may have acknowledged.
  void forget_ack(std::uint32_t device, std::uint32_t slot, std::uint64_t generation) noexcept {
    if (AckBoard* of = boards_[device].load(std::memory_order_acquire)) of->forget(slot, generation);
    tally_map_->rejoin(slot, generation, device_bit(device));
  }
  // Calls f(device, ns) with the last sign of life that each attached device claims.
  template <typename F>
  void each_heard(F&& f) {
    const std::uint32_t count = count_.load(std::memory_order_acquire);
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint32_t device = attached_[i].load(std::memory_order_relaxed);
      f(device, board(device).heard_ns());
    }
  }

  // Sequentially consistent: see AckBoard::publish().
  void wait_begins() noexcept override { header_->waiting.fetch_add(1, std::memory_order_seq_cst); }
  void wait_ends() noexcept override { header_->waiting.fetch_sub(1, std::memory_order_relaxed); }
  void listen(int wakeup, std::int64_t ns) noexcept override;
  // For event loops: readable once a peer has rung. silence() makes it unreadable again; collect acks after it.
  int bell() const noexcept { return bells_.get(); }
  void silence() noexcept;

  // Wakes the peers that wait for it. Costs one load if none does, and one system call if any does or did.
  void host_left(std::uint32_t slot, std::uint64_t generation) noexcept override;

  // Peers see at their next call that the pool is closed.
  void close() noexcept { header_->closed.store(1, std::memory_order_release); }

 private:
  struct Peer {
    std::uint32_t device;
    std::unique_ptr<SharedFile> board;
    Descriptor bell;
  };

  explicit SharedOwner(SharedData data) noexcept : data_(std::move(data)) {}
  // Of a device that is attached, or was.
  AckBoard& board(std::uint32_t device) noexcept {
    return *boards_[device].load(std::memory_order_relaxed);
  }
  bool blank(std::uint32_t device) noexcept;

  const SharedData data_;
  std::unique_ptr<SharedFile> table_;
  std::unique_ptr<SharedFile> tally_;
  std::byte* table_map_ = nullptr;
  SharedHeader* header_ = nullptr;
  SlotTable* slots_ = nullptr;
  AckTally* tally_map_ = nullptr;
  Descriptor bells_;  // epoll over the peers' bells
  std::uint64_t secret_ = 0;

  std::vector<Peer>::const_iterator find(std::uint32_t device) const noexcept;  // under mutex_

  mutable std::mutex mutex_;
  bool admits_ = true;       // guarded by mutex_
  std::vector<Peer> peers_;  // guarded by mutex_, as are writes of the next two
  std::atomic<std::uint32_t> count_{0};
  std::atomic<std::uint32_t> attached_[kMaxDevices];
  std::atomic<AckBoard*> polled_[kMaxDevices];  // the boards of attached_[0 .. count_), for news()
  // By device; null until it attaches for the first time. The address does not change after that.
  std::atomic<AckBoard*> boards_[kMaxDevices];
};

}  // namespace slabpool
