// Allocation in the order of streams, over a pool: for array libraries, which free memory while their stream still works
// on it.
//
// Memory that was freed on the stream that it was allocated on is parked for that stream and may be handed out there again
// at once, because the stream runs later work after earlier work. That pair calls neither the driver nor the pool. Anything
// else waits until the work is done: an event is recorded then, and the block goes back to the pool behind it.
// Invariant: memory reaches another stream, or the pool, only behind the work of every stream it was used on.
// A stream is known by its handle: before a stream is destroyed the caller calls forget(), or its handle is not used again.
// `mutex_` is a leaf: neither the pool nor the driver is called with it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "slabpool/base/export.hpp"
#include "slabpool/cuda/stream_marks.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool::cuda {

// Block::tag of memory that stream heaps have handed out, and of memory that they keep for a stream.
inline constexpr std::uint8_t kStreamTag = 2;
inline constexpr std::uint8_t kParkedTag = 3;

class SLABPOOL_API StreamHeap {
 public:
  // Alignment of all memory handed out; sizes are rounded to it.
  static constexpr std::uint64_t kUnit = 512;

  // `device`: the device of the default streams 0, 1 and 2; -1: the pool's device, otherwise 0. Null without a driver or
  // that device; `error` says which. Throws std::bad_alloc.
  static std::unique_ptr<StreamHeap> create(Pool& pool, int device, Error& error);
  // Waits for the GPU if freed blocks still wait for its work. Blocks still handed out are never returned.
  ~StreamHeap();
  StreamHeap(const StreamHeap&) = delete;
  StreamHeap& operator=(const StreamHeap&) = delete;

  // Null if there is no room once all finished work was taken back; after the device is lost; in a fork's child; or if the
  // driver knows no such stream. Nothing has changed then. Size 0 is served as 1.
  // `waits`: before it answers null it waits for the work that freed memory is behind, as the caches of array libraries
  // do. The caller holds no lock that queued work may need, such as Python's.
  void* allocate(std::size_t nbytes, Stream stream, bool waits = false) noexcept;
  // Returns when all work that freed memory waits for now is done, and that memory is back. For callers that cannot wait in
  // allocate().
  void wait() noexcept;
  // Freed in the order of `stream`. False, and nothing has happened, for an address that is not handed out.
  bool release(void* address, Stream stream) noexcept;
  bool release(void* address) noexcept;  // of the stream it was allocated on
  // The memory is used on that stream too: once freed it waits for the work that is queued there by then.
  bool record(const void* address, Stream stream) noexcept;

  // From now on nothing is kept for the stream, which is about to be destroyed.
  void forget(Stream stream) noexcept;
  // All memory kept for streams goes back to the pool, at once where its work is done. Returns bytes that went back.
  std::uint64_t trim() noexcept;

  // From now on memory that this thread allocates belongs to the request, with a view that its free drops. Generation 0, or
  // a request that its host has closed: it belongs to no request.
  void set_request(Handle request) noexcept;
  Handle request() const noexcept;
  // Nothing is kept for reuse within the request any more. Called where the effect of set_request() ends.
  void end_request(Handle request) noexcept;

  // The stream of this thread, for libraries that name none when they allocate.
  static void set_stream(Stream stream) noexcept;
  static Stream stream() noexcept;

  struct Figures {
    std::uint64_t live_blocks = 0;  // handed out
    std::uint64_t live_bytes = 0;
    std::uint64_t parked_blocks = 0;  // kept for a stream
    std::uint64_t parked_bytes = 0;
    std::uint64_t waiting_blocks = 0;  // for work to be done
    std::uint64_t waiting_bytes = 0;
    std::uint64_t allocations = 0;
    std::uint64_t reuses = 0;       // of these, without the pool
    std::uint64_t failures = 0;     // null
    std::uint64_t wrong_frees = 0;  // of an address that was not handed out
  };
  Figures figures() noexcept;  // takes back finished work first
  bool lost() const noexcept { return lost_.load(std::memory_order_relaxed); }
  Pool& pool() const noexcept { return pool_; }
  int device() const noexcept { return device_; }

 private:
  struct List;
  // One block of the pool, from the time it is taken until it goes back.
  struct Held {
    Block* block = nullptr;
    Held* next = nullptr;
    List* list = nullptr;
    Handle request{};  // generation 0: none
    unsigned bin = 0;
    bool live = false;
    std::unique_ptr<std::vector<Place>> others;  // streams of record()
  };
  struct Key {
    Stream stream = nullptr;
    std::uintptr_t thread = 0;  // of the per-thread default stream
    std::uint64_t generation = 0;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    std::size_t operator()(const Key& key) const noexcept {
      return mix_bits(reinterpret_cast<std::uintptr_t>(key.stream) ^
                      mix_bits(key.thread ^ key.generation));
    }
  };
  // Memory kept for one stream, or within one request on it, newest first.
  struct List {
    Key key;
    Place place;
    Held* bins[kBins + 1] = {};  // the last: too large for a bin
    std::uint64_t parked = 0;    // bytes
    std::uint64_t blocks = 0;    // handed out or parked; the list lives while there are any
    bool forgotten = false;      // parks nothing any more
  };
  // Blocks that go back together, once `waits` marks are done.
  struct Batch {
    Held* chain = nullptr;
    std::vector<Place> places;
    std::uint64_t waits = 0;
    Batch* next = nullptr;
  };
  struct Address {
    std::size_t operator()(const void* address) const noexcept {
      return mix_bits(reinterpret_cast<std::uintptr_t>(address));
    }
  };

  StreamHeap(Pool& pool, const Driver& driver, int device) noexcept;
  static Key key_of(Stream stream, Handle request) noexcept;
  Held* take_parked(const Key& key, std::uint64_t bytes, unsigned bin) noexcept;  // under mutex_
  [[gnu::noinline]] void* allocate_slowly(std::uint64_t bytes, unsigned bin, const Key& key,
                                          Handle request, bool waits) noexcept;
  bool release_in_order(void* address, const Stream* stream) noexcept;
  void park(Held& held) noexcept;                             // under mutex_
  void unpark(List& list, Held*& chain) noexcept;             // under mutex_
  void drop_list(List& list) noexcept;                        // under mutex_; if it has no block
  std::unique_ptr<Batch> batch_of(Held* chain, Place place);  // throws std::bad_alloc
  template <typename Which>
  void flush(Which&& which) noexcept;
  void flush_all() noexcept;
  void flush_list(const Key& key) noexcept;
  void send(std::unique_ptr<Batch> batch) noexcept;
  bool settled(const Place& place) noexcept;
  void take_back(bool all) noexcept;
  void give_back(Held* chain) noexcept;
  void give_back_alone(Held& held, const Place& freed_on) noexcept;
  void note_lost(Context context) noexcept;

  Pool& pool_;
  const Driver& driver_;
  const int device_;
  const std::uint64_t number_;       // of this heap alone, in the process
  const std::uint64_t most_parked_;  // bytes that one list keeps
  StreamMarks marks_;
  std::atomic<bool> lost_{false};
  std::mutex mutex_;
  std::unordered_map<const void*, Held, Address> held_;
  std::unordered_map<Key, List, Hash> lists_;
  List* last_ = nullptr;
  Batch* stuck_ = nullptr;      // the driver refused an event and a wait; take_back() tries again
  Held* alone_ = nullptr;       // the same for blocks that the host had no memory for a batch of
  std::uint64_t returned_ = 0;  // bytes that went back to the pool, ever
  Figures figures_;
};

}  // namespace slabpool::cuda
