// Records that stay readable: made of zero bytes, and given back by whole chunks.
#include "slabpool/memory/record_chunks.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "slabpool/memory/system_files.hpp"

namespace slabpool {
namespace {

struct Record {
  Record* next;
  std::uint64_t word;
  std::byte rest[176];
};
static_assert(sizeof(Record) == 192);
constexpr std::size_t kPerChunk = RecordChunks::kMostBytes / sizeof(Record);

class RecordChunksTest : public testing::Test {
 protected:
  Record* make() {
    auto* record = static_cast<Record*>(chunks.make(kind, sizeof(Record)));
    EXPECT_EQ(record->word, 0U);
    EXPECT_EQ(record->next, nullptr);
    return record;
  }
  void spare(Record* record) {
    record->next = list;
    list = record;
    ++spares;
  }
  std::size_t close(std::size_t keep = 0) {
    const std::size_t gone = chunks.close_spare(
        list, kind, spares, keep, [&](const Record& record) { return stays.count(&record) == 0; });
    spares -= gone;
    return gone;
  }
  std::size_t listed() const {
    std::size_t count = 0;
    for (const Record* record = list; record != nullptr; record = record->next) ++count;
    return count;
  }

  RecordChunks chunks;
  RecordChunks::Kind kind;
  Record* list = nullptr;
  std::size_t spares = 0;
  std::set<const Record*> stays;
};

TEST_F(RecordChunksTest, RecordsLieApartAndBytesAreThoseOfThem) {
  std::set<std::uintptr_t> at;
  for (std::size_t i = 0; i < 40 * kPerChunk; ++i) {
    Record* record = make();
    record->word = i + 1;
    at.insert(reinterpret_cast<std::uintptr_t>(record));
  }
  ASSERT_EQ(at.size(), 40 * kPerChunk);
  std::uintptr_t last = 0;
  for (const std::uintptr_t one : at) {
    EXPECT_EQ(one % RecordChunks::kAlign, 0U);
    EXPECT_GE(one - last, sizeof(Record));
    EXPECT_EQ(one / RecordChunks::kChunkBytes, (one + sizeof(Record) - 1) / RecordChunks::kChunkBytes);
    last = one;
  }
  EXPECT_EQ(chunks.made_bytes(), 40 * kPerChunk * sizeof(Record));
}

TEST_F(RecordChunksTest, AChunkGoesOnceAllOfItsRecordsAreSpareAndReadsAsZero) {
  std::vector<Record*> records;
  for (std::size_t i = 0; i < 3 * kPerChunk; ++i) records.push_back(make());
  for (Record* record : records) record->word = ~std::uint64_t{0};
  for (std::size_t i = 0; i < records.size(); ++i)
    if (i != kPerChunk) spare(records[i]);  // the first of the second chunk is in use
  EXPECT_EQ(close(), 2 * kPerChunk);
  EXPECT_EQ(spares, kPerChunk - 1);
  EXPECT_EQ(listed(), spares);
  EXPECT_EQ(chunks.made_bytes(), kPerChunk * sizeof(Record));
  for (std::size_t i = 0; i < records.size(); ++i)
    EXPECT_EQ(records[i]->word, i / kPerChunk == 1 ? ~std::uint64_t{0} : 0U) << i;
  EXPECT_EQ(close(), 0U);
  spare(records[kPerChunk]);
  EXPECT_EQ(close(), kPerChunk);
  EXPECT_EQ(chunks.made_bytes(), 0U);
}

TEST_F(RecordChunksTest, AddressesOfClosedChunksAreUsedAgain) {
  std::set<Record*> before;
  for (int round = 0; round < 100; ++round) {
    std::set<Record*> now;
    for (std::size_t i = 0; i < 2 * kPerChunk + 3; ++i) now.insert(make());
    if (round != 0) {
      EXPECT_EQ(now, before) << round;
    }
    for (Record* record : now) {
      record->word = 7;
      spare(record);
    }
    EXPECT_EQ(close(), now.size());  // the one that was not full, too
    EXPECT_EQ(list, nullptr);
    before = now;
  }
}

TEST_F(RecordChunksTest, AChunkStaysWithItsKind) {
  std::set<std::uintptr_t> one;
  for (std::size_t i = 0; i < kPerChunk; ++i) {
    Record* record = make();
    one.insert(reinterpret_cast<std::uintptr_t>(record) / RecordChunks::kChunkBytes);
    spare(record);
  }
  EXPECT_EQ(close(), kPerChunk);
  RecordChunks::Kind other;
  for (std::size_t i = 0; i < 4 * kPerChunk; ++i) {
    const auto at = reinterpret_cast<std::uintptr_t>(chunks.make(other, 2 * sizeof(Record)));
    EXPECT_EQ(one.count(at / RecordChunks::kChunkBytes), 0U);
  }
  EXPECT_EQ(one.count(reinterpret_cast<std::uintptr_t>(make()) / RecordChunks::kChunkBytes), 1U);
}

TEST_F(RecordChunksTest, WhatHasToStayKeepsItsChunk) {
  for (std::size_t i = 0; i < 2 * kPerChunk; ++i) spare(make());
  stays.insert(list);
  EXPECT_EQ(close(), kPerChunk);
  EXPECT_EQ(listed(), kPerChunk);
}

TEST_F(RecordChunksTest, SoManyRecordsAreKept) {
  for (std::size_t i = 0; i < 4 * kPerChunk; ++i) spare(make());
  EXPECT_EQ(close(kPerChunk + 1), 2 * kPerChunk);
  EXPECT_EQ(listed(), 2 * kPerChunk);
  EXPECT_EQ(close(kPerChunk), kPerChunk);
  EXPECT_EQ(close(kPerChunk), 0U);
}

TEST_F(RecordChunksTest, PagesGoBackToTheSystem) {
  const auto resident_kib = [] {
    return SystemFile("/proc/self/status").number_of("VmRSS:").value_or(0);
  };
  const std::uint64_t before = resident_kib();
  for (std::size_t i = 0; i < 1000 * kPerChunk; ++i) {  // 64 MB
    Record* record = make();
    record->word = 1;
    spare(record);
  }
  const std::uint64_t peak = resident_kib();
  EXPECT_GE(peak, before + 60000);
  EXPECT_EQ(close(), 1000 * kPerChunk);
  EXPECT_LE(resident_kib(), peak - 60000);
}

}  // namespace
}  // namespace slabpool
