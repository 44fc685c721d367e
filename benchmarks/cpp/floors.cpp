// See floors.hpp. Lists and nodes live as long as the process.
#include "floors.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace {

// Fresh address space, never returned. It is touched only if the workload does so.
void* carve(std::size_t bytes) {
  static std::atomic<char*> next{[] {
    void* range = mmap(nullptr, std::size_t{1} << 40, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) {
      std::perror("floor: mmap of 1 TiB of address space");
      std::exit(1);
    }
    return static_cast<char*>(range);
  }()};
  return next.fetch_add(static_cast<std::ptrdiff_t>(bytes), std::memory_order_relaxed);
}

FloorNode* fresh(std::size_t list, FloorOwner* owner) {
  auto* node = new FloorNode;
  node->data = carve(list * kFloorGrain);
  node->owner = owner;
  node->list = list;
  return node;
}

}  // namespace

struct FloorOwner {
  FloorNode* heads[kFloorLists] = {};
  alignas(64) std::atomic<FloorNode*> remote{nullptr};
};

namespace {

thread_local constinit FloorOwner* t_mine = nullptr;

__attribute__((noinline)) FloorOwner* make_mine() { return t_mine = new FloorOwner; }

FloorOwner* mine() {
  FloorOwner* owner = t_mine;
  if (owner == nullptr) [[unlikely]]
    owner = make_mine();
  return owner;
}

// Sorts the blocks that other threads returned into the lists. Acquire pairs with the release of their
// push.
__attribute__((noinline)) FloorNode* refill(FloorOwner* owner, std::size_t list) {
  FloorNode* node = owner->remote.exchange(nullptr, std::memory_order_acquire);
  while (node != nullptr) {
    FloorNode* next = node->next;
    node->next = owner->heads[node->list];
    owner->heads[node->list] = node;
    node = next;
  }
  node = owner->heads[list];
  if (node == nullptr) return fresh(list, owner);
  owner->heads[list] = node->next;
  return node;
}

}  // namespace

FloorNode* ThreadList::allocate(std::size_t bytes) {
  FloorOwner* owner = mine();
  const std::size_t list = bytes / kFloorGrain;
  FloorNode* node = owner->heads[list];
  if (node == nullptr) [[unlikely]]
    return fresh(list, owner);
  owner->heads[list] = node->next;
  return node;
}

void ThreadList::free(FloorNode* node) {
  FloorOwner* owner = mine();
  node->next = owner->heads[node->list];
  owner->heads[node->list] = node;
}

FloorNode* OwnerList::allocate(std::size_t bytes) {
  FloorOwner* owner = mine();
  const std::size_t list = bytes / kFloorGrain;
  FloorNode* node = owner->heads[list];
  if (node == nullptr) [[unlikely]]
    return refill(owner, list);
  owner->heads[list] = node->next;
  return node;
}

void OwnerList::free(FloorNode* node) {
  FloorOwner* owner = node->owner;
  if (owner == t_mine) [[likely]] {
    node->next = owner->heads[node->list];
    owner->heads[node->list] = node;
    return;
  }
  FloorNode* head = owner->remote.load(std::memory_order_relaxed);
  do {
    node->next = head;
  } while (!owner->remote.compare_exchange_weak(head, node, std::memory_order_release,
                                                std::memory_order_relaxed));
}
