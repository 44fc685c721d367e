// growing-blocks N: an observer counts the views of a request's N blocks. callgrind counts the instructions under one hold
// of their lock, which is what a thread that allocates for the request waits.
#include <valgrind/callgrind.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "slabpool/request/blocks.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::vector<slabpool::Block> all(std::strtoul(argv[1], nullptr, 10));
  slabpool::RequestBlocks blocks;
  blocks.reset();
  for (slabpool::Block& block : all) {
    block.start(slabpool::Block::kRequest | slabpool::Block::kView);
    (void)blocks.attach(block, [] { return true; });
  }
  slabpool::RequestBlocks::ViewCount count(blocks);
  CALLGRIND_START_INSTRUMENTATION;
  bool more = count.next();
  CALLGRIND_STOP_INSTRUMENTATION;
  while (more) more = count.next();
  return count.views() == all.size() ? 0 : 1;
}
