// System calls that the page heap makes and the system refuses in part: pages are undone, or counted and out of use.
// FakeMemory leaves a half of a refused range without access, so a page that is handed out wrongly ends the test.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "slabpool/slab/page_heap.hpp"
#include "support/fake_memory.hpp"

namespace slabpool {
namespace {

constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 40;

class QuarantineTest : public testing::Test {
 protected:
  explicit QuarantineTest(std::uint64_t granule = 1)
      : memory(std::size_t{1024} << kPageBits, granule << kPageBits), heap(memory, 1) {}

  Span* take(std::uint64_t pages, std::uint64_t limit = kNoLimit) {
    Span* span = heap.allocate(pages, 1, limit).span;
    check();
    if (span != nullptr) std::memset(heap.address(span), 0x5a, pages << kPageBits);
    return span;
  }
  void give(Span* span) {
    heap.free(span);
    check();
  }
  void check() {
    EXPECT_STREQ(heap.verify(), nullptr);
    EXPECT_EQ(heap.committed_pages(), memory.committed_pages());
    EXPECT_GE(heap.quarantined_pages(), memory.undefined_pages());
  }
  void refuse_all() { memory.refuse_commits_after = memory.refuse_decommits_after = 0; }
  void refuse_none() { memory.refuse_commits_after = memory.refuse_decommits_after = -1; }
  void expect_all_returned() {
    refuse_none();
    (void)heap.decommit(heap.unused_pages());
    check();
    EXPECT_EQ(heap.committed_pages(), 0U);
    EXPECT_EQ(heap.quarantined_pages(), 0U);
  }

  test::FakeMemory memory;
  PageHeap heap;
};

TEST_F(QuarantineTest, ARefusedDecommitIsUndone) {
  give(take(8));
  memory.refuse_decommits_after = 0;
  EXPECT_EQ(heap.decommit(8), 0U);
  EXPECT_TRUE(heap.system_refused());
  check();
  EXPECT_EQ(heap.quarantined_pages(), 0U);
  const int commits = memory.commits;
  ASSERT_NE(take(8), nullptr);
  EXPECT_EQ(memory.commits, commits) << "they were committed again at once";
}

TEST_F(QuarantineTest, ADecommitThatCannotBeUndoneTakesPagesOutOfUse) {
  give(take(8));
  refuse_all();
  EXPECT_EQ(heap.decommit(8), 0U);
  check();
  EXPECT_EQ(heap.quarantined_pages(), 8U);
  EXPECT_EQ(heap.committed_pages(), 8U) << "the system may keep memory for them";
  EXPECT_EQ(heap.in_use_pages(), 0U);
  EXPECT_EQ(heap.unused_pages(), 8U) << "they count as cached";
  memory.refuse_commits_after = -1;
  const Span* other = take(4, 20);
  ASSERT_NE(other, nullptr);
  EXPECT_EQ(other->first_page, 8U) << "not the quarantined pages";
  const Span* again = take(8, 12);
  ASSERT_NE(again, nullptr) << "the quarantined pages were committed again to make room, and taken";
  EXPECT_EQ(again->first_page, 0U);
  EXPECT_EQ(heap.quarantined_pages(), 0U);
}

TEST_F(QuarantineTest, QuarantinedPagesCountForTheLimit) {
  give(take(8));
  refuse_all();
  (void)heap.decommit(8);
  memory.refuse_commits_after = -1;
  // Commits succeed, so the next attempt to make room ends the quarantine; here there is no need to make room.
  EXPECT_NE(take(8, 16), nullptr);
  EXPECT_EQ(heap.committed_pages(), 16U);
  EXPECT_EQ(heap.quarantined_pages(), 8U);
  refuse_all();
  const PageHeap::Result none = heap.allocate(1, 1, 16);
  EXPECT_EQ(none.span, nullptr);
  EXPECT_TRUE(none.system_refused) << "it is not the limit alone";
  check();
}

TEST_F(QuarantineTest, ACommitThatCannotBeUndoneTakesPagesOutOfUse) {
  refuse_all();
  EXPECT_TRUE(heap.allocate(4, 1, kNoLimit).system_refused);
  check();
  EXPECT_EQ(heap.quarantined_pages(), 4U);
  EXPECT_EQ(heap.committed_pages(), 4U);
  EXPECT_EQ(heap.peak_committed_pages(), 4U);
  refuse_none();
  EXPECT_EQ(take(4)->first_page, 4U);
  EXPECT_EQ(heap.decommit(4), 4U) << "trimming tries them again";
  EXPECT_EQ(heap.quarantined_pages(), 0U);
  EXPECT_EQ(take(4)->first_page, 0U);
}

TEST_F(QuarantineTest, ARefusedCommitIsUndone) {
  memory.refuse_commits_after = 0;
  EXPECT_TRUE(heap.allocate(4, 1, kNoLimit).system_refused);
  check();
  EXPECT_EQ(heap.committed_pages(), 0U);
  refuse_none();
  EXPECT_TRUE(take(4)->first_page == 0U);
}

// More spans than one attempt tries: each has its turn, and a refusal takes constant time.
TEST_F(QuarantineTest, EverySpanIsTriedInTurn) {
  std::vector<Span*> runs, walls;
  for (int i = 0; i < 12; ++i) {
    runs.push_back(take(2));
    walls.push_back(take(1));
  }
  for (Span* run : runs) give(run);
  refuse_all();
  for (int i = 0; i < 12; ++i) (void)heap.decommit(24);
  check();
  EXPECT_EQ(heap.quarantined_pages(), 24U);
  const int before = memory.refused;
  (void)heap.decommit(24);
  EXPECT_LE(memory.refused - before, 8) << "four spans, two calls each";
  // Whichever span the system accepts first is reached within three attempts.
  memory.accepts_at = runs[5]->first_page << kPageBits;
  std::uint64_t done = 0;
  for (int i = 0; i < 3; ++i) done += heap.decommit(24);
  check();
  EXPECT_EQ(done, 2U);
  EXPECT_EQ(heap.quarantined_pages(), 22U);
  refuse_none();
  EXPECT_EQ(heap.decommit(24), 22U);
  for (Span* wall : walls) give(wall);
  expect_all_returned();
}

TEST_F(QuarantineTest, OneRefusedSpanDoesNotKeepTheOthers) {
  Span* large = take(9);
  Span* wall = take(1);
  Span* small = take(3);
  Span* end = take(1);
  const std::uint64_t at = small->first_page;
  give(large);
  give(small);
  memory.refuse_decommits_after = 0;
  memory.accepts_at = at << kPageBits;
  EXPECT_EQ(heap.decommit(12), 3U);
  check();
  EXPECT_TRUE(heap.system_refused());
  give(wall);
  give(end);
  expect_all_returned();
}

TEST_F(QuarantineTest, PagesAheadOfAGrowingTensor) {
  Span* growing = heap.take_growing(40);
  ASSERT_TRUE(heap.grow(growing, 10, kNoLimit));
  std::memset(heap.address(growing), 0x5a, 10 << kPageBits);
  heap.free_growing(growing);
  growing = heap.take_growing(40);
  ASSERT_EQ(growing->first_page, 0U);
  ASSERT_TRUE(heap.grow(growing, 4, kNoLimit));
  std::memset(heap.address(growing), 0x5b, 4 << kPageBits);
  check();
  refuse_all();
  EXPECT_EQ(heap.decommit(6), 0U);
  EXPECT_STREQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.committed_pages(), 10U);
  EXPECT_EQ(growing->sound, 4U);
  // Not into pages that may have no memory.
  EXPECT_FALSE(heap.grow(growing, 5, kNoLimit));
  EXPECT_TRUE(heap.system_refused());
  EXPECT_STREQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.in_use_pages(), 4U);
  refuse_none();
  ASSERT_TRUE(heap.grow(growing, 12, kNoLimit));
  std::memset(heap.address(growing), 0x5b, 12 << kPageBits);
  EXPECT_EQ(growing->sound, 12U);
  EXPECT_EQ(heap.committed_pages(), 12U) << "counted once";
  EXPECT_EQ(memory.committed_pages(), 12U);
  heap.free_growing(growing);
  expect_all_returned();
}

TEST_F(QuarantineTest, AGrowingTensorThatEndsWithUndefinedPages) {
  for (const bool decommits : {false, true}) {
    Span* growing = heap.take_growing(40);
    ASSERT_TRUE(heap.grow(growing, 3, kNoLimit));
    refuse_all();
    EXPECT_FALSE(heap.grow(growing, 8, kNoLimit));
    EXPECT_STREQ(heap.verify(), nullptr);
    EXPECT_EQ(heap.committed_pages(), memory.committed_pages());
    EXPECT_EQ(heap.committed_pages(), 8U);
    EXPECT_EQ(heap.in_use_pages(), 3U);
    if (decommits) memory.refuse_decommits_after = -1;
    heap.free_growing(growing);
    check();
    EXPECT_EQ(heap.quarantined_pages(), decommits ? 0U : 5U);
    expect_all_returned();
  }
}

// A tensor gives pages at both of its ends back, and the system refuses.
class GivenPagesTest : public QuarantineTest {
 protected:
  // Pages 8 to 19 of 20 are in use after it, if `given`; `committed` tells what the system keeps.
  Span* with_refused_pages() {
    Span* growing = heap.take_growing(40);
    EXPECT_TRUE(heap.grow(growing, 30, kNoLimit));
    std::memset(heap.address(growing), 0x5a, 30 << kPageBits);
    heap.give_part(growing, 8, 20);
    EXPECT_TRUE(heap.system_refused());
    EXPECT_STREQ(heap.verify(), nullptr);
    EXPECT_EQ(heap.committed_pages(), memory.committed_pages());
    EXPECT_EQ(heap.committed_pages(), 30U);
    EXPECT_EQ(heap.in_use_pages(), 12U) << "they are out of use all the same";
    EXPECT_EQ(heap.unused_pages(), 18U);
    expect_rows(growing);
    return growing;
  }
  void expect_rows(const Span* growing) {
    EXPECT_TRUE(
        test::all_bytes(heap.address(growing) + (8 << kPageBits), 0x5a, std::size_t{12} << kPageBits));
  }
};

TEST_F(GivenPagesTest, TheyReturnAtOnce) {
  Span* growing = heap.take_growing(40);
  ASSERT_TRUE(heap.grow(growing, 30, kNoLimit));
  std::memset(heap.address(growing), 0x5a, 30 << kPageBits);
  heap.give_part(growing, 8, 20);
  check();
  EXPECT_EQ(heap.committed_pages(), 12U);
  EXPECT_EQ(heap.in_use_pages(), 12U);
  expect_rows(growing);
  ASSERT_TRUE(heap.grow(growing, 22, kNoLimit));
  EXPECT_TRUE(test::all_bytes(heap.address(growing) + (20 << kPageBits), 0, 2 << kPageBits));
  memory.strays = 5;  // as a peer's write would make
  memory.stray_at = (growing->first_page + 3) << kPageBits;
  EXPECT_EQ(heap.discard_uncommitted(), 5U);
  heap.free_growing(growing);
  check();
  expect_all_returned();
}

TEST_F(GivenPagesTest, AllOfThem) {
  Span* growing = heap.take_growing(40);
  ASSERT_TRUE(heap.grow(growing, 40, kNoLimit));
  heap.give_part(growing, 40, 40);
  check();
  EXPECT_EQ(heap.committed_pages(), 0U);
  heap.free_growing(growing);
  check();
  growing = heap.take_growing(40);
  ASSERT_TRUE(heap.grow(growing, 10, kNoLimit));
  heap.give_part(growing, 10, 10);
  ASSERT_TRUE(heap.grow(growing, 11, kNoLimit)) << "it goes on";
  std::memset(heap.address(growing) + (10 << kPageBits), 0x5a, 1 << kPageBits);
  heap.free_growing(growing);
  check();
  expect_all_returned();
}

TEST_F(GivenPagesTest, ARefusalIsTriedAgain) {
  for (const bool undone : {false, true}) {
    memory.refuse_decommits_after = 0;
    memory.refuse_commits_after = undone ? -1 : 0;
    // The commits that undo a refusal come after those of the tensor.
    if (!undone) memory.refuse_commits_after = 1;
    Span* growing = with_refused_pages();
    EXPECT_EQ(growing->front_undefined, !undone);
    EXPECT_EQ(heap.decommit(18), 0U);
    EXPECT_STREQ(heap.verify(), nullptr);
    refuse_none();
    EXPECT_EQ(heap.decommit(1), 18U) << "in one step";
    check();
    EXPECT_EQ(growing->gone, 8U);
    EXPECT_FALSE(growing->front_undefined);
    expect_rows(growing);
    heap.free_growing(growing);
    expect_all_returned();
  }
}

TEST_F(GivenPagesTest, MoreIsGivenAfterARefusal) {
  memory.refuse_decommits_after = 0;
  memory.refuse_commits_after = 1;
  Span* growing = with_refused_pages();
  refuse_none();
  heap.give_part(growing, 9, 20);
  EXPECT_STREQ(heap.verify(), nullptr);
  EXPECT_EQ(growing->gone, 9U);
  EXPECT_EQ(heap.committed_pages(), memory.committed_pages());
  EXPECT_EQ(heap.in_use_pages(), 11U);
  heap.free_growing(growing);
  check();
  expect_all_returned();
}

TEST_F(GivenPagesTest, TheTensorEndsBeforeTheSystemTakesThem) {
  enum class Then { refuses, undoes, accepts };
  for (const Then then : {Then::refuses, Then::undoes, Then::accepts}) {
    memory.refuse_decommits_after = 0;
    memory.refuse_commits_after = 1;
    Span* growing = with_refused_pages();
    if (then != Then::refuses) memory.refuse_commits_after = -1;
    if (then == Then::accepts) memory.refuse_decommits_after = -1;
    heap.free_growing(growing);
    check();
    EXPECT_EQ(heap.quarantined_pages(), then == Then::refuses ? 18U : 0U);
    EXPECT_EQ(heap.in_use_pages(), 0U);
    expect_all_returned();
  }
}

TEST_F(GivenPagesTest, FreeingNeedsNoFurtherRecord) {
  std::vector<Span*> all;
  for (int i = 0; i < 20; ++i) {
    all.push_back(heap.take_growing(40));
    ASSERT_TRUE(heap.grow(all.back(), 30, kNoLimit));
    heap.give_part(all.back(), 4, 30);
  }
  refuse_all();
  for (Span* growing : all) heap.give_part(growing, 8, 20);
  for (std::size_t i = 0; i < all.size(); i += 2) heap.free_growing(all[i]);
  EXPECT_STREQ(heap.verify(), nullptr) << "with the records that were set aside for the others";
  for (std::size_t i = 1; i < all.size(); i += 2) heap.free_growing(all[i]);
  check();
  expect_all_returned();
}

TEST_F(QuarantineTest, ARangeIsDrawnOnlyFromPagesThatAreCommitted) {
  Span* range = heap.take_range(30);
  ASSERT_TRUE(heap.draw(range, 5, kNoLimit));
  refuse_all();
  EXPECT_FALSE(heap.draw(range, 9, kNoLimit));
  EXPECT_STREQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.committed_pages(), 9U);
  EXPECT_EQ(heap.in_use_pages(), 5U);
  EXPECT_EQ(range->sound, 5U);
  EXPECT_FALSE(heap.draw(range, 7, kNoLimit)) << "these pages are counted and undefined";
  EXPECT_EQ(heap.committed_pages(), 9U);
  // A cut within the undefined pages.
  heap.shrink_range(range, 7);
  EXPECT_STREQ(heap.verify(), nullptr);
  EXPECT_EQ(heap.committed_pages(), 9U);
  EXPECT_EQ(heap.quarantined_pages(), 2U);
  memory.refuse_commits_after = -1;
  ASSERT_TRUE(heap.draw(range, 7, kNoLimit));
  std::memset(heap.address(range), 1, 7 << kPageBits);
  EXPECT_EQ(heap.committed_pages(), 9U);
  heap.free_range(range);
  expect_all_returned();
}

TEST_F(QuarantineTest, PagesThatAreNotCommittedAreDiscarded) {
  Span* used = take(4);
  Span* growing = heap.take_growing(20);
  ASSERT_TRUE(heap.grow(growing, 2, kNoLimit));
  EXPECT_EQ(heap.discard_uncommitted(), 0U);
  // In a free span, and among the addresses that a tensor has not grown into.
  for (const std::uint64_t page : {growing->first_page + 5, growing->first_page + 500}) {
    memory.strays = 3 * kPageSize;
    memory.stray_at = page << kPageBits;
    EXPECT_EQ(heap.discard_uncommitted(), 3 * kPageSize) << page;
    EXPECT_EQ(memory.strays, 0U);
  }
  EXPECT_TRUE(test::all_bytes(heap.address(used), 0x5a, 4 * kPageSize));
  heap.free_growing(growing);
  give(used);
  expect_all_returned();
}

class QuarantineGranuleTest : public QuarantineTest {
 protected:
  QuarantineGranuleTest() : QuarantineTest(8) {}
};

// Only whole granules are tried again; the pages beside them that share a granule with a tensor are cached.
TEST_F(QuarantineGranuleTest, TheEdgesOfASpanStayCommitted) {
  Span* before = take(3);
  Span* middle[] = {take(5), take(8 + 2)};
  Span* after = take(6);
  ASSERT_EQ(after->first_page, 18U);
  for (Span* span : middle) give(span);
  refuse_all();
  EXPECT_EQ(heap.decommit(8), 0U);
  check();
  EXPECT_EQ(heap.quarantined_pages(), 8U);
  const Span* edge = take(5);
  ASSERT_NE(edge, nullptr) << "cached pages beside the quarantined granule";
  EXPECT_EQ(edge->first_page, 3U);
  refuse_none();
  EXPECT_EQ(heap.decommit(8), 8U);
  EXPECT_EQ(heap.quarantined_pages(), 0U);
  give(before);
  give(after);
  check();
}

TEST_F(QuarantineGranuleTest, AGrowingTensorBehindASharedGranule) {
  Span* before = take(13);
  Span* growing = heap.take_growing(29);
  ASSERT_EQ(growing->first_page, 16U) << "a granule of its own";
  ASSERT_TRUE(heap.grow(growing, 5, kNoLimit));
  refuse_all();
  EXPECT_FALSE(heap.grow(growing, 9, kNoLimit));
  EXPECT_EQ(heap.committed_pages(), 32U);
  EXPECT_EQ(growing->sound, 8U);
  ASSERT_TRUE(heap.grow(growing, 7, kNoLimit));
  std::memset(heap.address(growing), 1, 7 << kPageBits);
  heap.free_growing(growing);
  check();
  EXPECT_EQ(heap.quarantined_pages(), 8U);
  give(before);
  expect_all_returned();
}

}  // namespace
}  // namespace slabpool
