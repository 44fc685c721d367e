// slabpool-bench-gpu WORKLOAD HOW [bytes=N] [values=N] [seconds=X]: what is measured on a GPU without
// Python.
//   allocate slabpool|driver   one allocation and its free on one stream, nothing else alive
//   ack none|event|host_function|write_value   how the host can learn that a stream has reached a point
// The driver is the one that slabpool found; functions that slabpool itself does not call are looked up
// here. Times are the host's; each repetition ends with the stream idle.
#include <dlfcn.h>

#include <atomic>
#include <cinttypes>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <string_view>

#include "slabpool/adapters/stream_heap.hpp"
#include "slabpool/cuda/driver.hpp"
#include "slabpool/pool/pool.hpp"
#include "timing.hpp"

namespace {

using slabpool::cuda::DevicePointer;
using slabpool::cuda::Driver;
using slabpool::cuda::Event;
using slabpool::cuda::Result;
using slabpool::cuda::Stream;
using HostFunction = void (*)(void*);  // CUhostFn

constexpr std::size_t kWork = 64 << 10;  // bytes that the stream writes between two acks
constexpr std::size_t kInFlight = 256;   // most acks that the host has not seen yet

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "slabpool-bench-gpu: %s\n", what.c_str());
  std::exit(2);
}

// The driver, with its primary context made current for the whole run, and a stream of this program.
struct Gpu {
  Gpu() {
    slabpool::Error error;
    driver = Driver::get(error);
    if (driver == nullptr) fail("no GPU: " + error.text);
    Result result{};
    slabpool::cuda::Context context = driver->context(0, result);
    check(result, "cuDevicePrimaryCtxRetain");
    check(driver->cuCtxPushCurrent(context), "cuCtxPushCurrent");
    check(driver->cuStreamCreate(&stream, slabpool::cuda::kStreamNonBlocking), "cuStreamCreate");
  }

  void check(Result result, const char* call) const {
    if (result != slabpool::cuda::kSuccess) fail(std::string(call) + ": " + driver->describe(result));
  }
  void finish() const { check(driver->cuStreamSynchronize(stream), "cuStreamSynchronize"); }

  // A driver function that slabpool does not use.
  template <typename Function>
  Function* find(const char* name) const {
    void* library = dlopen(driver->library().c_str(), RTLD_NOW);
    void* found = library == nullptr ? nullptr : dlsym(library, name);
    if (found == nullptr) fail(driver->library() + " has no " + name);
    return reinterpret_cast<Function*>(found);
  }

  const Driver* driver = nullptr;
  Stream stream = nullptr;
};

template <typename Pair>
Report repeat(const Options& options, const Gpu& gpu, Pair&& pair) {
  return {{"time", "s", seconds_per_loop(options, [&](std::uint64_t loops) {
             const double start = now();
             for (std::uint64_t i = 0; i < loops; ++i) pair();
             gpu.finish();
             return now() - start;
           })}};
}

Report allocate(std::string_view how, const Options& options, const Gpu& gpu) {
  if (how == "driver") {
    auto* take = gpu.find<Result(DevicePointer*, std::size_t, Stream)>("cuMemAllocAsync");
    auto* give = gpu.find<Result(DevicePointer, Stream)>("cuMemFreeAsync");
    return repeat(options, gpu, [&] {
      DevicePointer pointer = 0;
      gpu.check(take(&pointer, options.bytes, gpu.stream), "cuMemAllocAsync");
      gpu.check(give(pointer, gpu.stream), "cuMemFreeAsync");
    });
  }
  if (how != "slabpool") fail("no allocator " + std::string(how) + ": slabpool or driver");
  slabpool::PoolOptions pool_options;
  pool_options.capacity = std::uint64_t{1} << 30;
  pool_options.memory = slabpool::MemoryKind::device;
  pool_options.device = 0;
  slabpool::Error error;
  const auto pool = slabpool::Pool::create(pool_options, error);
  if (pool == nullptr) fail("no pool: " + error.text);
  const auto heap = slabpool::cuda::StreamHeap::create(*pool, 0, error);
  if (heap == nullptr) fail("no heap: " + error.text);
  return repeat(options, gpu, [&] {
    void* address = heap->allocate(options.bytes, gpu.stream);
    if (address == nullptr) fail("the pool has no room");
    heap->release(address, gpu.stream);
  });
}

// ---- acks

// Runs on a thread of the driver. The stream waits until it returns.
void count_one(void* seen) {
  static_cast<std::atomic<std::uint64_t>*>(seen)->fetch_add(1, std::memory_order_release);
}

// Ways to ack: send() enqueues an ack behind the stream's work, seen() returns how many have arrived
// since the start.
struct NoAck {
  explicit NoAck(const Gpu&) {}
  void send() { ++sent; }
  std::uint64_t seen() { return sent; }
  std::uint64_t sent = 0;
};

struct EventAck {
  explicit EventAck(const Gpu& gpu) : gpu(gpu) {}
  void send() {
    Event event = nullptr;
    if (spare.empty()) {
      gpu.check(gpu.driver->cuEventCreate(&event, slabpool::cuda::kEventDisableTiming), "cuEventCreate");
    } else {
      event = spare.back();
      spare.pop_back();
    }
    gpu.check(gpu.driver->cuEventRecord(event, gpu.stream), "cuEventRecord");
    pending.push_back(event);
  }
  std::uint64_t seen() {
    while (!pending.empty()) {
      const Result result = gpu.driver->cuEventQuery(pending.front());
      if (result == slabpool::cuda::kNotReady) break;
      gpu.check(result, "cuEventQuery");
      spare.push_back(pending.front());
      pending.pop_front();
      ++arrived;
    }
    return arrived;
  }
  const Gpu& gpu;
  std::deque<Event> pending, spare;
  std::uint64_t arrived = 0;
};

struct HostFunctionAck {
  explicit HostFunctionAck(const Gpu& gpu)
      : gpu(gpu), launch(gpu.find<Result(Stream, HostFunction, void*)>("cuLaunchHostFunc")) {}
  void send() { gpu.check(launch(gpu.stream, count_one, &arrived), "cuLaunchHostFunc"); }
  std::uint64_t seen() { return arrived.load(std::memory_order_acquire); }
  const Gpu& gpu;
  Result (*launch)(Stream, HostFunction, void*);
  std::atomic<std::uint64_t> arrived{0};
};

struct WriteValueAck {
  explicit WriteValueAck(const Gpu& gpu)
      : gpu(gpu),
        write(gpu.find<Result(Stream, DevicePointer, std::uint64_t, unsigned)>(
            "cuStreamWriteValue64_v2")) {
    void* page = std::aligned_alloc(4096, 4096);
    if (page == nullptr) fail("no memory");
    word = new (page) std::atomic<std::uint64_t>(0);
    gpu.check(gpu.driver->cuMemHostRegister(page, 4096, slabpool::cuda::kHostRegisterDeviceMap),
              "cuMemHostRegister");
    gpu.check(gpu.driver->cuMemHostGetDevicePointer(&there, page, 0), "cuMemHostGetDevicePointer");
  }
  void send() { gpu.check(write(gpu.stream, there, ++sent, 0), "cuStreamWriteValue64"); }
  std::uint64_t seen() { return word->load(std::memory_order_acquire); }
  const Gpu& gpu;
  Result (*write)(Stream, DevicePointer, std::uint64_t, unsigned);
  std::atomic<std::uint64_t>* word =
      nullptr;  // written by the GPU; registered for the life of the process
  DevicePointer there = 0;
  std::uint64_t sent = 0;
};

template <typename Ack>
Report ack(const Options& options, const Gpu& gpu) {
  Ack way(gpu);
  DevicePointer memory = 0;
  gpu.check(gpu.driver->cuMemAlloc(&memory, kWork), "cuMemAlloc");
  std::uint64_t sent = 0;
  const auto work = [&] {
    gpu.check(gpu.driver->cuMemsetD8Async(memory, static_cast<unsigned char>(sent), kWork, gpu.stream),
              "cuMemsetD8Async");
  };
  const auto arrive = [&](std::uint64_t count) {
    while (way.seen() < count) {
    }
  };
  // Many in a row: work and its ack, with a poll for arrived acks, as a pool does.
  const auto in_a_row = [&](std::uint64_t loops) {
    const double start = now();
    for (std::uint64_t i = 0; i < loops; ++i) {
      work();
      way.send();
      ++sent;
      if (sent > kInFlight) arrive(sent - kInFlight);
    }
    gpu.finish();
    arrive(sent);
    return now() - start;
  };
  // One at a time: from the call to the moment at which the host has seen the ack.
  const auto alone = [&](std::uint64_t loops) {
    double total = 0;
    for (std::uint64_t i = 0; i < loops; ++i) {
      work();
      gpu.finish();
      const double start = now();
      way.send();
      arrive(++sent);
      total += now() - start;
    }
    return total;
  };
  // The call alone, on a stream that has nothing else to do.
  const auto call = [&](std::uint64_t loops) {
    double total = 0;
    for (std::uint64_t i = 0; i < loops; ++i) {
      const double start = now();
      way.send();
      total += now() - start;
      ++sent;
      if (sent % kInFlight == 0) arrive(sent);
    }
    gpu.finish();
    arrive(sent);
    return total;
  };
  Report report;
  report.push_back({"time", "s", seconds_per_loop(options, in_a_row)});
  report.push_back({"until the host knows", "s", seconds_per_loop(options, alone)});
  report.push_back({"the call", "s", seconds_per_loop(options, call)});
  gpu.check(gpu.driver->cuMemFree(memory), "cuMemFree");
  return report;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) fail("usage: slabpool-bench-gpu allocate|ack HOW [bytes=N] [values=N] [seconds=X]");
  Options options;
  for (int i = 3; i < argc; ++i) {
    const std::string option = argv[i];
    const auto is = [&](std::string_view name) { return option.rfind(name, 0) == 0; };
    if (is("bytes=")) {
      options.bytes = std::stoull(option.substr(6));
    } else if (is("values=")) {
      options.values = static_cast<unsigned>(std::stoul(option.substr(7)));
    } else if (is("seconds=")) {
      options.seconds = std::stod(option.substr(8));
    } else {
      fail("what is " + option + "?");
    }
  }
  const Gpu gpu;
  const std::string_view workload = argv[1], how = argv[2];
  if (workload == "allocate") {
    print(allocate(how, options, gpu));
  } else if (workload != "ack") {
    fail("no workload " + std::string(workload));
  } else if (how == "none") {
    print(ack<NoAck>(options, gpu));
  } else if (how == "event") {
    print(ack<EventAck>(options, gpu));
  } else if (how == "host_function") {
    print(ack<HostFunctionAck>(options, gpu));
  } else if (how == "write_value") {
    print(ack<WriteValueAck>(options, gpu));
  } else {
    fail("no way " + std::string(how));
  }
  return 0;
}
