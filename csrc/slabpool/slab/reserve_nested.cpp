// Promises made inside others: where the pages of one come from, and where they go.
//
// A promise that was made in another one, `from`, and that is closed, has nothing left: its pages went back to `from`. The
// pages that spans and arenas drew from it return to `from` later. Arenas change hands at once. Spans are not listed, so the
// record stays, as a sign-post (`into`), until they have returned all their pages.
//
// Pages that return to a promise pay what it owes first: `owed` of them are promised to no request any more, because
// the promises that were closed in it had them from elsewhere; `borrowed` of them go on to `from`.
#include <algorithm>
#include <utility>

#include "slabpool/slab/reserve.hpp"

namespace slabpool {

// Moves pages from the promises around this one into it, so that it has as many left, if they have.
void Reserves::top_up(Reserve& reserve, std::uint64_t pages) noexcept {
  if (reserve.pages_left >= pages || !current(reserve.from)) return;
  Reserve& from = *reserve.from.reserve;
  const std::uint64_t missing = pages - reserve.pages_left;
  top_up(from, missing);  // as deep as requests with a budget nest
  const std::uint64_t moved = std::min(missing, from.pages_left);
  limit_arenas(from, from.pages_left - moved);
  set_left(from, from.pages_left - moved);
  set_left(reserve, reserve.pages_left + moved);
  reserve.borrowed += moved;
}

// What was moved here for a span that got no pages goes back.
void Reserves::give_up(ReserveRef ref) noexcept {
  for (; current(ref) && ref.reserve->borrowed != 0; ref = ref.reserve->from) {
    Reserve& reserve = *ref.reserve;
    const std::uint64_t pages = std::min(reserve.borrowed, reserve.pages_left);
    if (pages == 0 || !current(reserve.from)) return;
    limit_arenas(reserve, reserve.pages_left - pages);
    set_left(reserve, reserve.pages_left - pages);
    reserve.borrowed -= pages;
    Reserve& from = *reserve.from.reserve;
    set_left(from, from.pages_left + pages);
  }
}

// Pages that were drawn from an open promise, or from one that was merged into it, return. False: not all of them are this
// promise's now.
bool Reserves::put_back(Reserve& reserve, std::uint64_t pages) noexcept {
  const std::uint64_t all = pages;
  const std::uint64_t owed = std::min(pages, reserve.owed);
  reserve.owed -= owed;
  pages -= owed;
  if (current(reserve.from)) {
    const std::uint64_t up = std::min(pages, reserve.borrowed);
    reserve.borrowed -= up;
    pages -= up;
    if (up != 0) (void)put_back(*reserve.from.reserve, up);
  }
  set_left(reserve, reserve.pages_left + pages);
  return pages == all;
}

// The end of a promise whose pages return to an open one: the one that it was made in, or the one that this was merged into.
void Reserves::merge(Reserve& reserve, Reserve& from) noexcept {
  from.owed += reserve.extra + reserve.owed;
  while (Arena* arena = reserve.arenas) {
    reserve.arenas = arena->next;
    drop_unused(*arena);
    if (arena->live == 0) {
      SLABPOOL_ASSERT(arena->span == nullptr, "an arena without live blocks has drawn nothing");
      retire(arena);
      continue;
    }
    arena->reserve = &from;
    // Behind the first, from which blocks are cut.
    Arena*& at = from.arenas == nullptr ? from.arenas : from.arenas->next;
    arena->next = std::exchange(at, arena);
  }
  const std::uint64_t left = reserve.pages_left;
  set_left(reserve, 0);
  (void)put_back(from, left);
  const ReserveRef made_in = reserve.from;
  if (reserve.holds == 0) {
    retire(reserve);
    return drop_holds(made_in, 1);
  }
  reserve.into = std::exchange(reserve.from, {});
  reserve.base = reserve.extra = reserve.borrowed = reserve.owed = reserve.gone_bytes = 0;
}

// ---- blocks that move to other requests

Leaving Reserves::plan_leaving(const Block& block, std::span<const ReserveRef> left,
                               std::span<const ReserveRef> shared) const noexcept {
  Leaving plan;
  const Span& span = *block.span;
  const bool arena = span.kind == SpanKind::arena;
  const Reserve* of = arena ? span.arena->reserve : returns_to({span.reserve, span.reserve_serial});
  const auto is_one_of = [&](std::span<const ReserveRef> some) {
    return std::any_of(some.begin(), some.end(),
                       [&](ReserveRef ref) { return current(ref) && ref.reserve == of; });
  };
  if (of == nullptr || (!is_one_of(left) && !is_one_of(shared))) return plan;
  std::uint64_t pages = span.reserve_pages;
  plan.drawn = arena ? block.bytes : pages << kPageBits;
  if (arena) {
    if (!is_one_of(left)) {
      plan.stays = plan.drawn;
      return plan;
    }
    const std::uint64_t whole =
        std::min((of->gone_bytes + block.bytes) >> kPageBits, of->base + of->extra);
    plan.steps[plan.count++] = {of, block.bytes, std::min(whole, of->base) << kPageBits, 0};
    return plan;
  }
  while (plan.count < Leaving::kMost && is_one_of(left)) {
    // As pages return: first those that were borrowed.
    const std::uint64_t borrowed = std::min(pages, of->borrowed);
    const std::uint64_t own = std::min(pages - borrowed, of->base + of->extra);
    const std::uint64_t above = std::min(own, of->base);
    plan.steps[plan.count++] = {of, own << kPageBits, above << kPageBits, borrowed};
    pages = borrowed + above;
    of = returns_to(of->from);
  }
  if (of != nullptr) plan.stays = pages << kPageBits;
  return plan;
}

void Reserves::leave(Block& block, const Leaving& leaving) noexcept {
  if (leaving.count == 0) return;
  Span& span = *block.span;
  Reserve* of = nullptr;
  for (unsigned i = 0; i < leaving.count; ++i) {
    const Leaving::Step& step = leaving.steps[i];
    of = i == 0 ? (span.kind == SpanKind::arena ? span.arena->reserve
                                                : returns_to({span.reserve, span.reserve_serial}))
                : returns_to(of->from);
    SLABPOOL_ASSERT(of == step.of, "a block leaves the promises that were planned", of->serial);
    const std::uint64_t above = step.own_above >> kPageBits;
    std::uint64_t own = step.own >> kPageBits;
    if (span.kind == SpanKind::arena) {
      of->gone_bytes += step.own;
      own = std::min(of->gone_bytes >> kPageBits, of->base + of->extra);
      of->gone_bytes -= own << kPageBits;
      of->borrowed += above;
      of->owed += own - above;
    }
    of->borrowed -= step.borrowed;
    of->base -= above;
    of->extra -= own - above;
  }
  if (span.kind == SpanKind::arena) return;
  const ReserveRef was{span.reserve, span.reserve_serial};
  Reserve* const into = leaving.stays != 0 ? returns_to(of->from) : nullptr;
  const std::uint64_t pages = span.reserve_pages;
  span.reserve = into;
  span.reserve_serial = into != nullptr ? into->serial : 0;
  span.reserve_pages = into != nullptr ? leaving.stays >> kPageBits : 0;
  if (into != nullptr) into->holds += span.reserve_pages;
  drop_holds(was, pages);
}

// Takes holds off a promise, if it is still that one. A closed one without holds is over.
void Reserves::drop_holds(ReserveRef ref, std::uint64_t holds) noexcept {
  while (names(ref)) {
    Reserve& reserve = *ref.reserve;
    SLABPOOL_ASSERT(reserve.holds >= holds, "what holds a promise was counted", reserve.holds, holds);
    reserve.holds -= holds;
    if (reserve.holds != 0 || reserve.into.reserve == nullptr) return;
    ref = reserve.into;
    retire(reserve);
    holds = 1;
  }
}

// Drops an arena that blocks are not cut from and that has none.
void Reserves::remove_if_empty(Arena& arena) noexcept {
  Reserve& reserve = *arena.reserve;
  if (arena.live != 0 || reserve.arenas == &arena) return;
  drop_unused(arena);
  if (arena.span != nullptr) return;
  Arena** link = &reserve.arenas;
  while (*link != &arena) link = &(*link)->next;
  *link = arena.next;
  retire(&arena);
}

}  // namespace slabpool
