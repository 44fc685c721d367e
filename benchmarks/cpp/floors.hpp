// The two floors: the least that an allocator of this kind can do, without any of its duties.
//
// ThreadList keeps a list of free blocks per exact size and thread; a block stays with the thread that
// frees it. OwnerList also returns a block that another thread frees to the thread that allocated it,
// over a list to which many threads push and which one thread takes whole. Neither counts, returns
// memory, joins blocks or checks anything. Sizes are multiples of 4 KiB up to 64 MiB; nodes lie outside
// the memory handed out, as slabpool's do. Compiled separately from the workloads, so that calling them
// costs a call, as with a library.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

inline constexpr std::size_t kFloorGrain = 4096;
inline constexpr std::size_t kFloorLists = (std::size_t{64} << 20) / kFloorGrain + 1;

struct FloorOwner;

struct FloorNode {
  FloorNode* next = nullptr;
  void* data = nullptr;
  FloorOwner* owner = nullptr;
  std::size_t list = 0;
};

struct ThreadList {
  using Ref = FloorNode*;
  static Ref allocate(std::size_t bytes);
  static void free(Ref node);
};

struct OwnerList {
  using Ref = FloorNode*;
  static Ref allocate(std::size_t bytes);
  static void free(Ref node);
};
