#include "slabpool/slab/depot.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>

namespace slabpool {
namespace {

constexpr std::uint64_t kGrowStep = 128;  // pages, 2 MiB: one huge page

std::uint64_t grow_step(std::uint64_t capacity) {
  return std::clamp<std::uint64_t>((capacity >> kPageBits) / 64, 1, kGrowStep);
}

}  // namespace

Depot::Depot(MemoryResource& memory, std::uint64_t capacity, bool verify)
    : capacity_(capacity),
      pages_(memory, grow_step(capacity)),
      reserves_(pages_, capacity >> kPageBits),
      soft_limit_pages_(std::max<std::uint64_t>(capacity >> kPageBits >> 5, grow_step(capacity))),
      verify_each_(verify) {
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    // A slab takes 1/256 of the capacity at most, or a small pool would be full of half-empty slabs; but
    // more where that would leave over 1/16 of it unused at its end.
    const std::size_t size = class_size(c);
    const std::uint64_t most = std::max<std::uint64_t>(capacity >> kPageBits >> 8, pages_for(size));
    std::uint64_t pages = std::min<std::uint64_t>(kSlabShapes.at[c].pages, most);
    while (pages < kSlabShapes.at[c].pages && pages * kPageSize % size > pages * kPageSize / 16) ++pages;
    shapes_[c] = {static_cast<std::uint32_t>(pages),
                  static_cast<std::uint32_t>(pages * kPageSize / size)};
  }
  publish();  // of memory that is committed from the start
}

Depot::~Depot() {
  for (Block* blocks : all_arrays_) ::operator delete[](blocks, std::align_val_t{alignof(Block)});
}

void Depot::publish() noexcept {
  // Release pairs with figures(): a reader that sees blocks counted as live also sees them committed.
  peak_committed_.store(pages_.peak_committed_pages() << kPageBits, std::memory_order_release);
  committed_.store(pages_.committed_pages() << kPageBits, std::memory_order_release);
  if (verify_each_) {
    if (const char* wrong = pages_.verify()) {
      std::fprintf(stderr, "slabpool: internal error: %s\n", wrong);
      std::abort();
    }
  }
}

PageHeap::Result Depot::take_pages(std::uint64_t pages, std::uint64_t align_pages, Effort effort,
                                   std::uint64_t own) {
  if (effort == Effort::hard) drop_empty_slabs();
  if (!has_room(pages, own)) return {};
  PageHeap::Result result = pages_.allocate(pages, align_pages, commit_limit(pages, effort));
  if (result.span == nullptr && beyond(effort))
    result = pages_.allocate(pages, align_pages, capacity_ >> kPageBits);
  publish();
  return result;
}

bool Depot::has_room(std::uint64_t pages, std::uint64_t own) const noexcept {
  return pages_.in_use_pages() + pages + reserves_.reserved_pages() - own <= capacity_ >> kPageBits;
}

// How far pages may be committed for `pages` more in use.
std::uint64_t Depot::commit_limit(std::uint64_t pages, Effort effort) noexcept {
  if (effort == Effort::hard) {
    // The caches are empty now, so this is what is really in use. Room of a sixth beyond it before the caches
    // are looked into again: that bounds both the waste and how often it happens (docs/architecture.md).
    const std::uint64_t now = pages_.in_use_pages() + pages;
    soft_limit_pages_ = std::max(soft_limit_pages_, now + pages_.idle_pages() + now / 6);
  }
  return std::min(capacity_ >> kPageBits, pages_.granule_up(soft_limit_pages_));
}

// Where granules are several pages, more may have to be committed than is in use: the rest of granules that are
// in use in part. Then only the capacity is a limit.
bool Depot::beyond(Effort effort) const noexcept {
  return effort == Effort::hard && pages_.granule_pages() != 1;
}

Block* Depot::carve_block(Span* slab) noexcept {
  Block* block = slab->free_list;
  if (block != nullptr) {
    slab->free_list = block->next;
  } else {
    const std::uint32_t index = slab->carved;
    block = &slab->blocks[index];
    const std::size_t size = class_size(slab->size_class);
    block->data = pages_.address(slab) + index * size;
    block->bytes = size;
    block->span = slab;
    block->bin = static_cast<std::uint16_t>(slab->size_class);
    block->zero = slab->zero;
    slab->carved = index + 1;
  }
  --slab->free_blocks;
  return block;
}

void Depot::ready_array(unsigned size_class) {
  if (!arrays_[size_class].empty()) return;
  // Sized for a whole slab even where the slab will be smaller, so that arrays of a class are alike.
  const std::uint32_t count = shapes_[size_class].blocks;
  if (all_arrays_.size() == all_arrays_.capacity()) all_arrays_.reserve(2 * all_arrays_.size() + 16);
  // Room for every array of the class, so that giving one back never allocates.
  if (++arrays_made_[size_class] > arrays_[size_class].capacity()) {
    arrays_[size_class].reserve(std::size_t{2} * arrays_made_[size_class]);
  }
  auto* blocks =
      static_cast<Block*>(::operator new[](count * sizeof(Block), std::align_val_t{alignof(Block)}));
  for (std::uint32_t i = 0; i < count; ++i) new (&blocks[i]) Block();
  all_arrays_.push_back(blocks);
  arrays_[size_class].push_back(blocks);
}

Span* Depot::new_slab(unsigned size_class, Effort effort, bool& refused) {
  ready_array(size_class);  // before pages are taken: it may run out of memory
  const SlabShape shape = shapes_[size_class];
  std::uint64_t pages = shape.pages;
  std::uint32_t count = shape.blocks;
  PageHeap::Result result = take_pages(pages, 1, effort);
  if (result.span == nullptr && !result.system_refused && effort == Effort::hard) {
    // No room for a whole slab: one that holds a single block may still fit.
    pages = pages_for(class_size(size_class));
    count = static_cast<std::uint32_t>((pages << kPageBits) / class_size(size_class));
    result = take_pages(pages, 1, effort);
  }
  refused = result.system_refused;
  if (result.span == nullptr) return nullptr;
  Span* slab = result.span;
  slab->kind = SpanKind::slab;
  slab->size_class = size_class;
  slab->count = slab->free_blocks = count;
  slab->carved = 0;
  slab->free_list = nullptr;
  slab->blocks = arrays_[size_class].back();
  arrays_[size_class].pop_back();
  partial_[size_class].push(slab);
  return slab;
}

Depot::Taken Depot::take_blocks(unsigned size_class, std::uint32_t want, Effort effort) {
  Taken taken;
  const std::lock_guard lock(mutex_);
  while (taken.count < want) {
    Span* slab = partial_[size_class].front();
    if (slab == nullptr) {
      if (taken.count > 0) break;  // a new slab only for what was asked for, not for the batch
      slab = new_slab(size_class, effort, taken.system_refused);
      if (slab == nullptr) return taken;
    }
    if (slab == empty_[size_class]) empty_[size_class] = nullptr;
    Block* block = carve_block(slab);
    if (slab->free_blocks == 0) partial_[size_class].remove(slab);
    block->next = taken.chain;
    taken.chain = block;
    ++taken.count;
  }
  return taken;
}

Depot::Taken Depot::take_span(std::uint64_t bytes, std::uint64_t align, Effort effort,
                              ReserveRef reserve) {
  Taken taken;
  const std::lock_guard lock(mutex_);
  const std::uint64_t pages = pages_for(bytes);
  const std::uint64_t own = reserves_.prepare(reserve, pages);
  const PageHeap::Result result =
      take_pages(pages, std::max<std::uint64_t>(align >> kPageBits, 1), effort, own);
  taken.system_refused = result.system_refused;
  if (result.span == nullptr) return taken;
  // In one step with the pages, or the same bytes would count twice for a moment.
  reserves_.draw(reserve, own, result.span);
  Block* block = &result.span->large;
  block->data = pages_.address(result.span);
  block->bytes = result.span->pages << kPageBits;
  block->span = result.span;
  // One that was promised comes back to the promise, past all caches.
  block->bin =
      static_cast<std::uint16_t>(own == 0 && block->bytes <= kMaxBinned ? bin_of(block->bytes) : kBins);
  block->zero = result.span->zero;
  block->next = nullptr;
  taken.chain = block;
  taken.count = 1;
  return taken;
}

Depot::Taken Depot::take_growing(std::uint64_t most) {
  Taken taken;
  const std::lock_guard lock(mutex_);
  Span* span = pages_.take_growing(pages_for(most));
  if (span == nullptr) return taken;
  Block* block = &span->large;
  block->data = pages_.address(span);
  block->bytes = 0;
  block->span = span;
  block->bin = kBins;  // no thread caches it
  block->zero = false;
  block->next = nullptr;
  taken.chain = block;
  taken.count = 1;
  return taken;
}

bool Depot::grow(Block& block, std::uint64_t pages, Effort effort, ReserveRef reserve,
                 bool& refused) noexcept {
  const std::lock_guard lock(mutex_);
  Span* span = block.span;
  const std::uint64_t more = pages - span->drawn;
  if (!Reserves::may_draw(reserve, *span)) reserve = {};
  const std::uint64_t own = reserves_.prepare(reserve, more);
  if (effort == Effort::hard) drop_empty_slabs();
  if (!has_room(more, own)) return false;
  const bool grown = pages_.grow(span, pages, commit_limit(more, effort)) ||
                     (beyond(effort) && pages_.grow(span, pages, capacity_ >> kPageBits));
  if (grown) reserves_.draw(reserve, own, span);
  refused = !grown && effort == Effort::hard && pages_.system_refused();
  publish();
  return grown;
}

Depot::Taken Depot::take_reserved(ReserveRef reserve, unsigned size_class, std::uint64_t align) {
  Taken taken;
  const std::lock_guard lock(mutex_);
  const Reserves::Cut cut = reserves_.cut(reserve, size_class, align);
  publish();
  taken.chain = cut.block;
  taken.count = cut.block != nullptr ? 1 : 0;
  taken.system_refused = cut.system_refused;
  return taken;
}

void Depot::drop_slab(Span* slab) noexcept {
  partial_[slab->size_class].remove(slab);
  // Never allocates: ready_array() made room.
  arrays_[slab->size_class].push_back(slab->blocks);
  slab->blocks = slab->free_list = nullptr;
  pages_.free(slab);
}

void Depot::give_one(Block* block) noexcept {
  Span* span = block->span;
  if (span->kind == SpanKind::large) {
    pages_.free(span);
    return reserves_.refund(span);
  }
  if (span->kind == SpanKind::arena) return reserves_.give(block);
  if (span->kind == SpanKind::growing) {
    pages_.free_growing(span);
    return reserves_.refund(span);
  }
  block->next = span->free_list;
  span->free_list = block;
  if (span->free_blocks++ == 0) partial_[span->size_class].push(span);
  if (span->free_blocks == span->count) {
    // One empty slab a class stays, or a tensor that comes and goes would build a slab each time.
    if (empty_[span->size_class] == nullptr) {
      empty_[span->size_class] = span;
    } else {
      drop_slab(span);
    }
  }
}

void Depot::give(Block* chain) noexcept {
  const std::lock_guard lock(mutex_);
  while (chain != nullptr) {
    Block* next = chain->next;
    give_one(chain);
    chain = next;
  }
  publish();
}

void Depot::drop_empty_slabs() noexcept {
  for (Span*& slab : empty_) {
    if (slab == nullptr) continue;
    drop_slab(slab);
    slab = nullptr;
  }
}

ReserveRef Depot::open_reserve(std::uint64_t pages) {
  const std::lock_guard lock(mutex_);
  ReserveRef reserve = reserves_.open(pages);
  if (reserve.reserve == nullptr) {
    drop_empty_slabs();
    reserve = reserves_.open(pages);
  }
  return reserve;
}

void Depot::close_reserve(ReserveRef reserve) noexcept {
  const std::lock_guard lock(mutex_);
  reserves_.close(reserve);
  publish();
}

std::uint64_t Depot::trim() noexcept {
  const std::lock_guard lock(mutex_);
  drop_empty_slabs();
  const std::uint64_t pages = pages_.decommit(pages_.unused_pages());
  publish();
  return pages << kPageBits;
}

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
  // An arena lists its blocks, and the list moves; a tensor that grows is looked up rarely enough.
  if (span->kind != SpanKind::slab) return find(address);
  // `carved` is not looked at: others change it, and a block that is held lies below it. 32 bits divide
  // in a third of the time; a slab is a few MiB at most.
  const auto offset =
      static_cast<std::uint32_t>(static_cast<const std::byte*>(address) - pages_.address(span));
  return &span->blocks[offset / static_cast<std::uint32_t>(class_size(span->size_class))];
}

Depot::Tagged Depot::tagged(std::uint8_t tag) const noexcept {
  Tagged found{};
  const auto look = [&](const Block& block) {
    // Relaxed: a figure. `bytes` is written under the mutex only.
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
  }
  return reserves_.verify();
}

}  // namespace slabpool
