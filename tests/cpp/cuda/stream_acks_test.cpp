// Acks behind the work of a stream, on the stand-in driver: when they count, that each counts once, and that errors are
// reported by the call and change nothing.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "slabpool/cuda/stream_marks.hpp"
#include "support/meeting.hpp"
#include "support/scale.hpp"
#include "support/stream_help.hpp"

namespace slabpool::test {
namespace {

using cuda::Stream;
using cuda::StreamName;

class StreamAcks : public StreamFixture {
 protected:
  void SetUp() override {
    StreamFixture::SetUp();
    stream = make_stream();
    gpu0 = *pool->devices().add("sgpu0");
    gpu1 = *pool->devices().add("sgpu1");
  }

  // Work on a stream of device 0, which is done unless the stream is held.
  void queue_work(Stream on) {
    const cuda::CurrentContext current(*driver, context);
    if (scratch == 0) {
      ASSERT_EQ(driver->cuMemAlloc(&scratch, 4096), cuda::kSuccess);
    }
    ASSERT_EQ(driver->cuMemsetD8Async(scratch, 7, 4096, on), cuda::kSuccess);
  }
  Error unread;  // for calls whose text does not matter
  AckResult ack_after(Handle handle, std::uint32_t device, Stream on) {
    Error error;
    const Pool::Acked acked = pool->ack_after(handle, device, {on, -1}, error);
    EXPECT_EQ(acked.status, Status::ok) << error.text;
    expect_adds_up(pool->stats());
    return acked.result;
  }
  Handle opened(std::vector<std::uint32_t> on, std::int64_t lease_ns = 0) {
    Opening how;
    how.devices = std::move(on);
    how.lease_ns = lease_ns;
    return open(*pool, how);
  }
  // A request for gpu0 with a block, closed by the host, and acknowledged behind work that is held.
  Handle held_back() {
    const Handle handle = opened({gpu0});
    (void)take(kept(4096, handle));
    close(handle);
    standin_hold(0, stream);
    queue_work(stream);
    EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::pending);
    return handle;
  }
  void let_go() {
    standin_release(0, stream);
    synchronize(stream);
  }

  Stream stream = nullptr;
  cuda::DevicePointer scratch = 0;
  std::uint32_t gpu0 = 0;
  std::uint32_t gpu1 = 0;
};

TEST_F(StreamAcks, CountsOnceTheWorkIsDone) {
  const Handle handle = held_back();
  EXPECT_EQ(pool->stream_acks(), 1U);
  EXPECT_FALSE(pool->released(handle));
  EXPECT_EQ(info(handle).pending, std::vector<std::uint32_t>{gpu0});
  EXPECT_EQ(info(handle).behind_stream, std::vector<std::uint32_t>{gpu0});
  EXPECT_EQ(pool->stats().stream_acks, 1U);
  EXPECT_EQ(pool->stats().live, 4096U);
  let_go();
  EXPECT_TRUE(pool->released(handle));
  EXPECT_EQ(pool->stream_acks(), 0U);
  EXPECT_EQ(pool->stats().acks, 1U);
  expect_all_returned(*pool);
}

TEST_F(StreamAcks, OfDoneWorkIsAnswered) {
  const Handle handle = opened({gpu0, gpu1});
  close(handle);
  queue_work(stream);
  synchronize(stream);
  // The stream's thread completes the event a moment later; settle() waits until it has.
  AckResult last = AckResult::pending;
  for (const std::uint32_t device : {gpu0, gpu1}) {
    last = ack_after(handle, device, stream);
    standin_settle();
  }
  EXPECT_TRUE(last == AckResult::released || last == AckResult::pending);
  EXPECT_TRUE(pool->released(handle));
  EXPECT_EQ(pool->stats().acks, 2U);
}

// While only the GPU still holds the request, its writes go to memory that has no other owner.
TEST_F(StreamAcks, NothingIsReusedBeforeTheWorkIsDone) {
  const Handle handle = opened({gpu0});
  Block* const first = take(kept(kMiB, handle));
  std::byte* const data = first->data;
  {
    const cuda::CurrentContext current(*driver, context);
    ASSERT_EQ(driver->cuMemHostRegister(data, kMiB, 0), cuda::kSuccess);
  }
  const auto address = reinterpret_cast<cuda::DevicePointer>(data);
  standin_hold(0, stream);
  {
    const cuda::CurrentContext current(*driver, context);
    ASSERT_EQ(driver->cuMemsetD8Async(address, 0x11, kMiB, stream), cuda::kSuccess);
  }
  close(handle);
  EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::pending);
  // All other memory of the pool.
  std::vector<Block*> others;
  for (;;) {
    const Allocation made = pool->allocate(bytes(kMiB));
    if (made.block == nullptr) break;
    EXPECT_NE(made.block->data, data);
    std::memset(made.block->data, 0x22, kMiB);
    others.push_back(made.block);
  }
  EXPECT_EQ(others.size(), 15U);
  let_go();
  for (const Block* block : others) {
    EXPECT_EQ(block->data[0], std::byte{0x22});
    EXPECT_EQ(block->data[kMiB - 1], std::byte{0x22});
  }
  // The pool is not exhausted any more, because allocating polls the streams.
  Block* const again = take(bytes(kMiB));
  EXPECT_EQ(again->data, data);
  EXPECT_EQ(again->data[0], std::byte{0x11});
  pool->drop_view(*again);
  for (Block* block : others) pool->drop_view(*block);
  const cuda::CurrentContext current(*driver, context);
  ASSERT_EQ(driver->cuMemHostUnregister(data), cuda::kSuccess);
}

TEST_F(StreamAcks, AgainIsDuplicateAndQueuesNothing) {
  const Handle handle = held_back();
  const std::uint64_t recorded = standin_calls("cuEventRecord");
  EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::duplicate);
  EXPECT_EQ(ack_after(handle, gpu0, make_stream()), AckResult::duplicate);
  EXPECT_EQ(standin_calls("cuEventRecord"), recorded);
  EXPECT_EQ(pool->stats().duplicate_acks, 2U);
  let_go();
  EXPECT_TRUE(pool->released(handle));
  EXPECT_EQ(pool->stats().acks, 1U);
  EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::late);
}

TEST_F(StreamAcks, APlainAckTakesEffectAtOnce) {
  const Handle handle = held_back();
  EXPECT_EQ(ack(handle, gpu0), AckResult::released);
  let_go();
  EXPECT_TRUE(pool->released(handle));
  const Stats s = pool->stats();
  EXPECT_EQ(s.acks, 1U);
  EXPECT_EQ(s.duplicate_acks + s.late_acks, 0U);
  EXPECT_EQ(pool->stream_acks(), 0U);
}

TEST_F(StreamAcks, WrongAcksAreAnsweredAtOnce) {
  const Handle handle = opened({gpu0});
  const Stream nonsense = reinterpret_cast<Stream>(std::uintptr_t{0x1230});
  // Acks that need no stream do not check it.
  EXPECT_EQ(pool->ack_after(handle, gpu1, {nonsense, -1}, unread).status, Status::unknown_device);
  Error error;
  EXPECT_EQ(pool->ack_after(handle, gpu0, {nonsense, -1}, error).status, Status::invalid_argument);
  EXPECT_NE(error.text.find("cuStreamGetCtx: CUDA_ERROR_INVALID_HANDLE 400"), std::string::npos)
      << error.text;
  standin_clear_complaints();
  EXPECT_EQ(pool->stream_acks(), 0U);
  EXPECT_EQ(ack(handle, gpu0), AckResult::pending);
  EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::duplicate);
  close(handle);
  EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::late);
}

TEST_F(StreamAcks, EachFailureOfTheDriverChangesNothing) {
  for (const char* name : {"cuStreamGetCtx", "cuCtxPushCurrent", "cuStreamIsCapturing", "cuEventCreate",
                           "cuEventRecord", "cuEventQuery"}) {
    for (const int code : {cuda::kNotPermitted, cuda::kIllegalAddress}) {
      SCOPED_TRACE(std::string(name) + " " + std::to_string(code));
      const Handle handle = opened({gpu0});
      std::unique_ptr<Pool> old = std::move(pool);  // so that a new event has to be created
      pool = make_pool(kCapacity);
      gpu0 = *pool->devices().add("sgpu0");
      const Handle other = opened({gpu0});
      close(other);
      standin_hold(0, stream);
      queue_work(stream);
      standin_fail(name, 1, code, -1);
      Error error;
      const Pool::Acked acked = pool->ack_after(other, gpu0, {stream, -1}, error);
      standin_clear_faults();
      if (std::string(name) == "cuEventQuery" && code == cuda::kNotPermitted) {
        // This error says nothing about the work: the ack is pending.
        EXPECT_EQ(acked.status, Status::ok);
        EXPECT_EQ(acked.result, AckResult::pending);
      } else {
        EXPECT_NE(acked.status, Status::ok);
        EXPECT_EQ(pool->stream_acks(), 0U);
        EXPECT_FALSE(error.text.empty());
        EXPECT_FALSE(pool->released(other));
        EXPECT_EQ(ack_after(other, gpu0, stream), AckResult::pending);
      }
      let_go();
      EXPECT_TRUE(pool->released(other));
      EXPECT_EQ(old->ack(handle, gpu0).result, AckResult::pending);
      old->close_request(handle, false);
    }
  }
}

TEST_F(StreamAcks, EventsAreUsedAgain) {
  for (int round = 0; round < 20; ++round) {
    (void)held_back();
    let_go();
    EXPECT_EQ(pool->stats().requests_draining, 0U);
  }
  EXPECT_EQ(standin_calls("cuEventCreate"), 1U);
}

TEST_F(StreamAcks, OnlyTheOldestOfAStreamIsAsked) {
  standin_hold(0, stream);
  queue_work(stream);
  std::vector<Handle> all;
  for (int i = 0; i < 50; ++i) {
    all.push_back(opened({gpu0}));
    close(all.back());
    EXPECT_EQ(pool->ack_after(all.back(), gpu0, {stream, -1}, unread).result, AckResult::pending);
  }
  const std::uint64_t asked = standin_calls("cuEventQuery");
  EXPECT_FALSE(pool->released(all.back()));
  EXPECT_EQ(standin_calls("cuEventQuery"), asked + 1);
  let_go();
  EXPECT_TRUE(pool->released(all.back()));
  EXPECT_EQ(pool->stats().acks, 50U);
}

TEST_F(StreamAcks, NothingIsAskedWhileNoneIsUnderWay) {
  (void)held_back();
  let_go();
  (void)pool->stats();
  const std::uint64_t calls = standin_calls("*");
  Block* block = take(bytes(100));
  pool->drop_view(*block);
  (void)pool->stats();
  EXPECT_EQ(standin_calls("*"), calls);
}

TEST_F(StreamAcks, StreamsDoNotWaitForEachOther) {
  const Handle slow = held_back();
  const Stream other = make_stream();
  const Handle quick = opened({gpu0});
  close(quick);
  (void)pool->ack_after(quick, gpu0, {other, -1}, unread);
  standin_settle();
  EXPECT_TRUE(pool->released(quick));
  EXPECT_FALSE(pool->released(slow));
  let_go();
  EXPECT_TRUE(pool->released(slow));
}

TEST_F(StreamAcks, TheDefaultStreamIsThatOfTheDeviceGiven) {
  for (const int device : {0, 1}) {
    for (const std::uintptr_t number : {0, 1}) {
      const auto legacy = reinterpret_cast<Stream>(number);
      standin_hold(device, nullptr);
      cuda::Result result{};
      {
        // Work to wait for.
        const cuda::CurrentContext current(*driver, driver->context(device, result));
        cuda::Event event = nullptr;
        ASSERT_EQ(driver->cuEventCreate(&event, 0), cuda::kSuccess);
        ASSERT_EQ(driver->cuEventRecord(event, nullptr), cuda::kSuccess);
        ASSERT_EQ(driver->cuEventDestroy(event), cuda::kSuccess);
      }
      const Handle handle = opened({gpu0});
      close(handle);
      EXPECT_EQ(pool->ack_after(handle, gpu0, {legacy, device}, unread).result, AckResult::pending);
      // The other device's stream has no work.
      const Handle quick = opened({gpu1});
      close(quick);
      (void)pool->ack_after(quick, gpu1, {legacy, 1 - device}, unread);
      standin_settle();
      EXPECT_TRUE(pool->released(quick));
      EXPECT_FALSE(pool->released(handle));
      standin_release(device, nullptr);
      standin_settle();
      EXPECT_TRUE(pool->released(handle));
    }
  }
}

TEST_F(StreamAcks, WithoutAContextADefaultStreamIsNobodys) {
  const Handle handle = opened({gpu0});
  Error error;
  EXPECT_EQ(pool->ack_after(handle, gpu0, {nullptr, -1}, error).status, Status::invalid_argument);
  EXPECT_NE(error.text.find("INVALID_CONTEXT"), std::string::npos) << error.text;
  const cuda::CurrentContext current(*driver, context);
  EXPECT_EQ(pool->ack_after(handle, gpu0, {nullptr, -1}, error).status, Status::ok) << error.text;
  standin_settle();
}

TEST_F(StreamAcks, AreOfOneGeneration) {
  const Handle old = held_back();
  pool->close_request(old, true);
  EXPECT_EQ(pool->device_lost(gpu0), 1U);
  EXPECT_TRUE(pool->released(old));
  // Reuses the slot, with the same device and the same id.
  const Handle next = opened({gpu0});
  EXPECT_EQ(next.slot, old.slot);
  close(next);
  let_go();
  EXPECT_FALSE(pool->released(next));
  EXPECT_EQ(pool->stream_acks(), 0U);
  EXPECT_EQ(pool->stats().acks, 0U);
  EXPECT_EQ(ack(next, gpu0), AckResult::released);
}

// The device is named again after a plain ack: the queued ack is not for the new hold.
TEST_F(StreamAcks, AreOfOneHold) {
  const Handle handle = opened({gpu0});
  standin_hold(0, stream);
  queue_work(stream);
  EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::pending);
  EXPECT_EQ(pool->add_device(handle, gpu0), Status::duplicate_device);
  EXPECT_EQ(ack(handle, gpu0), AckResult::pending);
  EXPECT_EQ(pool->add_device(handle, gpu0), Status::ok);
  close(handle);
  let_go();
  EXPECT_FALSE(pool->released(handle));
  // The new hold needs an ack of its own.
  standin_hold(0, stream);
  queue_work(stream);
  EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::pending);
  EXPECT_FALSE(pool->released(handle));
  let_go();
  EXPECT_TRUE(pool->released(handle));
}

TEST_F(StreamAcks, AreAcksOfAllChildren) {
  const Handle parent = opened({gpu0, gpu1});
  Opening how;
  how.devices = {gpu0};
  how.parent = parent;
  const Handle child = open(*pool, how);
  (void)take(kept(4096, child));
  close(child);
  standin_hold(0, stream);
  queue_work(stream);
  EXPECT_EQ(ack_after(parent, gpu0, stream), AckResult::pending);
  EXPECT_FALSE(pool->released(child));
  let_go();
  EXPECT_TRUE(pool->released(child));
  EXPECT_FALSE(pool->released(parent));
  close(parent);
  EXPECT_EQ(ack(parent, gpu1), AckResult::released);
}

TEST_F(StreamAcks, ById) {
  const Handle handle = opened({gpu0});
  close(handle);
  standin_hold(0, stream);
  queue_work(stream);
  EXPECT_EQ(pool->ack_id_after("sa", gpu0, {}, {stream, -1}, unread).result, AckResult::pending);
  EXPECT_EQ(pool->ack_id_after("sa", gpu0, {}, {stream, -1}, unread).result, AckResult::duplicate);
  EXPECT_EQ(pool->ack_id_after("sa", gpu1, {}, {stream, -1}, unread).status, Status::unknown_device);
  EXPECT_EQ(pool->ack_id_after("sb", gpu0, {}, {stream, -1}, unread).result, AckResult::late);
  // The next request with the same id: the first has been acknowledged, so the id is not ambiguous.
  const Handle next = opened({gpu0});
  close(next);
  EXPECT_EQ(pool->ack_id_after("sa", gpu0, {}, {stream, -1}, unread).result, AckResult::pending);
  EXPECT_EQ(pool->stream_acks(), 2U);
  let_go();
  EXPECT_TRUE(pool->released(handle));
  EXPECT_TRUE(pool->released(next));
}

TEST_F(StreamAcks, AreSignsOfLife) {
  const Handle handle = opened({gpu0}, 1);  // a lease of one nanosecond
  EXPECT_EQ(info(handle).state, RequestState::in_doubt);
  standin_hold(0, stream);
  queue_work(stream);
  const std::int64_t before = now_ns();
  EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::pending);
  EXPECT_GE(pool->devices().last_heard(gpu0), before);
  // Work that does not finish makes the device silent again.
  EXPECT_EQ(info(handle).state, RequestState::in_doubt);
  const std::int64_t silent_since = now_ns();
  let_go();
  (void)pool->stats();
  EXPECT_GE(pool->devices().last_heard(gpu0), silent_since);
  EXPECT_EQ(info(handle).state, RequestState::open);
  close(handle);
}

// Work may finish long after the device was reported lost. A request opened on the device since then must not take that
// for a sign of life.
TEST_F(StreamAcks, ThatCountForNothingAreNoSignsOfLife) {
  const Handle lost = opened({gpu0});
  standin_hold(0, stream);
  queue_work(stream);
  EXPECT_EQ(ack_after(lost, gpu0, stream), AckResult::pending);
  EXPECT_EQ(pool->device_lost(gpu0), 1U);
  const Handle later = opened({gpu0}, 1'000'000'000);
  const std::int64_t heard = pool->devices().last_heard(gpu0);
  let_go();
  (void)pool->stats();
  EXPECT_EQ(pool->stream_acks(), 0U);
  EXPECT_EQ(pool->devices().last_heard(gpu0), heard);
  close(lost);
  close(later);
  (void)pool->ack(later, gpu0);
}

TEST_F(StreamAcks, OfALostGpuCountAndSaySo) {
  PoolOptions options;
  options.capacity = kCapacity;
  options.events = 64;
  pool = make_pool(options);
  gpu0 = *pool->devices().add("sgpu0");
  gpu1 = *pool->devices().add("sgpu1");
  const Handle under_way = held_back();
  const Stream second = make_stream();
  const Handle also = opened({gpu0});
  close(also);
  standin_hold(0, second);
  queue_work(second);
  EXPECT_EQ(ack_after(also, gpu0, second), AckResult::pending);
  const Handle not_yet = opened({gpu0});
  close(not_yet);
  const Stream elsewhere = make_stream(1);
  standin_lose_device(0, 719);
  // Acks of both streams count after one of them was queried; the device still holds what it had not acknowledged.
  EXPECT_TRUE(pool->released(under_way));
  EXPECT_TRUE(pool->released(also));
  EXPECT_FALSE(pool->released(not_yet));
  std::uint64_t lost = 0;
  for (const Event& event : pool->events()) lost += event.kind == EventKind::lost ? 1U : 0U;
  EXPECT_EQ(lost, 2U);
  Error error;
  EXPECT_EQ(pool->ack_after(not_yet, gpu0, {stream, -1}, error).status, Status::device_lost);
  EXPECT_NE(error.text.find("CUDA_ERROR_LAUNCH_FAILED"), std::string::npos) << error.text;
  EXPECT_FALSE(pool->released(not_yet));
  // The other GPU and the pool go on, because the pool's memory is the host's.
  (void)pool->ack_after(not_yet, gpu0, {elsewhere, -1}, unread);
  standin_settle();
  EXPECT_TRUE(pool->released(not_yet));
  pool->drop_view(*take(bytes(kMiB)));
  standin_lose_device(0, 0);
}

TEST_F(StreamAcks, ADestroyedStreamDoesItsWork) {
  const Stream gone = make_stream();
  standin_hold(0, gone);
  queue_work(gone);
  const Handle handle = opened({gpu0});
  close(handle);
  EXPECT_EQ(ack_after(handle, gpu0, gone), AckResult::pending);
  {
    const cuda::CurrentContext current(*driver, context);
    ASSERT_EQ(driver->cuStreamDestroy(gone), cuda::kSuccess);
  }
  EXPECT_FALSE(pool->released(handle));
  standin_clear_complaints();
  const Pool::Acked acked = pool->ack_after(opened({gpu1}), gpu1, {gone, -1}, unread);
  EXPECT_EQ(acked.status, Status::invalid_argument);
  standin_clear_complaints();
}

TEST_F(StreamAcks, AStreamThatIsCapturedIsRefused) {
  const Handle handle = opened({gpu0});
  standin_capture(0, stream, 1);
  Error error;
  EXPECT_EQ(pool->ack_after(handle, gpu0, {stream, -1}, error).status, Status::invalid_argument);
  EXPECT_NE(error.text.find("capturing"), std::string::npos) << error.text;
  EXPECT_EQ(standin_calls("cuEventRecord"), 0U);
  // Queries of other streams do not invalidate the capture (the stand-in would complain).
  const Stream other = make_stream();
  standin_hold(0, other);
  queue_work(other);
  EXPECT_EQ(ack_after(handle, gpu0, other), AckResult::pending);
  (void)pool->stats();
  standin_capture(0, stream, 0);
  standin_release(0, other);
  close(handle);
}

// A stream wakes no waiter; a waiter returns all the same, by polling.
TEST_F(StreamAcks, WhoWaitsLooksAgain) {
  for (const bool before : {false, true}) {
    const Handle handle = opened({gpu0});
    Block* const block = take(kept(kCapacity - kMiB, handle));
    EXPECT_NE(block, nullptr);
    close(handle);
    standin_hold(0, stream);
    queue_work(stream);
    if (before) {
      EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::pending);
    }
    std::atomic<int> done{0};
    std::thread waits([&] {
      EXPECT_TRUE(pool->wait_released(handle, in_seconds(120)));
      ++done;
    });
    std::thread allocates([&] {
      const Allocation made = pool->allocate_until(bytes(kCapacity / 2), in_seconds(120));
      EXPECT_EQ(made.status, Status::ok);
      if (made.block != nullptr) pool->drop_view(*made.block);
      ++done;
    });
    if (!before) {
      EXPECT_EQ(ack_after(handle, gpu0, stream), AckResult::pending);
    }
    EXPECT_EQ(done, 0);
    let_go();
    waits.join();
    allocates.join();
  }
  // The deadline holds.
  const Handle handle = held_back();
  EXPECT_FALSE(pool->wait_released(handle, now_ns() + 2'000'000));
  let_go();
}

TEST_F(StreamAcks, WhatAnotherThreadIsTakingInIsWaitedFor) {
  std::atomic<bool> over{false};
  std::thread looker([&] {
    while (!over.load(std::memory_order_relaxed)) (void)pool->stats();
  });
  int behind = 0;
  const int total = rounds(2'000);
  for (int round = 0; round < total; ++round) {
    const Handle handle = held_back();
    let_go();
    if (!pool->released(handle)) ++behind;
  }
  over = true;
  looker.join();
  EXPECT_EQ(behind, 0);
  expect_all_returned(*pool);
}

TEST_F(StreamAcks, ClosingWaitsForTheWork) {
  const Handle handle = held_back();
  EXPECT_EQ(pool->close(false), Status::pool_busy);
  std::atomic<bool> closed{false};
  std::thread closes([&] {
    EXPECT_EQ(pool->close(true), Status::ok);
    closed = true;
  });
  EXPECT_FALSE(closed);
  EXPECT_FALSE(pool->closed());
  standin_release(0, stream);
  closes.join();
  EXPECT_TRUE(pool->released(handle));
}

TEST_F(StreamAcks, APoolGoesAfterTheWork) {
  (void)held_back();
  std::thread drops([&] { pool.reset(); });
  standin_release(0, stream);
  drops.join();
  EXPECT_EQ(std::string(standin_leaks()).find("cuEventCreate"), std::string::npos) << standin_leaks();
}

// Streams, plain acks, closes, polls and new generations from several threads: every block returns once.
TEST_F(StreamAcks, FromManyThreads) {
  constexpr int kThreads = 4;
  std::vector<Stream> streams;
  for (int i = 0; i < kThreads; ++i) streams.push_back(make_stream());
  queue_work(streams[0]);
  std::atomic<std::uint64_t> answers{0};
  Meeting meeting(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t) + 1);
      const cuda::CurrentContext current(*driver, context);
      meeting.arrive();
      for (int round = 0; round < rounds(3000); ++round) {
        Opening how;
        how.devices = {gpu0, gpu1};
        const Handle handle = open(*pool, how);
        const Allocation made = pool->allocate(bytes(1 + random() % 20000, handle));
        if (made.block != nullptr) pool->drop_view(*made.block);
        const Stream on = streams[random() % streams.size()];
        (void)driver->cuMemsetD8Async(scratch, 1, 16, on);
        if (random() % 2 == 0) pool->close_request(handle, false);
        for (const std::uint32_t device : {gpu0, gpu1, gpu0}) {
          const Pool::Acked acked = random() % 3 == 0
                                        ? pool->ack(handle, device)
                                        : pool->ack_after(handle, device, {on, -1}, unread);
          EXPECT_EQ(acked.status, Status::ok);
          answers += acked.result == AckResult::released ? 1 : 0;
        }
        pool->close_request(handle, false);
        if (random() % 16 == 0) (void)pool->stats();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Stream one : streams) synchronize(one);
  standin_settle();
  expect_all_returned(*pool);
  EXPECT_EQ(pool->stream_acks(), 0U);
  EXPECT_EQ(pool->stats().acks, 2U * kThreads * static_cast<unsigned>(rounds(3000)));
}

}  // namespace
}  // namespace slabpool::test
