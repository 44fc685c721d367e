#include "slabpool/slab/page_heap.hpp"

#include <algorithm>
#include <bit>
#include <new>

namespace slabpool {

PageHeap::PageHeap(MemoryResource& memory, std::uint64_t grow_step)
    : memory_(memory),
      map_((memory.address_space() >> kPageBits) + 2),
      starts_(memory.address_space() >> kPageBits),
      granule_(memory.granule() >> kPageBits),
      grow_step_(granule_up(grow_step)) {
  memory.assert_valid();
  const bool whole = memory.always_committed();
  open_tables(0, whole ? total_pages() : 1);
  open_tables(total_pages() - 1, 1);
  Span* all = new_span(0, total_pages(), whole ? SpanKind::committed_free : SpanKind::uncommitted_free,
                       memory.commits_zero());
  starts_.set(0);
  mark_ends(all);
  list_for(all->kind).insert(all);
  if (whole) committed_ = cached_ = peak_committed_ = total_pages();
}

PageHeap::~PageHeap() = default;

void PageHeap::add_spares() {
  for (std::size_t i = 0; i < kRecordBatch; ++i) {
    auto* span = static_cast<Span*>(chunks_.make(spans_, sizeof(Span)));
    span->large.start_above(first_serial_);
    retire(span);
  }
}

void PageHeap::close_records() noexcept {
  std::uint32_t highest = first_serial_;
  spares_ -= chunks_.close_spare(spare_, spans_, spares_, kSplits + set_aside_, [&](const Span& span) {
    highest = std::max(highest, span.large.serial());
    return span.large.debug == nullptr;  // the guard counts on finding it
  });
  first_serial_ = highest;
}

void PageHeap::open_tables(std::uint64_t first, std::uint64_t pages) {
  // The entry of page i is i + 1.
  if (!map_.open(first, first + pages + 2) ||
      !starts_.open(first == 0 ? 0 : first - 1, std::min(first + pages + 1, total_pages())))
    throw std::bad_alloc();
}

Span* PageHeap::new_span(std::uint64_t first, std::uint64_t pages, SpanKind kind, bool zero) {
  if (spare_ == nullptr) add_spares();
  Span* span = spare_;
  SLABPOOL_ASSERT(spares_ != 0, "spare records are counted", spares_);
  SLABPOOL_ASSERT(pages != 0 && first + pages <= total_pages(), "a span lies in the range", first, pages,
                  total_pages());
  spare_ = span->next;
  --spares_;
  span->first_page = first;
  span->pages = pages;
  span->prev = span->next = nullptr;
  span->kind = kind;
  span->zero = zero;
  return span;
}

void PageHeap::retire(Span* span) noexcept {
  span->next = spare_;
  spare_ = span;
  ++spares_;
}

void PageHeap::mark_ends(Span* span) noexcept {
  SLABPOOL_ASSERT(starts_.contains(span->first_page), "a span is found from its pages", span->first_page,
                  span->pages);
  put(span->first_page, span);
  put(span->first_page + span->pages - 1, span);
}

void PageHeap::unlist(Span* span) noexcept {
  SLABPOOL_ASSERT(span->kind == SpanKind::committed_free || span->kind == SpanKind::uncommitted_free,
                  "only free spans are listed", span->kind, span->first_page);
  SLABPOOL_ASSERT(span->kind != SpanKind::committed_free || span->pages <= cached_,
                  "cached pages include every committed free span", span->pages, cached_);
  list_for(span->kind).remove(span);
  if (span->kind == SpanKind::committed_free) cached_ -= span->pages;
}

void PageHeap::make_free(Span* span) noexcept {
  SLABPOOL_ASSERT(span->kind == SpanKind::committed_free || span->kind == SpanKind::uncommitted_free,
                  "a freed span has a free kind", span->kind, span->first_page);
  Span* before = at(span->first_page - 1);
  if (span->first_page > 0 && before != nullptr && before->kind == span->kind) {
    unlist(before);
    starts_.clear(span->first_page);
    span->first_page = before->first_page;
    span->pages += before->pages;
    span->zero = span->zero && before->zero;
    retire(before);
  }
  Span* after = at(span->first_page + span->pages);
  if (after != nullptr && after->kind == span->kind) {
    unlist(after);
    starts_.clear(after->first_page);
    span->pages += after->pages;
    span->zero = span->zero && after->zero;
    retire(after);
  }
  mark_ends(span);
  SLABPOOL_ASSERT(
      span->kind == SpanKind::committed_free || ((span->first_page | span->pages) & (granule_ - 1)) == 0,
      "a granule is committed as a whole or not at all", span->first_page, span->pages, granule_);
  list_for(span->kind).insert(span);
  if (span->kind == SpanKind::committed_free) cached_ += span->pages;
}

// Cuts the last `pages` pages off a span that is on no list; the rest keeps its record.
Span* PageHeap::split_tail(Span* span, std::uint64_t pages) {
  SLABPOOL_ASSERT(pages != 0 && pages < span->pages, "both parts of a split have pages", pages,
                  span->pages);
  Span* tail = new_span(span->first_page + span->pages - pages, pages, span->kind, span->zero);
  span->pages -= pages;
  starts_.set(tail->first_page);
  mark_ends(span);
  mark_ends(tail);
  return tail;
}

// Takes an aligned run out of a span that is on no list, and lists the rest of the span.
Span* PageHeap::carve(Span* span, std::uint64_t pages, std::uint64_t align_pages) {
  const SpanKind kind = span->kind;
  span->kind = SpanKind::large;  // so that the parts that are freed do not merge with it again
  const std::uint64_t first = (span->first_page + align_pages - 1) & ~(align_pages - 1);
  SLABPOOL_ASSERT(std::has_single_bit(align_pages), "an alignment is a power of two", align_pages);
  SLABPOOL_ASSERT(first + pages <= span->first_page + span->pages, "the aligned run lies in the span",
                  first, pages, span->first_page, span->pages);
  if (first != span->first_page) {
    Span* front = span;
    span = split_tail(front, front->first_page + front->pages - first);
    front->kind = kind;
    make_free(front);
  }
  if (span->pages > pages) {
    Span* rest = split_tail(span, span->pages - pages);
    rest->kind = kind;
    make_free(rest);
  }
  return span;
}

PageHeap::Result PageHeap::allocate(std::uint64_t pages, std::uint64_t align_pages,
                                    std::uint64_t commit_limit) {
  SLABPOOL_ASSERT(pages != 0, "an allocation has pages");
  // Records for every split below. Only here can the heap run out of memory for records, and nothing has changed yet.
  ready_records();
  Result result;
  Span* span = committed_spans_.best_fit(pages + align_pages - 1);
  if (span == nullptr) {
    result = commit_more(pages, align_pages, commit_limit, true);
    // Pages that left quarantine in the meantime may do.
    if (result.system_refused) span = committed_spans_.best_fit(pages + align_pages - 1);
    if (result.span == nullptr && span == nullptr) return result;
  }
  if (span != nullptr) {
    ready_records();  // commit_more() may have used some
    unlist(span);
    result = {carve(span, pages, align_pages), false};
  }
  result.span->kind = SpanKind::large;
  mark_ends(result.span);
  SLABPOOL_ASSERT(result.span->pages == pages && (result.span->first_page & (align_pages - 1)) == 0,
                  "an allocation has the pages and the alignment it asked for", result.span->pages,
                  pages, result.span->first_page, align_pages);
  assert_figures();
  return result;
}

// `join`: joins the new pages to the cached pages just below them, so that a pool that grows leaves no holes behind.
PageHeap::Result PageHeap::commit_more(std::uint64_t pages, std::uint64_t align_pages,
                                       std::uint64_t commit_limit, bool join) {
  Result result;
  // Uncommitted spans start at a granule.
  const std::uint64_t slack = align_pages > granule_ ? align_pages - granule_ : 0;
  Span* fresh = uncommitted_spans_.best_fit(granule_up(pages) + slack);
  if (fresh == nullptr) return result;
  Span* below = join && align_pages == 1 && fresh->first_page > 0 ? at(fresh->first_page - 1) : nullptr;
  if (below != nullptr && below->kind != SpanKind::committed_free) below = nullptr;
  // Joining helps only if it saves a granule.
  if (below != nullptr && granule_up(pages - below->pages) == granule_up(pages)) below = nullptr;
  const std::uint64_t reuse = below != nullptr ? below->pages : 0;
  SLABPOOL_ASSERT(reuse < pages, "cached pages that suffice are taken first", reuse, pages);
  const std::uint64_t need = granule_up(pages - reuse);
  if (committed_ + need > commit_limit) {
    const std::uint64_t excess = committed_ + need - commit_limit;
    bool refused = false;
    if (unused_pages() - reuse >= excess) {
      (void)decommit(excess, below);
      refused = system_refused_;
    }
    if (committed_ + need > commit_limit) {
      // Joined to the pages below, the run may need a granule more than alone.
      if (below != nullptr && granule_ != 1) return commit_more(pages, align_pages, commit_limit, false);
      result.system_refused = refused;
      return result;
    }
    ready_records();  // as in allocate(): decommit() may have used some
    return commit_more(pages, align_pages, commit_limit, join);  // the holes it made may fit better
  }
  // More than needed, if the limit allows, so that several small slabs share one system call.
  const std::uint64_t commits =
      align_pages == 1
          ? std::min({std::max(need, grow_step_), fresh->pages, granule_down(commit_limit - committed_)})
          : need;
  const std::uint64_t align = std::max(align_pages, granule_);
  open_tables((fresh->first_page + align - 1) & ~(align - 1), commits);
  unlist(fresh);
  Span* span = carve(fresh, commits, align);
  const PageState state = commit(span->first_page, commits);
  if (state != PageState::committed) {
    free_as(state, span);
    result.system_refused = true;
    return result;
  }
  if (below != nullptr) {
    unlist(below);
    starts_.clear(span->first_page);
    span->first_page = below->first_page;
    span->pages += below->pages;
    span->zero = span->zero && below->zero;
    retire(below);
  }
  span->kind = SpanKind::committed_free;
  result.span = carve(span, pages, 1);
  return result;
}

void PageHeap::free(Span* span) noexcept {
  SLABPOOL_ASSERT(span->kind == SpanKind::slab || span->kind == SpanKind::large, "a span is freed once",
                  span->kind, span->first_page);
  SLABPOOL_ASSERT(span->holes == 0, "a slab with holes is freed by free_hollow()", span->holes);
  span->kind = SpanKind::committed_free;
  span->zero = false;
  make_free(span);
  assert_figures();
}

// Returns up to about `want` pages of a cached span to the system, and lists the rest. The result is the number of
// pages: 0 if no granule of the span is free from end to end, or the system refuses.
std::uint64_t PageHeap::decommit_from(Span* span, std::uint64_t want) noexcept {
  unlist(span);
  const std::uint64_t last = granule_down(span->first_page + span->pages);
  std::uint64_t first = granule_up(span->first_page);
  if (first < last && last - first > want) first = last - granule_up(want);
  const std::uint64_t end = span->first_page + span->pages;
  if (first >= last || ((span->first_page != first || end != last) && !can_split())) {
    make_free(span);
    return 0;
  }
  if (end != last) {
    Span* behind = split_tail(span, end - last);
    span->kind = SpanKind::large;  // so that the two do not merge again
    make_free(behind);
    span->kind = SpanKind::committed_free;
  }
  if (span->first_page != first) {
    Span* tail = split_tail(span, last - first);
    tail->kind = SpanKind::large;  // likewise
    make_free(span);
    span = tail;
  }
  const std::uint64_t pages = span->pages;
  SLABPOOL_ASSERT(
      span->first_page == first && ((first | pages) & (granule_ - 1)) == 0 && pages <= committed_,
      "whole granules are decommitted", first, pages, granule_, committed_);
  const PageState state = uncommit(first, pages);
  free_as(state, span);
  return state == PageState::uncommitted ? pages : 0;
}

std::uint64_t PageHeap::decommit(std::uint64_t pages, const Span* keep) noexcept {
  system_refused_ = false;
  std::uint64_t done = retry_quarantined(pages);
  bool refused = system_refused_;
  // Spans that stay cached. They are unlisted until the end, so that the next largest span comes to the front.
  Span* kept = nullptr;
  const auto set_aside = [&](Span* span) {
    committed_spans_.remove(span);
    span->next = kept;
    kept = span;
  };
  for (int refusals = 0; done < pages && refusals < kRefusals;) {
    Span* span = committed_spans_.largest();
    if (span == nullptr || span->pages < granule_) break;
    const bool whole = granule_up(span->first_page) < granule_down(span->first_page + span->pages);
    if (span == keep || !whole) {
      set_aside(span);
      continue;
    }
    const std::uint64_t first = span->first_page;
    const std::uint64_t given = decommit_from(span, std::max(pages - done, kDecommitStep));
    done += given;
    if (given != 0) continue;
    if (!system_refused_) break;  // there is no record for a split
    // The system may refuse one span, because it would split a mapping, and accept the next.
    refused = true;
    ++refusals;
    Span* left = at(starts_.floor(first));
    if (left->kind == SpanKind::committed_free) set_aside(left);
  }
  system_refused_ = false;
  while (kept != nullptr) {
    Span* span = kept;
    kept = span->next;
    span->next = nullptr;
    committed_spans_.insert(span);
  }
  if (done < pages) done += decommit_ahead(pages - done);
  system_refused_ = system_refused_ || refused;
  assert_figures();
  return done;
}

Span* PageHeap::lookup(const void* address) const noexcept {
  const auto offset =
      static_cast<std::uint64_t>(static_cast<const std::byte*>(address) - memory_.base());
  const std::uint64_t page = offset >> kPageBits;
  return page < total_pages() ? at(starts_.floor(page)) : nullptr;
}

const char* PageHeap::verify() const noexcept {
  std::uint64_t committed = 0;
  std::uint64_t cached = 0;
  std::uint64_t idle = 0;
  std::uint64_t ahead = 0;
  std::uint64_t quarantined = 0;
  std::uint64_t free_spans = 0;
  std::uint64_t idle_growing = 0;
  std::size_t ranges = 0;
  const Span* last = nullptr;
  for (std::uint64_t page = 0; page < total_pages();) {
    const Span* span = at(page);
    if (span == nullptr || span->first_page != page) return "a page belongs to no span";
    if (at(page + span->pages - 1) != span) return "a span's last page does not point to it";
    if (starts_.floor(page + span->pages - 1) != page) return "a span is not found from its last page";
    const bool is_free =
        span->kind == SpanKind::committed_free || span->kind == SpanKind::uncommitted_free;
    if (last != nullptr && is_free && last->kind == span->kind)
      return "two free neighbours are not merged";
    if (span->kind == SpanKind::uncommitted_free &&
        ((span->first_page | span->pages) & (granule_ - 1)) != 0)
      return "a granule is committed in part";
    if (span->kind != SpanKind::uncommitted_free) committed += span->pages;
    if (span->kind == SpanKind::slab) {
      if (span->holes > span->pages) return "a slab has more holes than pages";
      committed -= span->holes;
    }
    if (span->kind == SpanKind::committed_free) cached += span->pages;
    if (span->kind == SpanKind::quarantined) {
      committed -= span->pages - span->committed;
      cached += span->committed;
      if (span->committed > span->pages ||
          (span->committed != span->pages &&
           ((span->first_page + span->committed) & (granule_ - 1)) != 0))
        return "a granule of a quarantined span is counted in part";
      quarantined += span->committed;
    }
    free_spans += is_free ? 1 : 0;
    if (span->kind == SpanKind::arena || span->kind == SpanKind::growing) {
      ranges += span->kind == SpanKind::arena ? 1 : kAsideOfGrowing;
      committed -= span->pages - span->committed + span->gone;
      if (span->committed != span->pages && ((span->first_page + span->committed) & (granule_ - 1)) != 0)
        return "a granule of a range is committed in part";
      if (span->sound != span->pages && ((span->first_page + span->sound) & (granule_ - 1)) != 0)
        return "a granule of a range is undefined in part";
      if (span->drawn > span->sound || span->sound > span->committed || span->committed > span->pages)
        return "a range has drawn pages that are not committed";
      if (span->gone > span->front || span->front > span->drawn)
        return "a range has pages in use among those given back";
      if (span->kind == SpanKind::growing &&
          ((span->first_page | span->gone | span->front) & (granule_ - 1)) != 0)
        return "a granule of a growing tensor was given back in part";
      const std::uint64_t unused = span->committed - span->drawn + span->front - span->gone;
      idle += unused;
      if (span->kind == SpanKind::growing) {
        ahead += unused;
        idle_growing += unused != 0 ? 1 : 0;
      }
    }
    if (span->kind != SpanKind::growing &&
        (span->gone != 0 || span->front != 0 || span->front_undefined))
      return "pages were given back of a span that does not grow";
    last = span;
    page += span->pages;
  }
  if (committed != committed_) return "committed pages do not add up";
  if (cached != cached_) return "cached pages do not add up";
  if (idle != idle_) return "committed pages of ranges that are not drawn do not add up";
  if (ahead != ahead_) return "pages that tensors may grow into do not add up";
  if (quarantined != quarantined_pages()) return "quarantined pages do not add up";
  for (const SpanList* list : {&quarantined_, &retried_}) {
    for (const Span* span = list->front(); span != nullptr; span = span->next)
      quarantined -= span->committed;
  }
  if (quarantined != 0) return "a quarantined span is on no list";
  if (ranges != set_aside_ || spares_ < set_aside_) return "records set aside for ranges do not add up";
  for (const Span* span = ahead_spans_.front(); span != nullptr; span = span->next) --idle_growing;
  if (idle_growing != 0) return "a growing span with idle pages is on no list";
  std::uint64_t listed = 0;
  if (const char* wrong = committed_spans_.verify(listed)) return wrong;
  if (const char* wrong = uncommitted_spans_.verify(listed)) return wrong;
  return listed == free_spans ? nullptr : "a free span is on no list";
}

}  // namespace slabpool
