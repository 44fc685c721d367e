// slabpool-bench WORKLOAD HEAP [bytes=N] [values=N] [seconds=X]: runs one workload on one heap and
// prints its metrics as one JSON object. Heap "malloc" is the malloc of the process; HEAP may name the
// library that must provide it ("malloc:mimalloc"), so that a failed preload is noticed.
#include <dlfcn.h>

#include <cstring>
#include <string>
#include <string_view>

#include "work_live_set.hpp"
#include "work_stats.hpp"
#include "work_threads.hpp"

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "slabpool-bench: %s\n", what.c_str());
  std::exit(2);
}

void check_malloc(const std::string& library) {
  Dl_info info{};
  if (dladdr(dlsym(RTLD_DEFAULT, "malloc"), &info) == 0 || info.dli_fname == nullptr)
    fail("whose malloc?");
  if (std::strstr(info.dli_fname, library.c_str()) == nullptr) {
    fail("malloc is that of " + std::string(info.dli_fname) + ", not of " + library);
  }
}

template <typename Heap>
Report run(std::string_view workload, const Options& options) {
  if (workload == "same_thread") return same_thread<Heap>(options);
  if (workload == "two_threads") return two_threads<Heap>(options);
  if (workload == "cross_thread") return cross_thread<Heap>(options);
  if constexpr (!std::is_same_v<Heap, NoHeap>) {
    if (workload == "live_set") return live_set<Heap>(options, 0);
    if (workload == "live_set_powers") return live_set<Heap>(options, 1);
  }
  if constexpr (std::is_same_v<Heap, SlabpoolHeap> || std::is_same_v<Heap, MallocHeap>) {
    if (workload == "churn") return churn<Heap>(options);
  }
  if constexpr (std::is_same_v<Heap, SlabpoolHeap>) {
    if (workload == "stats_load") return stats_load(options);
  }
  fail("no workload " + std::string(workload) + " for this heap");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) fail("usage: slabpool-bench WORKLOAD HEAP [bytes=N] [values=N] [seconds=X]");
  Options options;
  for (int i = 3; i < argc; ++i) {
    const std::string_view option = argv[i];
    const auto is = [&](std::string_view name) { return option.substr(0, name.size()) == name; };
    if (is("bytes=")) {
      options.bytes = std::stoull(argv[i] + 6);
    } else if (is("values=")) {
      options.values = static_cast<unsigned>(std::stoul(argv[i] + 7));
    } else if (is("seconds=")) {
      options.seconds = std::stod(argv[i] + 8);
    } else {
      fail("what is " + std::string(option) + "?");
    }
  }
  const std::string_view workload = argv[1], heap = argv[2];
  if (heap == "slabpool") {
    print(run<SlabpoolHeap>(workload, options));
  } else if (heap == "thread-list") {
    print(run<ThreadListHeap>(workload, options));
  } else if (heap == "owner-list") {
    print(run<OwnerListHeap>(workload, options));
  } else if (heap == "none") {
    print(run<NoHeap>(workload, options));
  } else if (heap.substr(0, 6) == "malloc") {
    if (heap.size() > 7) check_malloc(std::string(heap.substr(7)));
    print(run<MallocHeap>(workload, options));
  } else {
    fail("no heap " + std::string(heap));
  }
  return 0;
}
