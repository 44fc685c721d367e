// The page heap: best fit, merging, alignment, limits, refusals, and a long random run against a model.
#include "slabpool/slab/page_heap.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "support/fake_memory.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 40;

class PageHeapTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 4096;

  Span* take(std::uint64_t pages, std::uint64_t align = 1, std::uint64_t limit = kNoLimit) {
    Span* span = heap.allocate(pages, align, limit).span;
    EXPECT_EQ(heap.verify(), nullptr);
    return span;
  }
  void give(Span* span) {
    heap.free(span);
    EXPECT_EQ(heap.verify(), nullptr);
  }

  test::FakeMemory memory{kPages << kPageBits};
  PageHeap heap{memory, 1};
};

TEST_F(PageHeapTest, StartsWithNothingCommitted) {
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.total_pages(), kPages);
  EXPECT_EQ(heap.committed_pages(), 0U);
  EXPECT_EQ(memory.committed_pages(), 0U);
}

TEST_F(PageHeapTest, HandsOutCommittedZeroPages) {
  Span* span = take(7);
  ASSERT_NE(span, nullptr);
  EXPECT_EQ(span->pages, 7U);
  EXPECT_EQ(span->kind, SpanKind::large);
  EXPECT_TRUE(span->zero);
  EXPECT_TRUE(test::all_bytes(heap.address(span), 0, 7 * kPageSize));
  EXPECT_EQ(heap.in_use_pages(), 7U);
}

TEST_F(PageHeapTest, AFreedSpanIsNotTakenForZero) {
  Span* span = take(4);
  std::memset(heap.address(span), 0x5a, 4 * kPageSize);
  give(span);
  span = take(4);
  EXPECT_FALSE(span->zero);
}

TEST_F(PageHeapTest, TakesTheSmallestSpanThatFits) {
  // Free runs of 9, 3, 5 and 4 pages, separated by pages in use.
  std::vector<Span*> runs;
  std::vector<Span*> walls;
  for (const std::uint64_t pages : {9, 3, 5, 4}) {
    runs.push_back(take(pages));
    walls.push_back(take(1));
  }
  const std::uint64_t first_of_5 = runs[2]->first_page;
  const std::uint64_t first_of_4 = runs[3]->first_page;
  const std::uint64_t first_of_9 = runs[0]->first_page;
  for (Span* run : runs) give(run);
  EXPECT_EQ(take(4)->first_page, first_of_4);
  EXPECT_EQ(take(4)->first_page, first_of_5);
  EXPECT_EQ(take(7)->first_page, first_of_9);
  EXPECT_EQ(memory.committed_pages(), heap.committed_pages());
}

TEST_F(PageHeapTest, OfOneSizeTheLowestIsTaken) {
  std::vector<Span*> runs;
  for (int i = 0; i < 5; ++i) {
    runs.push_back(take(6));
    (void)take(1);
  }
  const std::uint64_t lowest = runs[0]->first_page;
  for (const int i : {3, 0, 4, 2, 1}) give(runs[static_cast<std::size_t>(i)]);
  for (std::uint64_t i = 0; i < 5; ++i) EXPECT_EQ(take(6)->first_page, lowest + 7 * i);
}

// The sizes of one list differ by up to a sixteenth. Where no other span is left, the whole front of it is searched.
TEST_F(PageHeapTest, AFitBehindManyShorterOnesIsFound) {
  std::vector<Span*> runs;
  for (int i = 0; i < 21; ++i) {
    runs.push_back(take(i == 0 ? 67 : 64));
    (void)take(1);
  }
  const std::uint64_t first = runs[0]->first_page;
  const std::uint64_t committed = heap.committed_pages();
  for (Span* run : runs) give(run);
  EXPECT_EQ(take(67, 1, committed)->first_page, first);
  EXPECT_EQ(heap.committed_pages(), committed);
}

TEST_F(PageHeapTest, FreeNeighboursMergeWhateverTheOrder) {
  std::vector<int> order{0, 1, 2, 3};
  do {
    std::vector<Span*> spans;
    for (int i = 0; i < 4; ++i) spans.push_back(take(3));
    const std::uint64_t first = spans[0]->first_page;
    for (int i = 1; i < 4; ++i)
      ASSERT_EQ(spans[static_cast<std::size_t>(i)]->first_page, first + 3U * static_cast<unsigned>(i));
    for (const int i : order) give(spans[static_cast<std::size_t>(i)]);
    const int commits = memory.commits;
    Span* all = take(12);
    EXPECT_EQ(all->first_page, first);
    EXPECT_EQ(memory.commits, commits) << "the cached pages were enough";
    give(all);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_F(PageHeapTest, AlignsToAnyPowerOfTwoUpToTwoMegabytes) {
  std::vector<Span*> all;
  for (std::uint64_t align = 1; align <= 128; align *= 2) {
    all.push_back(take(1));  // so that the next free page is badly aligned
    Span* span = take(3, align);
    ASSERT_NE(span, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(heap.address(span)) % (align << kPageBits), 0U) << align;
    all.push_back(span);
  }
  for (Span* span : all) give(span);
  EXPECT_EQ(heap.in_use_pages(), 0U);
}

TEST_F(PageHeapTest, CommitsAStepAtATime) {
  PageHeap steps(memory, 16);
  const Span* first = steps.allocate(1, 1, kNoLimit).span;
  EXPECT_EQ(steps.committed_pages(), 16U);
  EXPECT_EQ(steps.unused_pages(), 15U);
  const Span* second = steps.allocate(15, 1, kNoLimit).span;
  EXPECT_EQ(second->first_page, first->first_page + 1);
  EXPECT_TRUE(second->zero) << "the pages committed along with it are untouched";
  EXPECT_EQ(memory.commits, 1);
}

TEST_F(PageHeapTest, TheStepNeverPassesTheLimit) {
  PageHeap steps(memory, 16);
  ASSERT_NE(steps.allocate(1, 1, 5).span, nullptr);
  EXPECT_EQ(steps.committed_pages(), 5U);
  ASSERT_NE(steps.allocate(4, 1, 5).span, nullptr);
  const PageHeap::Result result = steps.allocate(1, 1, 5);
  EXPECT_EQ(result.span, nullptr);
  EXPECT_FALSE(result.system_refused);
  EXPECT_EQ(steps.verify(), nullptr);
}

TEST_F(PageHeapTest, GivesOtherCachedPagesBackRatherThanPassTheLimit) {
  // Two free runs that are not adjacent; a tensor that fits in neither needs the pages of both.
  Span* a = take(8);
  Span* wall = take(1);
  Span* b = take(8);
  Span* end = take(1);
  give(a);
  give(b);
  ASSERT_EQ(heap.committed_pages(), 18U);
  Span* large = take(16, 1, 18);
  ASSERT_NE(large, nullptr);
  EXPECT_EQ(heap.committed_pages(), 18U);
  EXPECT_EQ(take(1, 1, 18), nullptr);
  give(wall);
  give(end);
  give(large);
}

TEST_F(PageHeapTest, PagesBelowAGrowingEndAreTakenAlong) {
  Span* a = take(10);
  const std::uint64_t first = a->first_page;
  give(a);
  Span* b = take(12);
  EXPECT_EQ(b->first_page, first);
  EXPECT_EQ(heap.committed_pages(), 12U);
  EXPECT_FALSE(b->zero) << "ten of its pages were used before";
}

TEST_F(PageHeapTest, ARefusedCommitChangesNothing) {
  Span* kept = take(3);
  const std::uint64_t committed = heap.committed_pages();
  memory.refuse_commits_after = 0;
  for (const std::uint64_t align : {1, 16}) {
    const PageHeap::Result result = heap.allocate(5, align, kNoLimit);
    EXPECT_EQ(result.span, nullptr);
    EXPECT_TRUE(result.system_refused);
    EXPECT_EQ(heap.verify(), nullptr);
    EXPECT_EQ(heap.committed_pages(), committed);
    EXPECT_EQ(heap.in_use_pages(), 3U);
  }
  memory.refuse_commits_after = -1;
  Span* later = take(5);
  ASSERT_NE(later, nullptr);
  EXPECT_TRUE(later->zero);
  give(kept);
  give(later);
}

TEST_F(PageHeapTest, DecommitGivesBackWhatIsAsked) {
  Span* a = take(200);
  Span* wall = take(1);
  give(a);
  EXPECT_EQ(heap.decommit(200), 200U);
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.committed_pages(), 1U);
  EXPECT_EQ(memory.committed_pages(), 1U);
  EXPECT_EQ(heap.decommit(1), 0U) << "nothing is cached";
  Span* again = take(200);
  EXPECT_TRUE(again->zero);
  EXPECT_TRUE(test::all_bytes(heap.address(again), 0, 200 * kPageSize));
  give(again);
  give(wall);
}

TEST_F(PageHeapTest, DecommitLeavesTheSpanItIsToldToKeep) {
  Span* large = take(50);
  Span* wall = take(1);
  Span* small = take(4);
  Span* end = take(1);
  give(large);
  give(small);
  EXPECT_EQ(heap.decommit(54, large), 4U);
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.unused_pages(), 50U);
  EXPECT_EQ(take(50), large) << "and can still find it";
  give(wall);
  give(end);
}

TEST_F(PageHeapTest, ARefusedDecommitKeepsThePagesAndForgetsTheyWereZero) {
  Span* a = take(6);
  give(a);
  memory.refuse_decommits_after = 0;
  EXPECT_EQ(heap.decommit(6), 0U);
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.committed_pages(), 6U);
  EXPECT_EQ(heap.unused_pages(), 6U);
  Span* again = take(6);
  ASSERT_NE(again, nullptr);
  EXPECT_FALSE(again->zero) << "a refused call leaves the contents undefined";
}

TEST_F(PageHeapTest, ARefusedDecommitOfFreshPagesForgetsTheyWereZero) {
  PageHeap steps(memory, 16);
  Span* first = steps.allocate(1, 1, kNoLimit).span;
  ASSERT_EQ(steps.unused_pages(), 15U);
  memory.refuse_decommits_after = 0;
  EXPECT_EQ(steps.decommit(15), 0U);
  memory.refuse_decommits_after = -1;
  Span* rest = steps.allocate(15, 1, kNoLimit).span;
  EXPECT_EQ(rest->zero, test::all_bytes(steps.address(rest), 0, 15 * kPageSize));
  EXPECT_FALSE(rest->zero);
  steps.free(first);
  steps.free(rest);
}

TEST_F(PageHeapTest, ALimitThatCannotBeMetBecauseDecommitIsRefusedIsTheSystemsFault) {
  Span* a = take(8);
  Span* wall = take(1);
  give(a);
  memory.refuse_decommits_after = 0;
  const PageHeap::Result result = heap.allocate(9, 1, 10);
  EXPECT_EQ(result.span, nullptr);
  EXPECT_TRUE(result.system_refused);
  EXPECT_EQ(heap.verify(), nullptr);
  give(wall);
}

TEST_F(PageHeapTest, FindsTheSpanOfEveryByte) {
  Span* a = take(1);
  Span* b = take(9, 4);
  for (Span* span : {a, b}) {
    for (std::uint64_t page = 0; page < span->pages; ++page) {
      EXPECT_EQ(heap.lookup(heap.address(span) + (page << kPageBits)), span);
      EXPECT_EQ(heap.lookup(heap.address(span) + (page << kPageBits) + kPageSize - 1), span);
    }
  }
  EXPECT_EQ(heap.lookup(memory.base() - 1), nullptr);
  EXPECT_EQ(heap.lookup(memory.base() + memory.address_space()), nullptr);
  int other = 0;
  EXPECT_EQ(heap.lookup(&other), nullptr);
}

TEST_F(PageHeapTest, MoreThanTheRangeIsRefused) {
  EXPECT_EQ(take(kPages + 1), nullptr);
  Span* all = take(kPages);
  ASSERT_NE(all, nullptr);
  EXPECT_EQ(take(1), nullptr);
  give(all);
}

// ---- at random, against a model: which spans are allocated, and the byte that fills each

class RandomHeap {
 public:
  RandomHeap(std::uint64_t seed, std::uint64_t grow_step, std::uint64_t granule)
      : random_(seed),
        granule_(granule),
        memory_(std::size_t{8192} << kPageBits, granule << kPageBits),
        heap_(memory_, grow_step) {}

  void run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      // Sometimes the system refuses for a while.
      if (random_() % 64 == 0) memory_.refuse_commits_after = random_() % 2 == 0 ? 0 : -1;
      if (random_() % 64 == 0) memory_.refuse_decommits_after = random_() % 2 == 0 ? 0 : -1;
      const auto dice = random_() % 100;
      if (dice < 42) {
        allocate();
      } else if (dice < 46) {
        open_growing();
      } else if (dice < 54) {
        grow_one();
      } else if (dice < 60) {
        give_part();
      } else if (dice < 97) {
        free_one();
      } else {
        decommit();
      }
      check();
    }
    while (!out_.empty() && !testing::Test::HasFailure()) free_one();
    memory_.refuse_decommits_after = -1;
    (void)heap_.decommit(heap_.unused_pages());
    EXPECT_EQ(heap_.committed_pages(), 0U);
    EXPECT_EQ(memory_.committed_pages(), 0U);
    EXPECT_EQ(heap_.verify(), nullptr);
  }

 private:
  static constexpr std::uint64_t kLimit = 400;

  std::uint64_t granule_up(std::uint64_t pages) const {
    return (pages + granule_ - 1) / granule_ * granule_;
  }

  // Pages of all granules that are not free from end to end.
  std::uint64_t touched() const {
    std::set<std::uint64_t> granules;
    for (const Out& out : out_) {
      const std::uint64_t first = out.span->first_page;
      for (std::uint64_t page = first + out.from; page < first + out.pages; ++page)
        granules.insert(page / granule_);
      // Pages ahead of a growing tensor that share a granule with cached pages, and the pages before such a granule,
      // because a tensor is committed without holes.
      if (out.span->kind != SpanKind::growing) continue;
      EXPECT_EQ(first % granule_, 0U);
      const std::uint64_t end = first + out.span->committed;
      for (std::uint64_t page = first + out.from; end % granule_ != 0 && page < end; ++page)
        granules.insert(page / granule_);
    }
    return granules.size() * granule_;
  }
  bool full_with(std::uint64_t pages) const { return touched() + granule_up(pages) > kLimit; }

  struct Out {
    Span* span;
    unsigned char fill;
    std::uint64_t pages;     // in use; of a growing tensor, the drawn pages
    std::uint64_t from = 0;  // the first of them that was not given back
  };

  void fill(const Out& out, std::uint64_t from) {
    // Checks both ends of each page instead of all of it.
    for (std::uint64_t page = from; page < out.pages; ++page) {
      std::memset(heap_.address(out.span) + page * kPageSize, out.fill, 64);
      std::memset(heap_.address(out.span) + (page + 1) * kPageSize - 64, out.fill, 64);
    }
  }

  void expect_apart(const Span* span) {
    for (const Out& other : out_) {
      EXPECT_TRUE(span->first_page + span->pages <= other.span->first_page ||
                  other.span->first_page + other.span->pages <= span->first_page)
          << "two owners of one page";
    }
  }

  void open_growing() {
    const std::uint64_t pages = std::uint64_t{1} + random_() % 60;
    Span* span = heap_.take_growing(pages);
    ASSERT_NE(span, nullptr) << "there is enough address space";
    EXPECT_GE(span->pages, pages);
    EXPECT_LT(span->pages, pages + granule_);
    EXPECT_EQ(span->drawn, 0U);
    expect_apart(span);
    out_.push_back({span, static_cast<unsigned char>(random_() % 255 + 1), 0});
  }

  void grow_one() {
    if (out_.empty()) return;
    Out& out = out_[random_() % out_.size()];
    if (out.span->kind != SpanKind::growing || out.pages == out.span->pages) return;
    const std::uint64_t pages = out.pages + 1 + random_() % (out.span->pages - out.pages);
    const std::uint64_t in_use = heap_.in_use_pages();
    if (heap_.grow(out.span, pages, kLimit)) {
      EXPECT_EQ(heap_.in_use_pages(), in_use + pages - out.pages);
      const std::uint64_t before = out.pages;
      out.pages = pages;
      fill(out, before);
      return;
    }
    EXPECT_EQ(heap_.in_use_pages(), in_use);
    const bool refuses = memory_.refuse_commits_after == 0 || memory_.refuse_decommits_after == 0;
    // The granules that it would need, including the one that it ends in now.
    EXPECT_TRUE(full_with(pages - out.pages + granule_ - 1) || refuses) << pages << " pages";
  }

  void give_part() {
    if (out_.empty()) return;
    Out& out = out_[random_() % out_.size()];
    if (out.span->kind != SpanKind::growing || out.pages == out.from) return;
    const std::uint64_t in_use = heap_.in_use_pages();
    const std::uint64_t before = out.pages - out.from;
    if (random_() % 2 == 0) {
      out.from += random_() % (before + 1);
      out.from = std::max(out.span->front, out.from / granule_ * granule_);
    }
    if (random_() % 2 == 0) out.pages = out.from + random_() % (out.pages - out.from + 1);
    heap_.give_part(out.span, out.from, out.pages);
    EXPECT_EQ(heap_.in_use_pages(), in_use - before + out.pages - out.from);
    EXPECT_EQ(out.span->front, out.from);
    if (memory_.refuse_decommits_after < 0) {
      EXPECT_EQ(out.span->gone, out.from) << "at once";
    }
  }

  void allocate() {
    const std::uint64_t pages = std::uint64_t{1} + random_() % (random_() % 8 == 0 ? 120 : 12);
    const std::uint64_t align = random_() % 6 == 0 ? std::uint64_t{1} << (random_() % 8) : 1;
    const std::uint64_t in_use = heap_.in_use_pages();
    const PageHeap::Result result = heap_.allocate(pages, align, kLimit);
    if (result.span == nullptr) {
      EXPECT_EQ(heap_.in_use_pages(), in_use);
      const bool refuses = memory_.refuse_commits_after == 0 || memory_.refuse_decommits_after == 0;
      // Only the limit or the system may refuse: there is enough address space.
      EXPECT_TRUE(full_with(pages) || (result.system_refused && refuses)) << pages << " pages";
      return;
    }
    Span* span = result.span;
    EXPECT_EQ(span->pages, pages);
    EXPECT_EQ(span->first_page % align, 0U);
    expect_apart(span);
    if (span->zero) {
      EXPECT_TRUE(test::all_bytes(heap_.address(span), 0, pages * kPageSize)) << "not zero";
    }
    out_.push_back({span, static_cast<unsigned char>(random_() % 255 + 1), pages});
    fill(out_.back(), 0);
  }

  void free_one() {
    if (out_.empty()) return;
    const std::size_t i = random_() % out_.size();
    const Out one = out_[i];
    for (std::uint64_t page = one.from; page < one.pages; ++page) {
      EXPECT_TRUE(test::all_bytes(heap_.address(one.span) + page * kPageSize, one.fill, 64));
      EXPECT_TRUE(test::all_bytes(heap_.address(one.span) + (page + 1) * kPageSize - 64, one.fill, 64));
    }
    for (std::uint64_t page = 0; page < one.span->pages; ++page)
      EXPECT_EQ(heap_.lookup(heap_.address(one.span) + page * kPageSize), one.span);
    if (one.span->kind == SpanKind::growing) {
      heap_.free_growing(one.span);
    } else {
      heap_.free(one.span);
    }
    out_[i] = out_.back();
    out_.pop_back();
  }

  void decommit() {
    const std::uint64_t cached = heap_.unused_pages();
    const std::uint64_t want = random_() % 200;
    const std::uint64_t whole = heap_.committed_pages() - touched();
    const std::uint64_t done = heap_.decommit(want);
    EXPECT_EQ(heap_.unused_pages(), cached - done);
    if (memory_.refuse_decommits_after < 0) {
      EXPECT_GE(done, std::min(want, whole));
    }
  }

  void check() {
    const char* wrong = heap_.verify();
    EXPECT_EQ(wrong, nullptr) << wrong;
    std::uint64_t in_use = 0;
    for (const Out& out : out_) {
      in_use += out.pages - out.from;
      for (std::uint64_t page = out.from; page < out.pages; ++page) {
        EXPECT_TRUE(memory_.committed(out.span->first_page + page));
      }
    }
    EXPECT_EQ(heap_.in_use_pages(), in_use);
    EXPECT_EQ(heap_.committed_pages(), memory_.committed_pages());
    EXPECT_LE(heap_.committed_pages(), kLimit);
    EXPECT_GE(heap_.peak_committed_pages(), heap_.committed_pages());
  }

  std::mt19937_64 random_;
  const std::uint64_t granule_;
  test::FakeMemory memory_;
  PageHeap heap_;
  std::vector<Out> out_;
};

TEST(PageHeapRandom, KeepsItsInvariants) {
  for (const std::uint64_t seed : {1, 2, 3, 4}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomHeap(seed, seed % 2 == 0 ? 1 : 16, 1).run(test::rounds(10'000));
  }
}

TEST(PageHeapRandom, CommitsWholeGranules) {
  for (const std::uint64_t seed : {5, 6, 7, 8}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomHeap(seed, seed % 2 == 0 ? 1 : 16, seed < 7 ? 8 : 2).run(test::rounds(10'000));
  }
}

// ---- granules of several pages

class GranuleTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kGranule = 8;

  Span* take(std::uint64_t pages, std::uint64_t limit = kNoLimit) {
    Span* span = heap.allocate(pages, 1, limit).span;
    EXPECT_EQ(heap.verify(), nullptr);
    return span;
  }

  test::FakeMemory memory{std::size_t{1024} << kPageBits, kGranule << kPageBits};
  PageHeap heap{memory, 1};
};

TEST_F(GranuleTest, SmallSpansShareOne) {
  Span* a = take(3);
  Span* b = take(5);
  EXPECT_EQ(memory.committed_pages(), 8U);
  EXPECT_EQ(take(1)->first_page, 8U);
  EXPECT_EQ(memory.committed_pages(), 16U);
  heap.free(a);
  EXPECT_EQ(heap.decommit(3), 0U) << "b is in the same granule";
  heap.free(b);
  EXPECT_EQ(heap.decommit(1), 8U);
  EXPECT_EQ(heap.verify(), nullptr);
}

TEST_F(GranuleTest, TheLimitIsNeverPassedByRounding) {
  ASSERT_NE(take(8, 20), nullptr);
  ASSERT_NE(take(5, 20), nullptr);
  const PageHeap::Result result = heap.allocate(4, 1, 20);
  EXPECT_EQ(result.span, nullptr) << "three pages are cached, and one more granule exceeds the limit";
  EXPECT_FALSE(result.system_refused);
  EXPECT_NE(take(3, 20), nullptr);
  EXPECT_EQ(heap.committed_pages(), 16U);
}

TEST_F(GranuleTest, RoomIsMadeOfWholeGranules) {
  Span* a = take(12);
  Span* wall = take(4);
  Span* b = take(12);
  Span* end = take(4);
  heap.free(a);
  heap.free(b);
  ASSERT_EQ(heap.committed_pages(), 32U);
  EXPECT_EQ(take(24, 32), nullptr) << "24 pages are cached, 16 of them in whole granules";
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_NE(take(16, 32), nullptr);
  EXPECT_LE(heap.committed_pages(), 32U);
  heap.free(wall);
  heap.free(end);
}

TEST_F(GranuleTest, AGrowingTensorStartsAtAGranuleAndGivesWholeOnesBack) {
  Span* before = take(3);
  Span* growing = heap.take_growing(40);
  EXPECT_EQ(growing->first_page, 8U) << "not in the first granule, which another tensor shares";
  ASSERT_TRUE(heap.grow(growing, 30, kNoLimit));
  EXPECT_EQ(memory.committed_pages(), 40U);
  heap.give_part(growing, 16, 25);
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_EQ(memory.committed_pages(), 8U + 16U);
  EXPECT_EQ(heap.in_use_pages(), 3U + 9U);
  EXPECT_EQ(heap.idle_pages(), 7U) << "the rest of the last granule";
  heap.free(before);
  heap.free_growing(growing);
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.decommit(heap.unused_pages()), 24U);
  EXPECT_EQ(memory.committed_pages(), 0U);
}

TEST_F(GranuleTest, RangesAndGrowingTensorsCommitWholeGranules) {
  Span* range = heap.take_range(20);
  ASSERT_NE(range, nullptr);
  EXPECT_EQ(range->pages, 24U);
  ASSERT_TRUE(heap.draw(range, 1, kNoLimit));
  EXPECT_EQ(memory.committed_pages(), 8U);
  Span* growing = heap.take_growing(20);
  ASSERT_TRUE(heap.grow(growing, 9, kNoLimit));
  EXPECT_EQ(growing->committed, 16U);
  EXPECT_EQ(heap.unused_pages(), 7U) << "ahead of it";
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.decommit(7), 0U) << "its last page is in that granule";
  ASSERT_TRUE(heap.grow(growing, 17, 32)) << "one granule more: the fourth";
  EXPECT_FALSE(heap.system_refused());
  ASSERT_TRUE(heap.draw(range, 8, 32)) << "these pages are committed already";
  EXPECT_FALSE(heap.draw(range, 9, 32)) << "a fifth is beyond the limit";
  EXPECT_FALSE(heap.system_refused());
  heap.shrink_range(range, 10);
  EXPECT_EQ(range->pages, 16U) << "not within an uncommitted granule";
  EXPECT_EQ(heap.verify(), nullptr);
  heap.free_growing(growing);
  heap.free_range(range);
  EXPECT_EQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.decommit(heap.unused_pages()), 32U);
  EXPECT_EQ(memory.committed_pages(), 0U);
}

}  // namespace
}  // namespace slabpool
