// A device's side of a shared pool: its maps, the address behind a reference, and its acks.
//
// Every call may come from any thread. Files: peer (maps, references, acks), peer_wait (requests that the host cancels).
// Invariants:
//   a reference is checked against the table before an address is made of it;
//   the maps stay while this object lives, whatever becomes of the owner, so that a view never faults. After the device's
//   ack its bytes may belong to another request.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "slabpool/base/descriptor.hpp"
#include "slabpool/base/error.hpp"
#include "slabpool/base/export.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/request/table.hpp"
#include "slabpool/shared/layout.hpp"

namespace slabpool {

// Bytes of a request, as one process names them to another.
struct Reference {
  std::uint64_t pool_id = 0;
  std::uint64_t generation = 0;
  std::uint64_t seal = 0;
  std::uint64_t offset = 0;  // from the first byte of the pool's range
  std::uint64_t nbytes = 0;
  std::uint32_t slot = 0;
};

enum class PeerStatus : std::int32_t {
  ok = 0,
  closed = 1,          // the owner has closed the pool, or is gone
  other_pool = 2,      // the reference is to another pool
  over = 3,            // the request is over; its slot may have another one by now
  forged = 4,          // the reference was not made by the owner, or was changed since
  out_of_range = 5,    // the reference leads out of the pool's memory
  unknown_device = 6,  // this device was never named for the request
  acknowledged = 7,    // this device has acknowledged the request
  read_only = 8,       // no writable map yet: see map_writable()
};

class SLABPOOL_API SharedPeer {
 public:
  // Maps what the owner handed over. Null if the files are not those of a pool that this version knows (system_errno
  // EPROTO), or the system refuses. The caller keeps the descriptors; `bell` is copied.
  static std::unique_ptr<SharedPeer> create(std::uint32_t device, int data, int table, int board,
                                            int tally, int bell, Error& error);
  SharedPeer(const SharedPeer&) = delete;
  SharedPeer& operator=(const SharedPeer&) = delete;
  ~SharedPeer();

  std::uint64_t pool_id() const noexcept { return header_->pool_id; }
  // The CUDA device, in this process' numbering, whose memory open() gives addresses of; -1: host memory.
  int cuda_device() const noexcept { return cuda_device_; }

  // Address of the bytes. This device must hold the request.
  PeerStatus open(const Reference& reference, bool writable, std::byte*& data) noexcept;
  struct Acked {
    PeerStatus status;
    AckResult result;
  };
  Acked ack(const Reference& reference) noexcept;
  void heartbeat() noexcept;

  // What this device may know of the host of a request that it holds.
  enum class Host : std::int32_t {
    holds = 0,      // neither of the two, so far
    cancelled = 1,  // it has cancelled the request
    done =
        2,  // it can no longer cancel: it has closed the request, or the request is over for this device
  };
  PeerStatus host_of(const Reference& reference, Host& host) const noexcept;
  // Waits until it is another answer than `holds`, `deadline_ns` (monotonic) has passed, or lose() was called.
  PeerStatus wait_for_host(const Reference& reference, std::int64_t deadline_ns, Host& host) noexcept;

  // Maps the data for writing too, from a writable descriptor of it. False: the system refuses (errno).
  bool map_writable(int data) noexcept;
  bool writable() const noexcept { return writable_.load(std::memory_order_acquire) != nullptr; }

  // The owner is known to be gone, or this peer to be closed. Returns once no thread is in wait_for_host().
  void lose() noexcept;
  bool lost() const noexcept {
    return lost_.load(std::memory_order_acquire) || header_->closed.load(std::memory_order_acquire) != 0;
  }
  bool usable_here() const noexcept { return epoch_ == fork_epoch(); }  // not in a fork's child

 private:
  SharedPeer() = default;
  bool map(int fd, std::size_t bytes, int protection, std::byte*& at) noexcept;
  bool map_data(int fd, Error& error);
  const RequestSlot* slot_of(const Reference& reference) const noexcept;

  HolderBit bit_{};
  std::uint32_t epoch_ = 0;
  std::uint64_t reserved_ = 0;
  const SharedHeader* header_ = nullptr;
  const SlotTable* slots_ = nullptr;
  AckBoard* board_ = nullptr;
  AckTally* tally_ = nullptr;
  std::byte* data_ = nullptr;
  int cuda_device_ = -1;
  std::unique_ptr<MemoryResource> device_memory_;  // holds data_; null: host memory
  std::byte* table_map_ = nullptr;
  std::byte* board_map_ = nullptr;
  std::byte* tally_map_ = nullptr;
  std::atomic<std::byte*> writable_{nullptr};
  std::mutex writable_mutex_;  // one thread maps at a time; a leaf in the order of locks
  Descriptor bell_;
  std::atomic<bool> lost_{false};
  // Threads in wait_for_host(), linked. A leaf in the order of locks; not held while a thread sleeps.
  struct Sleeper {
    std::uint32_t slot;
    Sleeper* next;
    Sleeper* prev;
  };
  std::mutex sleepers_mutex_;
  Sleeper* sleepers_ = nullptr;
};

}  // namespace slabpool
