#include "slabpool/shared/peer.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <string_view>

#include "slabpool/base/clock.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/cuda/device_info.hpp"

namespace slabpool {

bool SharedPeer::map(int fd, std::size_t bytes, int protection, std::byte*& at) noexcept {
  struct stat file {};
  if (fstat(fd, &file) != 0) return false;
  if (static_cast<std::uint64_t>(file.st_size) < bytes) {
    errno = EPROTO;  // a touch beyond the file's end would be SIGBUS
    return false;
  }
  void* mapping = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (mapping == MAP_FAILED) return false;
  at = static_cast<std::byte*>(mapping);
  return true;
}

// Host memory for reading; device memory for reading and writing, because a driver's handle does not tell the two apart.
bool SharedPeer::map_data(int fd, Error& error) {
  const std::string pci(header_->pci, strnlen(header_->pci, sizeof header_->pci));
  if (pci.empty()) {
    return map(fd, reserved_, PROT_READ, data_) || error.fail_errno("the pool's memory");
  }
  const cuda::Driver* driver = cuda::Driver::get(error);
  if (driver == nullptr) {
    error.system_errno = ENODEV;
    return false;
  }
  cuda::DeviceInfo info;
  int device = 0;
  while (device < driver->devices() &&
         !(cuda::describe_device(*driver, device, info, error) && info.pci == pci))
    ++device;
  if (device == driver->devices()) {
    error = {Status::system_refused, ENODEV,
             "this process does not see the GPU at " + pci + ", which has the pool's memory"};
    return false;
  }
  device_memory_ = cuda::open_device_memory(fd, reserved_, device, error);
  if (device_memory_ == nullptr) {
    error.system_errno = ENODEV;
    return false;
  }
  cuda_device_ = device;
  data_ = device_memory_->base();
  writable_.store(data_, std::memory_order_release);
  return true;
}

std::unique_ptr<SharedPeer> SharedPeer::create(std::uint32_t device, int data, int table, int board,
                                               int tally, int bell, Error& error) {
  const auto refused = [&](const char* what, int system_errno) {
    (void)error.fail_errno(what, system_errno);
    return nullptr;
  };
  if (device >= kMaxDevices) return refused("the number of the device", EPROTO);
  std::unique_ptr<SharedPeer> peer(new SharedPeer());
  peer->bit_ = device_bit(device);
  peer->epoch_ = fork_epoch();
  if (!peer->map(table, kTableBytes, PROT_READ, peer->table_map_)) return refused("the table", errno);
  peer->header_ = reinterpret_cast<const SharedHeader*>(peer->table_map_);
  peer->slots_ = reinterpret_cast<const SlotTable*>(peer->table_map_ + kSlotsOffset);
  if (peer->header_->magic != kSharedMagic || peer->header_->version != kSharedVersion ||
      peer->header_->slots != kMaxRequests)
    return refused("the table's version", EPROTO);
  peer->reserved_ = peer->header_->reserved;
  if (!peer->map_data(data, error)) return nullptr;
  if (!peer->map(board, kBoardBytes, PROT_READ | PROT_WRITE, peer->board_map_) ||
      !peer->map(tally, kTallyBytes, PROT_READ | PROT_WRITE, peer->tally_map_))
    return refused("the board", errno);
  peer->board_ = reinterpret_cast<AckBoard*>(peer->board_map_);
  peer->tally_ = reinterpret_cast<AckTally*>(peer->tally_map_);
  peer->bell_ = Descriptor(fcntl(bell, F_DUPFD_CLOEXEC, 0));
  if (peer->bell_.get() < 0) return refused("the bell", errno);
  peer->heartbeat();
  return peer;
}

SharedPeer::~SharedPeer() {
  if (table_map_ != nullptr) (void)munmap(table_map_, kTableBytes);
  if (board_map_ != nullptr) (void)munmap(board_map_, kBoardBytes);
  if (tally_map_ != nullptr) (void)munmap(tally_map_, kTallyBytes);
  if (device_memory_ != nullptr) return;
  if (data_ != nullptr) (void)munmap(data_, reserved_);
  // Relaxed: the destructor's thread is the only one.
  if (std::byte* at = writable_.load(std::memory_order_relaxed)) (void)munmap(at, reserved_);
}

const RequestSlot* SharedPeer::slot_of(const Reference& reference) const noexcept {
  return reference.slot < kMaxRequests && reference.generation != 0 ? &slots_->slots[reference.slot]
                                                                    : nullptr;
}

PeerStatus SharedPeer::open(const Reference& reference, bool writable, std::byte*& data) noexcept {
  if (lost()) return PeerStatus::closed;
  if (reference.pool_id != pool_id()) return PeerStatus::other_pool;
  const RequestSlot* slot = slot_of(reference);
  if (slot == nullptr) return PeerStatus::forged;
  // Acquire, all three: a nonce read between two reads of the same generation is that generation's.
  if (slot->generation.load(std::memory_order_acquire) != reference.generation) return PeerStatus::over;
  const std::uint64_t nonce = slot->nonce.load(std::memory_order_acquire);
  if (slot->generation.load(std::memory_order_acquire) != reference.generation) return PeerStatus::over;
  if (RequestSlot::seal(nonce, reference.generation, reference.offset, reference.nbytes) !=
      reference.seal) {
    return PeerStatus::forged;
  }
  if (reference.offset > reserved_ || reference.nbytes > reserved_ - reference.offset) {
    return PeerStatus::out_of_range;
  }
  const HolderView holders = slots_->holders(reference.slot);
  if (!holders.holds(reference.generation, bit_)) {
    if (holders.was_named(reference.generation, bit_)) return PeerStatus::acknowledged;
    return slot->generation.load(std::memory_order_acquire) == reference.generation
               ? PeerStatus::unknown_device
               : PeerStatus::over;
  }
  if (board_->posted(reference.slot, reference.generation)) return PeerStatus::acknowledged;
  std::byte* base = data_;
  if (writable) {
    base = writable_.load(std::memory_order_acquire);
    if (base == nullptr) return PeerStatus::read_only;
  }
  data = base + reference.offset;
  return PeerStatus::ok;
}

SharedPeer::Acked SharedPeer::ack(const Reference& reference) noexcept {
  if (lost()) return {PeerStatus::closed, AckResult::late};
  if (reference.pool_id != pool_id()) return {PeerStatus::other_pool, AckResult::late};
  const RequestSlot* slot = slot_of(reference);
  if (slot == nullptr) return {PeerStatus::forged, AckResult::late};
  const auto over = [&] {
    return slot->generation.load(std::memory_order_acquire) != reference.generation;
  };
  const auto again = [&] { return over() ? AckResult::late : AckResult::duplicate; };
  if (over()) return {PeerStatus::ok, AckResult::late};
  const HolderView holders = slots_->holders(reference.slot);
  if (!holders.holds(reference.generation, bit_)) {
    // `named` is read first: a request that ends in between is answered as over, and not as unknown_device.
    const bool named = holders.was_named(reference.generation, bit_);
    const AckResult result = again();
    if (!named && result != AckResult::late) return {PeerStatus::unknown_device, AckResult::late};
    return {PeerStatus::ok, result};
  }
  if (!board_->post(reference.slot, reference.generation)) return {PeerStatus::ok, again()};
  // Before the owner can see the ack: once it does, the slot may be another request's.
  const bool last = tally_->leave(reference.slot, holders, reference.generation, bit_);
  board_->publish(reference.slot);
  // Sequentially consistent: see AckBoard::publish().
  if (header_->waiting.load(std::memory_order_seq_cst) != 0) {
    const std::uint64_t one = 1;
    (void)!write(bell_.get(), &one, sizeof one);
  }
  return {PeerStatus::ok, last ? AckResult::released : AckResult::pending};
}

void SharedPeer::heartbeat() noexcept { board_->alive(now_ns()); }

bool SharedPeer::map_writable(int data) noexcept {
  const std::lock_guard lock(writable_mutex_);
  if (writable()) return true;
  std::byte* at = nullptr;
  if (!map(data, reserved_, PROT_READ | PROT_WRITE, at)) return false;
  writable_.store(at, std::memory_order_release);
  return true;
}

}  // namespace slabpool
