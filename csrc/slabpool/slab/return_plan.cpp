// Which of several groups of blocks to give back, so that an allocation finds room.
//
// The groups are tried in their order until those tried so far suffice. Then each that is not needed is left out, the
// last one first. What a set of groups brings only grows with the set, so one pass finds a set from which none can be
// left out.
//
// What a block brings depends on the others: a page of a slab is free only once all blocks on it are, and addresses must lie
// in a row. Pages that would return to an open promise bring nothing, unless the allocation may draw on that.
#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "slabpool/slab/depot.hpp"

namespace slabpool {
namespace {

std::uint32_t first_of(const Depot::Groups& groups, std::size_t group) {
  return group == 0 ? 0 : groups.ends[group - 1];
}

bool is_free(const Span& span) {
  return span.kind == SpanKind::committed_free || span.kind == SpanKind::uncommitted_free;
}

// Counts the blocks of each span that are given back, to know when the span is free. For addresses, and for memory whose
// slabs have no holes.
class Freed {
 public:
  // True if the span is free once this block is given back, too.
  bool add(const Block& block) {
    const Span& span = *block.span;
    const std::uint32_t held = held_blocks(span);
    return held != 0 && ++blocks_[&span] == held;
  }
  // True if the span was free before.
  bool remove(const Block& block) {
    const Span& span = *block.span;
    const std::uint32_t held = held_blocks(span);
    return held != 0 && blocks_[&span]-- == held;
  }

 private:
  // 0: the span never becomes free for others.
  static std::uint32_t held_blocks(const Span& span) {
    switch (span.kind) {
      case SpanKind::large:
      case SpanKind::growing:
        return 1;
      case SpanKind::slab:
        return span.count - span.free_blocks;
      case SpanKind::arena:
        return span.arena->reserve == nullptr ? span.count : 0;
      default:
        return 0;
    }
  }

  std::unordered_map<const Span*, std::uint32_t> blocks_;
};

// Pages of an arena whose promise is open go back to that from the end of what was cut: up to the last block in use.
class Tails {
 public:
  // The pages that the block's arena gives back more with it, in the state before or after.
  std::uint64_t add(const Block& block) {
    Tail& tail = tail_of(block);
    const std::uint64_t before = pages(*block.span, tail);
    tail.given.insert(&block);
    settle(*block.span, tail);
    return pages(*block.span, tail) - before;
  }
  std::uint64_t remove(const Block& block) {
    Tail& tail = tail_of(block);
    const std::uint64_t before = pages(*block.span, tail);
    tail.given.erase(&block);
    const std::vector<Block*>& blocks = block.span->arena->blocks;
    const auto at = std::lower_bound(blocks.begin(), blocks.end(), &block,
                                     [](const Block* a, const Block* b) { return a->data < b->data; });
    tail.end = std::max(tail.end, static_cast<std::size_t>(at - blocks.begin()) + 1);
    return before - pages(*block.span, tail);
  }

 private:
  struct Tail {
    std::unordered_set<const Block*> given;
    std::size_t end = 0;  // index behind the last block that stays
  };
  Tail& tail_of(const Block& block) {
    const auto [at, made] = tails_.try_emplace(block.span);
    if (made) {
      at->second.end = block.span->arena->blocks.size();
      settle(*block.span, at->second);
    }
    return at->second;
  }
  static void settle(const Span& span, Tail& tail) {
    const std::vector<Block*>& blocks = span.arena->blocks;
    while (tail.end != 0 &&
           (blocks[tail.end - 1]->span == nullptr || tail.given.count(blocks[tail.end - 1]) != 0))
      --tail.end;
  }
  static std::uint64_t pages(const Span& span, const Tail& tail) {
    const std::vector<Block*>& blocks = span.arena->blocks;
    if (tail.end == 0) return span.drawn;
    const Block& last = *blocks[tail.end - 1];
    const auto used = static_cast<std::uint64_t>(last.data - blocks[0]->data) + last.bytes;
    return span.drawn - std::min(span.drawn, pages_for(used));
  }

  std::unordered_map<const Span*, Tail> tails_;
};

// Counts the pages that become free. In memory with holes a slab's pages become free one by one.
class FreedPages {
 public:
  FreedPages(bool holes, ReserveRef reserve) : holes_(holes), reserve_(reserve) {}
  std::uint64_t add(const Block& block) {
    if (is_cut(block)) return tails_.add(block);
    if (!by_page(block)) return spans_.add(block) ? pages_of(*block.span) : 0;
    std::uint64_t pages = 0;
    each_page(block, [&](std::uint64_t page, std::uint32_t in_use) {
      pages += ++given_[page] == in_use ? 1 : 0;
    });
    return pages;
  }
  std::uint64_t remove(const Block& block) {
    if (is_cut(block)) return tails_.remove(block);
    if (!by_page(block)) return spans_.remove(block) ? pages_of(*block.span) : 0;
    std::uint64_t pages = 0;
    each_page(block, [&](std::uint64_t page, std::uint32_t in_use) {
      pages += given_[page]-- == in_use ? 1 : 0;
    });
    return pages;
  }

  // Whether a block returns to the promise that the allocation draws on, or to one around it; and lies in its arena.
  bool is_promised(const Block& block) const {
    const bool some = block.span->kind == SpanKind::arena || block.span->reserve_pages != 0;
    return some && Reserves::returns_within(*block.span, reserve_);
  }
  bool is_cut(const Block& block) const {
    return block.span->kind == SpanKind::arena && is_promised(block);
  }

 private:
  std::uint64_t pages_of(const Span& span) const {
    const bool range = span.kind == SpanKind::growing || span.kind == SpanKind::arena;
    const std::uint64_t pages = range ? span.drawn : span.pages;
    return Reserves::returns_within(span, reserve_) ? pages : pages - Reserves::refundable(span);
  }
  bool by_page(const Block& block) const { return holes_ && block.span->kind == SpanKind::slab; }
  template <typename F>
  static void each_page(const Block& block, F&& f) {
    const Span& slab = *block.span;
    const SlabPages::Run run =
        SlabPages::run(static_cast<std::uint64_t>(block.data - slab.blocks[0].data), block.bytes);
    for (std::uint32_t page = run.first; page < run.end; ++page)
      f(slab.first_page + page, slab.page_states->in_use[page]);
  }

  const bool holes_;
  const ReserveRef reserve_;
  Freed spans_;
  Tails tails_;
  std::unordered_map<std::uint64_t, std::uint32_t> given_;  // blocks given back that lie on a page
};

// Free addresses in a row, as they would be: from one page up to another.
class Runs {
 public:
  struct Run {
    std::uint64_t from;
    std::uint64_t to;
    std::uint64_t pages() const { return to - from; }
  };

  explicit Runs(const PageHeap& heap) : heap_(heap) {}

  // The run that a span becomes part of when it is freed.
  Run add(const Span& span) {
    Run run{span.first_page, span.first_page + span.pages};
    if (const auto left = from_of_.find(run.from); left != from_of_.end()) {
      run.from = left->second;
      from_of_.erase(left);
    } else {
      for (const Span* s = heap_.span_before(run.from); s != nullptr && is_free(*s);
           s = heap_.span_before(run.from))
        run.from = s->first_page;
    }
    if (const auto right = to_of_.find(run.to); right != to_of_.end()) {
      run.to = right->second;
      to_of_.erase(right);
    } else {
      for (const Span* s = heap_.span_from(run.to); s != nullptr && is_free(*s);
           s = heap_.span_from(run.to))
        run.to = s->first_page + s->pages;
    }
    from_of_[run.to] = run.from;
    to_of_[run.from] = run.to;
    return run;
  }

 private:
  const PageHeap& heap_;
  // Of each run that a freed span is part of: the other end.
  std::unordered_map<std::uint64_t, std::uint64_t> from_of_;
  std::unordered_map<std::uint64_t, std::uint64_t> to_of_;
};

}  // namespace

std::uint64_t Depot::room_pages() const noexcept {
  const std::uint64_t taken = used_pages() + reserves_.reserved_pages() + pages_.quarantined_pages();
  const std::uint64_t all = capacity_ >> kPageBits;
  return all - std::min(all, taken);
}

Depot::Planned Depot::plan_return(const Need& need, Groups& groups) const {
  groups.chosen.assign(groups.ends.size(), 0);
  const std::lock_guard lock(mutex_);
  return need.addresses != 0 ? plan_addresses(need, groups) : plan_pages(need, groups);
}

Depot::Planned Depot::plan_pages(const Need& need, Groups& groups) const {
  std::uint64_t pages = need.count_room ? room_pages() : 0;
  std::uint64_t blocks = 0;  // of the size class
  if (need.size_class < kSlabClasses && need.count_room && partial_[need.size_class].front() != nullptr)
    blocks = 1;
  // Pages of the promise. A block that is smaller than a page lies in one of those or in another.
  const bool small = need.size_class < kSlabClasses;
  std::uint64_t own = small && need.count_room ? Reserves::drawable(need.reserve) : 0;
  const auto enough = [&] { return blocks != 0 || pages + own >= need.pages; };
  if (enough()) return Planned::room;
  FreedPages freed(pages_.has_holes(), need.reserve);
  // Adds what a group brings, or takes it away.
  const auto count = [&](std::size_t group, bool add) {
    for (std::uint32_t i = first_of(groups, group); i != groups.ends[group]; ++i) {
      const Block& block = *groups.blocks[i];
      const bool of_class =
          small && (block.span->kind == SpanKind::slab
                        ? block.span->size_class == need.size_class
                        : freed.is_cut(block) && block.bytes == class_size(need.size_class));
      std::uint64_t& count_of = freed.is_promised(block) ? own : pages;
      if (add) {
        count_of += freed.add(block);
        if (of_class) ++blocks;
      } else {
        count_of -= freed.remove(block);
        if (of_class) --blocks;
      }
    }
  };
  std::size_t tried = 0;
  while (!enough()) {
    if (tried == groups.ends.size()) return Planned::never;
    count(tried++, true);
  }
  while (tried-- != 0) {
    count(tried, false);
    if (enough()) continue;
    count(tried, true);
    groups.chosen[tried] = 1;
  }
  return Planned::chosen;
}

Depot::Planned Depot::plan_addresses(const Need& need, Groups& groups) const {
  const std::uint64_t want = pages_.granule_up(need.addresses);
  if (pages_.has_addresses(need.addresses)) return Planned::room;
  Freed freed;
  Runs runs(pages_);
  Runs::Run found{0, 0};
  std::size_t tried = 0;
  while (found.pages() < want) {
    if (tried == groups.ends.size()) return Planned::never;
    for (std::uint32_t i = first_of(groups, tried); i != groups.ends[tried]; ++i) {
      const Block& block = *groups.blocks[i];
      if (!freed.add(block)) continue;
      const Runs::Run run = runs.add(*block.span);
      if (run.pages() >= want) found = run;
    }
    ++tried;
  }
  // Cuts the run at the spans of a group that is left out, and goes on with the longest piece.
  std::vector<Runs::Run> spans;
  while (tried-- != 0) {
    spans.clear();
    for (std::uint32_t i = first_of(groups, tried); i != groups.ends[tried]; ++i) {
      const Span& span = *groups.blocks[i]->span;
      if (span.first_page >= found.from && span.first_page < found.to)
        spans.push_back({span.first_page, span.first_page + span.pages});
    }
    if (spans.empty()) continue;
    std::sort(spans.begin(), spans.end(), [](const auto& a, const auto& b) { return a.from < b.from; });
    Runs::Run longest{0, 0};
    std::uint64_t from = found.from;
    for (const Runs::Run& span : spans) {
      if (span.from > from && span.from - from > longest.pages()) longest = {from, span.from};
      from = std::max(from, span.to);
    }
    if (found.to - from > longest.pages()) longest = {from, found.to};
    if (longest.pages() >= want) {
      found = longest;
    } else {
      groups.chosen[tried] = 1;
    }
  }
  return Planned::chosen;
}

}  // namespace slabpool
