#include "slabpool/memory/record_chunks.hpp"

#include <sys/mman.h>

#include <new>

namespace slabpool {
namespace {

// One chunk more than is used, because chunks are aligned to their own size.
constexpr std::size_t mapping_bytes(std::size_t chunks) noexcept {
  return (chunks + 1) * RecordChunks::kChunkBytes;
}

}  // namespace

RecordChunks::~RecordChunks() {
  for (std::byte* mapping : mappings_) (void)munmap(mapping, mapping_bytes(kMapped));
}

RecordChunks::Head& RecordChunks::open() {
  if (!closed_.empty()) {
    auto* head = static_cast<Head*>(closed_.back());
    closed_.pop_back();
    return *head;
  }
  if (fresh_count_ == 0) {
    mappings_.reserve(mappings_.size() + 1);
    closed_.reserve((mappings_.size() + 1) * kMapped);
    void* mapping = mmap(nullptr, mapping_bytes(kMapped), PROT_READ,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mappings_.push_back(static_cast<std::byte*>(mapping));
    const auto start = reinterpret_cast<std::uintptr_t>(mapping);
    fresh_ = mappings_.back() + (-start & (kChunkBytes - 1));
    fresh_count_ = kMapped;
  }
  if (mprotect(fresh_, kChunkBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  auto* head = reinterpret_cast<Head*>(fresh_);
  fresh_ += kChunkBytes;
  --fresh_count_;
  return *head;
}

void RecordChunks::close(Head& head, Rest& rest) noexcept {
  made_bytes_ -= head.bytes;
  if (rest.at != nullptr && &head_of(rest.at) == &head) rest = {};
  // Cannot fail for private memory that is not locked. Where it is locked (mlockall), the bytes are cleared instead.
  if (madvise(&head, kChunkBytes, MADV_DONTNEED) != 0) {
    auto* words = reinterpret_cast<std::uint64_t*>(&head);
    for (std::size_t i = 0; i < kChunkBytes / sizeof(*words); ++i)
      __atomic_store_n(&words[i], 0, __ATOMIC_RELAXED);
  }
  closed_.push_back(&head);
}

void* RecordChunks::make(Rest& rest, std::size_t bytes) {
  SLABPOOL_ASSERT(bytes != 0 && bytes <= kMostBytes && bytes % kAlign == 0, "a record fits in a chunk",
                  bytes);
  if (rest.bytes < bytes) {
    Head& head = open();
    SLABPOOL_ASSERT(head.made == 0 && head.bytes == 0, "a chunk is opened with zero bytes", head.made);
    rest = {reinterpret_cast<std::byte*>(&head) + sizeof(Head), kMostBytes};
  }
  void* record = rest.at;
  rest.bytes -= bytes;
  rest.at = rest.bytes != 0 ? rest.at + bytes : nullptr;
  Head& head = head_of(record);
  ++head.made;
  head.bytes += static_cast<std::uint32_t>(bytes);
  made_bytes_ += bytes;
  return record;
}

}  // namespace slabpool
