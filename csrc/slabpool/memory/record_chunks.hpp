// Memory for records that a stale pointer may still read: it never moves, and is not unmapped while the pool lives.
//
// Records of one kind, all of one size, lie one behind the other in chunks. Their owner keeps the spare ones in a list, linked
// by `next`, and takes from there first. Once all records of a chunk are spare, close_spare() gives its pages back to the
// system. A stale pointer then reads zero bytes, which a record must show to be no allocation's; so must a record that is made
// of zero bytes. The chunk stays with its kind: where a record was, a record of the same kind is later, or zero bytes. Not
// synchronised.
//
// Invariants:
//   a record is zero bytes when make() returns it, and does not cross the end of its chunk;
//   made_bytes_ = sum of `bytes` over the open chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "slabpool/base/assert.hpp"

namespace slabpool {

class RecordChunks {
 public:
  static constexpr std::size_t kAlign = 64;
  static constexpr std::size_t kChunkBytes = std::size_t{64} << 10;
  static constexpr std::size_t kMostBytes = kChunkBytes - kAlign;  // of one record

  class Kind {
    friend class RecordChunks;
    // The part of the newest chunk that has no record yet.
    std::byte* at_ = nullptr;
    std::size_t bytes_ = 0;
    std::vector<void*> closed_;  // with room for every chunk, so that close() does not allocate
    std::size_t chunks_ = 0;
  };

  RecordChunks() = default;
  RecordChunks(const RecordChunks&) = delete;
  RecordChunks& operator=(const RecordChunks&) = delete;
  ~RecordChunks();

  // Memory for one record: `bytes` zero bytes, a multiple of kAlign. Throws std::bad_alloc.
  void* make(Kind& kind, std::size_t bytes);

  // Closes chunks whose records are all in `list`, and takes these out of it. `goes(record)` is false for a record that has
  // to stay. At least `keep` of the `count` records stay in the list; the result is the number that went. O(length).
  template <typename Record, typename Goes>
  std::size_t close_spare(Record*& list, Kind& kind, std::size_t count, std::size_t keep,
                          Goes&& goes) noexcept {
    for (Record* r = list; r != nullptr; r = r->next) head_of(r).idle = 0;
    for (Record* r = list; r != nullptr; r = r->next)
      if (goes(*r)) ++head_of(r).idle;
    std::size_t gone = 0;
    for (Record** link = &list; *link != nullptr;) {
      Head& head = head_of(*link);
      if (head.idle == head.made && head.left == 0 && count - gone >= keep + head.made) {
        head.left = head.made;  // it goes, with all of them
        gone += head.made;
      }
      if (head.left == 0) {
        link = &(*link)->next;
        continue;
      }
      *link = (*link)->next;
      if (--head.left == 0) close(head, kind);
    }
    return gone;
  }

  // Of the records that are made, and not closed.
  std::uint64_t made_bytes() const noexcept { return made_bytes_; }

 private:
  struct alignas(kAlign) Head {
    std::uint32_t made;   // records
    std::uint32_t bytes;  // of them
    std::uint32_t idle;   // for close_spare(): records in the list that may go
    std::uint32_t left;   // and, of a chunk that goes, those that are still in the list
  };

  static Head& head_of(const void* record) noexcept {
    return *reinterpret_cast<Head*>(reinterpret_cast<std::uintptr_t>(record) & ~(kChunkBytes - 1));
  }
  Head& open(Kind& kind);
  void close(Head& head, Kind& kind) noexcept;

  // Chunks are mapped so many at a time, and become writable one by one: see VirtualArray.
  static constexpr std::size_t kMapped = 16;
  std::vector<std::byte*> mappings_;
  std::byte* fresh_ = nullptr;  // the next chunk that was never open
  std::size_t fresh_count_ = 0;
  std::uint64_t made_bytes_ = 0;
};

}  // namespace slabpool
