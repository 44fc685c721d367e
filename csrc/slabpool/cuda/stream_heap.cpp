#include "slabpool/cuda/stream_heap.hpp"

#include <pthread.h>

#include <algorithm>
#include <new>

namespace slabpool::cuda {
namespace {

// Both are this thread's; the request's only for the heap that it was set for.
thread_local std::uint64_t request_of = 0;
thread_local Handle request_now;
thread_local Stream stream_now = nullptr;

// Beyond all address space: rounding up does not overflow.
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 62;

std::atomic<std::uint64_t> next_number{1};

// How many of a list are looked at for one that is large enough: spans of a bin differ a little.
constexpr int kLooks = 8;

}  // namespace

std::unique_ptr<StreamHeap> StreamHeap::create(Pool& pool, int device, std::string& why) {
  const Driver* driver = Driver::get(&why);
  if (driver == nullptr) return nullptr;
  if (device < 0) device = std::max(pool.device(), 0);
  Result result = kSuccess;
  if (driver->context(device, result) == nullptr) {
    why =
        "cuDevicePrimaryCtxRetain of device " + std::to_string(device) + ": " + driver->describe(result);
    return nullptr;
  }
  return std::unique_ptr<StreamHeap>(new StreamHeap(pool, *driver, device));
}

// A list keeps half of the pool at most: one stream in use alone shall find most of what it freed, and what no
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
  flush([](const List&) { return true; });
  marks_.wait();
  take_back(true);
  // What the driver refuses to tell of keeps its holds, and its memory.
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

// ---- the pair that costs least

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
    if (has < bytes || has - bytes > has / 4) continue;  // no more is wasted than that
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
  // Relaxed: a device that is lost at this moment may be so a moment later.
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
    // Within a request only while it is the one at work here: nobody would end what is kept after that.
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
    flush([&](const List& list) { return list.key == full; });
    return true;
  }
  // Behind all streams that it was used on, as far as they were told.
  Place freed_on;
  if (stream != nullptr) {
    const char* call = "";
    // A stream that the driver does not know: all there is will be waited for.
    if (marks_.find({*stream, device_}, freed_on, call) != kSuccess) freed_on = {};
  }
  std::unique_ptr<Batch> batch;
  Place own;
  Held* alone = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto found = held_.find(address);
    if (found == held_.end() || !found->second.live) {  // freed by two threads at once
      ++figures_.wrong_frees;
      return false;
    }
    Held& held = found->second;
    own = held.list->place;
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
  } else if (settled(own) && settled(freed_on)) {
    // The host has no room to remember what it waits for, so the device does everything now.
    give_back(alone);
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
  spec.counts = false;
  Allocation made = pool_.allocate(spec);
  if (made.status == Status::request_closed) {
    // Closed at this moment.
    spec.request = {};
    used.generation = 0;
    made = pool_.allocate(spec);
  }
  if (made.block == nullptr && made.status == Status::exhausted) {
    flush([](const List&) { return true; });
    take_back(true);
    if (waits) {
      made = pool_.allocate(spec);
      if (made.status == Status::exhausted) wait();
    }
    spec.counts = true;
    if (made.block == nullptr) made = pool_.allocate(spec);
  }
  if (made.block == nullptr) return failed();
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
    // Relaxed: for reports. A request's blocks are reported with it.
    if (spec.request.generation == 0) block->tag.store(kStreamTag, std::memory_order_relaxed);
    return block->data;
  } catch (const std::bad_alloc&) {
    pool_.drop_view(*block);
    return failed();
  }
}

void StreamHeap::wait() noexcept {
  if (!pool_.usable_here()) return;
  flush([](const List&) { return true; });
  marks_.wait();
  take_back(true);
}

// ---- back to the pool

void StreamHeap::unpark(List& list, Held*& chain) noexcept {
  for (Held*& first : list.bins) {
    while (first != nullptr) {
      Held* held = first;
      first = held->next;
      held->next = chain;
      chain = held;
      --figures_.parked_blocks;
      figures_.parked_bytes -= held->block->bytes;
      ++figures_.waiting_blocks;
      figures_.waiting_bytes += held->block->bytes;
    }
  }
  list.parked = 0;
}

void StreamHeap::drop_list(List& list) noexcept {
  if (list.blocks != 0) return;
  if (last_ == &list) last_ = nullptr;
  lists_.erase(Key(list.key));
}

std::unique_ptr<StreamHeap::Batch> StreamHeap::batch_of(Held* chain, Place place) {
  auto batch = std::make_unique<Batch>();
  batch->places.push_back(place);
  batch->chain = chain;
  return batch;
}

template <typename Which>
void StreamHeap::flush(Which&& which) noexcept {
  for (;;) {
    std::unique_ptr<Batch> batch;
    try {
      const std::lock_guard lock(mutex_);
      for (auto& [key, list] : lists_) {
        if (list.parked == 0 || !which(list)) continue;
        batch = batch_of(nullptr, list.place);
        unpark(list, batch->chain);
        break;
      }
    } catch (const std::bad_alloc&) {  // they stay parked
    }
    if (batch == nullptr) return;
    send(std::move(batch));
  }
}

// Whether all work of the context is done, now or because it was waited for: where no event is to be had.
bool StreamHeap::settled(const Place& place) noexcept {
  Result result = kSuccess;
  const Context context = place.context != nullptr ? place.context : driver_.context(device_, result);
  const CurrentContext current(driver_, context);
  if (!current.ok()) return false;
  const RelaxedCapture relaxed(driver_);
  const Progress now = StreamMarks::progress(driver_.cuCtxSynchronize());
  if (now == Progress::lost) note_lost(context);
  return now != Progress::pending;
}

// Puts a mark on each stream of the batch. `waits` is one more than there are marks while this is at it.
void StreamHeap::send(std::unique_ptr<Batch> owned) noexcept {
  Batch* batch = owned.release();
  std::vector<Place> places;
  places.swap(batch->places);
  {
    const std::lock_guard lock(mutex_);
    batch->waits += places.size() + 1;
  }
  std::uint64_t over = 1;
  std::size_t refused = 0;
  for (const Place& place : places) {
    const bool another_threads =
        place.thread != 0 && place.thread != static_cast<std::uintptr_t>(pthread_self());
    bool done = false;
    Result result = kInvalidHandle;
    if (place.stream != nullptr && !another_threads) {
      const char* call = "";
      result = marks_.mark(place, {{reinterpret_cast<std::uintptr_t>(batch), 0, 0}}, true, done, call);
    }
    if (result == kSuccess) {
      over += done ? 1 : 0;
    } else if (Driver::is_sticky(result)) {
      note_lost(place.context);
      ++over;
    } else if ((result < kCaptureUnsupported || result > kCaptureLast) && settled(place)) {
      ++over;
    } else {
      // Also where a stream is being captured: to wait for its context would break the capture.
      places[refused++] = place;
    }
  }
  Held* chain = nullptr;
  {
    const std::lock_guard lock(mutex_);
    batch->waits -= over;
    if (refused != 0) {
      // Counted again when it is sent again.
      batch->waits -= refused;
      places.resize(refused);
      batch->places.swap(places);
      ++batch->waits;
      batch->next = stuck_;
      stuck_ = batch;
      return;
    }
    if (batch->waits != 0) return;
    chain = batch->chain;
  }
  delete batch;
  give_back(chain);
}

void StreamHeap::take_back(bool all) noexcept {
  if (marks_.pending() != 0) {
    const RelaxedCapture relaxed(driver_);
    marks_.collect(all, [&](const StreamMarks::Told& told) {
      auto* batch = reinterpret_cast<Batch*>(static_cast<std::uintptr_t>(told.payload.words[0]));
      if (told.lost != nullptr) note_lost(told.lost);
      {
        const std::lock_guard lock(mutex_);
        if (--batch->waits != 0) return;
      }
      Held* chain = batch->chain;
      delete batch;
      give_back(chain);
    });
  }
  if (!all) return;
  Batch* again = nullptr;
  {
    const std::lock_guard lock(mutex_);
    std::swap(again, stuck_);
  }
  while (again != nullptr) {
    std::unique_ptr<Batch> batch(again);
    again = batch->next;
    batch->next = nullptr;
    {
      const std::lock_guard lock(mutex_);
      --batch->waits;  // what kept it while it was stuck; its marks, if any are left, count on
    }
    send(std::move(batch));
  }
}

void StreamHeap::give_back(Held* chain) noexcept {
  while (chain != nullptr) {
    Block* block = chain->block;
    const std::uint64_t bytes_of_one = block->bytes;
    {
      const std::lock_guard lock(mutex_);
      Held* next = chain->next;
      List& list = *chain->list;
      --figures_.waiting_blocks;
      figures_.waiting_bytes -= bytes_of_one;
      held_.erase(block->data);
      --list.blocks;
      drop_list(list);
      returned_ += bytes_of_one;
      chain = next;
    }
    // Before the hold goes: from then on the block is the pool's, or another thread's.
    if (block->tag.load(std::memory_order_relaxed) != 0) block->tag.store(0, std::memory_order_relaxed);
    pool_.drop_view(*block);
  }
}

void StreamHeap::note_lost(Context context) noexcept {
  Result result = kSuccess;
  if (context == driver_.context(device_, result)) lost_.store(true, std::memory_order_relaxed);
  pool_.note_lost(context);
}

void StreamHeap::forget(Stream stream) noexcept {
  if (!pool_.usable_here()) return;
  const Key like = key_of(stream, {});
  const auto is_it = [&](const Key& key) {
    return key.stream == like.stream && key.thread == like.thread;
  };
  flush([&](const List& list) { return is_it(list.key); });
  const std::lock_guard lock(mutex_);
  // The handle may be another stream's soon. Blocks that are still in use keep their list, which no handle finds any
  // more; once freed they wait for the whole device.
  static std::atomic<std::uintptr_t> numbers{0};
  last_ = nullptr;
  for (auto at = lists_.begin(); at != lists_.end();) {
    const auto now = at++;
    if (!is_it(now->first)) continue;
    List& list = now->second;
    list.forgotten = true;
    list.place.stream = nullptr;
    if (list.blocks == 0) {
      lists_.erase(now);
      continue;
    }
    auto node = lists_.extract(now);
    // No stream has this handle.
    node.key() = {nullptr, numbers.fetch_add(1, std::memory_order_relaxed) + 1, list.key.generation};
    list.key = node.key();
    lists_.insert(std::move(node));
    at = lists_.begin();
  }
}

std::uint64_t StreamHeap::trim() noexcept {
  if (!pool_.usable_here()) return 0;
  const auto returned = [&] {
    const std::lock_guard lock(mutex_);
    return returned_;
  };
  const std::uint64_t before = returned();
  flush([](const List&) { return true; });
  take_back(true);
  return returned() - before;
}

// ---- what a thread has set

void StreamHeap::set_request(Handle request) noexcept {
  if (request.generation != 0) {
    request_of = number_;
    request_now = request;
  } else if (request_of == number_) {
    request_of = 0;  // another heap's stays
  }
}

Handle StreamHeap::request() const noexcept { return request_of == number_ ? request_now : Handle{}; }

void StreamHeap::end_request(Handle request) noexcept {
  if (!pool_.usable_here() || request.generation == 0) return;
  flush([&](const List& list) { return list.key.generation == request.generation; });
}

void StreamHeap::set_stream(Stream stream) noexcept { stream_now = stream; }

Stream StreamHeap::stream() noexcept { return stream_now; }

StreamHeap::Figures StreamHeap::figures() noexcept {
  take_back(true);
  const std::lock_guard lock(mutex_);
  return figures_;
}

}  // namespace slabpool::cuda
