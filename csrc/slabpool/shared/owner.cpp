#include "slabpool/shared/owner.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <new>
#include <thread>

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>

#include "slabpool/base/futex.hpp"

namespace slabpool {

std::unique_ptr<SharedOwner> SharedOwner::create(SharedData given, Error& error) {
  const auto refused = [&] {
    (void)error.fail_errno();
    return nullptr;
  };
  std::unique_ptr<SharedOwner> owner(new SharedOwner(std::move(given)));
  const SharedData& data = owner->data_;
  owner->table_ = SharedFile::create(kTableBytes, error);
  if (owner->table_ == nullptr) return nullptr;
  owner->tally_ = SharedFile::create(kTallyBytes, error);
  if (owner->tally_ == nullptr) return nullptr;
  if (!owner->tally_->seal(false, error)) return nullptr;
  void* table = mmap(nullptr, kTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                     owner->table_->fd(), 0);
  if (table == MAP_FAILED) return refused();
  owner->table_map_ = static_cast<std::byte*>(table);
  // Sealed once the owner's writable map exists: from here on no process can make another.
  if (!owner->table_->open_read_only(error) || !owner->table_->seal(true, error)) return nullptr;
  void* tally = mmap(nullptr, kTallyBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                     owner->tally_->fd(), 0);
  if (tally == MAP_FAILED) return refused();
  owner->tally_map_ = static_cast<AckTally*>(tally);
  owner->bells_ = Descriptor(epoll_create1(EPOLL_CLOEXEC));
  if (owner->bells_.get() < 0) return refused();
  std::uint64_t random[2];
  if (getrandom(random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) return refused();
  owner->secret_ = random[0];
  owner->header_ = new (owner->table_map_)
      SharedHeader{kSharedMagic, kSharedVersion, kMaxRequests, random[1], data.bytes, {}, {0}, {0}};
  data.pci.copy(owner->header_->pci, sizeof owner->header_->pci - 1);
  // Zero bytes are a slot without a request; as in VirtualArray, none is constructed.
  owner->slots_ = reinterpret_cast<SlotTable*>(owner->table_map_ + kSlotsOffset);
  return owner;
}

SharedOwner::~SharedOwner() {
  for (const auto& board : boards_) {
    if (board.load(std::memory_order_relaxed) != nullptr)
      (void)munmap(board.load(std::memory_order_relaxed), kBoardBytes);
  }
  if (tally_map_ != nullptr) (void)munmap(tally_map_, kTallyBytes);
  if (table_map_ != nullptr) (void)munmap(table_map_, kTableBytes);
}

// Maps empty private memory in the board's place, in one step.
bool SharedOwner::blank(std::uint32_t device) noexcept {
  return mmap(&board(device), kBoardBytes, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

std::vector<SharedOwner::Peer>::const_iterator SharedOwner::find(std::uint32_t device) const noexcept {
  return std::find_if(peers_.begin(), peers_.end(), [&](const Peer& p) { return p.device == device; });
}

bool SharedOwner::attach(std::uint32_t device, PeerFiles& files, Error& error) noexcept {
  const auto refused = [&](int system_errno) { return error.fail_errno({}, system_errno); };
  if (device >= kMaxDevices) return refused(EINVAL);
  const std::lock_guard lock(mutex_);
  if (!admits_) return refused(ESHUTDOWN);
  if (find(device) != peers_.end()) return refused(EEXIST);
  Peer peer{device, nullptr, {}};
  try {
    peers_.reserve(peers_.size() + 1);
    peer.board = SharedFile::create(kBoardBytes, error);
    if (peer.board == nullptr) return false;
  } catch (const std::bad_alloc&) {
    return refused(ENOMEM);
  }
  if (!peer.board->seal(false, error)) return false;
  // An eventfd for each peer: epoll watches it edge-triggered, and it is never read. A peer shares the
  // descriptor's flags, and could otherwise make a reader block, or keep another peer from ringing.
  peer.bell = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (peer.bell.get() < 0) return refused(errno);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  // In place of the empty memory, if the device was attached before.
  AckBoard* const before = boards_[device].load(std::memory_order_relaxed);
  void* map = MAP_FAILED;
  if (epoll_ctl(bells_.get(), EPOLL_CTL_ADD, peer.bell.get(), &event) == 0)
    map = mmap(before, kBoardBytes, PROT_READ | PROT_WRITE,
               MAP_SHARED | (before != nullptr ? MAP_FIXED : 0), peer.board->fd(), 0);
  if (map == MAP_FAILED) return refused(errno);
  // Release pairs with forget_ack(); count_ publishes it to the others.
  boards_[device].store(static_cast<AckBoard*>(map), std::memory_order_release);
  files = {data_.fd, table_->read_only_fd(), peer.board->fd(), tally_->fd(), peer.bell.get()};
  peers_.push_back(std::move(peer));
  const std::uint32_t count = count_.load(std::memory_order_relaxed);
  attached_[count].store(device, std::memory_order_relaxed);
  polled_[count].store(&board(device), std::memory_order_relaxed);
  count_.store(count + 1, std::memory_order_release);
  return true;
}

bool SharedOwner::detach(std::uint32_t device) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = find(device);
  if (found == peers_.end()) return false;
  (void)epoll_ctl(bells_.get(), EPOLL_CTL_DEL, found->bell.get(), nullptr);
  peers_.erase(found);
  const std::uint32_t count = count_.load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < count; ++i) {
    if (attached_[i].load(std::memory_order_relaxed) != device) continue;
    attached_[i].store(attached_[count - 1].load(std::memory_order_relaxed), std::memory_order_relaxed);
    polled_[i].store(polled_[count - 1].load(std::memory_order_relaxed), std::memory_order_relaxed);
    break;
  }
  count_.store(count - 1, std::memory_order_release);
  // It fails if the process has no more mappings; the old board then stays mapped, and is not read any more.
  (void)blank(device);
  return true;
}

void SharedOwner::host_left(std::uint32_t slot, std::uint64_t generation) noexcept {
  if (tally_map_->watched(slot, generation)) futex_wake(slots_->slots[slot].holders.word.pending);
}

void SharedOwner::silence() noexcept {
  // One look at every bell at most: peers that ring all the time do not keep the owner here.
  constexpr int kAtOnce = 64;
  epoll_event events[kAtOnce];
  for (std::uint32_t looks = 0; looks <= kMaxDevices / kAtOnce; ++looks) {
    if (epoll_wait(bells_.get(), events, kAtOnce, 0) != kAtOnce) return;
  }
}

void SharedOwner::listen(int wakeup, std::int64_t ns) noexcept {
  constexpr std::int64_t kSecond = 1'000'000'000;
  constexpr std::int64_t kMoment = 5'000'000;
  pollfd sources[2] = {{bells_.get(), POLLIN, 0}, {wakeup, POLLIN, 0}};
  ns = std::min(ns, wakeup >= 0 ? 3600 * kSecond : kMoment);
  const timespec timeout{static_cast<time_t>(ns / kSecond), static_cast<long>(ns % kSecond)};
  // Interrupted or late: the caller tries again in any case. Where the call is forbidden, it does so by the clock.
  if (ppoll(sources, wakeup >= 0 ? 2 : 1, &timeout, nullptr) < 0 && errno != EINTR)
    std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(ns, kMoment)));
  if ((sources[0].revents & POLLIN) != 0) silence();
  std::uint64_t count = 0;
  if (wakeup >= 0 && (sources[1].revents & POLLIN) != 0) (void)!read(wakeup, &count, sizeof count);
}

}  // namespace slabpool
