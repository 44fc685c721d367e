// Holes: pages inside a slab that went back to the system, because no block in use lies on them.
//
// A hole counts as neither committed nor cached. A tensor of any other size may then have a page in its place, at other
// addresses. Nothing here allocates memory.
#include <algorithm>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {

bool PageHeap::punch(Span* slab, std::uint64_t first, std::uint64_t pages) noexcept {
  SLABPOOL_ASSERT(slab->kind == SpanKind::slab && first >= slab->first_page &&
                      first + pages <= slab->first_page + slab->pages && slab->holes + pages <= slab->pages,
                  "a hole lies in a slab", slab->kind, first, pages, slab->holes);
  system_refused_ = !memory_.punch_hole(first << kPageBits, pages << kPageBits);
  if (system_refused_) return false;
  slab->holes += static_cast<std::uint32_t>(pages);
  committed_ -= pages;
  assert_figures();
  return true;
}

bool PageHeap::fill(Span* slab, std::uint64_t first, std::uint64_t pages,
                    std::uint64_t commit_limit) noexcept {
  SLABPOOL_ASSERT(slab->kind == SpanKind::slab && pages != 0 && pages <= slab->holes,
                  "holes are filled once", slab->kind, first, pages, slab->holes);
  if (!make_room(pages, commit_limit)) return false;
  system_refused_ = !memory_.fill_hole(first << kPageBits, pages << kPageBits);
  if (system_refused_) return false;
  slab->holes -= static_cast<std::uint32_t>(pages);
  committed_ += pages;
  peak_committed_ = std::max(peak_committed_, committed_);
  assert_figures();
  return true;
}

void PageHeap::free_hollow(Span* slab) noexcept {
  SLABPOOL_ASSERT(slab->kind == SpanKind::slab && slab->holes == slab->pages,
                  "every page is a hole", slab->kind, slab->holes, slab->pages);
  slab->holes = 0;
  memory_.discard(slab->first_page << kPageBits, slab->pages << kPageBits);
  slab->kind = SpanKind::uncommitted_free;
  slab->zero = memory_.commits_zero();
  make_free(slab);
  assert_figures();
}

}  // namespace slabpool
