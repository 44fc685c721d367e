// A view's hold on a block, let go when it goes out of scope.
//
// For bindings: what an array's owner object has as its one member. Whoever keeps it keeps the pool.
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

  // Takes over a hold that the caller has; once, on an empty one.
  void take(Pool& pool, Block& block) noexcept {
    pool_ = &pool;
    block_ = &block;
  }

 private:
  Pool* pool_ = nullptr;
  Block* block_ = nullptr;
};

}  // namespace slabpool
