// The blocks of one request: attached while it is open, moved to a session, given back when it is over, and counted for
// as long as live views retain them.
//
// The owner of the lists, the counters and the lock: no other code reaches them.
// Invariants:
//   bytes == sum of Block::bytes over the attached blocks, and after release() over the retained blocks;
//   keep  == 1 while the request is not retired + number of retained blocks; at 0 the slot may be used again. It is the lower
//   half of kept_; the upper half counts the views of retained blocks;
//   a block is attached to one request at a time, and Block::request == that request's slot + 1;
//   a ViewCount in counts_ points at an attached block, or at none.
// Place of the lock in the order: after the budget's, before the depot's. Two of them at once: only by move().
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/spin_lock.hpp"
#include "slabpool/base/status.hpp"
#include "slabpool/slab/block.hpp"

namespace slabpool {

class RequestBlocks {
 public:
  // The lock of a free slot's record, for a caller that turns it into zero bytes, which unlocks it. False: some thread with an
  // old handle has it.
  bool try_lock() noexcept { return lock_.try_lock(); }
  void unlock() noexcept { lock_.unlock(); }
  bool is_counted() const noexcept { return counts_ != nullptr; }  // with the lock

  // For a new request in a free slot.
  void reset() noexcept;

  // Attaches a block if `accepts()` holds under the lock. The lock makes that safe: a claim of the request that comes
  // after the check takes the block along.
  template <typename Accepts>
  Status attach(Block& block, Accepts&& accepts) noexcept {
    const std::lock_guard lock(lock_);
    if (!accepts()) return Status::request_closed;
    block.next = first_;
    first_ = &block;
    add_bytes(block.bytes);
    return Status::ok;
  }

  // Takes an attached block off the list if `accepts()`; false if the request is over, or the block is not its any more.
  template <typename Accepts>
  bool detach(Block& block, Accepts&& accepts) noexcept {
    const std::lock_guard lock(lock_);
    if (!accepts()) return false;
    Block** link = find(block);
    if (*link == nullptr) return false;
    pass(block);
    *link = block.next;
    add_bytes(-block.bytes);
    return true;
  }

  // Makes an attached block larger by `more` bytes if `accepts()` and then `commit()`, a Status, succeeds. The lock is
  // held over commit() (a system call), which delays only callers that allocate for the same request: otherwise the
  // request could end in between, and the block would go back with half of its figures changed.
  template <typename Accepts, typename Commit>
  Status grow(Block& block, std::uint64_t more, Accepts&& accepts, Commit&& commit) noexcept {
    const std::lock_guard lock(lock_);
    if (!accepts()) return Status::request_closed;
    const Status status = commit();
    if (status != Status::ok) return status;
    block.bytes += more;
    add_bytes(more);
    return Status::ok;
  }

  // Makes an attached block smaller by the bytes that `commit()` returns, if `accepts()`. Locked as grow().
  template <typename Accepts, typename Commit>
  std::uint64_t shrink(Block& block, Accepts&& accepts, Commit&& commit) noexcept {
    const std::lock_guard lock(lock_);
    if (!accepts()) return 0;
    const std::uint64_t less = commit();
    block.bytes -= less;
    add_bytes(-less);
    return less;
  }

  // Moves a block from one request to another if, under both locks, `accepts()` holds, the block is attached to `from`
  // (otherwise invalid_argument), and `decide()`, a Status, is ok.
  template <typename Accepts, typename Decide>
  static Status move(Block& block, RequestBlocks& from, RequestBlocks& to, std::uint32_t to_slot,
                     Accepts&& accepts, Decide&& decide) noexcept {
    const std::scoped_lock locks(from.lock_,
                                 to.lock_);  // takes both without a deadlock, in either order
    if (!accepts()) return Status::request_closed;
    Block** link = from.find(block);
    if (*link == nullptr) return Status::invalid_argument;
    const Status status = decide();
    if (status != Status::ok) return status;
    from.pass(block);
    *link = block.next;
    block.next = to.first_;
    to.first_ = &block;
    block.request.store(to_slot + 1, std::memory_order_relaxed);
    from.add_bytes(-block.bytes);
    to.add_bytes(block.bytes);
    return Status::ok;
  }

  // The bytes of a block while it is this request's (its slot is `slot`); false once it moved.
  bool bytes_of(const Block& block, std::uint32_t slot, std::span<std::byte>& bytes) const noexcept;

  // Called by the one thread that claimed the request. Returns blocks without views, as a chain for the caller to give
  // back; the others are retained, and counted in `all_retained` too, before the request's hold on them ends.
  struct Released {
    Block* chain = nullptr;
    std::uint64_t freed = 0;     // bytes of the chain
    std::uint64_t retained = 0;  // bytes that views keep
  };
  Released release(std::atomic<std::uint64_t>& all_retained) noexcept;

  // One more view of a retained block. Relaxed: a figure.
  void retain_view() noexcept { kept_.fetch_add(kOneView, std::memory_order_relaxed); }
  // One view less of a retained block. If it was the last, the block is the caller's to give back; the result is then what
  // returned_retained() needs, which follows. Otherwise 0.
  std::uint64_t drop_retained(Block& block) noexcept;
  // After the block went back. True for the one caller that leaves nothing behind: the slot is free.
  bool returned_retained(std::uint64_t dropped) noexcept { return drop_keep(dropped); }
  // The request is retired. True as above.
  bool retire() noexcept { return drop_keep(1); }

  std::uint64_t bytes() const noexcept { return bytes_.load(std::memory_order_relaxed); }

  // Counts the views of attached and of retained blocks, a few blocks at a time: an observer does not hold up a thread that
  // allocates or releases, however many blocks there are. A block that is attached or moves here during the count is not
  // counted, and the count ends with the request.
  class ViewCount {
   public:
    static constexpr std::uint32_t kBlocksAtOnce = 12;  // under one hold of the lock

    explicit ViewCount(const RequestBlocks& blocks) noexcept;
    ViewCount(const ViewCount&) = delete;
    ViewCount& operator=(const ViewCount&) = delete;
    ~ViewCount();
    // Counts the next blocks. False: there are no more.
    [[gnu::noinline]] bool next() noexcept;
    std::uint32_t views() const noexcept;

   private:
    friend class RequestBlocks;

    const RequestBlocks& blocks_;
    const Block* at_;   // the next one to count
    ViewCount* other_;  // in RequestBlocks::counts_
    std::int64_t views_;
  };

 private:
  // Until the request is claimed only the holder of the lock changes the figure, so that no locked add is needed.
  void add_bytes(std::uint64_t bytes) noexcept {
    bytes_.store(bytes_.load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
  }
  Block** find(Block& block) noexcept {
    Block** link = &first_;
    while (*link != nullptr && *link != &block) link = &(*link)->next;
    return link;
  }
  // The block is about to leave the list.
  void pass(const Block& block) noexcept {
    for (ViewCount* count = counts_; count != nullptr; count = count->other_)
      if (count->at_ == &block) count->at_ = block.next;
  }
  static constexpr std::uint64_t kOneView = std::uint64_t{1} << 32;
  static constexpr std::uint32_t keep_of(std::uint64_t kept) noexcept {
    return static_cast<std::uint32_t>(kept);
  }
  // `what`: one of the keep, and perhaps a view. Acquire and release: the thread that frees the slot does so after everything
  // others did with the record.
  bool drop_keep(std::uint64_t what) noexcept {
    // The only one left: no other thread has a part of it, so no locked instruction is needed.
    if (keep_of(kept_.load(std::memory_order_acquire)) == 1) {
      kept_.store(0, std::memory_order_relaxed);
      return true;
    }
    const std::uint64_t before = kept_.fetch_sub(what, std::memory_order_acq_rel);
    SLABPOOL_ASSERT(keep_of(before) != 0, "a slot is kept by its request and by each retained block");
    return keep_of(before) == 1;
  }

  mutable SpinLock lock_;
  Block* first_ = nullptr;
  mutable ViewCount* counts_ = nullptr;  // those in progress
  // Relaxed: figures.
  std::atomic<std::uint64_t> bytes_{0};
  // The keep, and above it the views of retained blocks: below 0 for an instant, because a view may be gone before release()
  // has counted it. Views of attached blocks are counted in the blocks, where making and dropping a view needs no second word,
  // and where they go along when a block moves.
  std::atomic<std::uint64_t> kept_{0};
};

}  // namespace slabpool
