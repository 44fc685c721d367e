// Free spans by size: lists, and the search for the best fit.
#include <algorithm>
#include <bit>

#include "slabpool/slab/page_heap.hpp"

namespace slabpool {
namespace {

// Spans that an insertion compares its own with. So about so many at the front of a list are in order of address, and the
// first is the lowest or nearly so. With more the heap packs no better (decision 0072).
constexpr int kInOrder = 4;
// Spans of the list that has the wanted size, and shorter ones, that are tried before the next list, where all fit.
constexpr int kFirstTries = 4;
// And before there is none: what is refused or committed costs more than this.
constexpr int kLastTries = 64;

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
  Span* before = nullptr;
  Span* at = lists_[list].front();
  for (int left = kInOrder; left > 0 && at != nullptr && at->first_page < span->first_page; --left) {
    before = at;
    at = at->next;
  }
  if (before != nullptr) {
    lists_[list].push_behind(before, span);
  } else {
    lists_[list].push(span);
  }
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
  const unsigned list = list_of(pages);
  if (Span* span = first_fit(list, pages, kFirstTries)) return span;
  const int next = next_used(list + 1);
  return next >= 0 ? lists_[next].front() : first_fit(list, pages, kLastTries);
}

Span* FreeSpans::first_fit(unsigned list, std::uint64_t pages, int tries) const noexcept {
  for (Span* span = lists_[list].front(); span != nullptr && tries > 0; span = span->next, --tries)
    if (span->pages >= pages) return span;
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
