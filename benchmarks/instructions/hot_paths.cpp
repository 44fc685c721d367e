// hot-paths OPERATION N: does one operation of the core N times. Counted by callgrind for two values of N,
// so that only what an operation itself executes remains; all set-up must therefore not depend on N.
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"

namespace {

using slabpool::Handle;
using slabpool::Pool;

void check(bool right) {
  if (right) return;
  std::fprintf(stderr, "hot-paths: the pool did not do as asked\n");
  std::exit(1);
}

std::vector<std::uint32_t> devices(Pool& pool, unsigned count) {
  std::vector<std::uint32_t> numbers;
  for (unsigned i = 0; i < count; ++i)
    numbers.push_back(pool.devices().add("sgpu" + std::to_string(i)).value());
  return numbers;
}

Handle open(Pool& pool, const std::vector<std::uint32_t>& holders) {
  slabpool::OpenSpec spec;
  spec.id = "schat-42";
  spec.devices = holders;
  Handle handle;
  check(pool.open(spec, handle) == slabpool::Status::ok);
  return handle;
}

slabpool::Block* allocate(Pool& pool, std::size_t bytes, Handle request = {}) {
  slabpool::AllocateSpec spec;
  spec.nbytes = bytes;
  spec.request = request;
  slabpool::Block* block = pool.allocate(spec).block;
  check(block != nullptr);
  return block;
}

void allocate_free(Pool& pool, std::size_t bytes, long n) {
  pool.drop_view(*allocate(pool, bytes));
  for (long i = 0; i < n; ++i) pool.drop_view(*allocate(pool, bytes));
}

void run(Pool& pool, std::string_view operation, long n) {
  if (operation == "allocate_free_4KiB") return allocate_free(pool, 4 << 10, n);
  if (operation == "allocate_free_1MiB") return allocate_free(pool, 1 << 20, n);
  if (operation == "open_close") {
    for (long i = 0; i < n; ++i) pool.close_request(open(pool, {}), false);
    return;
  }
  if (operation == "ack") {
    // One request, as many devices as there may be; never the last of them.
    const auto all = devices(pool, 4000);
    const Handle request = open(pool, all);
    for (long i = 0; i < n; ++i) {
      check(pool.ack(request, all.at(static_cast<std::size_t>(i))).result ==
            slabpool::AckResult::pending);
    }
    return;
  }
  if (operation == "request") {
    // A whole life: open with three devices, one tensor and its view, close, three acks.
    const auto three = devices(pool, 3);
    for (long i = 0; i < n; ++i) {
      const Handle request = open(pool, three);
      pool.drop_view(*allocate(pool, 4 << 10, request));
      pool.close_request(request, false);
      for (const auto device : three) pool.ack(request, device);
      check(pool.released(request));
    }
    return;
  }
  if (operation == "four_acks") {
    // A request without memory: open with four devices, close, four acks.
    const auto four = devices(pool, 4);
    for (long i = 0; i < n; ++i) {
      const Handle request = open(pool, four);
      pool.close_request(request, false);
      for (const auto device : four) pool.ack(request, device);
      check(pool.released(request));
    }
    return;
  }
  if (operation == "tensors_64" || operation == "tensors_64_viewed") {
    // Requests of 64 tensors, whose views end before it or outlive it. One operation is one tensor.
    const auto four = devices(pool, 4);
    const bool viewed = operation == "tensors_64_viewed";
    std::vector<slabpool::Block*> blocks(64);
    for (long i = 0; i < n / 64; ++i) {
      const Handle request = open(pool, four);
      for (auto& block : blocks) block = allocate(pool, 4 << 10, request);
      if (!viewed)
        for (auto* block : blocks) pool.drop_view(*block);
      pool.close_request(request, false);
      for (const auto device : four) pool.ack(request, device);
      if (viewed)
        for (auto* block : blocks) pool.drop_view(*block);
      check(pool.released(request));
    }
    return;
  }
  if (operation == "stats") {
    for (long i = 0; i < n; ++i) check(pool.stats().live == 0);
    return;
  }
  std::fprintf(stderr, "hot-paths: no operation %s\n", std::string(operation).c_str());
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  slabpool::PoolOptions options;
  options.capacity = std::uint64_t{256} << 20;
  slabpool::Error error;
  const auto pool = Pool::create(options, error);
  check(pool != nullptr);
  // A second thread, because the C library's mutexes lock nothing in a process of one.
  std::mutex end;
  end.lock();
  std::thread other([&] { end.lock(); });
  run(*pool, argv[1], std::atol(argv[2]));
  end.unlock();
  other.join();
  return 0;
}
