#include "slabpool/shared/owner.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

#if defined(__linux__)
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#endif

namespace slabpool {

#if defined(__linux__)

std::unique_ptr<SharedOwner> SharedOwner::create(const SharedData& data) {
  std::unique_ptr<SharedOwner> owner(new SharedOwner(data));
  Error error;
  owner->table_ = SharedFile::create(kTableBytes, error);
  owner->tally_ = SharedFile::create(kTallyBytes, error);
  if (owner->table_ == nullptr || owner->tally_ == nullptr || !owner->tally_->seal(false, error))
    return nullptr;
  void* table = mmap(nullptr, kTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                     owner->table_->fd(), 0);
  if (table == MAP_FAILED) return nullptr;
  owner->table_map_ = static_cast<std::byte*>(table);
  // Sealed once our own writable map exists: from here on nobody can make another.
  if (!owner->table_->open_read_only(error) || !owner->table_->seal(true, error)) return nullptr;
  void* tally = mmap(nullptr, kTallyBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                     owner->tally_->fd(), 0);
  if (tally == MAP_FAILED) return nullptr;
  owner->tally_map_ = static_cast<AckTally*>(tally);
  void* boards = mmap(nullptr, kMaxDevices * kBoardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (boards == MAP_FAILED) return nullptr;
  owner->boards_ = static_cast<std::byte*>(boards);
  owner->bells_ = epoll_create1(EPOLL_CLOEXEC);
  if (owner->bells_ < 0) return nullptr;
  std::uint64_t random[2];
  if (getrandom(random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) return nullptr;
  owner->secret_ = random[0];
  owner->header_ = new (owner->table_map_)
      SharedHeader{kSharedMagic, kSharedVersion, kMaxRequests, random[1], data.bytes, {}, {0}, {0}};
  data.pci.copy(owner->header_->pci, sizeof owner->header_->pci - 1);
  // Zero bytes are a slot that no request has; as in VirtualArray, none is constructed.
  owner->slots_ = reinterpret_cast<RequestSlot*>(owner->table_map_ + kSlotsOffset);
  return owner;
}

SharedOwner::~SharedOwner() {
  if (data_.owned) {
    if (data_.fd >= 0) (void)::close(data_.fd);
    if (data_.writable >= 0 && data_.writable != data_.fd) (void)::close(data_.writable);
  }
  for (const Peer& peer : peers_) (void)::close(peer.bell);
  if (bells_ >= 0) (void)::close(bells_);
  if (boards_ != nullptr) (void)munmap(boards_, kMaxDevices * kBoardBytes);
  if (tally_map_ != nullptr) (void)munmap(tally_map_, kTallyBytes);
  if (table_map_ != nullptr) (void)munmap(table_map_, kTableBytes);
}

// Empty memory of our own in the board's place, in one step.
bool SharedOwner::blank(std::uint32_t device) noexcept {
  return mmap(&board(device), kBoardBytes, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

bool SharedOwner::attach(std::uint32_t device, PeerFiles& files) noexcept {
  if (device >= kMaxDevices) {
    errno = EINVAL;
    return false;
  }
  const std::lock_guard lock(mutex_);
  if (std::any_of(peers_.begin(), peers_.end(), [&](const Peer& p) { return p.device == device; })) {
    errno = EEXIST;
    return false;
  }
  Error error;
  Peer peer{device, nullptr, -1};
  try {
    peers_.reserve(peers_.size() + 1);
    peer.board = SharedFile::create(kBoardBytes, error);
  } catch (const std::bad_alloc&) {
    errno = ENOMEM;
  }
  if (peer.board == nullptr || !peer.board->seal(false, error)) return false;
  // An eventfd for each peer, waited for by its edges and never read: nothing that a peer does to the
  // descriptor it shares with us can make a reader block, or keep another peer from ringing.
  peer.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (peer.bell < 0) return false;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  if (epoll_ctl(bells_, EPOLL_CTL_ADD, peer.bell, &event) != 0 ||
      mmap(&board(device), kBoardBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, peer.board->fd(),
           0) == MAP_FAILED) {
    const int number = errno;
    (void)::close(peer.bell);
    errno = number;
    return false;
  }
  files = {data_.fd, table_->read_only_fd(), peer.board->fd(), tally_->fd(), peer.bell};
  peers_.push_back(std::move(peer));
  const std::uint32_t count = count_.load(std::memory_order_relaxed);
  attached_[count].store(device, std::memory_order_relaxed);
  count_.store(count + 1, std::memory_order_release);
  return true;
}

void SharedOwner::detach(std::uint32_t device) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(peers_.begin(), peers_.end(), [&](const Peer& p) { return p.device == device; });
  if (found == peers_.end()) return;
  (void)epoll_ctl(bells_, EPOLL_CTL_DEL, found->bell, nullptr);
  (void)::close(found->bell);
  peers_.erase(found);
  const std::uint32_t count = count_.load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < count; ++i) {
    if (attached_[i].load(std::memory_order_relaxed) != device) continue;
    attached_[i].store(attached_[count - 1].load(std::memory_order_relaxed), std::memory_order_relaxed);
    break;
  }
  count_.store(count - 1, std::memory_order_release);
  // Failing means no more mappings are to be had; the old board then stays, and nobody looks at it.
  (void)blank(device);
}

void SharedOwner::silence() noexcept {
  epoll_event events[64];
  while (epoll_wait(bells_, events, 64, 0) == 64) {
  }
}

int SharedOwner::new_wakeup() noexcept { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

void SharedOwner::listen(int wakeup, std::int64_t ns) noexcept {
  constexpr std::int64_t kSecond = 1'000'000'000;
  constexpr std::int64_t kMoment = 5'000'000;
  pollfd sources[2] = {{bells_, POLLIN, 0}, {wakeup, POLLIN, 0}};
  ns = std::min(ns, wakeup >= 0 ? 3600 * kSecond : kMoment);
  const timespec timeout{static_cast<time_t>(ns / kSecond), static_cast<long>(ns % kSecond)};
  // Interrupted or late: the caller looks again in any case.
  (void)ppoll(sources, wakeup >= 0 ? 2 : 1, &timeout, nullptr);
  if ((sources[0].revents & POLLIN) != 0) silence();
  std::uint64_t count = 0;
  if (wakeup >= 0 && (sources[1].revents & POLLIN) != 0) (void)!read(wakeup, &count, sizeof count);
}

#else

std::unique_ptr<SharedOwner> SharedOwner::create(const SharedData&) {
  errno = ENOTSUP;
  return nullptr;
}
SharedOwner::~SharedOwner() = default;
bool SharedOwner::attach(std::uint32_t, PeerFiles&) noexcept { return false; }
void SharedOwner::detach(std::uint32_t) noexcept {}
void SharedOwner::silence() noexcept {}
int SharedOwner::new_wakeup() noexcept { return -1; }
void SharedOwner::listen(int, std::int64_t) noexcept {}

#endif

}  // namespace slabpool
