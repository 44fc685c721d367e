// The facade of the core: one pool, its blocks and its requests. It delegates to the layers below.
//
// Every call may come from any thread. A call that fails changes nothing. Allocating and dropping take no shared lock
// while the thread's cache can serve; an ack is one compare-and-swap unless it is the last. The holder of a view keeps the
// pool alive. Order of locks: docs/design/locks.md.
//
// Files: life (creation, closing), allocate, release (views and chains of blocks), requests, adopt, waiting, acks, growing,
// sessions, groups, peers (devices in other processes), pressure, look (figures and reports).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slabpool/acks/ack_source.hpp"
#include "slabpool/base/error.hpp"
#include "slabpool/base/export.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/observe/event_log.hpp"
#include "slabpool/observe/guard.hpp"
#include "slabpool/observe/stats.hpp"
#include "slabpool/request/device_registry.hpp"
#include "slabpool/request/table.hpp"
#include "slabpool/slab/depot.hpp"
#include "slabpool/slab/thread_cache.hpp"
#include "slabpool/wait/pressure.hpp"
#include "slabpool/wait/queue.hpp"

namespace slabpool {

class PolledAcks;
class SharedOwner;
struct PeerFiles;
namespace cuda {
struct StreamName;
}

inline constexpr std::size_t kDefaultAlign = 64;
inline constexpr std::size_t kMaxAlign = std::size_t{2} << 20;

struct PoolOptions {
  std::uint64_t capacity = 0;     // bytes, at least one page; rounded up to granules of the memory
  bool scrub_on_release = false;  // zero every block before it can be handed out again
  int debug = 0;           // 1: guards and poison; 2: also check every invariant at each slow step
  std::size_t events = 0;  // entries of the event log, 0: none
  bool huge_pages = true;  // host memory only; so is numa_node
  int numa_node = -1;
  // Other processes may map the memory (Linux): host or device memory.
  bool shared = false;
  MemoryKind memory = MemoryKind::host;  // or device, pinned, managed
  int device = -1;  // for device, pinned and managed memory; -1: pinned memory that is near no GPU
};

// A block handed out; `status` says why it is null.
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
  SourceLocation where{};  // recorded in pools with debug on
};

// What a session is to keep.
struct KeepSpec {
  std::string_view id;  // of the request that keeps the block
  Block* block = nullptr;
  Handle from;     // the request that has the block
  Handle session;  // from Pool::open_session()
  // A kept request of this session that is about to be closed; it is not charged any more.
  std::optional<Handle> instead_of;
  SourceLocation where;
};

class SLABPOOL_API Pool final : public AckSink, private Room {
 public:
  // Null on failure; `error` says why. On success its status is ok, and a text is a warning: the control group of this
  // process may have less memory than the capacity.
  static std::unique_ptr<Pool> create(const PoolOptions& options, Error& error);
  Pool(const PoolOptions& options, std::unique_ptr<MemoryResource> memory);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  // ---- blocks
  // These and their *_until forms (which wait in the queue until `deadline_ns`, monotonic) do not count a failure: the
  // caller may have other ways, and try again. The caller that gives up calls note_exhausted() once. Forms with a Waiter
  // are one attempt of a caller that waits, or is about to: see the calls under "waiting".
  Allocation allocate(const AllocateSpec& spec) noexcept;
  Allocation allocate(const AllocateSpec& spec, Waiter& waiter) noexcept;
  Allocation allocate_until(const AllocateSpec& spec, std::int64_t deadline_ns) noexcept;
  // The first lines of allocate(), for bindings that count instructions: `nbytes` without a request, from this thread's
  // list. Null where that takes more; allocate() then says why.
  Block* allocate_quickly(std::uint64_t nbytes) noexcept;
  // Counts and logs one exhaustion. Called once by the caller that gives up; `nbytes`: the size it wanted.
  void note_exhausted(Handle request, std::uint64_t nbytes) noexcept;

  // Tensors that grow (growing.cpp). A block of a request for up to `most` bytes of addresses that never move; the caller
  // has a view of it. It has no bytes yet: grow() makes its first `nbytes` usable, and only committed bytes count.
  // quota_exceeded, exhausted, request_closed: the block is unchanged.
  Allocation open_growing(Handle request, std::uint64_t most) noexcept {
    return open_growing(request, most, nullptr);
  }
  Allocation open_growing(Handle request, std::uint64_t most, Waiter* waiter) noexcept;
  // `usable`: how many bytes may be touched now; written unless the request or the pool is closed. Both count from the first
  // byte that the tensor ever had.
  Status grow(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable) noexcept {
    return grow(block, request, nbytes, usable, nullptr);
  }
  Status grow(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable,
              Waiter* waiter) noexcept;
  Status grow_until(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable,
                    std::int64_t deadline_ns) noexcept;
  // Gives the pages back that lie wholly before byte `from` and those wholly from byte `to` on, counted from the first byte
  // that the tensor ever had, as grow() does. False, and nothing has changed, while a device holds the request (or one that
  // pins it), the block has more than `views` views, or the request is closed. The caller makes sure that none of those
  // views reaches the bytes. `kept`: the bytes that the tensor has now, counted likewise.
  struct Extent {
    std::uint64_t from = 0;
    std::uint64_t to = 0;
  };
  bool give_part(Block& block, Handle request, std::uint64_t from, std::uint64_t to, std::uint32_t views,
                 Extent& kept) noexcept;
  // Takes back a growing block that never got any bytes.
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
  Status open(const OpenSpec& spec, Handle& handle, Waiter* waiter) noexcept;
  Status open_until(const OpenSpec& spec, Handle& handle, std::int64_t deadline_ns) noexcept;
  void close_request(Handle handle, bool cancel) noexcept;
  // Cancels the one request of the id that the host holds; a child only if its generation is given. ambiguous: there are
  // several, and nothing has changed. `cancelled`: whether there was one.
  Status cancel_id(std::string_view id, std::optional<std::uint64_t> generation,
                   bool& cancelled) noexcept;
  // Every holder leaves a request that no other code has yet: its opening is undone.
  void discard(Handle handle) noexcept;
  Status add_device(Handle handle, std::uint32_t device) noexcept;
  bool released(Handle handle) noexcept;
  bool is_open(Handle handle) const noexcept;  // the host holds it
  bool cancelled(Handle handle) const noexcept;
  // True once released; false if `deadline_ns` came first.
  bool wait_released(Handle handle, std::int64_t deadline_ns) noexcept;
  // False if the request is over and no view retains bytes of it. The parts of the report that take longer the larger the
  // request is are left out unless asked for.
  static constexpr unsigned kPendingDevices = 1;  // and those behind a stream
  static constexpr unsigned kLiveViews = 2;
  bool describe(Handle handle, RequestInfo& info, unsigned parts = kPendingDevices | kLiveViews);
  DeviceRegistry& devices() noexcept { return devices_; }

  // ---- waiting (waiting.cpp)
  // The caller makes an attempt with a Waiter. If it fails, and may_come() is true of the answer, the caller enters the
  // waiter, attempts again, and sleeps with wait() between further attempts. It leaves when it is served or gives up; so
  // does the destructor. A waiter whose cancelled() is true gives up at once.
  bool may_come(Status status, const Waiter& waiter) const noexcept;
  void enter(Waiter& waiter) noexcept;
  void enter_end(Waiter& waiter, Handle request) noexcept;  // for the end of a request
  void leave(Waiter& waiter) noexcept;
  // True: try again. False: `until_ns` (monotonic) has passed.
  bool wait(Waiter& waiter, std::int64_t until_ns) noexcept;
  // The first waiter tries to make room itself, by what the caller knows (sessions, heaps), and is woken for that.
  void set_gives_way(bool may) noexcept { gives_way_.store(may, std::memory_order_relaxed); }
  bool is_first(const Waiter& waiter) noexcept;
  // For event loops.
  Waiter* take_woken(WakeTarget& target) noexcept;
  bool take_again(Waiter& waiter) noexcept;
  std::uint32_t waiting() const noexcept;
  // All waiters, by arrival. Throws std::bad_alloc.
  std::vector<WaiterInfo> waiters();
  // What stands before a waiter, or before a caller that does not wait; kNamedAhead with what they want. Throws
  // std::bad_alloc.
  static constexpr std::uint32_t kNamedAhead = 3;
  Ahead ahead_of(const Waiter& waiter);
  // The requests that wait for memory hold so much that the first of them cannot be served before one of them lets go.
  // Looks at kMostInCircle waiters.
  static constexpr std::uint32_t kMostInCircle = 1024;
  bool in_circle() noexcept;
  std::uint64_t wakeups() const noexcept;  // for tests

  // ---- pressure (pressure.cpp): a watch hears when what is in use passes its bounds
  // Bytes that no other caller can have: live, retained and in doubt, and those promised to requests. Of some instant.
  std::uint64_t used_bytes() noexcept;
  void add_watch(PressureWatch& watch) noexcept;
  void remove_watch(PressureWatch& watch) noexcept;  // ends its waits
  // Takes the first pending change. `look`: the pool collects acks and adds up the use before.
  bool take_change(PressureWatch& watch, PressureChange& change, bool look) noexcept;
  bool has_change(const PressureWatch& watch) noexcept;
  // True: there is a change to take, or the watch is closed. False: `until_ns` (monotonic) came first.
  bool wait_change(PressureWatch& watch, std::int64_t until_ns) noexcept;

  // Moves a block, without a copy, from one request to another. Until the first is over, it has a view of the block, because
  // its devices may read it. The caller has a view. forked, system_refused, waiters_ahead (of a quota), or ok; then `adopted`
  // is the answer. quota_exceeded: `refused` says which level, and how much must leave it.
  using Adopted = RequestTable::Adopted;
  Status adopt(Block& block, Handle from, Handle to, Adopted& adopted) noexcept {
    LevelNeed refused;
    return adopt(block, from, to, adopted, refused);
  }
  Status adopt(Block& block, Handle from, Handle to, Adopted& adopted, LevelNeed& refused) noexcept;

  // ---- acks (acks.cpp)
  struct Acked {
    Status status = Status::ok;  // unknown_device, ambiguous, forked
    AckResult result = AckResult::pending;
  };
  Acked ack(Handle handle, std::uint32_t device) noexcept;
  Acked ack_id(std::string_view id, std::uint32_t device,
               std::optional<std::uint64_t> generation) noexcept;
  // As ack() and ack_id(), once all work that is queued on the stream now is done. Wrong, late and repeated acks are
  // answered at once; `pending` is also the answer while the work is not done, and the ack then counts by itself. A
  // default stream without a device is one of the pool's device, otherwise of the current context. Nothing has changed
  // after invalid_argument (the driver refuses the stream), device_lost, or system_refused (no driver); `error` has the
  // driver's words.
  Acked ack_after(Handle handle, std::uint32_t device, const cuda::StreamName& on,
                  Error& error) noexcept;
  Acked ack_id_after(std::string_view id, std::uint32_t device, std::optional<std::uint64_t> generation,
                     const cuda::StreamName& on, Error& error) noexcept;
  // Acks queued behind work on streams.
  std::uint64_t stream_acks() const noexcept;
  // Whether memory may come back without a wake-up: from a stream, or from a thread whose cache could not be collected.
  // Waiters then try again by the clock.
  bool must_poll() const noexcept;
  // The device leaves every request. Returns how many requests it held.
  std::uint64_t device_lost(std::uint32_t device) noexcept;
  void heartbeat(std::uint32_t device) noexcept;
  // Takes back the numbers of names that nothing waits for (DeviceRegistry::retire) and adds them to `retired`. Numbers that
  // a request which is not over has ever named go only if there are no others. No other thread may be about to use
  // the number of a name without holding it. Throws std::bad_alloc, and then nothing has changed.
  void retire_devices(std::vector<std::uint32_t>& retired);
  // The answer to an ack of a device that had left a request before its number was taken back.
  AckResult ack_retired(Handle handle) noexcept;
  // Counts polled acks that arrived. Every call that allocates, opens, waits or looks does this, so an ack that a peer has
  // been answered counts in all that this pool does after it.
  void collect_acks() noexcept {
    // Acquire: a thread that finds no source to poll sees what the last collected acks have done.
    if ((slow_path_flags_.load(std::memory_order_acquire) & kPolledAcks) != 0) collect_polled(true);
  }
  // A CUDA context has failed for good. If it has the pool's memory, every allocation returns device_lost.
  void context_lost(void* context) noexcept override;

  // ---- what sessions keep (sessions.cpp)
  // A kept request without memory of its own: `quota` bounds what is kept in it. close_request() closes the session and
  // everything kept in it.
  Status open_session(std::string_view id, std::uint64_t quota, SourceLocation where, Handle& session,
                      std::optional<Handle> group = {}) noexcept;
  // Moves a block, without a copy, from its request to a new one, `kept`; the rest of the old request stays with its
  // devices. Closing `kept` gives the block back once every request that pinned it is over: the one it came from, and
  // those that pin() it. quota_exceeded: the session's quota; exhausted: set_kept_quota(); request_closed: `from` or the
  // session is over; invalid_argument: the block is not a request's, or kept already. The caller has a view.
  Status keep(const KeepSpec& spec, Handle& kept) noexcept;
  // The request that has the block; generation 0: none. The caller has a view, and no other thread moves the block now.
  Handle owner_of(const Block& block) const noexcept;
  Status pin(Handle by, std::span<const Handle> kept) noexcept;
  using Kept = RequestTable::Kept;
  bool kept(Handle session, Kept& figures) noexcept;               // false: the session is closed
  Status set_quota(Handle session, std::uint64_t quota) noexcept;  // quota_exceeded: it keeps more
  void set_kept_quota(std::uint64_t quota) noexcept;               // of all sessions together
  std::uint64_t kept_bytes() const noexcept;

  // A session that became idle since the last call; false: none did. Each is reported once for each time.
  bool take_idle(Handle& session) noexcept;
  // Whether what a session keeps counts in the quota of `level`, which over_quota() wrote.
  bool charged_to(Handle session, Handle level) const noexcept;
  // Bytes that must leave a quota above a request, or of a group, before it can be charged so many more: the lowest that
  // refuses them, which is written. `drawn`: as many of them are drawn from promises as these have left.
  std::uint64_t over_quota(Handle request, std::uint64_t bytes, bool drawn,
                           Handle& level) const noexcept;
  // Bytes of the capacity that stay taken, whatever sessions give back. Of some instant during the call.
  std::uint64_t bytes_not_kept() noexcept;
  // What has to come back before an allocation succeeds that has failed for lack of memory.
  struct Shortage {
    std::uint64_t bytes = 0;  // of one block, or of whole pages beyond those promised to the request
    bool pages = false;       // in whole pages: a free block does not help
  };
  // `pages`: the bytes are whole pages, as for a reserve and a tensor that grows; else they are one tensor's.
  Shortage shortage(Handle request, std::uint64_t nbytes, bool pages) const noexcept;
  // Which groups of kept blocks to give back, so that there is room (Depot::plan_return()). `status`: how the attempt
  // failed; no_addresses: the bytes are addresses; system_refused: what is free now does not help.
  using Groups = Depot::Groups;
  using Planned = Depot::Planned;
  // `request`: that asks, and may draw on promises; generation 0: none.
  Planned plan_return(Status status, const Shortage& shortage, Handle request,
                      Groups& groups) const noexcept;

  // ---- groups (groups.cpp)
  // A record that the requests and sessions opened under it (OpenSpec::parent) count in: `spec` has its id, quota, reserve
  // and where. An attempt, as open(). close_request(): nothing more is opened under it, and it ends with what is
  // under it. name_in_use: an open group has the id.
  Status open_group(OpenSpec spec, Handle& group, Waiter* waiter) noexcept;
  // Of all groups, the oldest first. Throws std::bad_alloc.
  std::vector<GroupInfo> groups();
  // False: it is over.
  bool describe_group(Handle group, GroupInfo& info);
  // What of its budget a request's nearest level that refuses so many bytes has used: the text of a refusal. False: none
  // refuses them now.
  bool describe_quota(Handle request, std::uint64_t bytes, bool drawn, QuotaInfo& info);
  bool describe_level(Handle level, QuotaInfo& info);  // the same of a level that is known

  // ---- devices in other processes; only in pools of shared memory (peers.cpp)
  bool shared() const noexcept { return shared_ != nullptr; }
  std::uint64_t shared_id() const noexcept;
  // False if the device is attached already (system_errno EEXIST), or the system refuses. Its number is held until it is
  // detached.
  bool attach_peer(std::uint32_t device, PeerFiles& files, Error& error) noexcept;
  int writable_data() const noexcept;
  // The peer is gone: the acks it posted count, and it leaves all other requests. Returns how many requests.
  std::uint64_t detach_peer(std::uint32_t device) noexcept;
  // Whether the peer holds any request, after its acks were collected.
  bool peer_holds(std::uint32_t device) noexcept;
  // From now on peers find the pool closed.
  void dismiss_peers() noexcept;
  // The offset of bytes in the shared range, and the seal of a reference to them. request_closed: the request is over;
  // invalid_argument: the bytes are in no block of it. No bytes (nbytes 0): a reference to the request itself.
  Status refer(Handle handle, const void* data, std::uint64_t nbytes, std::uint64_t& offset,
               std::uint64_t& seal) noexcept;
  // For event loops: readable when a peer rang while a waiter is registered (-1: not shared). An event loop that finds it
  // readable calls answer_bell().
  int bell() const noexcept;
  void answer_bell() noexcept;

  // ---- looking inside (look.cpp)
  MemoryKind memory() const noexcept { return memory_->kind(); }
  bool host_reaches() const noexcept { return memory_->host_reaches(); }
  // Why the last call returned system_refused: the system's errno and the limits of the process, or the driver's call,
  // its answer, and what is free.
  Error refusal() const;
  int device() const noexcept { return options_.device; }  // CUDA device, -1 for none
  std::uint64_t capacity() const noexcept { return options_.capacity; }
  Stats stats() noexcept;
  // Not part of stats(), because held_bytes() takes a system call. held_bytes(): what the system keeps for the memory of a
  // shared pool; 0 for other memory. quarantined_bytes(): the part of cached that cannot be used now, because the system
  // refused to commit or to decommit it.
  std::uint64_t held_bytes() const noexcept { return memory_->held_bytes(); }
  std::uint64_t quarantined_bytes() const noexcept { return depot_.quarantined_bytes(); }
  // The part of cached that no tensor of a page or more can have now.
  std::uint64_t fragmented_bytes() const noexcept { return depot_.fragmented_bytes(); }
  // Bytes of the pool's own records and tables, which are not part of committed.
  std::uint64_t metadata_bytes() const noexcept;
  // Requests that are not over or whose bytes views retain, oldest first, at least `older_than_ns` old.
  std::vector<RequestInfo> requests(std::int64_t older_than_ns);
  // What the text of a refusal is made from. In constant time: see RequestTable::notable().
  Refusal explain_exhausted() noexcept;
  std::vector<Event> events() const;
  std::vector<Corruption> corruptions() const;
  // Live blocks with this tag (Block::tag) and their bytes. Slow: looks at every block.
  Depot::Tagged tagged(std::uint8_t tag) const noexcept;
  // Whether bytes past the end of what was asked for are watched for writes (debug).
  bool guards_ends() const noexcept { return options_.debug > 0; }
  // Checks every invariant of the page heap and the slabs; null if all hold, otherwise what does not.
  const char* verify() noexcept;

  // ---- giving back (life.cpp)
  std::uint64_t trim() noexcept;
  // pool_busy while anything is held. With `force` every holder leaves every request, except attached peers, which keep
  // what they hold until they detach; views stay valid.
  Status close(bool force) noexcept;
  bool closed() const noexcept {
    return (slow_path_flags_.load(std::memory_order_acquire) & kClosed) != 0;
  }
  bool usable_here() const noexcept { return epoch_ == fork_epoch(); }  // not in a fork's child

 private:
  struct Plan {
    unsigned bin;         // kBins: no thread cache for it
    std::uint64_t need;   // bytes of the block
    std::uint64_t align;  // beyond what every block has; 1 if nothing is asked for
  };
  struct Counted {
    HolderSet::Left left;
    bool released;  // this call gave the request's blocks back
  };
  // The request that an ack by id means, or the answer if there is none.
  struct Named {
    bool found;
    Handle handle;
    Acked answer;
  };

  Pool(const PoolOptions& options, std::unique_ptr<MemoryResource> memory,
       std::unique_ptr<SharedOwner> shared);

  // look.cpp.
  struct Doubt {
    std::uint64_t requests = 0;
    std::uint64_t bytes = 0;
  };
  [[gnu::noinline]] Doubt doubt() noexcept;  // looks at every request
  // look_for_doubt(): whether to look at every request for bytes in doubt; otherwise live includes them.
  template <typename Look>
  [[gnu::always_inline]] Stats figures(Look&& look_for_doubt) noexcept;

  // allocate.cpp: one way down. plan, take (this thread's cache, then the depot), hand_out (start, prepare, attach).
  static Plan plan(std::uint64_t nbytes, std::uint64_t align) noexcept;
  [[gnu::always_inline]] Block* take_first(ThreadCache* cache, std::uint64_t nbytes) noexcept;
  [[gnu::always_inline]] Block* take_plain(std::uint64_t nbytes) noexcept;
  [[gnu::noinline]] Allocation allocate_owned(const AllocateSpec& spec) noexcept;
  [[gnu::noinline]] Allocation allocate_further(const AllocateSpec& spec) noexcept;
  Allocation try_allocate(const AllocateSpec& spec) noexcept;
  [[gnu::noinline]] Allocation allocate_slowly(const AllocateSpec& spec,
                                               Waiter* waiter = nullptr) noexcept;
  Allocation take(const Plan& plan, std::uint64_t align, ReserveRef reserve, std::uint64_t drawn,
                  bool exact) noexcept;
  Allocation take_shared(const Plan& plan, ReserveRef reserve, std::uint64_t drawn, bool exact);
  Allocation take_promised(const Plan& plan, std::uint64_t align, ReserveRef reserve);
  [[gnu::noinline]] Allocation allocate_charged(const AllocateSpec& spec, const Plan& plan,
                                                RequestRecord& record, bool asks,
                                                Waiter* waiter) noexcept;
  template <typename Prepare>
  Allocation hand_out(Block& block, Handle request, RequestRecord* record, std::uint64_t holds,
                      Prepare&& prepare) noexcept;
  Status prepare(Block& block, const AllocateSpec& spec) noexcept;

  // growing.cpp
  Status grow_to(Block& block, RequestRecord& record, Handle request, std::uint64_t pages,
                 ThreadCache& cache, bool hard, Waiter* waiter) noexcept;
  Status grow_once(Block& block, RequestRecord& record, Handle request, std::uint64_t pages,
                   ThreadCache& cache, bool hard, Waiter* waiter, int tried, bool& again) noexcept;

  // pressure.cpp
  [[gnu::noinline]] void look_at_use() noexcept;
  [[gnu::cold]] void look_at_rise() noexcept;  // by a thread that may have added to the use
  // By a thread that gave something back.
  void look_at_return() noexcept {
    if (!pressure_.any()) return;
    const ThreadCache* const cache = caches_.last();
    const auto reserved = static_cast<std::int64_t>(depot_.reserved_bytes());
    if (cache == nullptr || cache->has_fallen() ||
        reserved < reserved_below_.load(std::memory_order_relaxed)) [[unlikely]]
      look_at_use();
  }

  // waiting.cpp
  // `priority`: of a caller without a waiter.
  bool passes(Waiter* waiter, const Wanted& wanted, std::int32_t priority = 0) noexcept;
  static std::int32_t priority_of(const RequestRecord* record) noexcept {
    return record != nullptr ? record->priority.load(std::memory_order_relaxed) : 0;
  }
  // Whether a request that the host holds has memory or a reserve.
  bool holds_something(Subject request) const noexcept;
  std::uint64_t drawable(ReserveRef reserve) const noexcept {
    return reserve.reserve != nullptr ? depot_.drawable_bytes(reserve) : 0;
  }
  // What an allocation in a request with a budget is charged. The promise may have less left when it is drawn: then the
  // attempt is made again, the last time without it.
  static constexpr int kDrawTries = 4;
  Share charge_for(const RequestRecord& record, Handle request, std::uint64_t bytes, unsigned size_class,
                   std::uint64_t align, const Block* growing, int tried,
                   ReserveRef& reserve) const noexcept {
    reserve = tried + 1 < kDrawTries ? table_.reserve_of(record, request) : ReserveRef{};
    if (reserve.reserve == nullptr) return {bytes, 0};
    return {bytes, depot_.to_draw(reserve, size_class, bytes, align, growing)};
  }
  // An attempt with a waiter failed.
  void blocked(Waiter* waiter, Resource resource, std::uint64_t amount, Handle of = {}) noexcept;
  Status charge(RequestRecord& record, Handle request, Share more, Waiter* waiter) noexcept;
  Status asks_quotas(const LevelNeeds& needs, const RequestRecord& record, Handle holder) noexcept;
  bool passes_quotas(const LevelNeeds& needs, Subject request, Waiter* waiter,
                     std::int32_t priority = 0) noexcept;
  void blocked_on_quota(Waiter* waiter, const LevelNeed& refused) noexcept;
  void uncharge(RequestRecord& record, Handle request, Share less, bool returned) noexcept;
  template <typename Attempt>
  Status wait_for(std::int64_t deadline_ns, Waiter& waiter, Attempt&& attempt) noexcept;
  // After memory came back.
  void notify(bool addresses = false) noexcept {
    if (queue_.any()) [[unlikely]]
      notify_returned(addresses);
  }
  // Apart, so that callers need no stack for them.
  [[gnu::noinline, gnu::cold]] void notify_returned(bool addresses) noexcept;
  [[gnu::noinline, gnu::cold]] void notify_end(Handle ended, bool kept) noexcept;
  [[gnu::noinline, gnu::cold]] void notify_closed() noexcept;
  [[gnu::noinline, gnu::cold]] void notify_quotas(const Levels& back, News news) noexcept;
  void notify_left() noexcept;  // the host left requests, or a block moved to a session
  static Handle* unique(Handle* handles, std::uint32_t count) noexcept;
  void name(WaiterInfo& info);
  GroupInfo group_info(const RequestRecord& group, std::int64_t now);  // under the table's mutex
  std::uint64_t free_bytes() noexcept override;
  std::uint64_t free_slots() noexcept override { return table_.free_slots(); }
  bool holds_needed(Subject of, Subject request, std::uint64_t needs) noexcept override;
  Circle quota_circle(Subject of, Subject request, std::uint64_t needs) noexcept override;
  std::uint64_t quota_left(Subject of) noexcept override {
    return table_.quota_of({of.slot, of.generation}).left;
  }
  bool circle() noexcept override { return in_circle(); }
  bool polls() noexcept override { return must_poll(); }
  bool gives_way() noexcept override { return gives_way_.load(std::memory_order_relaxed); }
  void collect() noexcept override { collect_acks(); }
  void waits(bool memory, bool slots) noexcept override;

  // release.cpp
  [[gnu::noinline]] void drop_view_slowly(Block& block) noexcept;
  [[gnu::noinline]] void drop_retained(Block& block) noexcept;
  [[gnu::noinline]] void return_retained(Block& block, std::uint64_t generation, bool budget) noexcept;
  RequestRecord& retaining(const Block& block) const noexcept;
  void give_back(Block* chain, bool to_depot = false) noexcept;
  void clean(Block& block) noexcept;

  // requests.cpp
  [[gnu::always_inline]] Status open_now(const OpenSpec& spec, Handle& handle,
                                         LevelNeed* refused) noexcept;
  bool finish(Handle handle) noexcept;  // false: another thread does
  void end(RequestRecord& claimed, ClaimedList& over) noexcept;
  void end_all(ClaimedList& over) noexcept;
  [[gnu::noinline, gnu::cold]] void return_lent(RequestRecord& claimed) noexcept;

  // acks.cpp
  [[gnu::always_inline]] Counted count_ack(Handle handle, std::uint32_t device,
                                           AckOrigin origin) noexcept;
  [[gnu::always_inline]] Counted after_leaving(Handle handle, std::uint32_t device, AckOrigin origin,
                                               HolderSet::Left left) noexcept;
  [[gnu::noinline]] Acked ack_slowly(Handle handle, std::uint32_t device) noexcept;
  [[gnu::noinline]] Acked ack_further(Handle handle, std::uint32_t device,
                                      HolderSet::Left left) noexcept;
  [[gnu::always_inline]] Acked answer(Handle handle, std::uint32_t device, Counted counted) noexcept;
  [[gnu::noinline]] Acked not_held(Handle handle, std::uint32_t device) noexcept;
  Named named(std::string_view id, std::uint32_t device,
              std::optional<std::uint64_t> generation) noexcept;
  // `all` false: for callers that come often; see PolledAcks::collect().
  [[gnu::noinline]] void collect_polled(bool all) noexcept;
  void count_polled(Handle handle, std::uint32_t device, AckOrigin origin) noexcept override;
  void set_polling(bool on) noexcept override;
  void wait_for_streams() noexcept;

  void log(EventKind kind, std::uint64_t generation, std::uint32_t device,
           std::uint64_t bytes) noexcept {
    if (log_ != nullptr) [[unlikely]]
      log_->add(kind, generation, device, bytes);
  }

  const PoolOptions options_;
  const std::uint32_t epoch_;
  // Everything that keeps an allocation or a return off the hot path, and the serial of `caches_`, in one word: one comparison
  // tells a thread that no flag is set and that the cache it used last is this pool's.
  // kPolledAcks: there are sources of acks to poll: peers (always in a shared pool), or streams with queued acks.
  // kLost: the GPU backing this pool has failed; every allocation returns device_lost.
  // kWaiting: a waiter is blocked on memory, so an allocation asks the queue whether it may pass. kSlotsWait: the same for
  // opening a request. kLent: a request may have views of blocks that moved elsewhere.
  static constexpr std::uint64_t kClosed = 1, kDebug = 2, kScrub = 4, kLog = 8, kPolledAcks = 16,
                                 kLost = 32, kWaiting = 64, kSlotsWait = 128, kLent = 256;
  static constexpr std::uint64_t kFlags = CacheSet::kSerialStep - 1;
  std::atomic<std::uint64_t> slow_path_flags_;
  // This thread's cache, unless another pool's was used last or a flag is set that is not among those of no matter. Relaxed: a
  // thread that sets a flag and one that allocates or returns at that moment may come in any order.
  ThreadCache* cache_without(std::uint64_t of_no_matter) const noexcept {
    return CacheSet::last(slow_path_flags_.load(std::memory_order_relaxed) & ~of_no_matter);
  }
  std::unique_ptr<MemoryResource> memory_;
  std::unique_ptr<SharedOwner> shared_;  // null unless peers may attach
  Depot depot_;
  CacheSet caches_;
  DeviceRegistry devices_;
  RequestTable table_;
  std::unique_ptr<EventLog> log_;
  Guard guard_;
  // Bytes that only views kept when their request was released, ever. CacheSet::Sums::unretained of them are back.
  std::atomic<std::uint64_t> retained_{0};
  // Held while a tensor grows, one at a time, because nothing else may change a block's size meanwhile. Before the table
  // in the order of locks; taken when a page boundary is passed, not at every step.
  std::mutex growing_mutex_;
  WaitQueue queue_;
  PressureGauge pressure_;
  // The bounds of the bytes that are promised, as the threads have theirs of live bytes. Relaxed, likewise.
  std::atomic<std::int64_t> reserved_above_{PressureGauge::kFar};
  std::atomic<std::int64_t> reserved_below_{0};
  std::atomic<bool> gives_way_{false};
  std::unique_ptr<PolledAcks> polled_;
};

}  // namespace slabpool
