// A view's hold on a block, dropped when it goes out of scope.
//
// For bindings: the one member of an array's owner object. The owner of the hold keeps the pool alive.
#pragma once

#include "slabpool/pool/pool.hpp"

namespace slabpool {

class ViewHold {
 public:
  ViewHold() noexcept = default;
  ViewHold(const ViewHold&) = delete;
  ViewHold& operator=(const ViewHold&) = delete;
  ~ViewHold() {
    if (block_ != nullptr) pool_->drop_view(*block_);
  }

  // Takes over the caller's hold. Once, on an empty object.
  void take(Pool& pool, Block& block) noexcept {
    pool_ = &pool;
    block_ = &block;
  }

  // Null: empty.
  const Block* block() const noexcept { return block_; }

 private:
  Pool* pool_ = nullptr;
  Block* block_ = nullptr;
};

}  // namespace slabpool
