// The face of the core: one pool, its blocks and its requests.
//
// Every call may be made from any thread. Calls that fail change nothing. Allocating and letting go
// take no shared lock while the thread's cache can serve; an ack is one compare-and-swap unless it is
// the last. Whoever holds a view must keep the pool alive.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slabpool/base/export.hpp"
#include "slabpool/base/status.hpp"
#include "slabpool/cuda/api.hpp"
#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/observe/event_log.hpp"
#include "slabpool/observe/guard.hpp"
#include "slabpool/observe/stats.hpp"
#include "slabpool/request/device_registry.hpp"
#include "slabpool/request/table.hpp"
#include "slabpool/shared/owner.hpp"
#include "slabpool/slab/depot.hpp"
#include "slabpool/slab/thread_cache.hpp"

namespace slabpool {

namespace cuda {
class StreamAcks;
struct StreamName;
}  // namespace cuda

inline constexpr std::size_t kDefaultAlign = 64;
inline constexpr std::size_t kMaxAlign = std::size_t{2} << 20;

struct PoolOptions {
  std::uint64_t capacity = 0;     // bytes, at least one page; rounded up to granules of the memory
  bool scrub_on_release = false;  // zero every block before anybody else can get it
  int debug = 0;           // 1: guards and poison; 2: also check every invariant at each slow step
  std::size_t events = 0;  // entries of the event log, 0: none
  bool huge_pages = true;  // of host memory, as is the next
  int numa_node = -1;
  // Other processes may map it (Linux): host or device memory.
  bool shared = false;
  MemoryKind memory = MemoryKind::host;  // or device, pinned, managed
  int device = -1;                       // CUDA device of these three; -1: pinned memory near none
};

// A block handed out, and why not if it is null.
struct Allocation {
  Block* block = nullptr;
  Status status = Status::ok;
};

// How to allocate. A request's block is held by the request and, with `view`, by the caller too.
struct AllocateSpec {
  std::uint64_t nbytes = 0;
  std::uint64_t align = kDefaultAlign;  // a power of two, at most kMaxAlign
  Handle request{};  // generation 0: memory without a request, held by the caller alone
  bool view = true;
  bool zero = false;
  bool counts = true;      // whether running out is counted: not for whoever makes room and tries again
  SourceLocation where{};  // kept in pools with debug on
};

// What a session is to keep.
struct KeepSpec {
  std::string_view id;  // of the request that keeps it
  Block* block = nullptr;
  Handle from;     // whose it is
  Handle session;  // from Pool::open_session()
  std::optional<Handle>
      instead_of;  // of this session; it is about to be closed, and not charged any more
  SourceLocation where;
};

class SLABPOOL_API Pool {
 public:
  // Null on failure; `status` says why, and for system_refused errno, or of CUDA memory `why`.
  static std::unique_ptr<Pool> create(const PoolOptions& options, Status& status,
                                      std::string* why = nullptr);
  explicit Pool(const PoolOptions& options, std::unique_ptr<MemoryResource> memory,
                std::unique_ptr<SharedOwner> shared = nullptr);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  // ---- blocks
  Allocation allocate(const AllocateSpec& spec) noexcept;
  // The first lines of allocate(), for bindings that count instructions: `nbytes` without a request and
  // nothing else asked for, from this thread's list. Null where that takes more: allocate() then says why.
  Block* allocate_quickly(std::uint64_t nbytes) noexcept;
  // As allocate(), waiting until `deadline_ns` (monotonic) for memory to come back.
  // Whoever waits in slices, to look at other things in between, says which is the last: only that one
  // counts as a failure.
  Allocation allocate_until(const AllocateSpec& spec, std::int64_t deadline_ns,
                            bool last = true) noexcept;
  // Tensors that grow (growing.cpp). A block of a request for up to `most` bytes of addresses that never
  // move; the caller has a view of it. It has no bytes yet: grow() makes its first `nbytes` usable, and only
  // what is committed counts. quota_exceeded, exhausted, request_closed: it is as it was.
  Allocation open_growing(Handle request, std::uint64_t most) noexcept;
  // `usable`: how many bytes may be touched now; written unless the request or the pool is closed. `counts`: as
  // in AllocateSpec. cancel_growing() takes a block back that never got any bytes.
  Status grow(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable,
              bool counts = true) noexcept;
  Status grow_until(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable,
                    std::int64_t deadline_ns, bool last = true) noexcept;
  void cancel_growing(Block& block, Handle request) noexcept;
  // One more view of a block that the caller has a view of.
  void hold_view(Block& block) noexcept;
  // A view of a block by its serial, if the request it belongs to is still that generation and not over.
  Status open_view(Block& block, std::uint32_t serial, Handle request) noexcept;
  void drop_view(Block& block) noexcept;
  Block* find(const void* address) const noexcept;
  // The same without a lock, for an address in a block that the caller holds, or outside the pool (null).
  Block* find_held(const void* address) const noexcept;

  // ---- requests
  Status open(const OpenSpec& spec, Handle& handle) noexcept;
  Status open_until(const OpenSpec& spec, Handle& handle, std::int64_t deadline_ns,
                    bool last = true) noexcept;
  struct Acked {
    Status status = Status::ok;  // unknown_device, ambiguous, forked
    AckResult result = AckResult::pending;
  };
  Acked ack(Handle handle, std::uint32_t device) noexcept;
  Acked ack_id(std::string_view id, std::uint32_t device,
               std::optional<std::uint64_t> generation) noexcept;
  // As ack() and ack_id(), once everything that is queued on the stream until now is done (streams.cpp).
  // Wrong, late and repeated acks are answered at once, as those do; `pending` is also the answer while the work
  // is not done, and the ack then counts by itself. Without a device of its own a default stream is one of the
  // pool's device, else of the current context. Nothing has changed after invalid_argument (the driver refuses the
  // stream), device_lost, or system_refused (no driver), and `why` (may be null) says more.
  Acked ack_after(Handle handle, std::uint32_t device, const cuda::StreamName& on,
                  std::string* why = nullptr) noexcept;
  Acked ack_id_after(std::string_view id, std::uint32_t device, std::optional<std::uint64_t> generation,
                     const cuda::StreamName& on, std::string* why = nullptr) noexcept;
  // Acks that wait for a stream. While there are any, whoever waits for the pool must look again by himself:
  // nobody is woken by a stream.
  std::uint64_t stream_acks() const noexcept;
  // A GPU whose context this is has failed for good. If it has the pool's memory, nothing is allocated any more.
  void note_lost(cuda::Context context) noexcept;
  void close_request(Handle handle, bool cancel) noexcept;
  Status add_device(Handle handle, std::uint32_t device) noexcept;
  // Requests that held the device; it holds none of them any more.
  std::uint64_t device_lost(std::uint32_t device) noexcept;
  void heartbeat(std::uint32_t device) noexcept;
  bool released(Handle handle) noexcept;
  bool is_open(Handle handle) const noexcept;  // the host holds it
  bool cancelled(Handle handle) const noexcept;
  // True once released; false if `deadline_ns` came first.
  bool wait_released(Handle handle, std::int64_t deadline_ns) noexcept;
  // False if the request is over and nothing of it is left.
  bool describe(Handle handle, RequestInfo& info);

  DeviceRegistry& devices() noexcept { return devices_; }

  // ---- what sessions keep (sessions.cpp)
  // A kept request without memory of its own: `quota` bounds what is kept in it. Closing it, with
  // close_request(), closes all that.
  Status open_session(std::string_view id, std::uint64_t quota, SourceLocation where,
                      Handle& session) noexcept;
  // Moves a block, without a copy, from its request to a new one, `kept`; what else of the old request is
  // left to its devices goes on. Closing `kept` gives the block back, but not before every request is over
  // that pinned it: the one it came from, and those that pin() it. quota_exceeded: the session's quota;
  // exhausted: set_kept_quota(); request_closed: `from` or the session is over; invalid_argument: the block
  // is not a request's, or kept already. The caller has a view.
  Status keep(const KeepSpec& spec, Handle& kept) noexcept;
  // Whose block it is: generation 0 for nobody's. The caller has a view, and nobody moves it meanwhile.
  Handle owner_of(const Block& block) const noexcept;
  Status pin(Handle by, std::span<const Handle> kept) noexcept;
  using Kept = RequestTable::Kept;
  bool kept(Handle session, Kept& told) noexcept;                  // false: it is closed
  Status set_quota(Handle session, std::uint64_t quota) noexcept;  // quota_exceeded: it keeps more
  void set_kept_quota(std::uint64_t quota) noexcept;               // of all sessions together
  std::uint64_t kept_bytes() const noexcept;

  // ---- devices in other processes; only in pools of shared memory (peers.cpp)
  bool shared() const noexcept { return shared_ != nullptr; }
  std::uint64_t shared_id() const noexcept { return shared_->pool_id(); }
  // False if the device is attached already (errno EEXIST), or the system refuses.
  bool attach_peer(std::uint32_t device, PeerFiles& files) noexcept;
  int writable_data() const noexcept { return shared_->writable_data(); }
  // The peer is gone: what it acknowledged counts, and it lets go of all else. Returns how many requests.
  std::uint64_t detach_peer(std::uint32_t device) noexcept;
  // Peers find the pool closed.
  void dismiss_peers() noexcept { shared_->close(); }
  // Where bytes are for a peer, and the mark of a reference to them. request_closed: the request is over;
  // invalid_argument: the bytes are in no block of it. None (nbytes 0) refer to the request itself.
  Status refer(Handle handle, const void* data, std::uint64_t nbytes, std::uint64_t& offset,
               std::uint64_t& seal) noexcept;
  // Takes in the acks of peers and of streams that came since (polled_acks.cpp). Done by whatever allocates,
  // opens, waits or looks: an ack that a peer has been answered counts in all that this pool does after it.
  void collect_acks() noexcept {
    // Acquire: a thread that finds nothing more to come sees what the last that came has done.
    if ((quirks_.load(std::memory_order_acquire) & kFarAcks) != 0) collect_acks_slowly(true);
  }
  // For event loops: readable when a peer rang while somebody waits (-1: not shared). Whoever finds it so
  // calls answer_bell().
  int bell() const noexcept { return shared_ != nullptr ? shared_->bell() : -1; }
  void answer_bell() noexcept;

  // ---- looking inside
  MemoryKind memory() const noexcept { return memory_->kind(); }
  bool host_reaches() const noexcept { return memory_->host_reaches(); }
  // Behind the last system_refused, where errno does not say it: the driver's call, its answer, and what is free.
  std::string refusal() const { return memory_->refusal().text; }
  int device() const noexcept { return options_.device; }  // CUDA device, -1 for none
  std::uint64_t capacity() const noexcept { return options_.capacity; }
  Stats stats() noexcept;
  // Requests that are not over or whose bytes views retain, oldest first, at least `older_than_ns` old.
  std::vector<RequestInfo> requests(std::int64_t older_than_ns);
  std::vector<Event> events() const;
  std::vector<Corruption> corruptions() const;
  // Live blocks with this tag (Block::tag) and their bytes. Slow: looks at every block.
  Depot::Tagged tagged(std::uint8_t tag) const noexcept;
  // Bytes past the end of what was asked for are watched for writes (debug).
  bool guards_ends() const noexcept { return options_.debug > 0; }
  const char* verify() noexcept;

  // ---- giving back
  std::uint64_t trim() noexcept;
  // pool_busy while anything is held. With `force` requests are cut loose; views stay valid.
  Status close(bool force) noexcept;
  bool closed() const noexcept;
  bool usable_here() const noexcept;  // false in a child of the process that made the pool

  // Writes to the file descriptor (an eventfd or a pipe) whenever memory came back or a request ended,
  // until removed. For event loops.
  void add_wakeup(int fd);
  void remove_wakeup(int fd);

 private:
  struct Plan {
    unsigned bin;         // kBins: no thread cache for it
    std::uint64_t need;   // bytes of the block
    std::uint64_t align;  // beyond what every block has; 1 if nothing is asked for
  };

  static Plan plan(std::uint64_t nbytes, std::uint64_t align) noexcept;
  [[gnu::always_inline]] Block* take_first(std::uint64_t nbytes) noexcept;
  [[gnu::always_inline]] Block* take_plain(std::uint64_t nbytes) noexcept;
  [[gnu::noinline]] void drop_view_slowly(Block& block) noexcept;
  [[gnu::noinline]] void drop_retained(Block& block) noexcept;
  RequestRecord& retaining(const Block& block) const noexcept;
  [[gnu::noinline]] Allocation allocate_further(const AllocateSpec& spec) noexcept;
  [[gnu::noinline]] Allocation allocate_slowly(const AllocateSpec& spec) noexcept;
  Allocation take(const Plan& plan, ReserveRef reserve, bool exact);
  [[gnu::noinline]] Allocation take_promised(const Plan& plan, ReserveRef reserve, std::uint64_t align);
  // As allocate() and open(), but a failure is neither counted nor logged.
  Allocation try_allocate(const AllocateSpec& spec) noexcept;
  Status try_open(const OpenSpec& spec, Handle& handle) noexcept;
  [[gnu::noinline]] void note_exhausted(std::uint64_t generation, std::uint64_t nbytes) noexcept;
  [[gnu::noinline]] Allocation allocate_in_request(const AllocateSpec& spec, const Plan& plan) noexcept;
  Status try_grow(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable) noexcept;
  Status grow_to(Block& block, RequestRecord& record, Handle request, std::uint64_t pages,
                 ThreadCache& cache, bool hard) noexcept;
  Status attach(RequestRecord& record, Handle handle, Block& block) noexcept;
  bool ready(Block& block, const AllocateSpec& spec);  // false: the device failed, as in the next
  bool zeroed(Block& block, const AllocateSpec& spec) noexcept;
  void give_back(Block* chain, bool to_depot = false) noexcept;
  void clean(Block& block) noexcept;
  bool finish(Handle handle) noexcept;  // false: somebody else does
  void finish_all(std::vector<Handle>& over) noexcept;
  void log(EventKind kind, std::uint64_t generation, std::uint32_t device,
           std::uint64_t bytes) noexcept {
    if (log_ != nullptr) [[unlikely]]
      log_->add(kind, generation, device, bytes);
  }
  [[gnu::noinline]] void wake_waiters() noexcept;
  template <typename Try>
  bool wait_for(std::int64_t deadline_ns, Try&& attempt) noexcept;
  template <typename Try>
  bool wait_for_peers(std::int64_t deadline_ns, Try&& attempt) noexcept;
  // `all` false: a part of it, and not each time, for who calls often, and never waiting for another thread.
  [[gnu::noinline]] void collect_acks_slowly(bool all) noexcept;
  void collect_from_peers() noexcept;
  void hear_peers() noexcept;
  bool is_time_to_look() const noexcept;
  void collect_from_streams(cuda::StreamAcks& acks, bool all) noexcept;
  void take_ack(Handle handle, std::uint32_t device, bool lost) noexcept;
  // The request that an ack by id means, or the answer if there is none.
  struct Named {
    bool found;
    Handle handle;
    Acked answer;
  };
  Named named(std::string_view id, std::uint32_t device,
              std::optional<std::uint64_t> generation) noexcept;
  [[gnu::noinline]] Acked not_held(HolderSet::Left left, Handle handle) noexcept;
  cuda::StreamAcks* stream_acks_made(std::string* why) noexcept;
  void wait_for_streams() noexcept;
  int take_wakeup() noexcept;
  void keep_wakeup(int fd) noexcept;

  const PoolOptions options_;
  const std::uint32_t epoch_;
  // All that keeps an allocation or a return off the hot path, in one word.
  // kFarAcks: acks may have come that nobody told this pool of: of peers (always in a shared pool), and behind the
  // work of streams (while there are such). kLost: the GPU that has the memory.
  static constexpr std::uint32_t kClosed = 1, kDebug = 2, kScrub = 4, kLog = 8, kFarAcks = 16,
                                 kLost = 32;
  std::atomic<std::uint32_t> quirks_;
  std::unique_ptr<MemoryResource> memory_;
  std::unique_ptr<SharedOwner> shared_;  // null unless peers may attach
  // Null until a stream was named. Made once, by compare-and-swap; the pool's.
  std::atomic<cuda::StreamAcks*> streams_{nullptr};
  std::atomic<std::int64_t> streams_looked_ns_{0};
  // Held, and taking_ set, by the one thread that takes in acks; first in the order of the pool's locks.
  std::mutex taking_mutex_;
  std::atomic<bool> taking_{false};
  Depot depot_;
  CacheSet caches_;
  DeviceRegistry devices_;
  RequestTable table_;
  std::unique_ptr<EventLog> log_;
  Guard guard_;
  std::atomic<std::uint64_t> retained_{0};
  // One tensor grows at a time: a block's size is then nobody else's to change. Before the table in the
  // order of locks; taken when a page is passed, not at every step.
  std::mutex growing_mutex_;

  // Waiting for memory or for a request's end. waiters_ counts threads and wake-up descriptors.
  std::atomic<std::uint32_t> waiters_{0};
  std::mutex wait_mutex_;  // a leaf in the order of locks
  std::condition_variable wait_condition_;
  std::uint64_t wait_epoch_ = 0;
  std::vector<int> wakeups_;
  std::vector<int> spare_wakeups_;  // eventfds of threads that waited; only in shared pools
};

}  // namespace slabpool
