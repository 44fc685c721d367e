// A memory resource that checks its caller: each commit() must be of uncommitted pages, each decommit() of committed
// ones. Both can be made to refuse, and then leave pages undefined.
//
// A refused call leaves half of its range without access, so that a test crashes if the heap hands it out. A refused
// decommit() also overwrites the bytes, so that a test detects a heap that still treats those pages as zero.
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
  enum class Page : std::uint8_t { uncommitted, committed, undefined };

  static constexpr std::size_t kAlign = std::size_t{2} << 20;

  explicit FakeMemory(std::size_t bytes, std::size_t granule = kPageSize) : pages_(bytes >> kPageBits) {
    granule_ = granule;
    has_holes_ = true;
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
    expect_all(offset, bytes, Page::uncommitted);
    if (refuses(refuse_commits_after, offset)) {
      // The first half is open, and the rest is not.
      (void)mprotect(base_ + offset, half(bytes), PROT_READ | PROT_WRITE);
      mark(offset, bytes, Page::undefined);
      return false;
    }
    ++commits;
    mark(offset, bytes, Page::committed);
    return mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE) == 0;
  }

  bool decommit(std::size_t offset, std::size_t bytes) noexcept override {
    expect_all(offset, bytes, Page::committed);
    if (refuses(refuse_decommits_after, offset)) {
      (void)mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE);
      std::memset(base_ + offset, 0xEE, bytes);
      (void)mprotect(base_ + offset, half(bytes), PROT_NONE);
      mark(offset, bytes, Page::undefined);
      return false;
    }
    ++decommits;
    mark(offset, bytes, Page::uncommitted);
    return madvise(base_ + offset, bytes, MADV_DONTNEED) == 0 &&
           mprotect(base_ + offset, bytes, PROT_NONE) == 0;
  }

  // A hole is an uncommitted page that can be accessed.
  bool punch_hole(std::size_t offset, std::size_t bytes) noexcept override {
    expect_all(offset, bytes, Page::committed);
    if (refuses(refuse_punches_after, offset)) {
      std::memset(base_ + offset, 0xEE, bytes);
      return false;
    }
    ++punches;
    mark(offset, bytes, Page::uncommitted);
    return madvise(base_ + offset, bytes, MADV_DONTNEED) == 0;
  }
  bool fill_hole(std::size_t offset, std::size_t bytes) noexcept override {
    expect_all(offset, bytes, Page::uncommitted);
    if (refuses(refuse_fills_after, offset)) return false;
    mark(offset, bytes, Page::committed);
    // Writes to a hole are not kept, as if the kernel had taken its page a second time.
    return madvise(base_ + offset, bytes, MADV_DONTNEED) == 0;
  }

  std::uint64_t held_bytes() const noexcept override {
    return (committed_pages() << kPageBits) + strays;
  }
  // Frees `strays` if the page that they belong to is in the range.
  void discard(std::size_t offset, std::size_t bytes) noexcept override {
    expect_all(offset, bytes, Page::uncommitted);
    for (std::size_t page = offset >> kPageBits; page < (offset + bytes) >> kPageBits; ++page)
      EXPECT_EQ(pages_[page], Page::uncommitted) << "page " << page;
    (void)mprotect(base_ + offset, bytes, PROT_NONE);
    if (offset <= stray_at && stray_at < offset + bytes) strays = 0;
  }

  bool committed(std::uint64_t page) const { return pages_[page] == Page::committed; }
  // Those that the system may keep memory for: committed or undefined.
  std::uint64_t committed_pages() const {
    std::uint64_t n = 0;
    for (const Page page : pages_) n += page != Page::uncommitted ? 1 : 0;
    return n;
  }
  std::uint64_t undefined_pages() const {
    std::uint64_t n = 0;
    for (const Page page : pages_) n += page == Page::undefined ? 1 : 0;
    return n;
  }

  // Number of calls that succeed before all further ones are refused; negative: none is refused.
  int refuse_commits_after = -1;
  int refuse_decommits_after = -1;
  int refuse_punches_after = -1;
  int refuse_fills_after = -1;
  // The offset of calls that are never refused.
  std::size_t accepts_at = ~std::size_t{0};
  int refused = 0;
  // Bytes that the system keeps for an uncommitted part of the range, and the offset of one of them.
  std::uint64_t strays = 0;
  std::size_t stray_at = 0;
  int commits = 0;
  int decommits = 0;
  int punches = 0;

 private:
  bool refuses(int& left, std::size_t offset) {
    if (left < 0 || offset == accepts_at) return false;
    if (left > 0) {
      --left;
      return false;
    }
    ++refused;
    return true;
  }
  static std::size_t half(std::size_t bytes) { return (bytes / 2 + kPageSize - 1) & ~(kPageSize - 1); }
  // Either call may cover pages that a refused call left undefined, with what is around them.
  void expect_all(std::size_t offset, std::size_t bytes, Page state) const {
    EXPECT_EQ(offset % granule_, 0U);
    EXPECT_EQ(bytes % granule_, 0U);
    EXPECT_GT(bytes, 0U);
    ASSERT_LE(offset + bytes, address_space_);
    for (std::size_t page = offset >> kPageBits; page < (offset + bytes) >> kPageBits; ++page) {
      if (pages_[page] == Page::undefined) continue;
      EXPECT_EQ(pages_[page], state) << "page " << page;
    }
  }
  void mark(std::size_t offset, std::size_t bytes, Page state) {
    for (std::size_t page = offset >> kPageBits; page < (offset + bytes) >> kPageBits; ++page)
      pages_[page] = state;
  }

  void* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  std::vector<Page> pages_;
};

// True if all of [data, data + bytes) is `value`.
inline bool all_bytes(const void* data, unsigned char value, std::size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  return bytes == 0 || (p[0] == value && std::memcmp(p, p + 1, bytes - 1) == 0);
}

}  // namespace slabpool::test
