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

RecordChunks::Head& RecordChunks::open(Kind& kind) {
  if (!kind.closed_.empty()) {
    auto* head = static_cast<Head*>(kind.closed_.back());
    kind.closed_.pop_back();
    return *head;
  }
  if (kind.chunks_ == kind.closed_.capacity()) kind.closed_.reserve(2 * kind.chunks_ + 1);
  if (fresh_count_ == 0) {
    mappings_.reserve(mappings_.size() + 1);
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
  ++kind.chunks_;
  return *head;
}

void RecordChunks::close(Head& head, Kind& kind) noexcept {
  made_bytes_ -= head.bytes;
  if (kind.at_ != nullptr && &head_of(kind.at_) == &head) {
    kind.at_ = nullptr;
    kind.bytes_ = 0;
  }
  // Cannot fail for private memory that is not locked. Where it is locked (mlockall), the bytes are cleared instead.
  if (madvise(&head, kChunkBytes, MADV_DONTNEED) != 0) {
    auto* words = reinterpret_cast<std::uint64_t*>(&head);
    for (std::size_t i = 0; i < kChunkBytes / sizeof(*words); ++i)
      __atomic_store_n(&words[i], 0, __ATOMIC_RELAXED);
  }
  kind.closed_.push_back(&head);
}

void* RecordChunks::make(Kind& kind, std::size_t bytes) {
  SLABPOOL_ASSERT(bytes != 0 && bytes <= kMostBytes && bytes % kAlign == 0, "a record fits in a chunk",
                  bytes);
  if (kind.bytes_ < bytes) {
    Head& head = open(kind);
    SLABPOOL_ASSERT(head.made == 0 && head.bytes == 0, "a chunk is opened with zero bytes", head.made);
    kind.at_ = reinterpret_cast<std::byte*>(&head) + sizeof(Head);
    kind.bytes_ = kMostBytes;
  }
  void* record = kind.at_;
  kind.bytes_ -= bytes;
  kind.at_ = kind.bytes_ != 0 ? kind.at_ + bytes : nullptr;
  Head& head = head_of(record);
  ++head.made;
  head.bytes += static_cast<std::uint32_t>(bytes);
  made_bytes_ += bytes;
  return record;
}

}  // namespace slabpool
