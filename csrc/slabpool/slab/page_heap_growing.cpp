// Tensors that grow: a span has addresses for the largest size of the tensor, and is committed from the front up to
// its present size. Its record does not move and its pages are not copied.
#include <algorithm>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {
namespace {

// Cached spans tried for the first pages of a new tensor.
constexpr int kTries = 16;

}  // namespace

// Sets the counts of a growing span, and updates the heap's figures and the list of spans with pages ahead.
void PageHeap::set_ahead(Span* growing, std::uint64_t committed, std::uint64_t drawn,
                         std::uint64_t sound) noexcept {
  const std::uint64_t before = growing->committed - growing->drawn;
  const std::uint64_t after = committed - drawn;
  SLABPOOL_ASSERT(growing->kind == SpanKind::growing && before <= ahead_,
                  "pages ahead include every growing span", growing->kind, before, ahead_);
  growing->committed = committed;
  growing->drawn = drawn;
  growing->sound = sound;
  idle_ = idle_ - before + after;
  ahead_ = ahead_ - before + after;
  if (before == 0 && after != 0) ahead_spans_.push(growing);
  if (before != 0 && after == 0) ahead_spans_.remove(growing);
  assert_range(growing);
}

Span* PageHeap::take_growing(std::uint64_t pages) {
  ready_records();
  // Often an earlier tensor of this kind has left cached pages with free addresses behind them.
  Span* rest = nullptr;
  Span* span = committed_spans_.search(kTries, [&](const Span& cached) {
    if (cached.pages >= pages) return true;
    rest = at(cached.first_page + cached.pages);
    return rest != nullptr && rest->kind == SpanKind::uncommitted_free &&
           granule_up(pages - cached.pages) <= rest->pages;
  });
  std::uint64_t committed = 0;
  if (span != nullptr) {
    if (span->pages < pages) open_tables(rest->first_page, granule_up(pages - span->pages));
    unlist(span);
    committed = std::min(span->pages, pages);
    if (span->pages < pages) {
      unlist(rest);
      rest = carve(rest, granule_up(pages - span->pages), 1);
      starts_.clear(rest->first_page);
      span->pages += rest->pages;
      retire(rest);
    } else {
      span = carve(span, pages, 1);
    }
  } else {
    span = uncommitted_spans_.best_fit(granule_up(pages));
    if (span == nullptr) return nullptr;
    open_tables(span->first_page, granule_up(pages));
    unlist(span);
    span = carve(span, granule_up(pages), 1);
  }
  ++ranges_;
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

void PageHeap::free_growing(Span* growing) noexcept {
  // From here on it is a range like any other, with no pages ahead.
  const std::uint64_t drawn = growing->drawn;
  const std::uint64_t sound = growing->sound;
  set_ahead(growing, growing->committed, growing->committed, growing->committed);
  growing->drawn = drawn;
  growing->sound = sound;
  idle_ += growing->committed - drawn;
  growing->kind = SpanKind::arena;
  free_range(growing);
}

// Returns committed pages that tensors have not grown into to the system. The result is the number of pages.
std::uint64_t PageHeap::decommit_ahead(std::uint64_t pages) noexcept {
  std::uint64_t done = 0;
  int refusals = 0;
  system_refused_ = false;
  for (Span* span = ahead_spans_.front(); span != nullptr && done < pages;) {
    Span* next = span->next;  // set_ahead() may take this span off the list
    const std::uint64_t end = span->first_page + span->committed;
    const std::uint64_t first = granule_up(span->first_page + span->drawn);
    const std::uint64_t last = granule_down(end);
    if (first < last && last == end) {
      const std::uint64_t give =
          std::min(last - first, granule_up(std::max(pages - done, kDecommitStep)));
      const std::uint64_t left = span->committed - give;
      const PageState state = uncommit(last - give, give);
      if (state == PageState::uncommitted) {
        done += give;
        set_ahead(span, left, span->drawn, std::min(span->sound, left));
      } else {
        // Pages that are committed again are usable if all pages before them are.
        if (state == PageState::undefined) span->sound = std::min(span->sound, left);
        if (state == PageState::committed && span->sound >= left) span->sound = span->committed;
        if (++refusals == kRefusals) break;
      }
    }
    span = next;
  }
  return done;
}

}  // namespace slabpool
