// A memory resource that checks its caller: each commit() must be of uncommitted pages, each decommit() of committed
// ones. Both can be made to refuse.
//
// A refused decommit() overwrites the bytes, as the contract of MemoryResource permits, so that a test detects a heap
// that still treats those pages as zero.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "slabpool/memory/memory_resource.hpp"

namespace slabpool::test {

class FakeMemory final : public MemoryResource {
 public:
  static constexpr std::size_t kAlign = std::size_t{2} << 20;

  explicit FakeMemory(std::size_t bytes, std::size_t granule = kPageSize)
      : committed_(bytes >> kPageBits) {
    granule_ = granule;
    mapping_bytes_ = bytes + kAlign;
    mapping_ =
        mmap(nullptr, mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
    base_ = static_cast<std::byte*>(mapping_) + (((address + kAlign - 1) & ~(kAlign - 1)) - address);
    address_space_ = bytes;
  }
  ~FakeMemory() override { (void)munmap(mapping_, mapping_bytes_); }

  bool commit(std::size_t offset, std::size_t bytes) noexcept override {
    expect_all(offset, bytes, false);
    if (refuses(refuse_commits_after)) return false;
    ++commits;
    mark(offset, bytes, true);
    return mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE) == 0;
  }

  bool decommit(std::size_t offset, std::size_t bytes) noexcept override {
    expect_all(offset, bytes, true);
    if (refuses(refuse_decommits_after)) {
      std::memset(base_ + offset, 0xEE, bytes);
      return false;
    }
    ++decommits;
    mark(offset, bytes, false);
    return madvise(base_ + offset, bytes, MADV_DONTNEED) == 0 &&
           mprotect(base_ + offset, bytes, PROT_NONE) == 0;
  }

  bool committed(std::uint64_t page) const { return committed_[page]; }
  std::uint64_t committed_pages() const {
    std::uint64_t n = 0;
    for (const bool c : committed_) n += c ? 1 : 0;
    return n;
  }

  // Number of calls that succeed before all further ones are refused; negative: none is refused.
  int refuse_commits_after = -1;
  int refuse_decommits_after = -1;
  int commits = 0;
  int decommits = 0;

 private:
  static bool refuses(int& left) {
    if (left < 0) return false;
    if (left == 0) return true;
    --left;
    return false;
  }
  void expect_all(std::size_t offset, std::size_t bytes, bool state) const {
    EXPECT_EQ(offset % granule_, 0U);
    EXPECT_EQ(bytes % granule_, 0U);
    EXPECT_GT(bytes, 0U);
    ASSERT_LE(offset + bytes, address_space_);
    for (std::size_t page = offset >> kPageBits; page < (offset + bytes) >> kPageBits; ++page) {
      EXPECT_EQ(committed_[page], state) << "page " << page;
    }
  }
  void mark(std::size_t offset, std::size_t bytes, bool state) {
    for (std::size_t page = offset >> kPageBits; page < (offset + bytes) >> kPageBits; ++page)
      committed_[page] = state;
  }

  void* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  std::vector<bool> committed_;
};

// True if all of [data, data + bytes) is `value`.
inline bool all_bytes(const void* data, unsigned char value, std::size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  return bytes == 0 || (p[0] == value && std::memcmp(p, p + 1, bytes - 1) == 0);
}

}  // namespace slabpool::test
