// The page heap's ranges: runs of addresses that are committed from the front, as they are drawn.
#include <algorithm>
#include <new>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {

bool PageHeap::can_split() noexcept {
  if (spares_ >= 4) return true;
  try {
    add_spares();
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

Span* PageHeap::take_range(std::uint64_t pages) {
  if (spares_ < 8) add_spares();
  Span* span = committed_spans_.best_fit(pages);
  const bool committed = span != nullptr;
  if (!committed) span = uncommitted_spans_.best_fit(pages);
  if (span == nullptr) return nullptr;
  unlist(span);
  span = carve(span, pages, 1);
  span->kind = SpanKind::arena;
  span->count = 0;
  span->committed = committed ? pages : 0;
  span->drawn = 0;
  idle_ += span->committed;
  mark_ends(span);
  return span;
}

bool PageHeap::draw(Span* range, std::uint64_t pages, std::uint64_t commit_limit) noexcept {
  if (pages > range->committed) {
    const std::uint64_t need = pages - range->committed;
    const std::uint64_t excess = committed_ + need > commit_limit ? committed_ + need - commit_limit : 0;
    if (excess != 0 && (!can_split() || decommit(excess) < excess)) return false;
    const std::uint64_t commit = std::min(
        {std::max(need, grow_step_), range->pages - range->committed, commit_limit - committed_});
    if (!memory_.commit((range->first_page + range->committed) << kPageBits, commit << kPageBits))
      return false;
    range->committed += commit;
    committed_ += commit;
    peak_committed_ = std::max(peak_committed_, committed_);
    idle_ += commit;
  }
  idle_ += range->drawn;
  idle_ -= pages;
  range->drawn = pages;
  return true;
}

void PageHeap::shrink_range(Span* range, std::uint64_t pages) noexcept {
  if (!can_split()) return;  // it then keeps them until it is freed
  Span* tail = split_tail(range, range->pages - pages);
  tail->committed = range->committed > pages ? range->committed - pages : 0;
  tail->drawn = 0;
  range->committed -= tail->committed;
  free_range(tail);
}

void PageHeap::free_range(Span* range) noexcept {
  idle_ -= range->committed - range->drawn;
  std::uint64_t committed = range->committed;
  if (committed != 0 && committed != range->pages && !can_split()) {
    // No record for a second span: all of it becomes address space.
    if (memory_.decommit(range->first_page << kPageBits, committed << kPageBits)) {
      committed_ -= committed;
      committed = 0;
    }
  }
  if (committed == 0) {
    range->kind = SpanKind::uncommitted_free;
    range->zero = true;
    make_free(range);
    return;
  }
  if (committed != range->pages) {
    Span* rest = split_tail(range, range->pages - committed);
    rest->kind = SpanKind::uncommitted_free;
    rest->zero = true;
    make_free(rest);
  }
  range->kind = SpanKind::committed_free;
  range->zero = false;
  make_free(range);
}

Span* PageHeap::split_range(Span* range, std::uint64_t pages) noexcept {
  Span* rest = split_tail(range, range->pages - pages);
  rest->arena = range->arena;
  rest->count = 0;
  rest->committed = rest->drawn = rest->pages;
  range->committed = range->drawn = pages;
  return rest;
}

}  // namespace slabpool
