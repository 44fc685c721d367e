// The page heap's part in tensors that grow: a run of addresses for all that one may become, committed
// from the front as far as it got. Its record never moves and its pages are never copied.
#include <algorithm>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {
namespace {

// Cached spans looked at for one whose pages a new tensor could start with.
constexpr int kTries = 16;

}  // namespace

// Moves both marks of a growing span; figures and the list of those with pages ahead follow.
void PageHeap::set_ahead(Span* growing, std::uint64_t committed, std::uint64_t drawn) noexcept {
  const std::uint64_t before = growing->committed - growing->drawn;
  const std::uint64_t after = committed - drawn;
  growing->committed = committed;
  growing->drawn = drawn;
  idle_ = idle_ - before + after;
  ahead_ = ahead_ - before + after;
  if (before == 0 && after != 0) ahead_spans_.push(growing);
  if (before != 0 && after == 0) ahead_spans_.remove(growing);
}

Span* PageHeap::take_growing(std::uint64_t pages) {
  if (spares_ < 8) add_spares();
  // What a tensor of the request before left behind: cached pages, and room to grow after them.
  Span* rest = nullptr;
  Span* span = committed_spans_.search(kTries, [&](const Span& cached) {
    if (cached.pages >= pages) return true;
    rest = at(cached.first_page + cached.pages);
    return rest != nullptr && rest->kind == SpanKind::uncommitted_free &&
           granule_up(pages - cached.pages) <= rest->pages;
  });
  std::uint64_t committed = 0;
  if (span != nullptr) {
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
    unlist(span);
    span = carve(span, granule_up(pages), 1);
  }
  span->kind = SpanKind::growing;
  span->committed = span->drawn = 0;
  set_ahead(span, committed, 0);
  mark_ends(span);
  return span;
}

bool PageHeap::grow(Span* growing, std::uint64_t pages, std::uint64_t commit_limit) noexcept {
  const std::uint64_t drawn = growing->drawn;
  const std::uint64_t committed = growing->committed;
  set_ahead(growing, committed, std::min(pages, committed));
  if (pages <= committed) return true;
  const std::uint64_t from = growing->first_page + committed;
  const std::uint64_t need = granule_up(growing->first_page + pages) - from;
  if (!make_room(need, commit_limit) || !commit(from, need)) {
    set_ahead(growing, committed, drawn);
    return false;
  }
  set_ahead(growing, committed + need, pages);
  return true;
}

void PageHeap::free_growing(Span* growing) noexcept {
  // From here on as any range, and nothing of it is ahead.
  const std::uint64_t drawn = growing->drawn;
  set_ahead(growing, growing->committed, growing->committed);
  growing->drawn = drawn;
  idle_ += growing->committed - drawn;
  growing->kind = SpanKind::arena;
  free_range(growing);
}

// Pages that tensors have not grown into yet, given back to the system; returns how many.
std::uint64_t PageHeap::decommit_ahead(std::uint64_t pages) noexcept {
  std::uint64_t done = 0;
  for (Span* span = ahead_spans_.front(); span != nullptr && done < pages;) {
    Span* next = span->next;  // the list loses this one once nothing is ahead of it
    const std::uint64_t end = span->first_page + span->committed;
    const std::uint64_t first = granule_up(span->first_page + span->drawn);
    const std::uint64_t last = granule_down(end);
    if (first < last && last == end) {
      const std::uint64_t give =
          std::min(last - first, granule_up(std::max(pages - done, kDecommitStep)));
      system_refused_ = !memory_.decommit((last - give) << kPageBits, give << kPageBits);
      if (system_refused_) break;
      committed_ -= give;
      done += give;
      set_ahead(span, span->committed - give, span->drawn);
    }
    span = next;
  }
  return done;
}

}  // namespace slabpool
