#include "slabpool/slab/depot.hpp"

#include <algorithm>
#include <bit>
#include <new>

namespace slabpool {
namespace {

constexpr std::uint64_t kGrowStep = 512;  // pages, 2 MiB: one huge page

std::uint64_t grow_step(std::uint64_t capacity) {
  return std::clamp<std::uint64_t>((capacity >> kPageBits) / 64, 1, kGrowStep);
}

}  // namespace

Depot::Depot(MemoryResource& memory, std::uint64_t capacity, bool verify)
    : capacity_(capacity),
      pages_(memory, grow_step(capacity)),
      reserves_(pages_, capacity >> kPageBits),
      least_soft_limit_(std::max<std::uint64_t>(capacity >> kPageBits >> 5, grow_step(capacity))),
      soft_limit_pages_(least_soft_limit_),
      verify_each_(verify),
      slab_granule_(memory.has_holes() ? pages_.granule_pages() : 1) {
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    // A slab takes at most 1/256 of the capacity, so that a small pool is not full of half-empty slabs; but more if
    // otherwise over 1/16 of the slab would be unused at its end.
    const std::size_t size = class_size(c);
    const std::uint64_t most = std::max<std::uint64_t>(capacity >> kPageBits >> 8, pages_for(size));
    std::uint64_t pages = std::min<std::uint64_t>(kSlabShapes.at[c].pages, most);
    while (pages < kSlabShapes.at[c].pages && pages * kPageSize % size > pages * kPageSize / 16) ++pages;
    pages = whole_granules(pages);
    shapes_[c] = {static_cast<std::uint32_t>(pages),
                  static_cast<std::uint32_t>(pages * kPageSize / size)};
  }
  publish();  // some memory is committed from the start
}

void Depot::note_fragmented() noexcept {
  const std::uint64_t usable = (solid_free_ << kPageBits) + slab_bytes_used_;
  SLABPOOL_ASSERT(usable <= slab_pages_ << kPageBits,
                  "blocks and free pages of slabs fit in their pages", usable, slab_pages_);
  fragmented_.store((slab_pages_ << kPageBits) - usable, std::memory_order_relaxed);
}

void Depot::publish() noexcept {
  assert_figures();
  note_fragmented();
  // Release pairs with figures(): a reader that sees blocks counted as live also sees their pages committed.
  peak_committed_.store(pages_.peak_committed_pages() << kPageBits, std::memory_order_release);
  committed_.store(pages_.committed_pages() << kPageBits, std::memory_order_release);
  SLABPOOL_VERIFY(verify_each_, pages_.verify());
}

PageHeap::Result Depot::take_pages(std::uint64_t pages, std::uint64_t align_pages, Effort effort,
                                   std::uint64_t own) {
  if (effort == Effort::hard) drop_empty_slabs();
  const Publishing after(*this);
  if (!make_room(pages, own, effort)) return {};
  PageHeap::Result result;
  try {
    const std::uint64_t limit = commit_limit(pages, effort);
    result = pages_.allocate(pages, align_pages, limit);
    if (result.span == nullptr && effort == Effort::hard) {
      // Free pages of slabs may be all that is over the limit.
      const std::uint64_t spare = pages_.unused_pages() + limit;
      const std::uint64_t wanted = pages_.committed_pages() + pages;
      if (wanted > spare && hollow_slabs(wanted - spare) != 0)
        result = pages_.allocate(pages, align_pages, limit);
      if (result.span == nullptr && !result.system_refused)
        result = pages_.allocate(pages, align_pages, capacity_ >> kPageBits);
    }
  } catch (
      const std::bad_alloc&) {  // of the heap's records and tables; it may have returned pages before
    result.system_refused = true;
  }
  return result;
}

Block* Depot::next_uncarved(Span* slab) noexcept {
  const std::uint32_t index = slab->carved;
  SLABPOOL_ASSERT(index < slab->count, "carved <= count", index, slab->count);
  Block* block = &slab->blocks[index];
  const std::size_t size = class_size(slab->size_class);
  // It was not handed out since its chunk was opened: see depot_arrays.cpp.
  if (block->state.load(std::memory_order_relaxed) == 0) block->start_above(first_serial_);
  block->data = pages_.address(slab) + index * size;
  block->bytes = size;
  block->span = slab;
  block->bin = static_cast<std::uint16_t>(slab->size_class);
  block->zero = slab->zero;
  slab->carved = index + 1;
  return block;
}

Block* Depot::carve_block(Span* slab) noexcept {
  SLABPOOL_ASSERT(slab->kind == SpanKind::slab && slab->free_blocks != 0,
                  "a slab on its list has a free block", slab->kind, slab->free_blocks);
  Block* block = slab->free_list;
  if (block != nullptr) {
    slab->free_list = block->next;
  } else {
    block = next_uncarved(slab);
  }
  --slab->free_blocks;
  count_solid_free(slab, -std::int64_t{slab->page_states->take(pages_of(slab, block))});
  slab_bytes_used_ += block->bytes;
  relist(slab, true);
  SLABPOOL_ASSERT(block->span == slab && block->bin == slab->size_class,
                  "a block is on its own slab's list", block->data, block->bin, slab->size_class);
  SLABPOOL_ASSERT(Block::holds(block->state.load(std::memory_order_relaxed)) == 0,
                  "a free block has no holder", block->data);
  return block;
}

Span* Depot::new_slab(unsigned size_class, Effort effort, bool& refused) {
  ready_array(size_class);  // before pages are taken: it may run out of memory
  const SlabShape shape = shapes_[size_class];
  std::uint64_t pages = shape.pages;
  std::uint32_t count = shape.blocks;
  PageHeap::Result result = take_pages(pages, slab_granule_, effort);
  if (result.span == nullptr && !result.system_refused && effort == Effort::hard) {
    // There is no room for a whole slab: one with a single block may fit.
    pages = whole_granules(pages_for(class_size(size_class)));
    count = static_cast<std::uint32_t>((pages << kPageBits) / class_size(size_class));
    result = take_pages(pages, slab_granule_, effort);
  }
  refused = result.system_refused;
  if (result.span == nullptr) return nullptr;
  SLABPOOL_ASSERT(count != 0 && count <= shape.blocks,
                  "a slab has a block, and its array has room for all", count, shape.blocks);
  SLABPOOL_ASSERT(count * class_size(size_class) <= pages << kPageBits, "its blocks fit in its pages",
                  count, size_class, pages);
  Span* slab = result.span;
  slab->kind = SpanKind::slab;
  slab->size_class = size_class;
  slab->count = slab->free_blocks = count;
  slab->carved = 0;
  slab->free_list = nullptr;
  slab->blocks = arrays_[size_class];
  arrays_[size_class] = slab->blocks->next;
  --arrays_spare_[size_class];
  slab->page_states = new (static_cast<void*>(slab->blocks + shape.blocks)) SlabPages();
  slab->holes = 0;
  slab->front_has_hole = false;
  slab_pages_ += slab->pages;
  count_solid_free(slab, static_cast<std::int64_t>(slab->pages));
  partial_[size_class].push(slab);
  return slab;
}

Depot::Taken Depot::take_blocks(unsigned size_class, std::uint32_t want, Effort effort) {
  Taken taken;
  const std::lock_guard lock(mutex_);
  while (taken.count < want) {
    Span* slab = partial_[size_class].front();
    if (slab == nullptr) {
      // Pages are committed for the first block only, not for the batch.
      if (taken.count > 0) break;
      slab = hollow_[size_class].front();
      if (slab == nullptr || !fill_front(slab, effort, taken.system_refused)) {
        if (taken.system_refused) return taken;
        slab = new_slab(size_class, effort, taken.system_refused);
      }
      if (slab == nullptr) return taken;
    }
    if (slab == empty_[size_class]) empty_[size_class] = nullptr;
    Block* block = carve_block(slab);
    block->next = taken.chain;
    taken.chain = block;
    ++taken.count;
  }
  note_fragmented();
  SLABPOOL_VERIFY(false, verify_locked());
  return taken;
}

Depot::Taken Depot::take_span(std::uint64_t bytes, std::uint64_t align, Effort effort,
                              ReserveRef reserve, std::uint64_t drawn) {
  Taken taken;
  const std::lock_guard lock(mutex_);
  SLABPOOL_ASSERT(bytes != 0 && std::has_single_bit(align),
                  "a span has bytes, and a power of two aligns it", bytes, align);
  const std::uint64_t pages = pages_for(bytes);
  const std::uint64_t own = reserves_.prepare(reserve, std::min(pages, drawn >> kPageBits));
  if (drawn != kAll && own << kPageBits != drawn) {
    reserves_.give_up(reserve);
    taken.promise_changed = true;
    return taken;
  }
  const PageHeap::Result result =
      take_pages(pages, std::max<std::uint64_t>(align >> kPageBits, 1), effort, own);
  taken.system_refused = result.system_refused;
  if (result.span == nullptr) {
    reserves_.give_up(reserve);
    return taken;
  }
  // Under the same lock as the allocation, so that no reader counts the same bytes twice.
  reserves_.draw(reserve, own, result.span);
  Block* block = &result.span->large;
  block->data = pages_.address(result.span);
  block->bytes = result.span->pages << kPageBits;
  block->span = result.span;
  // A span from a promise is kept by no thread cache: its pages return to the promise.
  block->bin =
      static_cast<std::uint16_t>(own == 0 && block->bytes <= kMaxBinned ? bin_of(block->bytes) : kBins);
  block->zero = result.span->zero;
  block->next = nullptr;
  block->home = nullptr;
  taken.chain = block;
  taken.count = 1;
  SLABPOOL_VERIFY(false, verify_locked());
  return taken;
}

Depot::Taken Depot::take_growing(std::uint64_t most, Effort effort) {
  Taken taken;
  const std::lock_guard lock(mutex_);
  const Publishing after(*this);
  if (effort == Effort::hard) {
    drop_empty_slabs();
    (void)pages_.decommit(pages_.unused_pages());
  }
  Span* span = pages_.take_growing(pages_for(most));
  if (span == nullptr) return taken;
  Block* block = &span->large;
  block->data = pages_.address(span);
  block->bytes = 0;
  block->span = span;
  block->bin = kBins;
  block->zero = false;
  block->next = nullptr;
  block->home = nullptr;
  taken.chain = block;
  taken.count = 1;
  SLABPOOL_VERIFY(false, verify_locked());
  return taken;
}

Depot::Grown Depot::grow(Block& block, std::uint64_t pages, Effort effort, ReserveRef reserve,
                         std::uint64_t drawn) noexcept {
  const std::lock_guard lock(mutex_);
  Span* span = block.span;
  SLABPOOL_ASSERT(span->kind == SpanKind::growing && &block == &span->large && pages > span->drawn,
                  "a growing tensor grows", span->kind, pages, span->drawn);
  const std::uint64_t more = pages - span->drawn;
  if (!Reserves::may_draw(reserve, *span)) reserve = {};
  const std::uint64_t own = reserves_.prepare(reserve, std::min(more, drawn >> kPageBits));
  const bool changed = drawn != kAll && own << kPageBits != drawn;
  if (!changed && effort == Effort::hard) drop_empty_slabs();
  if (changed || !make_room(more, own, effort)) {
    reserves_.give_up(reserve);
    publish();
    return changed ? Grown::promise_changed : Grown::no_room;
  }
  const bool grown = pages_.grow(span, pages, commit_limit(more, effort)) ||
                     (effort == Effort::hard && pages_.grow(span, pages, capacity_ >> kPageBits));
  if (grown) {
    reserves_.draw(reserve, own, span);
  } else {
    reserves_.give_up(reserve);
  }
  const bool refused = !grown && effort == Effort::hard && pages_.system_refused();
  publish();
  SLABPOOL_VERIFY(false, verify_locked());
  return grown ? Grown::yes : refused ? Grown::system_refused : Grown::no_room;
}

std::uint64_t Depot::give_part(Block& block, std::uint64_t from, std::uint64_t to, ReserveRef reserve,
                               std::uint64_t& drawn) noexcept {
  const std::lock_guard lock(mutex_);
  Span* span = block.span;
  SLABPOOL_ASSERT(span->kind == SpanKind::growing && &block == &span->large && from <= to,
                  "a growing tensor gives a part back", span->kind, from, to);
  drawn = 0;
  if (pages_.always_committed()) return 0;
  // The span starts at a granule.
  const std::uint64_t end = std::min(span->drawn, pages_.granule_up(to));
  const std::uint64_t front = std::max(span->front, pages_.granule_down(std::min(from, end)));
  const std::uint64_t given = front - span->front + span->drawn - end;
  if (given == 0) return 0;
  pages_.give_part(span, front, end);
  if (Reserves::returns_within(*span, reserve))
    drawn = std::min(given, span->reserve_pages) << kPageBits;
  reserves_.refund(span, given);
  block.data = pages_.address(span) + (front << kPageBits);
  publish();
  SLABPOOL_VERIFY(false, verify_locked());
  return given << kPageBits;
}

Depot::Taken Depot::take_reserved(ReserveRef reserve, unsigned size_class, std::uint64_t align) {
  Taken taken;
  const std::lock_guard lock(mutex_);
  const Publishing after(*this);
  const Reserves::Cut cut = reserves_.cut(reserve, size_class, align);
  taken.chain = cut.block;
  taken.count = cut.block != nullptr ? 1 : 0;
  taken.system_refused = cut.system_refused;
  SLABPOOL_VERIFY(false, verify_locked());
  return taken;
}

void Depot::drop_slab(Span* slab) noexcept {
  SLABPOOL_ASSERT(slab->free_blocks == slab->count, "a slab is freed once all its blocks are",
                  slab->free_blocks, slab->count);
  if (slab->holes != 0 && !punch_all(slab)) return;  // it stays as it is
  (slab->front_has_hole ? hollow_ : partial_)[slab->size_class].remove(slab);
  count_solid_free(slab, -static_cast<std::int64_t>(slab->pages - slab->holes));
  slab_pages_ -= slab->pages - slab->holes;
  slab->blocks->next = arrays_[slab->size_class];
  arrays_[slab->size_class] = slab->blocks;
  ++arrays_spare_[slab->size_class];
  slab->blocks = slab->free_list = nullptr;
  slab->page_states = nullptr;
  if (slab->holes != 0) {
    pages_.free_hollow(slab);
  } else {
    pages_.free(slab);
  }
}

void Depot::give_one(Block* block) noexcept {
  Span* span = block->span;
  SLABPOOL_ASSERT(Block::holds(block->state.load(std::memory_order_relaxed)) == 0,
                  "a block returns when it has no holder", block->data,
                  block->state.load(std::memory_order_relaxed));
  SLABPOOL_ASSERT(span != nullptr && span->kind != SpanKind::committed_free &&
                      span->kind != SpanKind::uncommitted_free && span->kind != SpanKind::quarantined,
                  "a block returns once", block->data);
  SLABPOOL_ASSERT(block->tag.load(std::memory_order_relaxed) == 0, "a free block has no tag",
                  block->data);
  if (span->kind == SpanKind::large) {
    SLABPOOL_ASSERT(block == &span->large, "a span's own block", block->data);
    pages_.free(span);
    return reserves_.refund(span);
  }
  if (span->kind == SpanKind::arena) return reserves_.give(block);
  if (span->kind == SpanKind::growing) {
    pages_.free_growing(span);
    return reserves_.refund(span);
  }
  SLABPOOL_ASSERT(span->free_blocks < span->count, "a block returns once", block->data,
                  span->free_blocks, span->count);
  SLABPOOL_ASSERT(block >= span->blocks && block < span->blocks + span->carved,
                  "a block returns to its slab", block->data, span->carved);
  count_solid_free(span, std::int64_t{span->page_states->give(pages_of(span, block))});
  slab_bytes_used_ -= block->bytes;
  block->next = span->free_list;
  span->free_list = block;
  relist(span, span->free_blocks++ != 0);
  if (span->free_blocks == span->count) {
    // One empty slab of a class is kept, so that a tensor that is allocated and freed in turn does not build a slab
    // each time.
    if (empty_[span->size_class] == nullptr && span->holes == 0) {
      empty_[span->size_class] = span;
    } else {
      drop_slab(span);
    }
  }
}

void Depot::give(Block* chain) noexcept {
  const std::lock_guard lock(mutex_);
  while (chain != nullptr) {
    Block* next = chain->next;
    give_one(chain);
    chain = next;
  }
  publish();
  SLABPOOL_VERIFY(false, verify_locked());
}

void Depot::drop_empty_slabs() noexcept {
  for (Span*& slab : empty_) {
    if (slab == nullptr) continue;
    drop_slab(slab);
    slab = nullptr;
  }
}

ReserveRef Depot::open_reserve(std::uint64_t pages, ReserveRef from) {
  const std::lock_guard lock(mutex_);
  ReserveRef reserve = reserves_.open(pages, from);
  if (reserve.reserve == nullptr) {
    const Publishing after(*this);
    drop_empty_slabs();
    if (make_room(Reserves::needed(pages, from), 0, Effort::hard)) reserve = reserves_.open(pages, from);
  }
  return reserve;
}

void Depot::close_reserve(ReserveRef reserve) noexcept {
  const std::lock_guard lock(mutex_);
  reserves_.close(reserve);
  publish();
  SLABPOOL_VERIFY(false, verify_locked());
}

}  // namespace slabpool
