// Free pages inside slabs: where memory is short they go back to the system, and a block that lies on them gets them back
// before it is handed out.
//
// So free bytes that make whole pages are usable for any size, whatever sizes the pool had before. All of it is under the
// depot's mutex, on slow paths only: a page goes back when an allocation has no room otherwise, or when more is committed
// than the limit.
#include <algorithm>

#include "slabpool/slab/depot.hpp"

namespace slabpool {
namespace {

// Fewest pages (1 MiB) that go back at a time: with fewer, each tensor would walk the slabs again.
constexpr std::uint64_t kHollowStep = 256;

}  // namespace

void Depot::count_solid_free(const Span* slab, std::int64_t pages) noexcept {
  solid_free_ += static_cast<std::uint64_t>(pages);
  solid_free_in_[slab->size_class] += static_cast<std::uint64_t>(pages);
  SLABPOOL_ASSERT(
      solid_free_in_[slab->size_class] <= solid_free_ && solid_free_ <= pages_.committed_pages(),
      "free pages of slabs are committed", solid_free_, pages_.committed_pages());
}

SlabPages::Run Depot::pages_of(const Span* slab, const Block* block) const noexcept {
  return SlabPages::run(static_cast<std::uint64_t>(block->data - pages_.address(slab)), block->bytes);
}

// Puts a slab on the list that its first free block says. `listed`: it is on one.
void Depot::relist(Span* slab, bool listed) noexcept {
  const Block* front = slab->free_list;
  const bool hollow =
      slab->holes != 0 && front != nullptr && slab->page_states->has_hole(pages_of(slab, front));
  const auto list = [&]() -> SpanList& {
    return (slab->front_has_hole ? hollow_ : partial_)[slab->size_class];
  };
  if (listed) {
    if (slab->free_blocks != 0 && hollow == slab->front_has_hole) return;
    list().remove(slab);
  }
  slab->front_has_hole = hollow;
  if (slab->free_blocks != 0) list().push(slab);
}

// Puts free blocks that lie on no hole first, and notes which will be zero once their holes are filled.
void Depot::sort_free_list(Span* slab) noexcept {
  Block* solid = nullptr;
  Block* hollow = nullptr;
  Block** solid_end = &solid;
  Block** hollow_end = &hollow;
  const SlabPages& states = *slab->page_states;
  for (Block* block = slab->free_list; block != nullptr; block = block->next) {
    const SlabPages::Run run = pages_of(slab, block);
    if (!states.has_hole(run)) {
      *solid_end = block;
      solid_end = &block->next;
      continue;
    }
    block->zero = pages_.commits_zero();
    for (std::uint32_t page = run.first; page < run.end; ++page)
      block->zero = block->zero && states.is_hole(page);
    *hollow_end = block;
    hollow_end = &block->next;
  }
  *hollow_end = nullptr;
  *solid_end = hollow;
  slab->free_list = solid;
}

// Returns up to `want` free pages of a slab to the system. The result is their number.
std::uint64_t Depot::hollow(Span* slab, std::uint64_t want) noexcept {
  while (slab->carved < slab->count) {
    Block* block = next_uncarved(slab);
    block->next = slab->free_list;
    slab->free_list = block;
  }
  SlabPages& states = *slab->page_states;
  const auto pages = static_cast<std::uint32_t>(slab->pages);
  std::uint64_t done = 0;
  bool refused = false;
  for (std::uint32_t page = 0; page < pages && done < want && !refused;) {
    std::uint32_t end = page;
    while (end < pages && states.is_solid_free(end) && done + (end - page) < want) ++end;
    if (end == page) {
      ++page;
      continue;
    }
    const std::uint64_t first = pages_.granule_up(slab->first_page + page);
    const std::uint64_t last = pages_.granule_down(slab->first_page + end);
    if (first < last) {
      refused = !pages_.punch(slab, first, last - first);
      if (!refused) {
        states.set_holes(static_cast<std::uint32_t>(first - slab->first_page),
                         static_cast<std::uint32_t>(last - slab->first_page), true);
        done += last - first;
      }
    }
    page = end;
  }
  if (refused) {  // the bytes of free pages may be anything
    for (Block* block = slab->free_list; block != nullptr; block = block->next) block->zero = false;
  }
  if (done != 0) {
    slab_pages_ -= done;
    count_solid_free(slab, -static_cast<std::int64_t>(done));
    sort_free_list(slab);
    relist(slab, true);
  }
  return done;
}

// Makes every page of a slab without blocks in use a hole. False: the system refused some.
bool Depot::punch_all(Span* slab) noexcept {
  SLABPOOL_ASSERT(slab->free_blocks == slab->count, "no block of the slab is in use", slab->free_blocks,
                  slab->count);
  (void)hollow(slab, slab->pages);
  return slab->holes == slab->pages;
}

// Returns at least `want` free pages of slabs to the system if it can, but none of `keep`. The result is their number.
std::uint64_t Depot::hollow_slabs(std::uint64_t want, const Span* keep) noexcept {
  if (!pages_.has_holes()) return 0;
  want = std::max(want, kHollowStep);
  std::uint64_t done = 0;
  for (unsigned c = kSlabClasses; c-- > 0 && done < want;) {
    for (const SpanList* list : {&hollow_[c], &partial_[c]}) {
      for (Span* slab = list->front(); slab != nullptr && solid_free_in_[c] != 0 && done < want;) {
        Span* next = slab->next;  // hollow() may move this one to the other list
        if (slab != keep) done += hollow(slab, want - done);
        slab = next;
      }
    }
  }
  return done;
}

// Makes room for `pages` more pages in use. False, and nothing has changed, if free pages of slabs do not suffice.
bool Depot::make_room(std::uint64_t pages, std::uint64_t own, Effort effort, const Span* keep) noexcept {
  if (has_room(pages, own)) return true;
  if (effort == Effort::soft || !pages_.has_holes()) return false;
  const std::uint64_t wanted = pages_.in_use_pages() + pages + reserves_.reserved_pages() - own;
  if (wanted - solid_free_ > capacity_ >> kPageBits) return false;
  (void)hollow_slabs(wanted - (capacity_ >> kPageBits), keep);
  return has_room(pages, own);
}

// Fills the holes under the first free block of a slab. False: there is no room, or the system refuses.
bool Depot::fill_front(Span* slab, Effort effort, bool& refused) noexcept {
  const Publishing after(*this);
  SlabPages& states = *slab->page_states;
  const SlabPages::Run run = pages_of(slab, slab->free_list);
  // A hole is whole granules, so the granules that a hole under the block shares with others are holes, too.
  const auto next_hole = [&](std::uint32_t& page, std::uint64_t& first, std::uint64_t& last) {
    while (page < run.end && !states.is_hole(page)) ++page;
    if (page == run.end) return false;
    first = pages_.granule_down(slab->first_page + page);
    while (page < run.end && states.is_hole(page)) ++page;
    last = pages_.granule_up(slab->first_page + page);
    return true;
  };
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  std::uint64_t need = 0;
  for (std::uint32_t page = run.first; next_hole(page, first, last);) need += last - first;
  if (!make_room(need, 0, effort, slab)) return false;
  const std::uint64_t limit = commit_limit(need, effort);
  for (std::uint32_t page = run.first; next_hole(page, first, last);) {
    if (!pages_.fill(slab, first, last - first, limit) &&
        (effort == Effort::soft || pages_.system_refused() ||
         !pages_.fill(slab, first, last - first, capacity_ >> kPageBits))) {
      refused = pages_.system_refused();
      return false;  // holes that were filled before stay filled
    }
    states.set_holes(static_cast<std::uint32_t>(first - slab->first_page),
                     static_cast<std::uint32_t>(last - slab->first_page), false);
    slab_pages_ += last - first;
    count_solid_free(slab, static_cast<std::int64_t>(last - first));
  }
  relist(slab, true);
  return true;
}

}  // namespace slabpool
