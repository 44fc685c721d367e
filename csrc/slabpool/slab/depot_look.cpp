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

std::uint64_t Depot::from_above(ReserveRef reserve) const noexcept {
  const std::lock_guard lock(mutex_);
  return reserve.reserve->base << kPageBits;
}

std::uint64_t Depot::drawable_bytes(ReserveRef reserve) const noexcept {
  const std::lock_guard lock(mutex_);
  return Reserves::drawable(reserve) << kPageBits;
}

std::uint64_t Depot::to_draw(ReserveRef reserve, unsigned size_class, std::uint64_t bytes,
                             std::uint64_t align, const Block* growing) const noexcept {
  const std::lock_guard lock(mutex_);
  if (size_class < kSlabClasses) return Reserves::can_cut(reserve, size_class, align) ? bytes : 0;
  if (growing != nullptr && !Reserves::may_draw(reserve, *growing->span)) return 0;
  return std::min(bytes, Reserves::drawable(reserve) << kPageBits);
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

std::uint64_t Depot::metadata_bytes() const noexcept {
  const std::lock_guard lock(mutex_);
  return chunks_.made_bytes() + pages_.metadata_bytes() + reserves_.metadata_bytes();
}

const char* Depot::verify() noexcept {
  const std::lock_guard lock(mutex_);
  return verify_locked();
}

// Of one slab: the free list, and what its pages are.
const char* Depot::verify_slab(const Span& slab) const noexcept {
  if (slab.carved > slab.count || slab.free_blocks > slab.count)
    return "a slab has more blocks than fit in it";
  if (slab.holes != 0 && slab.carved != slab.count)
    return "a slab with holes has blocks without a record";
  const SlabPages& states = *slab.page_states;
  std::uint32_t in_use[SlabPages::kMost] = {};
  const auto add = [&](const Block& block, std::uint32_t n) {
    const SlabPages::Run run = pages_of(&slab, &block);
    for (std::uint32_t page = run.first; page < run.end; ++page) in_use[page] += n;
  };
  for (std::uint32_t i = 0; i < slab.carved; ++i) add(slab.blocks[i], 1);
  std::uint32_t free = slab.count - slab.carved;
  for (const Block* block = slab.free_list; block != nullptr; block = block->next) {
    if (block->span != &slab) return "a block is on another slab's list";
    if (++free > slab.count) return "a slab's list of free blocks runs in a circle";
    add(*block, ~std::uint32_t{0});
  }
  if (free != slab.free_blocks) return "a slab's free blocks do not add up";
  std::uint32_t holes = 0;
  for (std::uint32_t page = 0; page < slab.pages; ++page) {
    if (in_use[page] != states.in_use[page]) return "blocks in use on a page of a slab do not add up";
    if (states.is_hole(page) && in_use[page] != 0) return "a block in use lies on a hole";
    holes += states.is_hole(page) ? 1 : 0;
  }
  if (holes != slab.holes) return "holes of a slab do not add up";
  const Block* front = slab.free_list;
  const bool hollow = front != nullptr && states.has_hole(pages_of(&slab, front));
  return hollow == slab.front_has_hole ? nullptr : "a slab's first free block is not what the slab says";
}

const char* Depot::verify_locked() const noexcept {
  if (const char* wrong = pages_.verify()) return wrong;
  std::uint64_t slabs[kSlabClasses] = {};
  std::uint64_t with_free[kSlabClasses] = {};
  std::uint64_t solid_free[kSlabClasses] = {};
  std::uint64_t used = 0;
  std::uint64_t pages = 0;
  const char* wrong = nullptr;
  pages_.each([&](const Span& span) {
    if (span.kind != SpanKind::slab || wrong != nullptr) return;
    wrong = verify_slab(span);
    const unsigned c = span.size_class;
    ++slabs[c];
    with_free[c] += span.free_blocks != 0 ? 1 : 0;
    pages += span.pages - span.holes;
    used += std::uint64_t{span.count - span.free_blocks} * class_size(c);
    for (std::uint32_t page = 0; page < span.pages; ++page)
      solid_free[c] += span.page_states->is_solid_free(page) ? 1 : 0;
  });
  if (wrong != nullptr) return wrong;
  if (pages != slab_pages_) return "pages of slabs do not add up";
  if (used != slab_bytes_used_) return "bytes of blocks in use in slabs do not add up";
  std::uint64_t all_solid_free = 0;
  std::uint64_t arrays = 0;  // bytes
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    std::uint64_t listed = 0;
    for (const SpanList* list : {&partial_[c], &hollow_[c]}) {
      for (const Span* slab = list->front(); slab != nullptr; slab = slab->next, ++listed) {
        if (slab->kind != SpanKind::slab || slab->size_class != c || slab->free_blocks == 0)
          return "a list of slabs holds something else";
        if (slab->front_has_hole != (list == &hollow_[c])) return "a slab is on the other list";
      }
    }
    if (listed != with_free[c]) return "a slab with free blocks is on no list";
    if (solid_free[c] != solid_free_in_[c]) return "free pages of slabs do not add up";
    all_solid_free += solid_free[c];
    std::uint64_t spare = 0;
    for (const Block* array = arrays_[c]; array != nullptr; array = array->next) ++spare;
    if (spare != arrays_spare_[c]) return "spare block arrays do not add up";
    arrays += (slabs[c] + spare) * array_bytes(c);
    if (empty_[c] != nullptr && empty_[c]->free_blocks != empty_[c]->count)
      return "the empty slab of a class has a block in use";
  }
  if (all_solid_free != solid_free_) return "free pages of slabs do not add up";
  if (arrays != chunks_.made_bytes()) return "block arrays of slabs do not add up";
  return reserves_.verify();
}

}  // namespace slabpool
