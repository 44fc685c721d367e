// Tensors that grow: a span has addresses for the largest size of the tensor, and is committed from the front up to
// its present size. Its record does not move and its pages are not copied. Pages that it does not need any more, at its
// front or at its end, return to the system while it keeps its addresses.
#include <algorithm>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {
namespace {

// Cached spans tried for the first pages of a new tensor.
constexpr int kTries = 16;

}  // namespace

// Changes the counts of a growing span, and updates the heap's figures and the list of spans with idle pages.
template <typename Change>
void PageHeap::change_growing(Span* growing, Change&& change) noexcept {
  const auto unused = [growing] {
    return growing->committed - growing->drawn + growing->front - growing->gone;
  };
  const std::uint64_t before = unused();
  SLABPOOL_ASSERT(growing->kind == SpanKind::growing && before <= ahead_,
                  "pages ahead include every growing span", growing->kind, before, ahead_);
  change();
  const std::uint64_t after = unused();
  idle_ = idle_ - before + after;
  ahead_ = ahead_ - before + after;
  if (before == 0 && after != 0) ahead_spans_.push(growing);
  if (before != 0 && after == 0) ahead_spans_.remove(growing);
  assert_range(growing);
}

void PageHeap::set_ahead(Span* growing, std::uint64_t committed, std::uint64_t drawn,
                         std::uint64_t sound) noexcept {
  change_growing(growing, [&] {
    growing->committed = committed;
    growing->drawn = drawn;
    growing->sound = sound;
  });
}

Span* PageHeap::take_growing(std::uint64_t pages) {
  ready_records();
  // A tensor starts at a granule, so that every granule which it gives back is its own.
  const auto start = [&](const Span& cached) {
    return granule_up(cached.first_page) - cached.first_page;
  };
  // Often an earlier tensor of this kind has left cached pages with free addresses behind them.
  Span* rest = nullptr;
  Span* span = committed_spans_.search(kTries, [&](const Span& cached) {
    if (cached.pages <= start(cached)) return false;
    const std::uint64_t own = cached.pages - start(cached);
    if (own >= pages) return true;
    rest = at(cached.first_page + cached.pages);
    return rest != nullptr && rest->kind == SpanKind::uncommitted_free &&
           granule_up(pages - own) <= rest->pages;
  });
  std::uint64_t committed = 0;
  if (span != nullptr) {
    const std::uint64_t own = span->pages - start(*span);
    if (own < pages) open_tables(rest->first_page, granule_up(pages - own));
    unlist(span);
    committed = std::min(own, pages);
    span = carve(span, committed, granule_);
    if (own < pages) {
      unlist(rest);
      rest = carve(rest, granule_up(pages - span->pages), 1);
      starts_.clear(rest->first_page);
      span->pages += rest->pages;
      retire(rest);
    }
  } else {
    span = uncommitted_spans_.best_fit(granule_up(pages));
    if (span == nullptr) return nullptr;
    open_tables(span->first_page, granule_up(pages));
    unlist(span);
    span = carve(span, granule_up(pages), 1);
  }
  set_aside_ += kAsideOfGrowing;
  span->kind = SpanKind::growing;
  span->committed = span->drawn = span->sound = 0;
  set_ahead(span, committed, 0, committed);
  mark_ends(span);
  assert_figures();
  return span;
}

bool PageHeap::grow(Span* growing, std::uint64_t pages, std::uint64_t commit_limit) noexcept {
  const std::uint64_t drawn = growing->drawn;
  const std::uint64_t committed = growing->committed;
  SLABPOOL_ASSERT(drawn < pages && pages <= growing->pages, "a tensor grows within its addresses", drawn,
                  pages, growing->pages);
  const std::uint64_t sound = growing->sound;
  if (pages <= sound) {
    system_refused_ = false;
    set_ahead(growing, committed, pages, sound);
    return true;
  }
  const std::uint64_t end = growing->first_page + committed;
  const std::uint64_t wanted = granule_up(growing->first_page + pages);
  const std::uint64_t need = wanted > end ? wanted - end : 0;
  // While room is made, the tensor's own pages are not returned to the system.
  set_ahead(growing, committed, committed, committed);
  const bool room = make_room(need, commit_limit);
  set_ahead(growing, committed, drawn, sound);
  if (!room) return false;
  const PageState state =
      commit(growing->first_page + sound, committed - sound + need, committed - sound);
  const bool grown = state == PageState::committed;
  const std::uint64_t now = state == PageState::uncommitted ? sound : committed + need;
  set_ahead(growing, now, grown ? pages : drawn, grown ? now : sound);
  assert_figures();
  return grown;
}

void PageHeap::give_part(Span* growing, std::uint64_t front, std::uint64_t drawn) noexcept {
  SLABPOOL_ASSERT(growing->front <= front && front <= drawn && drawn <= growing->drawn,
                  "a tensor gives pages of its own back", growing->front, front, drawn, growing->drawn);
  SLABPOOL_ASSERT((front & (granule_ - 1)) == 0 && !memory_.always_committed(),
                  "whole granules are given back at the front", front, granule_);
  // Pages behind the tensor that it has not used stay committed for it.
  const std::uint64_t given = front - growing->gone + growing->drawn - drawn;
  change_growing(growing, [&] {
    growing->front = front;
    growing->drawn = drawn;
  });
  (void)decommit_idle(growing, given);
  assert_figures();
}

// Cuts off the pages at the front of a span without idle pages that are not committed, and tries those again that the
// system refused. The result is a range that is like any other; null if nothing is left.
Span* PageHeap::cut_front(Span* growing) noexcept {
  const std::uint64_t refused = growing->front_undefined ? growing->front - growing->gone : 0;
  const PageState state =
      refused != 0 ? uncommit(growing->first_page + growing->gone, refused) : PageState::committed;
  const std::uint64_t gone = state == PageState::uncommitted ? growing->front : growing->gone;
  growing->gone = growing->front = 0;
  growing->front_undefined = false;
  // The rest takes the counts over.
  const auto split = [&](std::uint64_t pages) {
    Span* rest = split_tail(growing, growing->pages - pages);
    rest->committed = growing->committed - pages;
    rest->drawn = growing->drawn > pages ? growing->drawn - pages : 0;
    rest->sound = growing->sound - pages;
    return rest;
  };
  if (gone != 0) {
    Span* rest = gone != growing->pages ? split(gone) : nullptr;
    free_as(PageState::uncommitted, growing);
    growing = rest;
  }
  if (state == PageState::undefined) {
    Span* rest = refused != growing->pages ? split(refused) : nullptr;
    quarantine(growing, refused);
    growing = rest;
  }
  return growing;
}

void PageHeap::free_growing(Span* growing) noexcept {
  // From here on it is a range like any other, with no pages ahead.
  const std::uint64_t drawn = growing->drawn;
  const std::uint64_t sound = growing->sound;
  const std::uint64_t front = growing->front;
  change_growing(growing, [&] {
    growing->drawn = growing->sound = growing->committed;
    growing->front = growing->gone;
  });
  growing->front = front;
  growing->drawn = drawn;
  growing->sound = sound;
  set_aside_ -= kAsideOfGrowing - 1;
  growing->kind = SpanKind::arena;
  if (front != 0) growing = cut_front(growing);
  if (growing == nullptr) {
    --set_aside_;
    return assert_figures();
  }
  idle_ += growing->committed - growing->drawn;
  free_range(growing);
}

// Returns idle pages of a tensor to the system: those given back at its front, which only a refusal leaves committed, and
// up to about `pages` behind those in use. The result is the number of pages; system_refused_ tells of a refusal.
std::uint64_t PageHeap::decommit_idle(Span* growing, std::uint64_t pages) noexcept {
  std::uint64_t done = 0;
  bool refused = false;
  if (const std::uint64_t left = growing->front - growing->gone; left != 0) {
    const PageState state = uncommit(growing->first_page + growing->gone, left);
    refused = state != PageState::uncommitted;
    if (!refused) done = left;
    change_growing(growing, [&] {
      if (!refused) growing->gone = growing->front;
      growing->front_undefined = state == PageState::undefined;
    });
  }
  const std::uint64_t end = growing->first_page + growing->committed;
  const std::uint64_t first = granule_up(growing->first_page + growing->drawn);
  const std::uint64_t last = granule_down(end);
  if (done < pages && first < last && last == end) {
    const std::uint64_t give = std::min(last - first, granule_up(pages - done));
    const std::uint64_t left = growing->committed - give;
    const PageState state = uncommit(last - give, give);
    if (state == PageState::uncommitted) {
      done += give;
      set_ahead(growing, left, growing->drawn, std::min(growing->sound, left));
    } else {
      refused = true;
      // Pages that are committed again are usable if all pages before them are.
      if (state == PageState::undefined) growing->sound = std::min(growing->sound, left);
      if (state == PageState::committed && growing->sound >= left) growing->sound = growing->committed;
    }
  }
  system_refused_ = refused;
  return done;
}

// Returns committed pages that tensors have not grown into, or have given back, to the system. The result is the number of
// pages.
std::uint64_t PageHeap::decommit_ahead(std::uint64_t pages) noexcept {
  std::uint64_t done = 0;
  int refusals = 0;
  bool refused = false;
  for (Span* span = ahead_spans_.front(); span != nullptr && done < pages && refusals < kRefusals;) {
    Span* next = span->next;  // decommit_idle() may take this span off the list
    system_refused_ = false;
    done += decommit_idle(span, std::max(pages - done, kDecommitStep));
    if (system_refused_) {
      refused = true;
      ++refusals;
    }
    span = next;
  }
  system_refused_ = refused;
  return done;
}

}  // namespace slabpool
