// slabpool-bench-holes holes none count=N [values=N] [seconds=X]: the page heap's search among N holes. Prints the time of one
// span taken and given back as one JSON object.
//
// The page heap is no part of the library's interface. So this program contains it, compiled from the sources of the clone.
// Holes have odd numbers of pages, from 1 to 63, and the spans even ones: every operation splits a hole and merges it again.
// Walls of one page in use keep the holes apart. Memory is not touched.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/slab/page_heap.hpp"
#include "timing.hpp"

namespace {

constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 40;
constexpr std::uint64_t kMostPages = 63;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "slabpool-bench-holes: %s\n", what);
  std::exit(2);
}

class Addresses final : public slabpool::MemoryResource {
 public:
  explicit Addresses(std::size_t bytes) : bytes_(bytes + slabpool::kRangeAlign) {
    mapping_ = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED) fail("no addresses");
    const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
    const auto up = (address + slabpool::kRangeAlign - 1) & ~(slabpool::kRangeAlign - 1);
    base_ = static_cast<std::byte*>(mapping_) + (up - address);
    address_space_ = bytes;
  }
  ~Addresses() override { (void)munmap(mapping_, bytes_); }
  bool commit(std::size_t, std::size_t) noexcept override { return true; }
  bool decommit(std::size_t, std::size_t) noexcept override { return true; }

 private:
  std::size_t bytes_;
  void* mapping_;
};

slabpool::Span* must(slabpool::PageHeap& heap, std::uint64_t pages) {
  slabpool::Span* span = heap.allocate(pages, 1, kNoLimit).span;
  if (span == nullptr) fail("out of memory");
  return span;
}

Report among_holes(const Options& options, std::uint64_t count) {
  Addresses memory((count + 1) * (kMostPages + 1) << slabpool::kPageBits);
  slabpool::PageHeap heap(memory, 1);
  std::vector<slabpool::Span*> holes, walls;
  for (std::uint64_t i = 0; i < count; ++i) {
    // Ten sizes come first, the largest among them, so that ten holes serve what 65,536 do.
    holes.push_back(must(heap, kMostPages - i * 6 % (kMostPages + 1)));
    walls.push_back(must(heap, 1));
  }
  for (slabpool::Span* hole : holes) heap.free(hole);
  const std::uint64_t committed = heap.committed_pages();
  const auto run = [&](std::uint64_t loops) {
    const double start = now();
    for (std::uint64_t i = 0; i < loops; ++i) {
      slabpool::Span* span = heap.allocate(2 + i * 2 % (kMostPages - 1), 1, kNoLimit).span;
      used(span);
      heap.free(span);
    }
    return now() - start;
  };
  std::vector<double> values = seconds_per_loop(options, run);
  if (heap.committed_pages() != committed) fail("a span was not served by a hole");
  for (slabpool::Span* wall : walls) heap.free(wall);
  return {{"time", "s", values}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || std::string_view(argv[1]) != "holes")
    fail("usage: slabpool-bench-holes holes none count=N");
  Options options;
  std::uint64_t count = 0;
  for (int i = 3; i < argc; ++i) {
    const std::string option = argv[i];
    const std::size_t equals = option.find('=');
    const std::string name = option.substr(0, equals);
    if (equals == std::string::npos) fail("an option has a value");
    if (name == "count") {
      count = std::stoull(option.substr(equals + 1));
    } else if (name == "values") {
      options.values = static_cast<unsigned>(std::stoul(option.substr(equals + 1)));
    } else if (name == "seconds") {
      options.seconds = std::stod(option.substr(equals + 1));
    } else {
      fail(("no option " + name).c_str());
    }
  }
  if (count < 10) fail("count=N: at least 10 holes");
  print(among_holes(options, count));
  return 0;
}
