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
           cached.pages + rest->pages >= pages;
  });
  std::uint64_t committed = 0;
  if (span != nullptr) {
    unlist(span);
    committed = std::min(span->pages, pages);
    if (span->pages < pages) {
      unlist(rest);
      rest = carve(rest, pages - span->pages, 1);
      starts_.clear(rest->first_page);
      span->pages = pages;
      retire(rest);
    } else {
      span = carve(span, pages, 1);
    }
  } else {
    span = uncommitted_spans_.best_fit(pages);
    if (span == nullptr) return nullptr;
    unlist(span);
    span = carve(span, pages, 1);
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
  const std::uint64_t need = pages - committed;
  const std::uint64_t excess = committed_ + need > commit_limit ? committed_ + need - commit_limit : 0;
  // A record for the one split that giving back may need.
  const bool room =
      excess == 0 || (unused_pages() >= excess && can_split() && decommit(excess) >= excess);
  if (!room || !memory_.commit((growing->first_page + committed) << kPageBits, need << kPageBits)) {
    set_ahead(growing, committed, drawn);
    return false;
  }
  committed_ += need;
  peak_committed_ = std::max(peak_committed_, committed_);
  set_ahead(growing, pages, pages);
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
  while (done < pages) {
    Span* span = ahead_spans_.front();
    if (span == nullptr) break;
    const std::uint64_t give =
        std::min(span->committed - span->drawn, std::max(pages - done, kDecommitStep));
    const std::uint64_t left = span->committed - give;
    if (!memory_.decommit((span->first_page + left) << kPageBits, give << kPageBits)) break;
    set_ahead(span, left, span->drawn);
    committed_ -= give;
    done += give;
  }
  return done;
}

}  // namespace slabpool
