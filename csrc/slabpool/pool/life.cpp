// A pool's life: which memory it is made of, and how it is closed.
//
// What must stay true: a creation that fails leaves nothing; memory goes back to the system only when nobody holds
// it, and a GPU is known not to be at it.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "slabpool/acks/from_streams.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/cuda/device_info.hpp"
#include "slabpool/memory/host_memory.hpp"
#include "slabpool/memory/shared_memory.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {
namespace {

// Address space for each byte of capacity, and the least and most of it. Much more than the capacity,
// so that a large tensor finds a run of addresses whatever the live ones look like, and that tensors which
// grow can be given their limits; 16 TiB leaves room for others in the 128 TiB that a process has.
constexpr std::uint64_t kReserveFactor = 64;
constexpr std::uint64_t kLeastReserve = std::uint64_t{64} << 30;
constexpr std::uint64_t kMostReserve = std::uint64_t{16} << 40;

std::unique_ptr<MemoryResource> create_cuda_memory(const PoolOptions& options, std::uint64_t reserve,
                                                   Error& error) {
  cuda::CudaMemoryOptions wanted;
  wanted.device = options.device;
  wanted.reserve = reserve;
  wanted.minimum = options.capacity;
  wanted.capacity = options.capacity;
  wanted.shared = options.shared;
  return options.memory == MemoryKind::device   ? cuda::create_device_memory(wanted, error)
         : options.memory == MemoryKind::pinned ? cuda::create_pinned_memory(wanted, error)
                                                : cuda::create_managed_memory(wanted, error);
}

std::unique_ptr<SharedOwner> share_device_memory(const MemoryResource& memory, int device,
                                                 Error& error) {
  cuda::DeviceInfo info;
  const cuda::Driver* driver = cuda::Driver::get(error);
  std::unique_ptr<SharedOwner> shared;
  if (driver != nullptr && cuda::describe_device(*driver, device, info, error)) {
    const int fd = cuda::shareable_fd(memory, error);
    if (fd >= 0) {
      shared = SharedOwner::create({fd, fd, memory.address_space(), info.pci, true});
      if (shared == nullptr)
        error.fail_errno(std::string("the files of a shared pool: ") + std::strerror(errno));
    }
  }
  return shared;
}

bool valid(const PoolOptions& options) noexcept {
  if (options.capacity < kPageSize || options.capacity > kMostReserve / 4) return false;
  if (options.memory == MemoryKind::shared) return false;  // host memory with `shared`
  if (options.shared && options.memory != MemoryKind::host && options.memory != MemoryKind::device)
    return false;
  // Guards and poison are the host's to write.
  return options.debug == 0 || options.memory != MemoryKind::device;
}

// Memory that is committed in granules is had in whole ones.
PoolOptions rounded(PoolOptions options, const MemoryResource& memory) noexcept {
  const std::uint64_t granule = memory.granule();
  if (granule > kPageSize) options.capacity = (options.capacity + granule - 1) / granule * granule;
  return options;
}

}  // namespace

std::unique_ptr<Pool> Pool::create(const PoolOptions& options, Status& status, std::string* why) {
  status = Status::invalid_argument;
  if (!valid(options)) return nullptr;
  const std::uint64_t reserve =
      std::clamp(options.capacity * kReserveFactor, kLeastReserve, kMostReserve);
  status = Status::system_refused;
  Error error;
  const auto refused = [&]() -> std::unique_ptr<Pool> {
    if (why != nullptr) *why = error.text;
    if (error.system_errno != 0) errno = error.system_errno;
    return nullptr;
  };
  try {
    std::unique_ptr<MemoryResource> memory;
    std::unique_ptr<SharedOwner> shared;
    if (options.memory != MemoryKind::host) {
      memory = create_cuda_memory(options, reserve, error);
      if (memory != nullptr && options.shared) {
        shared = share_device_memory(*memory, options.device, error);
        if (shared == nullptr) return refused();
      }
    } else if (options.shared) {
      auto data = SharedMemory::create(reserve, options.capacity * 2, error);
      if (data != nullptr) {
        const SharedFile& file = data->file();
        shared = SharedOwner::create({file.read_only_fd(), file.fd(), file.bytes(), {}, false});
      }
      if (shared != nullptr) memory = std::move(data);
    } else {
      HostMemoryOptions host;
      host.reserve = reserve;
      host.minimum = options.capacity * 2;
      host.huge_pages = options.huge_pages;
      host.numa_node = options.numa_node;
      memory = HostMemory::create(host, error);
    }
    if (memory == nullptr) return refused();
    auto pool = std::make_unique<Pool>(options, std::move(memory), std::move(shared));
    status = Status::ok;
    return pool;
  } catch (const std::bad_alloc&) {
    errno = ENOMEM;
    return nullptr;
  }
}

Pool::Pool(const PoolOptions& options, std::unique_ptr<MemoryResource> memory,
           std::unique_ptr<SharedOwner> shared)
    : options_(rounded(options, *memory)),
      epoch_(fork_epoch()),
      quirks_((options.scrub_on_release ? kScrub : 0) | (options.debug > 0 ? kDebug : 0) |
              (options.events != 0 ? kLog : 0) | (shared != nullptr ? kFarAcks : 0)),
      memory_(std::move(memory)),
      shared_(std::move(shared)),
      depot_(*memory_, options_.capacity, options.debug > 1),
      caches_(depot_, options_.capacity),
      table_(depot_, devices_, shared_ != nullptr ? shared_->slots() : nullptr,
             shared_ != nullptr ? shared_->secret() : 0),
      log_(options.events != 0 ? std::make_unique<EventLog>(options.events) : nullptr) {}

Pool::~Pool() {
  if (cuda::StreamAcks* acks = streams_.load(std::memory_order_acquire)) {
    wait_for_streams();  // before the memory they are about goes
    delete acks;
  }
  for (const int fd : spare_wakeups_) (void)::close(fd);
}

bool Pool::usable_here() const noexcept { return epoch_ == fork_epoch(); }

bool Pool::closed() const noexcept { return (quirks_.load(std::memory_order_acquire) & kClosed) != 0; }

// ---- giving back

std::uint64_t Pool::trim() noexcept {
  if (epoch_ != fork_epoch()) return 0;
  collect_acks();
  caches_.collect();
  return depot_.trim();
}

Status Pool::close(bool force) noexcept {
  if (epoch_ != fork_epoch()) return Status::forked;
  if (closed()) return Status::ok;
  collect_acks();
  if (!force) {
    // Memory may have come back, and somebody been told so, a moment before its request is over for good: that
    // is waited for. The thread at it waits for nobody but mutexes, none of which is held here.
    RequestTable::Holds holds = table_.holds();
    for (; holds == RequestTable::Holds::ending; holds = table_.holds()) std::this_thread::yield();
    if (holds == RequestTable::Holds::some || caches_.sums().live != 0) return Status::pool_busy;
  }
  // Requests are cut loose, and pages go back to the system: not those that a GPU is known to be at.
  wait_for_streams();
  // Release: a thread that is told of the closing finds it closed.
  quirks_.fetch_or(kClosed, std::memory_order_release);
  std::vector<Handle> all;
  std::vector<Handle> over;
  try {
    table_.each([&](const RequestRecord& r, const HolderSet&) {
      const std::uint64_t generation = r.generation.load(std::memory_order_relaxed);
      if ((generation & RequestRecord::kReleased) == 0) all.push_back({r.slot, generation});
    });
    for (const Handle handle : all) table_.cut(handle, over);
  } catch (const std::bad_alloc&) {
    quirks_.fetch_and(~kClosed, std::memory_order_release);
    finish_all(over);
    return Status::system_refused;
  }
  finish_all(over);
  (void)trim();
  wake_waiters();
  return Status::ok;
}

}  // namespace slabpool
