// Records for requests: made by chunks of slots as they are needed, and their pages returned by trim().
//
// A chunk is closed while all its slots are free. Its records are zero bytes then, which every reader with an old handle
// takes for a free slot. Its addresses stay, and new_slot() opens it again before it makes another.
#include <sys/mman.h>

#include <bit>
#include <memory>
#include <new>

#include "slabpool/request/table.hpp"

namespace slabpool {
namespace {

// Whole pages of any system, so that they hold nothing else.
constexpr std::align_val_t kPageAlign{kMostSystemPage};
constexpr std::size_t kRecordBytes =
    (FreeSlots::kGroup * sizeof(RequestRecord) + kMostSystemPage - 1) & ~(kMostSystemPage - 1);

}  // namespace

RequestTable::~RequestTable() {
  for (std::uint32_t chunk = 0; chunk * kChunk < slots_made_; ++chunk) {
    RequestRecord* records = chunks_[chunk].load(std::memory_order_relaxed);
    if ((closed_chunks_[chunk / 64] >> (chunk % 64) & 1) == 0) std::destroy_n(records, kChunk);
    ::operator delete(records, kPageAlign);
  }
}

void RequestTable::make_chunk(std::uint32_t chunk) {
  // A refusal leaves the table as it was: chunks of slots may be open without a record.
  if (!slots_.open(chunk * kChunk, (chunk + 1) * kChunk)) throw std::bad_alloc();
  auto* records = static_cast<RequestRecord*>(::operator new(kRecordBytes, kPageAlign));
  for (std::uint32_t i = 0; i < kChunk; ++i)
    (new (&records[i]) RequestRecord())->slot = chunk * kChunk + i;
  // Release pairs with record().
  chunks_[chunk].store(records, std::memory_order_release);
}

void RequestTable::open_chunk(std::uint32_t chunk) noexcept {
  RequestRecord* records = chunks_[chunk].load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < kChunk; ++i) records[i].revive(chunk * kChunk + i);
  closed_chunks_[chunk / 64] &= ~(std::uint64_t{1} << (chunk % 64));
  --closed_count_;
  free_slots_.give(chunk);
}

RequestRecord* RequestTable::new_slot() {
  if (const std::uint32_t slot = free_slots_.pop(); slot != FreeSlots::kNone) return record(slot);
  for (std::uint32_t word = 0; closed_count_ != 0; ++word) {
    if (closed_chunks_[word] == 0) continue;
    open_chunk(word * 64 + static_cast<std::uint32_t>(std::countr_zero(closed_chunks_[word])));
    return record(free_slots_.pop());
  }
  if (slots_made_ == kMaxRequests) return nullptr;
  if (slots_made_ % kChunk == 0) make_chunk(slots_made_ / kChunk);
  RequestRecord* r = record(slots_made_++);
  free_slots_.add(r->slot);
  return r;
}

// False: it stays as it is.
bool RequestTable::close_chunk(std::uint32_t chunk) noexcept {
  RequestRecord* records = chunks_[chunk].load(std::memory_order_relaxed);
  // A thread with an old handle may have one of the locks for an instant. It must not while the lock's bytes change, because
  // it could unlock the record's next request.
  std::uint32_t locked = 0;
  bool unused = true;
  while (unused && locked < kChunk && records[locked].blocks.try_lock())
    unused = !records[locked++].blocks.is_counted();
  bool closed = unused && locked == kChunk;
  if (closed) {
    for (std::uint32_t i = 0; i < kChunk; ++i) records[i].empty();
    closed = madvise(records, kRecordBytes, MADV_DONTNEED) == 0;  // unlocks them
  }
  if (!closed) {
    while (locked > 0) records[--locked].blocks.unlock();
    return false;
  }
  free_slots_.withdraw(chunk);
  more_.close(chunk * kChunk, (chunk + 1) * kChunk);
  closed_chunks_[chunk / 64] |= std::uint64_t{1} << (chunk % 64);
  ++closed_count_;
  return true;
}

void RequestTable::trim() noexcept {
  {
    const std::lock_guard lock(mutex_);
    free_slots_.put_all_away();
  }
  for (std::uint32_t chunk = 0;; ++chunk) {
    const std::lock_guard lock(mutex_);
    for (; chunk < slots_made_ / kChunk; ++chunk)
      if (free_slots_.is_idle(chunk) && close_chunk(chunk)) break;
    if (chunk >= slots_made_ / kChunk) return;
  }
}

std::uint64_t RequestTable::metadata_bytes() const noexcept {
  const std::lock_guard lock(mutex_);
  const std::uint64_t chunks = (slots_made_ + kChunk - 1) / kChunk - closed_count_;
  return sizeof(RequestTable) + chunks * kChunk * sizeof(RequestRecord) + slots_.open_bytes() +
         more_.open_bytes() + kMaxRequests / kChunk * sizeof(std::atomic<RequestRecord*>);
}

}  // namespace slabpool
