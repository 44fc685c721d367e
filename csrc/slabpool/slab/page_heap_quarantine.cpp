// System calls of the page heap that were refused: what the pages are afterwards, and quarantined pages.
//
// Invariant: after a refused call, each page is known to be committed, or known to be uncommitted, or counted as committed
// and out of use. Nothing here allocates memory, except can_split(), which may fail.
#include <algorithm>
#include <utility>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {

PageHeap::PageState PageHeap::commit(std::uint64_t first, std::uint64_t pages,
                                     std::uint64_t counted) noexcept {
  SLABPOOL_ASSERT(((first | pages) & (granule_ - 1)) == 0 && counted <= pages,
                  "whole granules are committed", first, pages, counted, granule_);
  system_refused_ = !memory_.commit(first << kPageBits, pages << kPageBits);
  if (system_refused_ && memory_.decommit(first << kPageBits, pages << kPageBits)) {
    committed_ -= counted;
    return PageState::uncommitted;
  }
  committed_ += pages - counted;
  peak_committed_ = std::max(peak_committed_, committed_);
  return system_refused_ ? PageState::undefined : PageState::committed;
}

PageHeap::PageState PageHeap::uncommit(std::uint64_t first, std::uint64_t pages) noexcept {
  SLABPOOL_ASSERT(((first | pages) & (granule_ - 1)) == 0 && pages <= committed_,
                  "whole granules are decommitted", first, pages, granule_, committed_);
  system_refused_ = !memory_.decommit(first << kPageBits, pages << kPageBits);
  if (!system_refused_) {
    committed_ -= pages;
    return PageState::uncommitted;
  }
  return memory_.commit(first << kPageBits, pages << kPageBits) ? PageState::committed
                                                                : PageState::undefined;
}

void PageHeap::free_as(PageState state, Span* span) noexcept {
  if (state == PageState::undefined) return quarantine(span, span->pages);
  span->kind = state == PageState::committed ? SpanKind::committed_free : SpanKind::uncommitted_free;
  span->zero = state == PageState::uncommitted && memory_.commits_zero();
  make_free(span);
}

void PageHeap::count_quarantined(std::int64_t pages) noexcept {
  const std::uint64_t now = quarantined_pages() + static_cast<std::uint64_t>(pages);
  quarantined_pages_.store(now, std::memory_order_relaxed);
  cached_ += static_cast<std::uint64_t>(pages);
}

void PageHeap::quarantine(Span* span, std::uint64_t committed) noexcept {
  SLABPOOL_ASSERT(committed != 0 && committed <= span->pages, "quarantined pages are counted", committed,
                  span->pages, span->first_page);
  span->kind = SpanKind::quarantined;
  span->committed = committed;
  count_quarantined(static_cast<std::int64_t>(committed));
  mark_ends(span);
  quarantined_.push(span);
  assert_figures();
}

void PageHeap::quarantine_tail(Span* range) noexcept {
  const std::uint64_t sound = range->sound;
  if (sound == 0) return quarantine(range, range->committed);
  Span* tail = split_tail(range, range->pages - sound);
  quarantine(tail, range->committed - sound);
  range->kind = SpanKind::committed_free;
  range->zero = false;
  make_free(range);
}

// Lists a span that left quarantine: its pages [from, to) are not committed, the others are. Needs can_split().
void PageHeap::release_from_quarantine(Span* span, std::uint64_t from, std::uint64_t to) noexcept {
  if (from == to) return free_as(PageState::committed, span);
  if (to != span->pages) {
    Span* behind = split_tail(span, span->pages - to);
    free_as(PageState::committed, behind);
  }
  if (from != 0) {
    Span* front = span;
    span = split_tail(front, to - from);
    free_as(PageState::committed, front);
  }
  free_as(PageState::uncommitted, span);
}

// Tries to return the pages of quarantined spans to the system, or else to commit them. The result is the number of pages
// returned. Spans that are refused again get their next turn after all others.
std::uint64_t PageHeap::retry_quarantined(std::uint64_t pages) noexcept {
  std::uint64_t done = 0;
  bool refused = false;
  for (int refusals = 0; done < pages && refusals < kRefusals;) {
    if (quarantined_.front() == nullptr && refusals == 0) std::swap(quarantined_, retried_);
    Span* span = quarantined_.front();
    if (span == nullptr || !can_split()) break;
    // Of the pages that count, those at the ends that share a granule with a neighbour are committed.
    const std::uint64_t counted = span->committed;
    const std::uint64_t first = granule_up(span->first_page);
    const std::uint64_t last = granule_down(span->first_page + counted);
    const PageState state = first < last ? uncommit(first, last - first) : PageState::committed;
    refused = refused || (first < last && system_refused_);
    quarantined_.remove(span);
    if (state == PageState::undefined) {
      retried_.push(span);
      ++refusals;
      continue;
    }
    count_quarantined(-static_cast<std::int64_t>(counted));
    const bool all = counted == span->pages;
    if (state == PageState::committed) {
      release_from_quarantine(span, counted, span->pages);
    } else {
      done += last - first;
      release_from_quarantine(span, first - span->first_page,
                              all ? last - span->first_page : span->pages);
    }
  }
  system_refused_ = refused;
  return done;
}

std::uint64_t PageHeap::discard_uncommitted() noexcept {
  const std::uint64_t before = memory_.held_bytes();
  if (before <= committed_ << kPageBits) return 0;
  each([&](const Span& span) {
    const bool range = span.kind == SpanKind::arena || span.kind == SpanKind::growing;
    if (!range && span.kind != SpanKind::uncommitted_free) return;
    if (range && span.gone != 0) memory_.discard(span.first_page << kPageBits, span.gone << kPageBits);
    const std::uint64_t kept = range ? span.committed : 0;
    if (kept != span.pages)
      memory_.discard((span.first_page + kept) << kPageBits, (span.pages - kept) << kPageBits);
  });
  const std::uint64_t after = memory_.held_bytes();
  return before > after ? before - after : 0;
}

}  // namespace slabpool
