#include "slabpool/observe/guard.hpp"

#include <cstdio>
#include <cstring>
#include <memory>

#include "slabpool/base/assert.hpp"

namespace slabpool {
namespace {

constexpr unsigned char kPattern = 0xA5;
constexpr unsigned char kPoison = 0xDB;
constexpr std::uint64_t kUnguarded = ~std::uint64_t{0};  // as BlockDebug::nbytes

}  // namespace

Guard::~Guard() {
  for (BlockDebug* debug : all_) delete debug;
}

void Guard::add_record(Block& block) {
  if (block.debug != nullptr) return;
  const std::lock_guard lock(mutex_);
  auto debug = std::make_unique<BlockDebug>();
  all_.push_back(debug.get());
  block.debug = debug.release();
}

void Guard::arm(Block& block, std::uint64_t nbytes, std::uint64_t generation,
                const SourceLocation& where) {
  SLABPOOL_ASSERT(!where.in_code, "the line of a guarded block is known when it is allocated", nbytes);
  add_record(block);
  block.debug->file.assign(where.file);  // the last step that may fail
  block.debug->nbytes = nbytes;
  block.debug->generation = generation;
  block.debug->line = where.line;
  std::memset(block.data + nbytes, kPattern, kGuard);
}

void Guard::skip(Block& block) {
  add_record(block);
  block.debug->nbytes = kUnguarded;
}

void Guard::disarm(Block& block) noexcept {
  if (block.debug == nullptr) return;
  if (block.debug->nbytes == kUnguarded) {
    std::memset(block.data, kPoison, block.bytes);
    return;
  }
  const BlockDebug& debug = *block.debug;
  const auto* tail = reinterpret_cast<const unsigned char*>(block.data) + debug.nbytes;
  for (std::size_t i = 0; i < kGuard; ++i) {
    if (tail[i] == kPattern) continue;
    std::fprintf(stderr,
                 "slabpool: memory corruption: byte %zu past the end of a block of %llu bytes at %p was "
                 "overwritten (request generation %llu, allocated at %s:%u)\n",
                 i, static_cast<unsigned long long>(debug.nbytes), static_cast<void*>(block.data),
                 static_cast<unsigned long long>(debug.generation), debug.file.c_str(), debug.line);
    const std::lock_guard lock(mutex_);
    try {
      found_.push_back({reinterpret_cast<std::uintptr_t>(block.data), debug.nbytes, i, debug.generation,
                        debug.file, debug.line});
    } catch (const std::bad_alloc&) {  // said on standard error already
    }
    break;
  }
  std::memset(block.data, kPoison, debug.nbytes);
}

std::vector<Corruption> Guard::found() const {
  const std::lock_guard lock(mutex_);
  return found_;
}

}  // namespace slabpool
