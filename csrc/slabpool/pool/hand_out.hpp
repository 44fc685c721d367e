// The end of every allocation: a taken block is started, prepared and attached to its request; or abandoned and given back.
#pragma once

#include "slabpool/pool/pool.hpp"

namespace slabpool {

// Who holds a new block: its request and, if asked for, the caller's view; without a request the caller alone.
inline std::uint64_t holds_of(const AllocateSpec& spec) noexcept {
  if (spec.request.generation == 0) return Block::kView;
  return Block::kRequest | (spec.view ? Block::kView : 0);
}

// `record`: the request's, null for a block without one. `prepare(block)` is a Status.
template <typename Prepare>
[[gnu::always_inline]] inline Allocation Pool::hand_out(Block& block, Handle request,
                                                        RequestRecord* record, std::uint64_t holds,
                                                        Prepare&& prepare) noexcept {
  block.request.store(record != nullptr ? request.slot + 1 : 0, std::memory_order_relaxed);
  block.start(holds);
  Status status = prepare(block);
  if (status == Status::ok && record != nullptr)
    status = record->blocks.attach(block, [&] { return record->accepts(request); });
  if (status == Status::ok) [[likely]]
    return {&block, Status::ok};
  block.abandon();
  give_back(&block);
  return {nullptr, status};
}

}  // namespace slabpool
