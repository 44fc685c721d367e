// A stream's memory: handed out again on the same stream without a call of the driver, otherwise out of the pool. How it
// goes back: stream_heap_return.cpp. Invariant: only memory that was freed in its stream's order is parked there.
#include "slabpool/adapters/stream_heap.hpp"

#include <pthread.h>

#include <algorithm>
#include <new>

namespace slabpool::cuda {
namespace {

// This thread's. The request counts only for the heap that it was set for.
thread_local std::uint64_t request_of = 0;
thread_local Handle request_now;
thread_local Stream stream_now = nullptr;

// Larger than any address space: rounding up does not overflow.
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 62;

std::atomic<std::uint64_t> next_number{1};

// How many blocks of a list are checked for one that is large enough: spans of a bin differ a little.
constexpr int kLooks = 8;

}  // namespace

std::unique_ptr<StreamHeap> StreamHeap::create(Pool& pool, int device, Error& error) {
  const Driver* driver = Driver::get(error);
  if (driver == nullptr) return nullptr;
  if (device < 0) device = std::max(pool.device(), 0);
  Result result = kSuccess;
  if (driver->context(device, result) == nullptr) {
    (void)error.fail(Status::system_refused, "cuDevicePrimaryCtxRetain of device " +
                                                 std::to_string(device) + ": " +
                                                 driver->describe(result));
    return nullptr;
  }
  return std::unique_ptr<StreamHeap>(new StreamHeap(pool, *driver, device));
}

// A list keeps half of the pool at most: a stream that is in use alone finds most of what it freed, and memory that no
// stream asks for any more goes back.
StreamHeap::StreamHeap(Pool& pool, const Driver& driver, int device) noexcept
    : pool_(pool),
      driver_(driver),
      device_(device),
      number_(next_number.fetch_add(1, std::memory_order_relaxed)),
      most_parked_(pool.stats().capacity / 2),
      marks_(driver) {}

StreamHeap::~StreamHeap() {
  if (!pool_.usable_here()) return;
  flush_all();
  marks_.wait();
  take_back(true);
  // Memory whose work the driver does not report as done keeps its holds.
  while (stuck_ != nullptr) {
    Batch* next = stuck_->next;
    delete stuck_;
    stuck_ = next;
  }
}

StreamHeap::Key StreamHeap::key_of(Stream stream, Handle request) noexcept {
  Key key;
  key.stream = stream == nullptr ? kLegacyStream : stream;
  key.thread = stream == kPerThreadStream ? static_cast<std::uintptr_t>(pthread_self()) : 0;
  key.generation = request.generation;
  return key;
}

// ---- the cheapest pair: no driver, no pool

StreamHeap::Held* StreamHeap::take_parked(const Key& key, std::uint64_t bytes, unsigned bin) noexcept {
  if (last_ == nullptr || !(last_->key == key)) {
    const auto found = lists_.find(key);
    if (found == lists_.end()) return nullptr;
    last_ = &found->second;
  }
  Held** at = &last_->bins[bin];
  for (int looks = 0; looks < kLooks && *at != nullptr; ++looks, at = &(*at)->next) {
    Held* held = *at;
    const std::uint64_t has = held->block->bytes;
    if (has < bytes || has - bytes > has / 4) continue;  // wastes a quarter at most
    *at = held->next;
    held->next = nullptr;
    held->live = true;
    last_->parked -= has;
    --figures_.parked_blocks;
    figures_.parked_bytes -= has;
    return held;
  }
  return nullptr;
}

void* StreamHeap::allocate(std::size_t nbytes, Stream stream, bool waits) noexcept {
  // Relaxed: an allocation that races with the loss of the device may succeed.
  if (!pool_.usable_here() || lost_.load(std::memory_order_relaxed) || nbytes > kMaxBytes)
    return nullptr;
  const std::uint64_t bytes = (std::max<std::uint64_t>(nbytes, 1) + kUnit - 1) / kUnit * kUnit;
  const unsigned bin = bytes <= kMaxBinned ? bin_of(bytes) : kBins;
  Handle request = this->request();
  if (request.generation != 0 && !pool_.is_open(request)) [[unlikely]]
    request = {};
  const Key key = key_of(stream, request);
  {
    const std::lock_guard lock(mutex_);
    if (Held* held = take_parked(key, bytes, bin)) [[likely]] {
      ++figures_.allocations;
      ++figures_.reuses;
      ++figures_.live_blocks;
      figures_.live_bytes += held->block->bytes;
      if (request.generation == 0) held->block->tag.store(kStreamTag, std::memory_order_relaxed);
      return held->block->data;
    }
  }
  return allocate_slowly(bytes, bin, key, request, waits);
}

void StreamHeap::park(Held& held) noexcept {
  List& list = *held.list;
  held.next = list.bins[held.bin];
  list.bins[held.bin] = &held;
  list.parked += held.block->bytes;
  ++figures_.parked_blocks;
  figures_.parked_bytes += held.block->bytes;
  if (held.request.generation == 0) held.block->tag.store(kParkedTag, std::memory_order_relaxed);
}

bool StreamHeap::release(void* address, Stream stream) noexcept {
  return release_in_order(address, &stream);
}

bool StreamHeap::release(void* address) noexcept { return release_in_order(address, nullptr); }

bool StreamHeap::release_in_order(void* address, const Stream* stream) noexcept {
  if (!pool_.usable_here()) return false;
  const Handle now = request();
  bool overfull = false;
  Key full;
  {
    const std::lock_guard lock(mutex_);
    const auto found = held_.find(address);
    if (found == held_.end() || !found->second.live) {
      ++figures_.wrong_frees;
      return false;
    }
    Held& held = found->second;
    const List& list = *held.list;
    const bool in_order = stream == nullptr || key_of(*stream, held.request) == list.key;
    // Within a request only while it is this thread's request: otherwise no later call would end what is kept.
    const bool within = held.request.generation == 0 || held.request.generation == now.generation;
    if (in_order && within && held.others == nullptr && !list.forgotten && list.place.stream != nullptr)
        [[likely]] {
      held.live = false;
      --figures_.live_blocks;
      figures_.live_bytes -= held.block->bytes;
      park(held);
      overfull = list.parked > most_parked_;
      full = list.key;
      if (!overfull) [[likely]]
        return true;
    }
  }
  if (overfull) {
    flush_list(full);
    return true;
  }
  // Behind all streams that it was used on, as far as record() named them.
  Place freed_on;
  if (stream != nullptr) {
    const char* call = "";
    // The driver does not know the stream: waits for the whole device instead.
    if (marks_.find({*stream, device_}, freed_on, call) != kSuccess) freed_on = {};
  }
  std::unique_ptr<Batch> batch;
  Held* alone = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto found = held_.find(address);
    if (found == held_.end() || !found->second.live) {  // freed by two threads at once
      ++figures_.wrong_frees;
      return false;
    }
    Held& held = found->second;
    const Place& own = held.list->place;
    try {
      batch = batch_of(&held, own);
      if (stream != nullptr && freed_on != own) batch->places.push_back(freed_on);
      if (held.others != nullptr)
        batch->places.insert(batch->places.end(), held.others->begin(), held.others->end());
    } catch (const std::bad_alloc&) {
      batch.reset();
    }
    held.live = false;
    held.next = nullptr;
    --figures_.live_blocks;
    figures_.live_bytes -= held.block->bytes;
    ++figures_.waiting_blocks;
    figures_.waiting_bytes += held.block->bytes;
    if (held.request.generation == 0) held.block->tag.store(kParkedTag, std::memory_order_relaxed);
    if (batch == nullptr) alone = &held;
  }
  if (batch != nullptr) {
    send(std::move(batch));
  } else {
    // The host has no memory for a batch, so it waits for the streams now.
    give_back_alone(*alone, freed_on);
  }
  return true;
}

bool StreamHeap::record(const void* address, Stream stream) noexcept {
  if (!pool_.usable_here()) return false;
  const Key key = key_of(stream, {});
  Place place;
  const char* call = "";
  {
    const std::lock_guard lock(mutex_);
    const auto found = held_.find(address);
    if (found == held_.end() || !found->second.live) return false;
    const Key& own = found->second.list->key;
    if (own.stream == key.stream && own.thread == key.thread) return true;
  }
  if (marks_.find({stream, device_}, place, call) != kSuccess) return false;
  try {
    const std::lock_guard lock(mutex_);
    const auto found = held_.find(address);
    if (found == held_.end() || !found->second.live) return false;
    auto& others = found->second.others;
    if (others == nullptr) others = std::make_unique<std::vector<Place>>();
    if (std::find(others->begin(), others->end(), place) == others->end()) others->push_back(place);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

// ---- from the pool

void* StreamHeap::allocate_slowly(std::uint64_t bytes, unsigned bin, const Key& key, Handle request,
                                  bool waits) noexcept {
  const auto failed = [&]() -> void* {
    const std::lock_guard lock(mutex_);
    ++figures_.failures;
    return nullptr;
  };
  take_back(false);
  Key used = key;
  Place place;
  const char* call = "";
  if (marks_.find({key.stream, device_}, place, call) != kSuccess) return failed();
  const RelaxedCapture relaxed(driver_);
  AllocateSpec spec;
  spec.nbytes = bytes;
  spec.align = kUnit;
  spec.request = request;
  Allocation made = pool_.allocate(spec);
  if (made.status == Status::request_closed) {
    // Closed since allocate() checked.
    spec.request = {};
    used.generation = 0;
    made = pool_.allocate(spec);
  }
  if (made.block == nullptr && no_room(made.status)) {
    flush_all();
    take_back(true);
    made = pool_.allocate(spec);
    if (waits && no_room(made.status)) {
      wait();
      made = pool_.allocate(spec);
    }
  }
  if (made.block == nullptr) {
    if (no_room(made.status) || made.status == Status::system_refused)
      pool_.note_exhausted(spec.request, bytes);
    return failed();
  }
  Block* block = made.block;
  try {
    const std::lock_guard lock(mutex_);
    const auto [at, is_new] = lists_.try_emplace(used);
    List& list = at->second;
    if (is_new) {
      list.key = used;
      list.place = place;
    }
    ++list.blocks;
    try {
      Held& held = held_[block->data];
      held.block = block;
      held.list = &list;
      held.request = spec.request;
      held.bin = bin;
      held.live = true;
    } catch (...) {
      --list.blocks;
      drop_list(list);
      throw;
    }
    ++figures_.allocations;
    ++figures_.live_blocks;
    figures_.live_bytes += block->bytes;
    // Relaxed: for reports. Blocks of a request are reported with the request.
    if (spec.request.generation == 0) block->tag.store(kStreamTag, std::memory_order_relaxed);
    return block->data;
  } catch (const std::bad_alloc&) {
    pool_.drop_view(*block);
    return failed();
  }
}

// ---- per thread

void StreamHeap::set_request(Handle request) noexcept {
  if (request.generation != 0) {
    request_of = number_;
    request_now = request;
  } else if (request_of == number_) {
    request_of = 0;  // another heap's stays
  }
}

Handle StreamHeap::request() const noexcept { return request_of == number_ ? request_now : Handle{}; }

void StreamHeap::set_stream(Stream stream) noexcept { stream_now = stream; }

Stream StreamHeap::stream() noexcept { return stream_now; }

StreamHeap::Figures StreamHeap::figures() noexcept {
  take_back(true);
  const std::lock_guard lock(mutex_);
  return figures_;
}

}  // namespace slabpool::cuda
