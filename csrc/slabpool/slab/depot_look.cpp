// Looking into the depot: the block at an address, blocks with a tag, and the check of all invariants.
#include "slabpool/slab/depot.hpp"

namespace slabpool {

Block* Depot::find(const void* address) const noexcept {
  const std::lock_guard lock(mutex_);
  Span* span = pages_.lookup(address);
  if (span == nullptr) return nullptr;
  const auto* byte = static_cast<const std::byte*>(address);
  if (span->kind == SpanKind::large || span->kind == SpanKind::growing) return &span->large;
  if (span->kind == SpanKind::arena) return Reserves::find(span, byte);
  if (span->kind != SpanKind::slab) return nullptr;
  const auto offset = static_cast<std::size_t>(byte - pages_.address(span));
  const std::size_t index = offset / class_size(span->size_class);
  return index < span->carved ? &span->blocks[index] : nullptr;
}

Block* Depot::find_held(const void* address) const noexcept {
  Span* span = pages_.lookup(address);
  if (span == nullptr) return nullptr;
  if (span->kind == SpanKind::large) return &span->large;
  // An arena's list of blocks moves in memory, so it is read under the lock. Growing tensors are looked up rarely.
  if (span->kind != SpanKind::slab) return find(address);
  // Does not read `carved`: other threads change it, and a held block lies below it. A division of 32 bits takes a third
  // of the time of one of 64, and a slab has a few MiB at most.
  const auto offset =
      static_cast<std::uint32_t>(static_cast<const std::byte*>(address) - pages_.address(span));
  return &span->blocks[offset / static_cast<std::uint32_t>(class_size(span->size_class))];
}

std::uint64_t Depot::left_of(ReserveRef reserve) const noexcept {
  const std::lock_guard lock(mutex_);
  return Reserves::left_of(reserve) << kPageBits;
}

Depot::Tagged Depot::tagged(std::uint8_t tag) const noexcept {
  Tagged found{};
  const auto look = [&](const Block& block) {
    // Relaxed: for a report. `bytes` is written under the mutex only.
    if (block.tag.load(std::memory_order_relaxed) != tag) return;
    ++found.blocks;
    found.bytes += block.bytes;
  };
  const std::lock_guard lock(mutex_);
  pages_.each([&](const Span& span) {
    if (span.kind == SpanKind::large) look(span.large);
    if (span.kind != SpanKind::slab) return;
    for (std::uint32_t i = 0; i < span.carved; ++i) look(span.blocks[i]);
  });
  return found;
}

const char* Depot::verify() noexcept {
  const std::lock_guard lock(mutex_);
  return verify_locked();
}

const char* Depot::verify_locked() const noexcept {
  if (const char* wrong = pages_.verify()) return wrong;
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    for (const Span* slab = partial_[c].front(); slab != nullptr; slab = slab->next) {
      if (slab->kind != SpanKind::slab || slab->size_class != c)
        return "a list of slabs holds something else";
      std::uint32_t free = slab->count - slab->carved;
      for (const Block* block = slab->free_list; block != nullptr; block = block->next) {
        if (block->span != slab) return "a block is on another slab's list";
        if (++free > slab->count) return "a slab's list of free blocks runs in a circle";
      }
      if (free != slab->free_blocks || free == 0) return "a slab's free blocks do not add up";
    }
    if (empty_[c] != nullptr && empty_[c]->free_blocks != empty_[c]->count)
      return "the empty slab of a class has a block in use";
  }
  std::uint64_t slabs[kSlabClasses] = {};
  const char* wrong = nullptr;
  pages_.each([&](const Span& span) {
    if (span.kind != SpanKind::slab) return;
    ++slabs[span.size_class];
    if (span.carved > span.count || span.free_blocks > span.count)
      wrong = "a slab has more blocks than fit in it";
  });
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    if (slabs[c] + arrays_[c].size() != arrays_made_[c]) wrong = "block arrays of slabs do not add up";
  }
  return wrong != nullptr ? wrong : reserves_.verify();
}

}  // namespace slabpool
