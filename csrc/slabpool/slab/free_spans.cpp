// Free spans by size: lists, and the search for the best fit.
#include <algorithm>
#include <bit>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {
namespace {

// Spans compared in one list before the best so far is taken. Their sizes differ by at most 1/16, so a longer search
// would gain little.
constexpr int kPageSearch = 12;

}  // namespace

// A list holds the sizes from its own first size up to the next list's: one size each up to 32 pages, then 16 lists to
// a doubling.
unsigned FreeSpans::list_of(std::uint64_t pages) noexcept {
  if (pages < 32) return static_cast<unsigned>(pages);
  const auto top = static_cast<unsigned>(std::bit_width(pages)) - 1;
  const auto list = (top - 4) * 16 + static_cast<unsigned>(pages >> (top - 4)) - 16 + 16;
  return std::min(list, kLists - 1);
}

void FreeSpans::insert(Span* span) noexcept {
  SLABPOOL_ASSERT(span->pages != 0, "a free span has pages", span->first_page);
  const unsigned list = list_of(span->pages);
  lists_[list].push(span);
  used_[list / 64] |= std::uint64_t{1} << (list % 64);
}

void FreeSpans::remove(Span* span) noexcept {
  const unsigned list = list_of(span->pages);
  SLABPOOL_ASSERT((used_[list / 64] >> (list % 64) & 1) != 0, "a list with a span has its bit", list,
                  span->pages);
  lists_[list].remove(span);
  if (lists_[list].front() == nullptr) used_[list / 64] &= ~(std::uint64_t{1} << (list % 64));
}

int FreeSpans::next_used(unsigned from) const noexcept {
  if (from >= kLists) return -1;
  std::uint64_t word = used_[from / 64] & (~std::uint64_t{0} << (from % 64));
  for (unsigned i = from / 64;;) {
    if (word != 0) return static_cast<int>(i * 64) + std::countr_zero(word);
    if (++i == kLists / 64) return -1;
    word = used_[i];
  }
}

Span* FreeSpans::best_fit(std::uint64_t pages) const noexcept {
  Span* best = nullptr;
  for (int list = next_used(list_of(pages)); list >= 0;
       list = next_used(static_cast<unsigned>(list) + 1)) {
    int left = kPageSearch;
    for (Span* span = lists_[list].front(); span != nullptr && left > 0; span = span->next, --left) {
      if (span->pages < pages) continue;
      if (best == nullptr || span->pages < best->pages ||
          (span->pages == best->pages && span->first_page < best->first_page)) {
        best = span;
      }
    }
    if (best != nullptr) return best;
  }
  return nullptr;
}

Span* FreeSpans::largest() const noexcept {
  for (unsigned i = kLists / 64; i-- > 0;) {
    if (used_[i] == 0) continue;
    return lists_[i * 64 + 63 - static_cast<unsigned>(std::countl_zero(used_[i]))].front();
  }
  return nullptr;
}

const char* FreeSpans::verify(std::uint64_t& spans) const noexcept {
  for (unsigned list = 0; list < kLists; ++list) {
    const Span* front = lists_[list].front();
    if ((front != nullptr) != ((used_[list / 64] >> (list % 64) & 1) != 0))
      return "a list of free spans and its bit do not agree";
    for (const Span* span = front; span != nullptr; span = span->next, ++spans) {
      if (list_of(span->pages) != list) return "a free span is on the list of another size";
      if (span->next != nullptr && span->next->prev != span) return "links of free spans do not agree";
    }
  }
  return nullptr;
}

}  // namespace slabpool
