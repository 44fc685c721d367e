// All caches of one pool: which thread has which, collecting them, and what goes back after a window of time.
#include "slabpool/slab/thread_cache.hpp"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <thread>
#include <unordered_map>

#include "slabpool/base/fork.hpp"

namespace slabpool {

constinit thread_local LastCache t_last_cache{0, nullptr};
void end_thread(void*) noexcept;

namespace {

// Nanoseconds. Three windows are less than a second: the one in which the use falls, and two that show it.
constexpr std::int64_t kWindow = 200'000'000;

// How often may_take() looks at a thread that runs.
constexpr int kLooksAtOwner = 4;

// The pools that exist, for threads that end after a pool.
struct Registry {
  std::mutex mutex;
  std::unordered_map<std::uint64_t, CacheSet*> sets;
  std::uint64_t last_serial = 0;
  // Has a value in each thread that has caches: the system then calls end_thread() when the thread ends. A thread_local
  // with a destructor would do the same, but the C library ends the process where it has no memory to register one.
  pthread_key_t thread_end{};
};

Registry& registry();

Registry* make_registry() {
  auto made = std::make_unique<Registry>();
  if (pthread_key_create(&made->thread_end, end_thread) != 0) throw std::bad_alloc();
  // The mutex is held across fork(), so that the child finds it unlocked and the map consistent.
  if (pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                     [] {
                       t_last_cache = {0, nullptr};  // it belongs to the parent's pool
                       registry().mutex.unlock();
                     }) != 0) {
    (void)pthread_key_delete(made->thread_end);
    throw std::bad_alloc();
  }
  return made.release();
}

// Never destroyed: threads may end after static destructors have run. Throws std::bad_alloc at the first call.
Registry& registry() {
  static Registry* r = make_registry();
  return *r;
}

// The caches of one thread, which are released when it ends.
struct Attached {
  std::uint64_t serial;
  std::uint32_t epoch;
  ThreadCache* cache;
  Attached* next;
};
constinit thread_local Attached* t_attached = nullptr;

// Forgets the caches of pools that are gone.
void forget_gone() noexcept {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  for (Attached** link = &t_attached; *link != nullptr;) {
    Attached* const one = *link;
    if (r.sets.contains(one->serial)) {
      link = &one->next;
    } else {
      *link = one->next;
      delete one;
    }
  }
}

}  // namespace

// A thread that uses a pool after this, in the destructor of another library's key, attaches anew, and the system calls
// this again.
void end_thread(void*) noexcept {
  t_last_cache = {0, nullptr};
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  while (Attached* const one = t_attached) {
    t_attached = one->next;
    // Otherwise a pool of the parent process.
    if (one->epoch == fork_epoch()) {
      const auto found = r.sets.find(one->serial);
      if (found != r.sets.end()) found->second->orphan(*one->cache);
    }
    delete one;
  }
}

CacheSet::CacheSet(Depot& depot, std::uint64_t capacity)
    : depot_(depot),
      serial_([] {
        Registry& r = registry();
        const std::lock_guard lock(r.mutex);
        return r.last_serial += kSerialStep;
      }()),
      // A thread keeps up to 64 MiB (in small pools 1/16 of the capacity), in large pools 1/64 of the capacity up to
      // 1 GiB: the tensors of a few layers are allocated and freed without the depot. With more, the page heap could
      // merge fewer spans and would scatter its allocations.
      byte_budget_(std::max(std::min<std::uint64_t>(capacity / 64, std::uint64_t{1} << 30),
                            std::min<std::uint64_t>(capacity / 16, std::uint64_t{64} << 20))),
      peak_step_(static_cast<std::int64_t>(capacity / 256)),
      epoch_(fork_epoch()),
      window_end_(coarse_now_ns() + kWindow) {
  caches_.reserve(8);
  spare_ = std::make_unique<ThreadCache>(*this);
  // The last step: a set whose constructor throws is in no registry.
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  r.sets.emplace(serial_, this);
}

CacheSet::~CacheSet() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  r.sets.erase(serial_);
}

// The cache of a thread that has ended, or a new one, for this thread; null where there is no memory.
ThreadCache* CacheSet::new_or_orphan() noexcept {
  const auto owner = static_cast<int>(syscall(SYS_gettid));
  const std::lock_guard lock(revokers_);
  for (const auto& candidate : caches_) {
    // Relaxed: orphan() ran under the same mutex.
    if (candidate->orphan_.load(std::memory_order_relaxed)) {
      candidate->orphan_.store(false, std::memory_order_relaxed);
      candidate->owner_ = owner;
      return candidate.get();
    }
  }
  try {
    // Room for this one and for `spare_`.
    if (caches_.size() + 2 > caches_.capacity()) caches_.reserve(2 * caches_.size());
    caches_.push_back(std::make_unique<ThreadCache>(*this));
    caches_.back()->owner_ = owner;
    // The first change of its live bytes is looked at: it has no part of what the others may change.
    if (watched_) caches_.back()->set_bounds({0, 0});
    return caches_.back().get();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// Null where there is no memory for a cache; nothing has changed then.
ThreadCache* CacheSet::attach() noexcept {
  if (epoch_ != fork_epoch())
    return nullptr;  // in a fork's child the caches are the parent's: see last()
  for (const Attached* one = t_attached; one != nullptr; one = one->next) {
    if (one->serial == serial_) {
      t_last_cache = {serial_, one->cache};
      return one->cache;
    }
  }
  forget_gone();
  std::unique_ptr<Attached> added(new (std::nothrow) Attached{serial_, epoch_, nullptr, t_attached});
  if (added == nullptr || pthread_setspecific(registry().thread_end, this) != 0) return nullptr;
  added->cache = new_or_orphan();
  if (added->cache == nullptr) return nullptr;
  t_attached = added.release();
  t_last_cache = {serial_, t_attached->cache};
  return t_attached->cache;
}

ThreadCache& CacheSet::attach_or_throw() {
  ThreadCache* const cache = attach();
  if (cache == nullptr) throw std::bad_alloc();
  return *cache;
}

void CacheSet::count_slowly(Count what) noexcept {
  if (ThreadCache* const cache = attach()) return cache->count(what);
  const std::lock_guard lock(revokers_);
  uncached().count(what);
}

void CacheSet::count_unretained_slowly(std::uint64_t bytes) noexcept {
  if (ThreadCache* const cache = attach()) return add_alone(cache->unretained_, bytes);
  const std::lock_guard lock(revokers_);
  add_alone(uncached().unretained_, bytes);
}

ThreadCache& CacheSet::uncached() noexcept {
  if (uncached_ == nullptr) {
    SLABPOOL_ASSERT(caches_.size() < caches_.capacity(), "there is room for the spare cache",
                    caches_.size());
    uncached_ = spare_.get();
    caches_.push_back(std::move(spare_));
  }
  return *uncached_;
}

void CacheSet::give_uncached(Block* chain) noexcept {
  {
    const std::lock_guard lock(revokers_);
    for (const Block* block = chain; block != nullptr; block = block->next)
      uncached().count_freed(block->bytes);
  }
  depot_.give(chain);
}

void CacheSet::orphan(ThreadCache& cache) noexcept {
  const std::lock_guard lock(revokers_);
  // Relaxed: a thread that reads the old value posts to the inbox, where the next owner or collect() finds the block.
  cache.orphan_.store(true, std::memory_order_relaxed);
  if (Block* chain = cache.take_all()) depot_.give(chain);
}

void CacheSet::collect() noexcept {
  const std::lock_guard lock(revokers_);
  for (const auto& cache : caches_) cache->lock_.revoke();
  const bool ordered = barrier_all_threads();
  bool left = false;
  for (const auto& cache : caches_) {
    if (ordered || may_take(*cache)) [[likely]] {
      cache->lock_.wait();
      if (Block* chain = cache->take_all()) depot_.give(chain);
    } else {
      left = true;
    }
    cache->lock_.restore();
  }
  left_some_.store(left, std::memory_order_relaxed);
}

void CacheSet::settle(std::int64_t now) noexcept {
  std::int64_t end = window_end_.load(std::memory_order_relaxed);
  // Relaxed: the threads that try agree on one of them, and the depot's mutex orders the rest.
  if (now < end || !window_end_.compare_exchange_strong(end, now + kWindow, std::memory_order_relaxed))
    return;
  (void)sums();  // updates the peak
  std::int64_t live = 0;
  const std::int64_t peak = start_window(now - end > kWindow, live);
  if (depot_.figures().committed > static_cast<std::uint64_t>(live + live / 32)) collect();
  depot_.settle(static_cast<std::uint64_t>(peak - live));
}

// Without a barrier: whether the owner of a revoked lock is known to see the revocation.
bool CacheSet::may_take(ThreadCache& cache) noexcept {
  cache.lock_.need_exchange();
  if (cache.lock_.exchanges() || cache.orphan_.load(std::memory_order_relaxed) ||
      cache.owner_ == static_cast<int>(syscall(SYS_gettid)))
    return true;
  for (int left = kLooksAtOwner; left > 0; --left) {
    if (was_off_processor(cache.owner_) || cache.lock_.exchanges()) return true;
    std::this_thread::yield();
  }
  return false;
}

}  // namespace slabpool
