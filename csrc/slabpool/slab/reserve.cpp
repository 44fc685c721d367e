#include "slabpool/slab/reserve.hpp"

#include <algorithm>

namespace slabpool {
namespace {

bool is_free(const Block& block) noexcept { return block.span == nullptr; }

void link(Block*& head, Block& block) noexcept {
  SLABPOOL_ASSERT(&block != head && is_free(block), "a free block is linked once", block.data);
  block.prev = nullptr;
  block.next = head;
  if (head != nullptr) head->prev = &block;
  head = &block;
}

void unlink(Block*& head, Block& block) noexcept {
  SLABPOOL_ASSERT(block.prev != nullptr ? block.prev->next == &block : head == &block,
                  "a block is removed from the list it is on", block.data);
  (block.prev != nullptr ? block.prev->next : head) = block.next;
  if (block.next != nullptr) block.next->prev = block.prev;
  block.prev = block.next = nullptr;
}

}  // namespace

Reserves::~Reserves() = default;

// Changes pages_left and the sum of all of them together.
void Reserves::set_left(Reserve& reserve, std::uint64_t pages) noexcept {
  SLABPOOL_ASSERT(reserve.pages_left <= reserved_pages(), "reserved pages = sum of pages_left",
                  reserve.pages_left, reserved_pages());
  SLABPOOL_ASSERT(reserved_pages() - reserve.pages_left + pages <= capacity_pages_,
                  "reserved pages <= capacity", reserved_pages(), pages, capacity_pages_);
  reserved_.store(reserved_.load(std::memory_order_relaxed) - reserve.pages_left + pages,
                  std::memory_order_relaxed);
  reserve.pages_left = pages;
}

ReserveRef Reserves::open(std::uint64_t pages, ReserveRef from) {
  if (!current(from)) from = {};
  const std::uint64_t extra = needed(pages, from);
  if (!has_room(extra)) return {};
  if (spare_ == nullptr) {
    all_.push_back(std::make_unique<Reserve>());
    spare_ = all_.back().get();
  }
  Reserve* reserve = spare_;
  SLABPOOL_ASSERT(reserve->serial == 0 && reserve->pages_left == 0 && reserve->arenas == nullptr,
                  "a spare promise has nothing", reserve->serial, reserve->pages_left);
  spare_ = reserve->next_spare;
  reserve->next_spare = nullptr;
  reserve->serial = next_serial_++;
  reserve->from = from;
  reserve->base = pages - extra;
  reserve->extra = extra;
  if (from.reserve != nullptr) ++from.reserve->holds;
  top_up(*reserve, pages - extra);
  reserve->borrowed = 0;
  set_left(*reserve, pages);
  return {reserve, reserve->serial};
}

void Reserves::close(ReserveRef ref) noexcept {
  if (!current(ref)) return;
  Reserve& reserve = *ref.reserve;
  if (Reserve* from = returns_to(reserve.from)) return merge(reserve, *from);
  set_left(reserve, 0);
  while (Arena* arena = reserve.arenas) {
    reserve.arenas = arena->next;
    arena->reserve = nullptr;
    drop_unused(*arena);
    if (arena->live == 0) {
      if (arena->span != nullptr) pages_.free_range(arena->span);
      retire(arena);
    } else {
      keep_only_live(*arena);
    }
  }
  retire(reserve);
}

void Reserves::retire(Reserve& reserve) noexcept {
  SLABPOOL_ASSERT(reserve.pages_left == 0 && reserve.arenas == nullptr,
                  "a promise that is over has nothing", reserve.pages_left);
  reserve = {};
  reserve.next_spare = spare_;
  spare_ = &reserve;
}

// ---- small blocks

void Reserves::add_records() {
  all_blocks_.push_back(std::make_unique<Block[]>(kRecordBatch));
  for (std::size_t i = 0; i < kRecordBatch; ++i) retire(&all_blocks_.back()[i]);
}

void Reserves::retire(Block* block) noexcept {
  block->next = spare_blocks_;
  spare_blocks_ = block;
}

// Adds a range with addresses for all pages that the promise has left. Its pages are committed as they are drawn.
void Reserves::add_arena(Reserve& reserve) {
  // Blocks are cut from the newest arena only, so undrawn pages of older ones are freed for it.
  for (Arena** link = &reserve.arenas; *link != nullptr;) {
    Arena* older = *link;
    drop_unused(*older);
    if (older->span != nullptr) {
      link = &older->next;
    } else {
      *link = older->next;
      retire(older);
    }
  }
  if (spare_arenas_ == nullptr) {
    all_arenas_.push_back(std::make_unique<Arena>());
    spare_arenas_ = all_arenas_.back().get();
  }
  Span* span = pages_.take_range(reserve.pages_left);
  if (span == nullptr) return;
  Arena* arena = spare_arenas_;
  spare_arenas_ = arena->next;
  arena->span = span;
  span->arena = arena;
  arena->used = 0;
  arena->touched = span->zero ? 0 : span->committed << kPageBits;
  arena->live = 0;
  arena->reserve = &reserve;
  arena->next = reserve.arenas;
  reserve.arenas = arena;
}

void Reserves::retire(Arena* arena) noexcept {
  SLABPOOL_ASSERT(arena->live == 0, "an arena is retired without live blocks", arena->live);
  for (Block* block : arena->blocks) retire(block);
  arena->blocks.clear();
  std::fill(std::begin(arena->free), std::end(arena->free), nullptr);
  arena->span = nullptr;
  arena->next = spare_arenas_;
  spare_arenas_ = arena;
}

// Sets the number of cut bytes. The pages by which it changes are drawn from the promise or returned to it. False if
// the system refuses to commit them.
bool Reserves::set_used(Arena& arena, std::uint64_t bytes) noexcept {
  const std::uint64_t before = arena.span->drawn;
  const std::uint64_t pages = pages_for(bytes);
  SLABPOOL_ASSERT(before == pages_for(arena.used), "span.drawn = pages_for(used)", before, arena.used);
  SLABPOOL_ASSERT(pages <= arena.span->pages && pages <= before + arena.reserve->pages_left,
                  "an arena draws promised pages only", pages, before, arena.span->pages,
                  arena.reserve->pages_left);
  if (pages != before) {
    if (!pages_.draw(arena.span, pages, capacity_pages_)) return false;
    arena.used = bytes;
    if (pages > before) {
      set_left(*arena.reserve, arena.reserve->pages_left - (pages - before));
    } else if (!put_back(*arena.reserve, before - pages)) {
      limit_arenas(*arena.reserve, arena.reserve->pages_left);
    }
  }
  arena.used = bytes;
  return true;
}

// A returned block of the class, if one has the alignment.
Block* Reserves::find_free(const Arena& arena, unsigned size_class, std::uint64_t align) noexcept {
  for (Block* block = arena.free[size_class]; block != nullptr; block = block->next)
    if ((reinterpret_cast<std::uintptr_t>(block->data) & (align - 1)) == 0) return block;
  return nullptr;
}

Block* Reserves::reuse(Reserve& reserve, unsigned size_class, std::uint64_t align) noexcept {
  for (Arena* arena = reserve.arenas; arena != nullptr; arena = arena->next) {
    Block* block = find_free(*arena, size_class, align);
    if (block == nullptr) continue;
    SLABPOOL_ASSERT(is_free(*block) && block->bytes == class_size(size_class), "a listed block is free",
                    block->data, block->bytes, size_class);
    unlink(arena->free[size_class], *block);
    block->span = arena->span;
    ++arena->span->count;
    ++arena->live;
    return block;
  }
  return nullptr;
}

// Pages of the first arena that are not cut may lie behind others that are promised, or a new arena takes their place: so
// what a block needs there is compared with what is left, as cut_from() does.
bool Reserves::can_cut(ReserveRef ref, unsigned size_class, std::uint64_t align) noexcept {
  const std::uint64_t size = class_size(size_class);
  for (; current(ref); ref = ref.reserve->from) {
    const Reserve& reserve = *ref.reserve;
    if (pages_for(size) <= reserve.pages_left) return true;
    if (const Arena* arena = reserve.arenas; arena != nullptr && arena->span != nullptr) {
      const std::uint64_t pages = pages_for(((arena->used + align - 1) & ~(align - 1)) + size);
      if (pages <= arena->span->pages && pages - arena->span->drawn <= reserve.pages_left) return true;
    }
    for (const Arena* arena = reserve.arenas; arena != nullptr; arena = arena->next)
      if (find_free(*arena, size_class, align) != nullptr) return true;
  }
  return false;
}

Reserves::Cut Reserves::cut(ReserveRef ref, unsigned size_class, std::uint64_t align) {
  Cut result;
  for (; current(ref) && result.block == nullptr && !result.system_refused; ref = ref.reserve->from)
    result = cut_from(*ref.reserve, size_class, align);
  return result;
}

Reserves::Cut Reserves::cut_from(Reserve& reserve, unsigned size_class, std::uint64_t align) {
  Cut result;
  result.block = reuse(reserve, size_class, align);
  if (result.block != nullptr) return result;
  const std::uint64_t size = class_size(size_class);
  const auto start = [&](const Arena& arena) { return (arena.used + align - 1) & ~(align - 1); };
  const auto fits = [&](const Arena* arena) {
    if (arena == nullptr || arena->span == nullptr) return false;
    // An empty arena that has become smaller than the promise is replaced by one for all pages left.
    if (arena->used == 0 && arena->span->pages < reserve.pages_left) return false;
    const std::uint64_t pages = pages_for(start(*arena) + size);
    return pages <= arena->span->pages && pages - arena->span->drawn <= reserve.pages_left;
  };
  if (!fits(reserve.arenas)) {
    if (pages_for(size) > reserve.pages_left) return result;
    add_arena(reserve);
    if (!fits(reserve.arenas)) return result;
  }
  Arena& arena = *reserve.arenas;
  if (spare_blocks_ == nullptr) add_records();
  if (arena.blocks.size() == arena.blocks.capacity()) arena.blocks.reserve(2 * arena.blocks.size() + 16);
  const std::uint64_t offset = start(arena);
  if (!set_used(arena, offset + size)) {
    result.system_refused = true;
    return result;
  }
  Block* block = spare_blocks_;
  spare_blocks_ = block->next;
  block->next = nullptr;
  block->data = pages_.address(arena.span) + offset;
  block->bytes = size;
  block->span = arena.span;
  block->prev = nullptr;
  block->bin = kBins;  // not kept by thread caches: it returns to the promise
  block->zero = offset >= arena.touched;
  arena.touched = std::max(arena.touched, arena.used);
  arena.blocks.push_back(block);
  ++arena.span->count;
  ++arena.live;
  result.block = block;
  return result;
}

// Uncuts free blocks at the end of an arena. Otherwise a request whose steps each need a little more than the last one
// would use up its promise.
void Reserves::roll_back(Arena& arena) noexcept {
  while (!arena.blocks.empty() && is_free(*arena.blocks.back())) {
    Block* block = arena.blocks.back();
    arena.blocks.pop_back();
    unlink(arena.free[bin_of(block->bytes)], *block);
    retire(block);
  }
  std::uint64_t used = 0;
  if (!arena.blocks.empty()) {
    const Block& last = *arena.blocks.back();
    used = static_cast<std::uint64_t>(last.data - pages_.address(arena.span)) + last.bytes;
  }
  [[maybe_unused]] const bool done = set_used(arena, used);
  SLABPOOL_ASSERT(done, "drawing fewer pages is not refused", used);
}

void Reserves::give(Block* block) noexcept {
  Span* span = block->span;
  Arena& arena = *span->arena;
  SLABPOOL_ASSERT(span->count != 0 && arena.live >= span->count, "a block of an arena returns once",
                  block->data, span->count, arena.live);
  block->span = nullptr;
  --span->count;
  --arena.live;
  if (arena.reserve != nullptr) {
    link(arena.free[bin_of(block->bytes)], *block);
    if (block == arena.blocks.back()) roll_back(arena);
    return remove_if_empty(arena);
  }
  if (span->count == 0) {
    pages_.free_range(span);
  } else {
    free_pages_of(*block, span);
  }
  if (arena.live == 0) retire(&arena);
}

// After the promise was closed: frees the pages around a returned block that no block uses any more. If there are no records
// for that, they are freed with the next block beside them that returns. Takes as long as there are free blocks around it,
// whose pages are freed by it, and as the smaller part of the other blocks of the span.
void Reserves::free_pages_of(const Block& block, Span* span) noexcept {
  if (span->drawn != span->pages || !pages_.has_spares()) return;
  const std::vector<Block*>& blocks = span->arena->blocks;
  const std::byte* base = pages_.address(span);
  const auto offset = [base](const Block& b) { return static_cast<std::uint64_t>(b.data - base); };
  const std::byte* end = base + (span->pages << kPageBits);
  const auto below = [](const Block* b, const std::byte* at) { return b->data < at; };
  const auto begin_of = std::lower_bound(blocks.begin(), blocks.end(), base, below);
  const auto end_of = std::lower_bound(begin_of, blocks.end(), end, below);
  const auto at = std::lower_bound(begin_of, end_of, block.data, below);
  // Up to the next blocks in use on both sides.
  std::uint64_t low = 0;
  for (auto before = at; before != begin_of && low == 0;) {
    const Block& other = **--before;
    if (!is_free(other)) low = pages_for(offset(other) + other.bytes);
  }
  std::uint64_t high = span->pages;
  for (auto after = at + 1; after < end_of; ++after) {
    if (is_free(**after)) continue;
    high = offset(**after) >> kPageBits;
    break;
  }
  if (low >= high) return;
  const auto move = [](auto from, auto to, Span* target) {
    for (; from != to; ++from) {
      if (is_free(**from)) continue;
      --(*from)->span->count;
      (*from)->span = target;
      ++target->count;
    }
  };
  const std::uint64_t pages = span->pages;
  if (at - begin_of <= end_of - at) {
    if (low != 0) move(begin_of, at, pages_.split_front(span, low));
    pages_.free_range(high == pages ? span : pages_.split_front(span, high - low));
  } else {
    if (high != pages) move(at, end_of, pages_.split_range(span, high));
    pages_.free_range(low == 0 ? span : pages_.split_range(span, low));
  }
}

void Reserves::drop_unused(Arena& arena) noexcept {
  if (arena.span == nullptr || arena.span->pages == arena.span->drawn) return;
  if (arena.span->drawn != 0) {
    pages_.shrink_range(arena.span, arena.span->drawn);
  } else {
    pages_.free_range(arena.span);
    arena.span = nullptr;
  }
}

// After the promise was closed, while some blocks are in use: frees the pages without such a block.
void Reserves::keep_only_live(Arena& arena) noexcept {
  Span* span = arena.span;
  arena.span = nullptr;
  const std::byte* base = pages_.address(span);
  const auto set_spans = [](auto from, auto to, Span* to_span) {
    for (; from != to; ++from) {
      if (!is_free(**from)) (*from)->span = to_span;
    }
  };
  std::uint64_t offset = 0;  // pages of the original range before `span`
  for (auto block = arena.blocks.begin(); block != arena.blocks.end();) {
    if (is_free(**block)) {
      ++block;
      continue;
    }
    // A run of adjacent pages that all have live blocks.
    const auto run = block;
    const auto first = static_cast<std::uint64_t>((*block)->data - base) >> kPageBits;
    std::uint64_t end = first;
    std::uint32_t live = 0;
    for (; block != arena.blocks.end(); ++block) {
      if (is_free(**block)) continue;
      const auto start = static_cast<std::uint64_t>((*block)->data - base);
      if (live != 0 && start >> kPageBits > end) break;
      end = pages_for(start + (*block)->bytes);
      ++live;
    }
    if (!pages_.has_spares()) return;  // no records: the rest is freed as its blocks return
    if (first != offset) {
      Span* front = span;
      span = pages_.split_range(front, first - offset);
      span->count = front->count;
      pages_.free_range(front);
    }
    if (end - first != span->pages) {
      Span* rest = pages_.split_range(span, end - first);
      rest->count = span->count - live;
      span->count = live;
      set_spans(block, arena.blocks.end(), rest);
      set_spans(run, block, span);
      span = rest;
      offset = end;
    } else {
      set_spans(run, block, span);
      return;
    }
  }
  if (span->count == 0) pages_.free_range(span);
}

Block* Reserves::find(const Span* span, const std::byte* address) noexcept {
  const std::vector<Block*>& blocks = span->arena->blocks;
  auto after = std::upper_bound(blocks.begin(), blocks.end(), address,
                                [](const std::byte* a, const Block* b) { return a < b->data; });
  if (after == blocks.begin()) return nullptr;
  Block* block = *--after;
  return address < block->data + block->bytes ? block : nullptr;
}

// ---- spans

std::uint64_t Reserves::prepare(ReserveRef ref, std::uint64_t pages) noexcept {
  if (!current(ref)) return 0;
  Reserve& reserve = *ref.reserve;
  top_up(reserve, pages);
  const std::uint64_t own = std::min(pages, reserve.pages_left);
  // Arenas keep no more undrawn pages than the promise will have left, so that the span can get its pages.
  limit_arenas(reserve, reserve.pages_left - own);
  return own;
}

void Reserves::limit_arenas(Reserve& reserve, std::uint64_t most) noexcept {
  for (Arena* arena = reserve.arenas; arena != nullptr; arena = arena->next) {
    if (arena->span == nullptr) continue;
    if (most == 0) {
      drop_unused(*arena);
      continue;
    }
    if (arena->span->pages - arena->span->drawn > most)
      pages_.shrink_range(arena->span, arena->span->drawn + most);
    most -= arena->span->pages - arena->span->drawn;
  }
}

void Reserves::draw(ReserveRef ref, std::uint64_t pages, Span* span) noexcept {
  if (pages == 0) return;
  SLABPOOL_ASSERT(current(ref) && may_draw(ref, *span), "a span draws from one open promise", ref.serial,
                  span->reserve_serial);
  SLABPOOL_ASSERT(pages <= ref.reserve->pages_left, "a promise is not drawn beyond its pages", pages,
                  ref.reserve->pages_left);
  span->reserve_pages += pages;
  ref.reserve->holds += pages;
  set_left(*ref.reserve, ref.reserve->pages_left - pages);
  span->reserve = ref.reserve;
  span->reserve_serial = ref.serial;
}

void Reserves::refund(Span* span, std::uint64_t freed) noexcept {
  const std::uint64_t pages = std::min(freed, span->reserve_pages);
  if (pages == 0) return;
  const ReserveRef drawn{span->reserve, span->reserve_serial};
  if (Reserve* reserve = returns_to(drawn)) (void)put_back(*reserve, pages);
  drop_holds(drawn, pages);
  span->reserve_pages -= pages;
}

const char* Reserves::verify() const noexcept {
  std::uint64_t left = 0;
  std::uint64_t idle = 0;
  for (const auto& reserve : all_) {
    left += reserve->pages_left;
    if (reserve->into.reserve != nullptr && (reserve->holds == 0 || reserve->pages_left != 0))
      return "a promise that was merged into another one is not over";
    std::uint64_t own = 0;
    for (const Arena* arena = reserve->arenas; arena != nullptr; arena = arena->next) {
      if (arena->span == nullptr) continue;
      if (arena->span->drawn != pages_for(arena->used)) return "an arena's pages and bytes do not agree";
      if (arena->span->count != arena->live) return "an arena's live blocks do not add up";
      own += arena->span->pages - arena->span->drawn;
      idle += arena->span->committed - arena->span->drawn;
    }
    if (own > reserve->pages_left) return "arenas keep more pages than their promise covers";
  }
  if (left != reserved_pages()) return "promises do not add up";
  if (idle != pages_.arena_idle_pages()) return "idle pages of arenas do not add up";
  if (pages_.in_use_pages() + left > capacity_pages_)
    return "pages in use and reserved pages exceed the capacity";
  return nullptr;
}

}  // namespace slabpool
