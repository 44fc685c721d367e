// Ranges of the page heap: runs of addresses that are committed from the front, as they are drawn.
#include <algorithm>
#include <new>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {

bool PageHeap::can_split() noexcept {
  if (has_spares()) return true;
  try {
    ready_records();
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

Span* PageHeap::take_range(std::uint64_t pages) {
  ready_records();
  Span* span = committed_spans_.best_fit(pages);
  const bool committed = span != nullptr;
  if (!committed) {
    pages = granule_up(pages);
    span = uncommitted_spans_.best_fit(pages);
  }
  if (span == nullptr) return nullptr;
  if (!committed) open_tables(span->first_page, pages);
  unlist(span);
  span = carve(span, pages, 1);
  ++set_aside_;
  span->kind = SpanKind::arena;
  span->count = 0;
  span->committed = span->sound = committed ? pages : 0;
  span->drawn = 0;
  idle_ += span->committed;
  mark_ends(span);
  assert_range(span);
  assert_figures();
  return span;
}

// Makes room for `pages` more pages below the limit, by returning unused pages to the system. False if that fails.
bool PageHeap::make_room(std::uint64_t pages, std::uint64_t commit_limit) noexcept {
  system_refused_ = false;
  if (pages == 0 || committed_ + pages <= commit_limit) return true;
  const std::uint64_t excess = committed_ + pages - commit_limit;
  // decommit() may need a record for one split.
  return unused_pages() >= excess && can_split() && decommit(excess) >= excess;
}

bool PageHeap::draw(Span* range, std::uint64_t pages, std::uint64_t commit_limit) noexcept {
  SLABPOOL_ASSERT(range->kind == SpanKind::arena && pages <= range->pages,
                  "a range is drawn within its addresses", range->kind, pages, range->pages);
  if (pages > range->sound) {
    // From the end of the usable pages, which is the end of a granule. Undefined pages behind it are counted already.
    const std::uint64_t counted = range->committed - range->sound;
    const std::uint64_t end = range->first_page + range->committed;
    const std::uint64_t wanted = granule_up(range->first_page + pages);
    const std::uint64_t need = wanted > end ? wanted - end : 0;
    if (!make_room(need, commit_limit)) return false;
    const std::uint64_t more =
        need == 0 ? 0
                  : std::min({std::max(need, grow_step_), range->pages - range->committed,
                              granule_down(commit_limit - committed_)});
    const PageState state = commit(range->first_page + range->sound, counted + more, counted);
    const std::uint64_t now = state == PageState::uncommitted ? range->sound : range->committed + more;
    idle_ = idle_ - range->committed + now;
    range->committed = now;
    if (state != PageState::committed) return false;
    range->sound = now;
  }
  idle_ += range->drawn;
  idle_ -= pages;
  range->drawn = pages;
  assert_range(range);
  assert_figures();
  return true;
}

void PageHeap::shrink_range(Span* range, std::uint64_t pages) noexcept {
  SLABPOOL_ASSERT(pages != 0 && pages >= range->drawn && pages <= range->pages,
                  "drawn pages stay in the range", pages, range->drawn, range->pages);
  // A granule that is not usable stays with the range as a whole.
  if (pages > range->sound) pages = granule_up(range->first_page + pages) - range->first_page;
  if (pages == range->pages || !can_split()) return;
  Span* tail = split_tail(range, range->pages - pages);
  tail->committed = range->committed > pages ? range->committed - pages : 0;
  tail->drawn = 0;
  tail->sound = range->sound > pages ? range->sound - pages : 0;
  range->committed -= tail->committed;
  range->sound -= tail->sound;
  assert_range(range);
  ++set_aside_;
  free_range(tail);
}

void PageHeap::free_range(Span* range) noexcept {
  assert_range(range);
  SLABPOOL_ASSERT(range->kind == SpanKind::arena && range->committed - range->drawn <= idle_,
                  "a range is freed once", range->kind, range->committed, range->drawn, idle_);
  SLABPOOL_ASSERT(set_aside_ != 0 && spares_ >= set_aside_, "a record is set aside for each range",
                  spares_, set_aside_);
  --set_aside_;
  idle_ -= range->committed - range->drawn;
  std::uint64_t committed = range->committed;
  if (range->sound != committed) {
    const std::uint64_t bad = committed - range->sound;
    const PageState state = uncommit(range->first_page + range->sound, bad);
    if (state == PageState::undefined) return quarantine_tail(range);
    if (state == PageState::uncommitted) committed = range->sound;
  }
  if (committed == 0) {
    range->kind = SpanKind::uncommitted_free;
    range->zero = memory_.commits_zero();
    make_free(range);
    return;
  }
  if (committed != range->pages) {
    Span* rest = split_tail(range, range->pages - committed);
    rest->kind = SpanKind::uncommitted_free;
    rest->zero = memory_.commits_zero();
    make_free(rest);
  }
  range->kind = SpanKind::committed_free;
  range->zero = false;
  make_free(range);
  assert_figures();
}

Span* PageHeap::split_range(Span* range, std::uint64_t pages) noexcept {
  SLABPOOL_ASSERT(range->drawn == range->pages, "all of the range is drawn", range->drawn,
                  range->committed, range->pages);
  Span* rest = split_tail(range, range->pages - pages);
  ++set_aside_;
  rest->arena = range->arena;
  rest->count = 0;
  rest->committed = rest->drawn = rest->sound = rest->pages;
  range->committed = range->drawn = range->sound = pages;
  return rest;
}

Span* PageHeap::split_front(Span* range, std::uint64_t pages) noexcept {
  SLABPOOL_ASSERT(range->drawn == range->pages && pages != 0 && pages < range->pages,
                  "all of the range is drawn", range->drawn, pages, range->pages);
  Span* front = new_span(range->first_page, pages, range->kind, range->zero);
  range->first_page += pages;
  range->pages -= pages;
  starts_.set(range->first_page);
  mark_ends(front);
  mark_ends(range);
  ++set_aside_;
  front->arena = range->arena;
  front->count = 0;
  front->committed = front->drawn = front->sound = pages;
  range->committed = range->drawn = range->sound = range->pages;
  return front;
}

}  // namespace slabpool
