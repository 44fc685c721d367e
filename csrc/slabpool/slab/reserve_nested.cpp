// Promises made inside others: where the pages of one come from, and where they go.
//
// A promise that was made in another one, `from`, and that is closed, has nothing left: its pages went back to `from`. The
// pages that spans and arenas drew from it return to `from` later. Arenas change hands at once. Spans are not listed, so the
// record stays, as a sign-post (`into`), until they have returned all their pages.
//
// Pages that return to a promise pay what it owes first: `owed` of them are promised to no request any more, because
// the promises that were closed in it had them from elsewhere; `borrowed` of them go on to `from`.
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
  reserve.extra = reserve.borrowed = reserve.owed = 0;
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
