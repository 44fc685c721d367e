// Memory that streams have freed goes back to the pool, in batches: each once the work on every stream that may use it is
// done.
//
// Invariants: memory that a stream may still use is handed out to no other, also where the driver has no event for it; the
// driver is called without the heap's mutex.
#include <algorithm>
#include <new>

#include "slabpool/adapters/stream_heap.hpp"

namespace slabpool::cuda {

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
    Held* alone = nullptr;  // the blocks, where the host has no memory for a batch
    Place place;
    {
      const std::lock_guard lock(mutex_);
      const auto found = std::find_if(lists_.begin(), lists_.end(), [&](const auto& item) {
        return item.second.parked != 0 && which(item.second);
      });
      if (found == lists_.end()) return;
      place = found->second.place;
      try {
        batch = batch_of(nullptr, place);
      } catch (const std::bad_alloc&) {  // waits for the stream instead
      }
      unpark(found->second, batch != nullptr ? batch->chain : alone);
    }
    if (batch != nullptr) {
      send(std::move(batch));
    } else if (settled(place)) {
      give_back(alone);
    } else {
      const std::lock_guard lock(mutex_);
      while (Held* held = alone) {
        alone = held->next;
        --figures_.waiting_blocks;
        figures_.waiting_bytes -= held->block->bytes;
        park(*held);
      }
      return;
    }
  }
}

void StreamHeap::flush_all() noexcept {
  flush([](const List&) { return true; });
}

void StreamHeap::flush_list(const Key& key) noexcept {
  flush([&](const List& list) { return list.key == key; });
}

void StreamHeap::end_request(Handle request) noexcept {
  if (!pool_.usable_here() || request.generation == 0) return;
  flush([&](const List& list) { return list.key.generation == request.generation; });
}

void StreamHeap::wait() noexcept {
  if (!pool_.usable_here()) return;
  flush_all();
  marks_.wait();
  take_back(true);
}

// Waits for all work of the context, where the driver has no event. False: the work may still go on.
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

// Gives back a freed block for which the host had no memory for a batch, once all work of its streams' contexts is done.
// Where the driver refuses to wait, take_back() tries again.
void StreamHeap::give_back_alone(Held& held, const Place& freed_on) noexcept {
  bool done = settled(held.list->place) && settled(freed_on);
  if (held.others != nullptr) {
    for (const Place& place : *held.others) done = done && settled(place);
  }
  if (done) return give_back(&held);
  const std::lock_guard lock(mutex_);
  held.next = alone_;
  alone_ = &held;
}

// Puts a mark on each stream of the batch. While this runs, `waits` is one more than the number of marks.
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
      // Also where a stream is being captured, because waiting for its context would break the capture.
      places[refused++] = place;
    }
  }
  Held* chain = nullptr;
  {
    const std::lock_guard lock(mutex_);
    batch->waits -= over;
    if (refused != 0) {
      // send() counts them again later.
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
    marks_.collect(all, [&](const StreamMarks::Completed& completed) {
      auto* batch = reinterpret_cast<Batch*>(static_cast<std::uintptr_t>(completed.payload.words[0]));
      if (completed.lost != nullptr) note_lost(completed.lost);
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
  Held* alone = nullptr;
  {
    const std::lock_guard lock(mutex_);
    std::swap(again, stuck_);
    std::swap(alone, alone_);
  }
  while (alone != nullptr) {
    Held& held = *alone;
    alone = held.next;
    held.next = nullptr;
    give_back_alone(held, {});
  }
  while (again != nullptr) {
    std::unique_ptr<Batch> batch(again);
    again = batch->next;
    batch->next = nullptr;
    {
      const std::lock_guard lock(mutex_);
      --batch
            ->waits;  // the count that kept the batch while it was stuck; its remaining marks still count
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
    // Before the hold is dropped: after that the block may be another thread's.
    if (block->tag.load(std::memory_order_relaxed) != 0) block->tag.store(0, std::memory_order_relaxed);
    pool_.drop_view(*block);
  }
}

void StreamHeap::note_lost(Context context) noexcept {
  Result result = kSuccess;
  if (context == driver_.context(device_, result)) lost_.store(true, std::memory_order_relaxed);
  pool_.context_lost(context);
}

void StreamHeap::forget(Stream stream) noexcept {
  if (!pool_.usable_here()) return;
  const Key like = key_of(stream, {});
  const auto is_it = [&](const Key& key) {
    return key.stream == like.stream && key.thread == like.thread;
  };
  flush([&](const List& list) { return is_it(list.key); });
  const std::lock_guard lock(mutex_);
  // The handle may soon be another stream's. Blocks that are still in use keep their list, under a key that no handle
  // has; once freed they wait for the whole device.
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
  flush_all();
  take_back(true);
  return returned() - before;
}

}  // namespace slabpool::cuda
