// The stream-ordered heap, on the stand-in driver: allocating and freeing on one stream makes no call of the driver, and
// another stream, or the pool, gets the memory only after the work of the stream it was used on.
#include "slabpool/adapters/stream_heap.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>
#include <string>
#include <thread>

#include "slabpool/adapters/stream_heap_c.h"
#include "support/meeting.hpp"
#include "support/scale.hpp"
#include "support/stream_help.hpp"

namespace slabpool::test {
namespace {

using cuda::Stream;

class StreamHeap : public StreamFixture {
 protected:
  using Heap = cuda::StreamHeap;

  void SetUp() override {
    StreamFixture::SetUp();
    Error error;
    heap = Heap::create(*pool, -1, error);
    ASSERT_NE(heap, nullptr) << error.text;
    a = make_stream();
    b = make_stream();
  }
  void TearDown() override {
    standin_clear_faults();
    standin_release_all();
    heap.reset();
    StreamFixture::TearDown();
  }

  void destroy(Stream stream) {
    const cuda::CurrentContext current(*driver, context);
    EXPECT_EQ(driver->cuStreamDestroy(stream), cuda::kSuccess);
  }
  void* take(std::uint64_t nbytes, Stream on) {
    void* address = heap->allocate(nbytes, on);
    EXPECT_NE(address, nullptr);
    return address;
  }
  // Work of a stream on a block, which must not be visible in any other block.
  void write(void* address, unsigned char value, std::uint64_t nbytes, Stream on) {
    const cuda::CurrentContext current(*driver, context);
    ASSERT_EQ(driver->cuMemsetD8Async(reinterpret_cast<cuda::DevicePointer>(address), value, nbytes, on),
              cuda::kSuccess);
  }
  unsigned char first_byte(const void* address) {
    unsigned char byte = 0;
    EXPECT_EQ(standin_peek(reinterpret_cast<std::uint64_t>(address), &byte, 1), 1);
    return byte;
  }
  void expect_nothing_left() {
    (void)heap->trim();
    standin_settle();
    const Heap::Figures f = heap->figures();
    EXPECT_EQ(f.live_blocks + f.parked_blocks + f.waiting_blocks, 0U);
    EXPECT_EQ(f.live_bytes + f.parked_bytes + f.waiting_bytes, 0U);
    expect_all_returned(*pool);
  }

  std::unique_ptr<Heap> heap;
  Stream a = nullptr;
  Stream b = nullptr;
};

TEST_F(StreamHeap, HandsOutAgainAtOnceOnItsStream) {
  standin_hold(0, a);
  for (const std::uint64_t nbytes : {0ULL, 1ULL, 512ULL, 4096ULL, 200'000ULL, 5ULL << 20}) {
    void* const first = take(nbytes, a);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % Heap::kUnit, 0U);
    write(first, 1, std::max<std::uint64_t>(nbytes, 1), a);
    EXPECT_TRUE(heap->release(first, a));
    const std::uint64_t calls = standin_calls("*");
    const std::uint64_t taken = pool->stats().allocations;
    EXPECT_EQ(take(nbytes, a), first);
    EXPECT_TRUE(heap->release(first, a));
    EXPECT_EQ(standin_calls("*"), calls);
    EXPECT_EQ(pool->stats().allocations, taken);
  }
  EXPECT_EQ(heap->figures().reuses, 8U) << "0, 1 and 512 bytes are one size";
  standin_release(0, a);
  synchronize(a);
  expect_nothing_left();
}

TEST_F(StreamHeap, NewestFirst) {
  void* const one = take(4096, a);
  void* const two = take(4096, a);
  EXPECT_TRUE(heap->release(one, a));
  EXPECT_TRUE(heap->release(two, a));
  EXPECT_EQ(take(4096, a), two);
  EXPECT_EQ(take(4096, a), one);
  EXPECT_TRUE(heap->release(one));
  EXPECT_TRUE(heap->release(two));
}

TEST_F(StreamHeap, AnotherStreamGetsNothingThatIsInUse) {
  standin_hold(0, a);
  void* const first = take(kMiB, a);
  write(first, 0x11, kMiB, a);
  EXPECT_TRUE(heap->release(first, a));
  std::vector<void*> others;
  while (void* other = heap->allocate(kMiB, b)) {
    EXPECT_NE(other, first);
    write(other, 0x22, kMiB, b);
    others.push_back(other);
  }
  EXPECT_EQ(others.size(), 15U);
  synchronize(b);
  standin_release(0, a);
  synchronize(a);
  for (const void* other : others) EXPECT_EQ(first_byte(other), 0x22);
  standin_settle();
  EXPECT_EQ(take(kMiB, b), first);
  EXPECT_TRUE(heap->release(first, b));
  for (void* other : others) EXPECT_TRUE(heap->release(other, b));
  expect_nothing_left();
}

TEST_F(StreamHeap, FreedOnAnotherStreamWaitsForBoth) {
  void* const first = take(4096, a);
  standin_hold(0, a);
  standin_hold(0, b);
  write(first, 1, 4096, a);
  write(first, 2, 4096, b);
  EXPECT_TRUE(heap->release(first, b));
  EXPECT_EQ(heap->figures().waiting_blocks, 1U);
  standin_release(0, b);
  synchronize(b);
  EXPECT_EQ(heap->figures().waiting_blocks, 1U);
  EXPECT_NE(take(4096, b), first);
  EXPECT_NE(take(4096, a), first);
  standin_release(0, a);
  synchronize(a);
  standin_settle();
  EXPECT_EQ(heap->figures().waiting_blocks, 0U);
}

TEST_F(StreamHeap, RecordedStreamsAreWaitedFor) {
  void* const first = take(4096, a);
  EXPECT_TRUE(heap->record(first, b));
  EXPECT_TRUE(heap->record(first, b));
  EXPECT_TRUE(heap->record(first, a));
  standin_hold(0, b);
  write(first, 2, 4096, b);
  EXPECT_TRUE(heap->release(first, a));
  EXPECT_FALSE(heap->record(first, b)) << "it is not handed out";
  standin_settle();
  EXPECT_EQ(heap->figures().waiting_blocks, 1U);
  EXPECT_NE(take(4096, a), first);
  standin_release(0, b);
  synchronize(b);
  standin_settle();
  EXPECT_EQ(heap->figures().waiting_blocks, 0U);
  // Only memory freed after the event was recorded waits.
  void* const second = take(8192, a);
  EXPECT_TRUE(heap->release(second, a));
  EXPECT_EQ(heap->figures().parked_blocks, 1U);
}

TEST_F(StreamHeap, WrongFreesChangeNothing) {
  void* const one = take(4096, a);
  char outside = 0;
  EXPECT_FALSE(heap->release(&outside, a));
  EXPECT_FALSE(heap->release(static_cast<std::byte*>(one) + 512, a));
  EXPECT_FALSE(heap->release(nullptr, a));
  EXPECT_TRUE(heap->release(one, a));
  EXPECT_FALSE(heap->release(one, a));
  EXPECT_FALSE(heap->release(one, b));
  EXPECT_EQ(heap->figures().wrong_frees, 5U);
  EXPECT_EQ(take(4096, a), one);
  EXPECT_NE(take(4096, a), one) << "once";
}

TEST_F(StreamHeap, UnknownStreamsGiveNull) {
  const Stream nonsense = reinterpret_cast<Stream>(std::uintptr_t{0x1230});
  EXPECT_EQ(heap->allocate(4096, nonsense), nullptr);
  standin_clear_complaints();
  EXPECT_EQ(heap->figures().failures, 1U);
  EXPECT_EQ(pool->stats().live, 0U);
  // Freed on one of them: the heap waits for all work.
  void* const one = take(4096, a);
  EXPECT_TRUE(heap->release(one, nonsense));
  standin_clear_complaints();
  EXPECT_EQ(heap->figures().waiting_blocks, 0U);
}

TEST_F(StreamHeap, DefaultStreamsAreOfItsDevice) {
  void* const one = take(4096, nullptr);
  EXPECT_TRUE(heap->release(one, cuda::kLegacyStream)) << "0 and 1 are one stream";
  EXPECT_EQ(take(4096, nullptr), one);
  EXPECT_TRUE(heap->release(one, nullptr));
  // Each thread has a per-thread stream of its own.
  void* const mine = take(4096, cuda::kPerThreadStream);
  EXPECT_TRUE(heap->release(mine, cuda::kPerThreadStream));
  std::thread([&] { EXPECT_NE(take(4096, cuda::kPerThreadStream), mine); }).join();
  EXPECT_EQ(take(4096, cuda::kPerThreadStream), mine);
  // Another thread cannot record an event on this stream, so freeing there synchronizes with the device. The remaining
  // event is that of the other thread's own stream.
  std::thread([&] { EXPECT_TRUE(heap->release(mine, cuda::kPerThreadStream)); }).join();
  heap->wait();
  EXPECT_EQ(heap->figures().waiting_blocks, 0U);
  EXPECT_EQ(heap->figures().wrong_frees, 0U);
}

TEST_F(StreamHeap, AForgottenStreamKeepsNothing) {
  const Stream gone = make_stream();
  void* const parked = take(4096, gone);
  void* const used = take(4096, gone);
  EXPECT_TRUE(heap->release(parked, gone));
  standin_hold(0, gone);
  write(used, 1, 4096, gone);
  heap->forget(gone);
  destroy(gone);
  EXPECT_EQ(heap->figures().parked_blocks, 0U);
  // Freed later: the handle has become invalid, so the heap waits for all work.
  std::thread frees([&] { EXPECT_TRUE(heap->release(used)); });
  standin_release_all();
  frees.join();
  const Heap::Figures f = heap->figures();
  EXPECT_EQ(f.parked_blocks + f.live_blocks, 0U);
  expect_nothing_left();
}

TEST_F(StreamHeap, ParkedMemoryServesOthersBeforeNull) {
  std::vector<void*> all;
  for (int i = 0; i < 8; ++i) all.push_back(take(kMiB, a));
  standin_hold(0, a);
  write(all[0], 1, 1, a);
  for (void* one : all) EXPECT_TRUE(heap->release(one, a));
  // The blocks are in use, so the pool is exhausted; a moment later they are free.
  EXPECT_EQ(heap->allocate(15 * kMiB, b), nullptr);
  standin_release(0, a);
  synchronize(a);
  standin_settle();
  void* const large = take(15 * kMiB, b);
  EXPECT_TRUE(heap->release(large, b));
  EXPECT_EQ(heap->allocate(17 * kMiB, a), nullptr);
  EXPECT_EQ(heap->allocate(~std::size_t{0}, a), nullptr);
  expect_nothing_left();
}

TEST_F(StreamHeap, AListKeepsHalfThePoolAtMost) {
  std::vector<void*> all;
  for (int i = 0; i < 14; ++i) all.push_back(take(kMiB, a));
  standin_hold(0, a);
  write(all[0], 1, 1, a);
  for (void* one : all) EXPECT_TRUE(heap->release(one, a));
  const Heap::Figures f = heap->figures();
  EXPECT_LE(f.parked_bytes, 8 * kMiB);
  EXPECT_EQ(f.parked_blocks + f.waiting_blocks, 14U);
  EXPECT_EQ(standin_calls("cuEventRecord"), 1U) << "one event for all of them";
  standin_release(0, a);
  synchronize(a);
  expect_nothing_left();
}

TEST_F(StreamHeap, BlocksOfARequestAreItsOwn) {
  const std::uint32_t gpu0 = *pool->devices().add("sgpu0");
  const Handle handle = open(*pool, {.devices = {gpu0}});
  heap->set_request(handle);
  void* const one = take(4096, a);
  EXPECT_EQ(info(handle).live_views, 1U);
  EXPECT_EQ(info(handle).nbytes, 4096U);
  // The request reuses it; no other allocation gets it.
  EXPECT_TRUE(heap->release(one, a));
  EXPECT_EQ(take(4096, a), one);
  EXPECT_TRUE(heap->release(one, a));
  heap->set_request({});
  void* const plain = take(4096, a);
  EXPECT_NE(plain, one);
  EXPECT_TRUE(heap->release(plain, a));
  heap->end_request(handle);
  standin_settle();
  EXPECT_EQ(heap->figures().waiting_blocks, 0U);
  EXPECT_EQ(info(handle).live_views, 0U);
  EXPECT_EQ(info(handle).nbytes, 4096U) << "the request has it until its end";
  close(handle);
  EXPECT_EQ(ack(handle, gpu0), AckResult::released);
  expect_nothing_left();
}

// A tensor that outlives its request, and is freed while its stream still works on it.
TEST_F(StreamHeap, RetainedBlocksWaitForTheirStream) {
  const Handle handle = open(*pool, {});
  heap->set_request(handle);
  void* const one = take(kMiB, a);
  heap->set_request({});
  close(handle);
  EXPECT_EQ(pool->stats().retained, kMiB);
  standin_hold(0, a);
  write(one, 1, kMiB, a);
  EXPECT_TRUE(heap->release(one, a));
  EXPECT_EQ(heap->figures().waiting_blocks, 1U);
  EXPECT_EQ(pool->stats().retained, kMiB);
  standin_release(0, a);
  synchronize(a);
  expect_nothing_left();
}

TEST_F(StreamHeap, AClosedRequestTakesNothing) {
  const Handle handle = open(*pool, {});
  heap->set_request(handle);
  void* const kept = take(4096, a);
  EXPECT_TRUE(heap->release(kept, a));
  close(handle);
  void* const plain = take(4096, a);
  EXPECT_EQ(pool->find(plain)->request.load(), 0U);
  heap->set_request({});
  heap->end_request(handle);
  EXPECT_TRUE(heap->release(plain, a));
  expect_nothing_left();
}

TEST_F(StreamHeap, AQuotaIsAnAnswer) {
  const Handle handle = open(*pool, {.quota = kMiB});
  heap->set_request(handle);
  void* const one = take(kMiB / 2, a);
  EXPECT_EQ(heap->allocate(kMiB, a), nullptr);
  EXPECT_TRUE(heap->release(one, a));
  heap->set_request({});
  heap->end_request(handle);
  close(handle);
}

TEST_F(StreamHeap, ReportsSayWhoHasWhat) {
  void* const one = take(4096, a);
  void* const two = take(4096, a);
  EXPECT_TRUE(heap->release(two, a));
  EXPECT_EQ(pool->tagged(cuda::kStreamTag).blocks, 1U);
  EXPECT_EQ(pool->tagged(cuda::kParkedTag).blocks, 1U);
  EXPECT_TRUE(heap->release(one, a));
  (void)heap->trim();
  standin_settle();
  (void)heap->figures();
  EXPECT_EQ(pool->tagged(cuda::kStreamTag).blocks + pool->tagged(cuda::kParkedTag).blocks, 0U);
}

TEST_F(StreamHeap, ALostDeviceGivesNull) {
  void* const one = take(4096, a);
  void* const two = take(4096, a);
  EXPECT_TRUE(heap->release(two, a));
  standin_lose_device(0, 719);
  EXPECT_TRUE(heap->release(one, b));
  EXPECT_TRUE(heap->lost());
  EXPECT_EQ(heap->allocate(4096, a), nullptr);
  (void)heap->trim();
  EXPECT_EQ(heap->figures().parked_blocks + heap->figures().waiting_blocks, 0U);
  EXPECT_EQ(pool->stats().live, 0U);
  standin_lose_device(0, 0);
}

// Each call of the driver fails in turn, in every step; no memory is lost or reused too early.
TEST_F(StreamHeap, EveryCallMayFail) {
  for (const int code : {cuda::kNotPermitted, cuda::kOutOfMemory, cuda::kInvalidHandle}) {
    for (int nth = 1;; ++nth) {
      SCOPED_TRACE("call " + std::to_string(nth) + " with " + std::to_string(code));
      standin_hold(0, a);
      const std::uint64_t before = standin_calls("*");
      standin_fail("*", nth, code, 1);
      void* const one = heap->allocate(4096, a);
      if (one != nullptr) {
        {
          // This call may be the one that fails.
          const cuda::CurrentContext current(*driver, context);
          (void)driver->cuMemsetD8Async(reinterpret_cast<cuda::DevicePointer>(one), 0x33, 4096, a);
        }
        (void)heap->record(one, b);
        standin_release(0, a);  // otherwise synchronizing as the fallback would wait for ever
        EXPECT_TRUE(heap->release(one, b));
      }
      standin_release(0, a);
      const bool through = standin_calls("*") - before < static_cast<std::uint64_t>(nth);
      standin_clear_faults();
      synchronize(a);
      synchronize(b);
      standin_settle();
      (void)heap->trim();
      standin_settle();
      EXPECT_EQ(heap->figures().waiting_blocks, 0U);
      EXPECT_EQ(pool->stats().live, 0U);
      standin_clear_complaints();
      // If the failing call was cuCtxPopCurrent.
      for (cuda::Context left = nullptr; standin_context_depth() != 0;)
        (void)driver->cuCtxPopCurrent(&left);
      if (through) break;
      ASSERT_LT(nth, 200);
    }
  }
}

TEST_F(StreamHeap, CapturesAreLeftAlone) {
  standin_capture(0, b, 1);
  void* const one = take(4096, a);
  EXPECT_TRUE(heap->release(one, a));
  (void)heap->trim();
  standin_settle();
  EXPECT_EQ(heap->figures().waiting_blocks, 0U);
  // On a stream that is being captured no event can be recorded, and its context must not be synchronized.
  void* const two = take(4096, a);
  EXPECT_TRUE(heap->release(two, b));
  EXPECT_EQ(heap->figures().waiting_blocks, 1U);
  EXPECT_NE(take(4096, a), two);
  standin_capture(0, b, 0);
  (void)heap->figures();
  standin_settle();
  EXPECT_EQ(heap->figures().waiting_blocks, 0U);
}

TEST_F(StreamHeap, ItsEndWaitsForTheWork) {
  void* const one = take(4096, a);
  standin_hold(0, a);
  write(one, 1, 4096, a);
  EXPECT_TRUE(heap->release(one, b));
  std::thread drops([&] { heap.reset(); });
  EXPECT_EQ(pool->stats().live, 4096U);
  standin_release(0, a);
  drops.join();
  expect_all_returned(*pool);
}

TEST_F(StreamHeap, AForkHasNone) {
  void* const one = take(4096, a);
  const pid_t child = fork();
  if (child == 0) {
    const bool right = heap->allocate(4096, a) == nullptr && !heap->release(one, a) && heap->trim() == 0;
    heap.reset();
    _exit(right && standin_calls_after_fork() == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(heap->release(one, a));
}

TEST_F(StreamHeap, AsTorchAndCupyCallIt) {
  EXPECT_EQ(slabpool_stream_alloc(4096, 0, a), nullptr) << "none is in force";
  int ok = 0;
  EXPECT_EQ(slabpool_stream_use(0, heap.get(), &ok), nullptr);
  EXPECT_EQ(ok, 1);
  (void)slabpool_stream_use(64, heap.get(), &ok);
  EXPECT_EQ(ok, 0);
  void* const one = slabpool_stream_alloc(0, 0, a);
  ASSERT_NE(one, nullptr);
  slabpool_stream_record(one, b);
  EXPECT_EQ(slabpool_stream_alloc(4096, 1, a), nullptr) << "of another device";
  slabpool_stream_free(nullptr, 0, 0, a);
  // Another heap becomes the current one: blocks return to the heap they came from.
  auto others = make_pool(kCapacity);
  Error error;
  auto next = Heap::create(*others, 0, error);
  EXPECT_EQ(slabpool_stream_use(0, next.get(), &ok), heap.get());
  slabpool_stream_free(one, 0, 0, a);
  EXPECT_EQ(heap->figures().live_blocks, 0U);
  slabpool_stream_retire(next.get());
  EXPECT_EQ(slabpool_stream_alloc(4096, 0, a), nullptr);
  slabpool_stream_retire(heap.get());
  next.reset();

  Heap::set_stream(a);
  void* const array = slabpool_cupy_malloc(heap.get(), 4096, 0);
  ASSERT_NE(array, nullptr);
  Heap::set_stream(b);
  slabpool_cupy_free(heap.get(), array, 0);
  EXPECT_NE(slabpool_cupy_malloc(heap.get(), 4096, 0), array);
  Heap::set_stream(nullptr);
  EXPECT_EQ(take(4096, a), array) << "freed where it was allocated";
}

// Blocks pass between streams and threads; the bytes that a stream wrote to its block stay until the block is freed.
TEST_F(StreamHeap, FromManyThreads) {
  constexpr int kThreads = 4;
  std::vector<Stream> streams;
  for (int i = 0; i < kThreads - 1; ++i) streams.push_back(make_stream());
  const Handle request = open(*pool, {});
  Meeting meeting(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t) + 1);
      struct Mine {
        void* address;
        Stream on;
        std::uint64_t nbytes;
      };
      std::vector<Mine> mine;
      const auto value = static_cast<unsigned char>(t + 1);
      meeting.arrive();
      for (int round = 0; round < rounds(3000); ++round) {
        if (random() % 64 == 0) heap->set_request(random() % 2 == 0 ? request : Handle{});
        const Stream on = streams[random() % streams.size()];
        if (mine.size() < 20 && random() % 2 == 0) {
          const std::uint64_t nbytes = 1 + random() % (random() % 8 == 0 ? 300'000 : 5'000);
          if (void* address = heap->allocate(nbytes, on)) {
            write(address, value, nbytes, on);
            mine.push_back({address, on, nbytes});
          }
        } else if (!mine.empty()) {
          const std::size_t at = random() % mine.size();
          const Mine one = mine[at];
          mine.erase(mine.begin() + static_cast<std::ptrdiff_t>(at));
          if (random() % 4 == 0) {
            synchronize(one.on);
            EXPECT_EQ(first_byte(one.address), value);
          }
          if (random() % 8 == 0) {
            EXPECT_TRUE(heap->record(one.address, on));
          }
          EXPECT_TRUE(heap->release(one.address, random() % 4 == 0 ? on : one.on));
        }
        if (random() % 256 == 0) (void)heap->trim();
      }
      for (const Mine& one : mine) EXPECT_TRUE(heap->release(one.address, one.on));
      heap->set_request({});
    });
  }
  for (std::thread& thread : threads) thread.join();
  heap->end_request(request);
  close(request);
  for (const Stream one : streams) synchronize(one);
  standin_settle();
  expect_nothing_left();
}

}  // namespace
}  // namespace slabpool::test
