// A pool's life: the memory that it is made of, trimming, and closing.
//
// Invariants: a creation that fails leaves nothing behind; memory goes back to the system only when it has no holder and
// no queued work of a GPU can touch it. A forced close ends the holds of the host and of this process' devices, and not
// those of an attached peer: see RequestTable::close_all().
#include <algorithm>
#include <cerrno>
#include <thread>

#include "slabpool/acks/polled_acks.hpp"
#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/cuda/device_info.hpp"
#include "slabpool/memory/host_memory.hpp"
#include "slabpool/memory/limits.hpp"
#include "slabpool/memory/memory_groups.hpp"
#include "slabpool/memory/shared_memory.hpp"
#include "slabpool/pool/pool.hpp"
#include "slabpool/shared/owner.hpp"

namespace slabpool {
namespace {

// Address space for each byte of capacity, and the least and most of it. Much more than the capacity, so that a large
// tensor finds a run of addresses however the live ones lie, and growing tensors can be given their limits; 16 TiB
// leaves room for other libraries in the 128 TiB of a process.
constexpr std::uint64_t kReserveFactor = 64;
constexpr std::uint64_t kLeastReserve = std::uint64_t{64} << 30;
constexpr std::uint64_t kMostReserve = std::uint64_t{16} << 40;

// Address space to reserve for a pool. Under RLIMIT_AS at most a quarter of what is left, so that the pool's tables and
// the rest of the process have some too.
std::uint64_t reserve_for(std::uint64_t capacity) noexcept {
  const std::uint64_t wanted = std::clamp(capacity * kReserveFactor, kLeastReserve, kMostReserve);
  const std::uint64_t left = addresses_left() / 4 & ~(std::uint64_t{kRangeAlign} - 1);
  return std::min(wanted, std::max(left, capacity * 2));
}

// Whether pages are taken from the system at commit, not at the first touch: a limit that is too low then certainly ends
// the process.
bool commits_pages(const PoolOptions& options) noexcept {
  return options.memory == MemoryKind::pinned || (options.memory == MemoryKind::host && options.shared);
}

struct Sources {
  std::unique_ptr<MemoryResource> memory;
  std::unique_ptr<SharedOwner> shared;
};

std::unique_ptr<SharedOwner> share_device_memory(const MemoryResource& memory, int device,
                                                 Error& error) {
  cuda::DeviceInfo info;
  const cuda::Driver* driver = cuda::Driver::get(error);
  if (driver == nullptr || !cuda::describe_device(*driver, device, info, error)) return nullptr;
  Descriptor fd(cuda::shareable_fd(memory, error));
  if (fd.get() < 0) {
    error.status = Status::system_refused;
    return nullptr;
  }
  const int number = fd.get();
  auto shared =
      SharedOwner::create({number, number, memory.address_space(), info.pci, std::move(fd)}, error);
  if (shared == nullptr && error.text.empty())
    (void)error.fail_errno("the files of a shared pool", error.system_errno);
  return shared;
}

Sources cuda_sources(const PoolOptions& options, std::uint64_t reserve, Error& error) {
  cuda::CudaMemoryOptions wanted;
  wanted.device = options.device;
  wanted.reserve = reserve;
  wanted.minimum = options.capacity;
  wanted.capacity = options.capacity;
  wanted.shared = options.shared;
  Sources sources;
  sources.memory = options.memory == MemoryKind::device   ? cuda::create_device_memory(wanted, error)
                   : options.memory == MemoryKind::pinned ? cuda::create_pinned_memory(wanted, error)
                                                          : cuda::create_managed_memory(wanted, error);
  if (sources.memory == nullptr || !options.shared) return sources;
  sources.shared = share_device_memory(*sources.memory, options.device, error);
  if (sources.shared == nullptr) sources.memory.reset();
  return sources;
}

Sources shared_sources(const PoolOptions& options, std::uint64_t reserve, Error& error) {
  Sources sources;
  auto data = SharedMemory::create(reserve, options.capacity * 2, error);
  if (data == nullptr) return sources;
  const SharedFile& file = data->file();
  sources.shared = SharedOwner::create({file.read_only_fd(), file.fd(), file.bytes(), {}, {}}, error);
  if (sources.shared != nullptr) sources.memory = std::move(data);
  return sources;
}

Sources host_sources(const PoolOptions& options, std::uint64_t reserve, Error& error) {
  HostMemoryOptions host;
  host.reserve = reserve;
  host.minimum = options.capacity * 2;
  host.huge_pages = options.huge_pages;
  host.numa_node = options.numa_node;
  return {HostMemory::create(host, error), nullptr};
}

bool valid(const PoolOptions& options) noexcept {
  if (options.capacity < kMostSystemPage || options.capacity > kMostReserve / 4) return false;
  if (options.memory == MemoryKind::shared) return false;  // host memory with `shared`
  if (options.shared && options.memory != MemoryKind::host && options.memory != MemoryKind::device)
    return false;
  // Guards and poison are written by the host.
  return options.debug == 0 || options.memory != MemoryKind::device;
}

// Memory that is committed in granules comes in whole granules.
PoolOptions rounded(PoolOptions options, const MemoryResource& memory) noexcept {
  const std::uint64_t granule = memory.granule();
  if (granule > kPageSize) options.capacity = (options.capacity + granule - 1) / granule * granule;
  return options;
}

}  // namespace

std::unique_ptr<Pool> Pool::create(const PoolOptions& options, Error& error) {
  if (!valid(options)) {
    error.status = Status::invalid_argument;
    return nullptr;
  }
  const std::uint64_t reserve = reserve_for(options.capacity);
  Error warning;
  try {
    if (options.memory != MemoryKind::device &&
        !MemoryGroups::find().admits(options.capacity, warning) && commits_pages(options)) {
      error = std::move(warning);
      error.system_errno = ENOMEM;  // of pinned memory: a limit refuses, and the driver was not asked
      return nullptr;
    }
    error.status = Status::system_refused;  // unless it succeeds
    Sources sources = options.memory != MemoryKind::host ? cuda_sources(options, reserve, error)
                      : options.shared                   ? shared_sources(options, reserve, error)
                                                         : host_sources(options, reserve, error);
    if (sources.memory != nullptr) {
      std::unique_ptr<Pool> pool(
          new Pool(options, std::move(sources.memory), std::move(sources.shared)));
      error = {};
      error.text = std::move(warning.text);
      return pool;
    }
  } catch (const std::bad_alloc&) {
    (void)error.fail_errno({}, ENOMEM);
  }
  if (options.memory == MemoryKind::host) explain_refusal(error);
  return nullptr;
}

Error Pool::refusal() const {
  Error error = memory_->refusal();
  const bool pinned = memory_->kind() == MemoryKind::pinned;
  if (pinned || error.text.empty()) explain_refusal(error, pinned);
  return error;
}

Pool::Pool(const PoolOptions& options, std::unique_ptr<MemoryResource> memory)
    : Pool(options, std::move(memory), nullptr) {}

Pool::Pool(const PoolOptions& options, std::unique_ptr<MemoryResource> memory,
           std::unique_ptr<SharedOwner> shared)
    : options_(rounded(options, *memory)),
      epoch_(fork_epoch()),
      slow_path_flags_((options.scrub_on_release ? kScrub : 0) | (options.debug > 0 ? kDebug : 0) |
                       (options.events != 0 ? kLog : 0) | (shared != nullptr ? kPolledAcks : 0)),
      memory_(std::move(memory)),
      shared_(std::move(shared)),
      depot_(*memory_, options_.capacity, options.debug > 1),
      caches_(depot_, options_.capacity),
      table_(depot_, devices_, shared_ != nullptr ? shared_->slots() : nullptr,
             shared_ != nullptr ? shared_->secret() : 0, 1, shared_.get()),
      log_(options.events != 0 ? std::make_unique<EventLog>(options.events) : nullptr),
      queue_(shared_.get(), *this),
      polled_(std::make_unique<PolledAcks>(*this, shared_.get())) {
  slow_path_flags_.fetch_or(caches_.serial(), std::memory_order_relaxed);
}

Pool::~Pool() {
  wait_for_streams();
  // The file lives as long as a peer maps it. What no holder can read goes now; the rest stays as it is.
  if (shared_ != nullptr) (void)trim();
}

// ---- giving back

std::uint64_t Pool::trim() noexcept {
  if (!usable_here()) return 0;
  collect_acks();
  const std::uint64_t before = depot_.figures().committed;
  caches_.collect();  // a slab with holes goes back when its last block returns
  const std::uint64_t after = depot_.figures().committed;
  table_.trim();
  return depot_.trim() + (before > after ? before - after : 0);
}

Status Pool::close(bool force) noexcept {
  if (!usable_here()) return Status::forked;
  if (closed()) return Status::ok;
  collect_acks();
  if (!force) {
    // A caller may have been answered "released" a moment before its request is retired. That is waited for: the thread
    // that retires it waits only for mutexes, and none of them is held here.
    RequestTable::Holds holds = table_.holds();
    for (; holds == RequestTable::Holds::ending; holds = table_.holds()) std::this_thread::yield();
    if (holds == RequestTable::Holds::some || caches_.sums().live != 0) return Status::pool_busy;
  }
  // Every holder but attached peers leaves, and pages go back to the system, but not while queued work of a GPU may touch
  // them.
  wait_for_streams();
  if (shared_ != nullptr) shared_->admit(false);
  // Release: a thread that learns of the closing finds the pool closed. Sequentially consistent, as in
  // WaitQueue::enter(): a waiter that registers now either is woken at the end of this call, or finds the pool closed.
  slow_path_flags_.fetch_or(kClosed, std::memory_order_seq_cst);
  ClaimedList over;
  // A device of this process lets go when the pool is closed by force; an attached peer lets go by its ack, when it
  // detaches, or when it dies.
  table_.close_all(
      [this](std::uint32_t device) { return shared_ != nullptr && shared_->attached(device); }, over);
  end_all(over);
  (void)trim();
  queue_.wake_all();
  pressure_.close_all();
  return Status::ok;
}

}  // namespace slabpool
