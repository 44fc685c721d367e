// A shared pool's owner and its peers in one process: what the files carry, and what each side believes.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "slabpool/shared/owner.hpp"
#include "slabpool/shared/peer.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool::test {
namespace {

class SharedPool : public PoolFixture {
 protected:
  SharedPool() {
    pool.reset();
    PoolOptions options;
    options.capacity = kCapacity;
    options.shared = true;
    pool = make_pool(options);
  }
  std::uint32_t device(std::string_view name) { return pool->devices().add(name).value(); }
  std::unique_ptr<SharedPeer> attach(std::uint32_t number) {
    PeerFiles files;
    Error error;
    EXPECT_TRUE(pool->attach_peer(number, files, error)) << strerror(error.system_errno);
    auto peer =
        SharedPeer::create(number, files.data, files.table, files.board, files.tally, files.bell, error);
    EXPECT_NE(peer, nullptr) << error.text;
    return peer;
  }
  Reference refer(Handle handle, const Block* block) {
    Reference reference;
    reference.pool_id = pool->shared_id();
    reference.slot = handle.slot;
    reference.generation = handle.generation;
    reference.nbytes = block != nullptr ? block->bytes : 0;
    EXPECT_EQ(pool->refer(handle, block != nullptr ? block->data : nullptr, reference.nbytes,
                          reference.offset, reference.seal),
              Status::ok);
    return reference;
  }
  static AckResult ack(SharedPeer& peer, const Reference& reference) {
    const SharedPeer::Acked acked = peer.ack(reference);
    EXPECT_EQ(acked.status, PeerStatus::ok);
    return acked.result;
  }
};

TEST_F(SharedPool, TheSameBytesInBothMaps) {
  const std::uint32_t gpu = device("sgpu0");
  auto peer = attach(gpu);
  const Handle handle = open(*pool, {.devices = {gpu}});
  Block* block = take(kept(5000, handle));
  std::memset(block->data, 7, 5000);
  std::byte* data = nullptr;
  const Reference reference = refer(handle, block);
  ASSERT_EQ(peer->open(reference, false, data), PeerStatus::ok);
  EXPECT_NE(data, block->data);
  EXPECT_EQ(std::memcmp(data, block->data, 5000), 0);
  ASSERT_EQ(peer->open(reference, true, data), PeerStatus::read_only);
  ASSERT_TRUE(peer->map_writable(pool->writable_data()));
  ASSERT_EQ(peer->open(reference, true, data), PeerStatus::ok);
  data[17] = std::byte{9};
  EXPECT_EQ(block->data[17], std::byte{9});
  close(handle);
  EXPECT_EQ(ack(*peer, reference), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(SharedPool, DecommittedMemoryReadsAsZero) {
  Block* block = take(bytes(1 << 20));
  std::memset(block->data, 7, 1 << 20);
  const std::byte* data = block->data;
  pool->drop_view(*block);
  EXPECT_GE(pool->trim(), std::uint64_t{1} << 20);
  AllocateSpec again = bytes(1 << 20);
  again.zero = true;
  block = take(again);
  EXPECT_EQ(block->data, data);
  for (std::size_t i = 0; i < (1 << 20); ++i) ASSERT_EQ(block->data[i], std::byte{0}) << i;
  pool->drop_view(*block);
  expect_all_returned(*pool);
}

TEST_F(SharedPool, AnswersOfEveryKind) {
  const std::uint32_t a = device("sa"), b = device("sb"), c = device("sc");
  auto first = attach(a), second = attach(b), stranger = attach(c);
  const Handle handle = open(*pool, {.devices = {a, b}});
  const Reference reference = refer(handle, take(kept(100, handle)));
  EXPECT_EQ(ack(*first, reference), AckResult::pending);
  EXPECT_EQ(ack(*first, reference), AckResult::duplicate);
  EXPECT_EQ(pool->stats().acks, 1U);
  EXPECT_EQ(ack(*first, reference), AckResult::duplicate);
  EXPECT_EQ(stranger->ack(reference).status, PeerStatus::unknown_device);
  std::byte* data = nullptr;
  EXPECT_EQ(first->open(reference, false, data), PeerStatus::acknowledged);
  EXPECT_EQ(stranger->open(reference, false, data), PeerStatus::unknown_device);
  close(handle);
  EXPECT_EQ(ack(*second, reference), AckResult::released);
  // The owner has not collected the acks yet; then it has.
  EXPECT_EQ(ack(*second, reference), AckResult::duplicate);
  EXPECT_TRUE(pool->released(handle));
  EXPECT_EQ(ack(*second, reference), AckResult::late);
  EXPECT_EQ(ack(*stranger, reference), AckResult::late);
  EXPECT_EQ(second->open(reference, false, data), PeerStatus::over);
  expect_all_returned(*pool);
}

TEST_F(SharedPool, EveryFieldOfAReferenceIsSealed) {
  const std::uint32_t gpu = device("sgpu0");
  auto peer = attach(gpu);
  const Handle other = open(*pool, {.id = "sother", .devices = {gpu}});
  (void)take(kept(100, other));
  const Handle handle = open(*pool, {.devices = {gpu}});
  const Reference right = refer(handle, take(kept(5000, handle)));
  std::byte* data = nullptr;
  const auto tried = [&](auto&& change) {
    Reference wrong = right;
    change(wrong);
    return peer->open(wrong, false, data);
  };
  EXPECT_EQ(tried([](Reference&) {}), PeerStatus::ok);
  EXPECT_EQ(tried([](Reference& r) { ++r.pool_id; }), PeerStatus::other_pool);
  EXPECT_EQ(tried([](Reference& r) { ++r.generation; }), PeerStatus::over);
  EXPECT_EQ(tried([](Reference& r) { r.generation |= std::uint64_t{1} << 32; }), PeerStatus::over);
  EXPECT_EQ(tried([](Reference& r) { r.generation = 0; }), PeerStatus::forged);
  EXPECT_EQ(tried([&](Reference& r) { r.slot = other.slot; }), PeerStatus::over);
  EXPECT_EQ(tried([](Reference& r) { r.slot = kMaxRequests; }), PeerStatus::forged);
  EXPECT_EQ(tried([](Reference& r) { r.slot = 0xffffffff; }), PeerStatus::forged);
  EXPECT_EQ(tried([](Reference& r) { r.offset += 64; }), PeerStatus::forged);
  EXPECT_EQ(tried([](Reference& r) { r.nbytes += 1; }), PeerStatus::forged);
  EXPECT_EQ(tried([](Reference& r) { r.seal ^= 1; }), PeerStatus::forged);
  EXPECT_EQ(tried([&](Reference& r) {
              // With the slot's own nonce, which a peer can read from the table.
              r.generation = other.generation;
              r.slot = other.slot;
            }),
            PeerStatus::forged);
  EXPECT_EQ(pool->refer(handle, data, 10, *std::make_unique<std::uint64_t>(),
                        *std::make_unique<std::uint64_t>()),
            Status::invalid_argument);  // an address in another mapping
}

// Everything of a reference that a peer reads, changed at random: it opens what the owner made, and nothing else.
TEST_F(SharedPool, ChangedReferencesOpenNothing) {
  const std::uint32_t gpu = device("sgpu0");
  auto peer = attach(gpu);
  const Handle handle = open(*pool, {.devices = {gpu}});
  Block* block = take(kept(5000, handle));
  const Reference good = refer(handle, block);
  std::mt19937_64 random(7);
  const std::uint64_t edges[] = {
      0, 1, 2, good.nbytes, kMaxRequests, std::uint64_t{1} << 32, ~std::uint64_t{0}};
  for (int round = 0; round < rounds(200'000); ++round) {
    Reference reference = good;
    std::uint64_t* fields[] = {&reference.pool_id, &reference.generation, &reference.seal,
                               &reference.offset, &reference.nbytes};
    for (std::uint64_t changes = 1 + random() % 3; changes != 0; --changes) {
      const std::uint64_t value = random() % 2 == 0 ? edges[random() % std::size(edges)] : random();
      const std::uint64_t which = random() % 6;
      if (which == 5) {
        reference.slot = static_cast<std::uint32_t>(value);
      } else {
        *fields[which] = random() % 4 == 0 ? *fields[which] ^ (std::uint64_t{1} << (value % 64)) : value;
      }
    }
    const bool same_request = reference.pool_id == good.pool_id && reference.slot == good.slot &&
                              reference.generation == good.generation;
    const bool same = same_request && reference.seal == good.seal && reference.offset == good.offset &&
                      reference.nbytes == good.nbytes;
    std::byte* data = nullptr;
    ASSERT_EQ(peer->open(reference, false, data) == PeerStatus::ok, same) << round;
    ASSERT_EQ(data != nullptr, same);
    if (same_request) continue;  // an ack of it would be right
    const SharedPeer::Acked acked = peer->ack(reference);
    ASSERT_TRUE(acked.status != PeerStatus::ok || acked.result == AckResult::late) << round;
  }
  EXPECT_FALSE(pool->released(handle));
  close(handle);
  EXPECT_EQ(ack(*peer, good), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(SharedPool, RandomBytesOnABoardAreAcksOfThatDeviceAtMost) {
  const std::uint32_t good = device("sgood"), evil = device("sevil");
  PeerFiles files;
  Error error;
  ASSERT_TRUE(pool->attach_peer(evil, files, error)) << error.text;
  void* map = mmap(nullptr, kBoardBytes, PROT_READ | PROT_WRITE, MAP_SHARED, files.board, 0);
  ASSERT_NE(map, MAP_FAILED);
  auto* words = static_cast<std::uint64_t*>(map);
  std::mt19937_64 random(1);
  for (int round = 0; round < 30; ++round) {
    const Handle held = open(*pool, {.devices = {good}});
    const Handle both = open(*pool, {.devices = {good, evil}});
    (void)take(kept(100, held));
    for (std::size_t i = 0; i < sizeof(AckBoard) / 8; ++i) words[i] = random();
    (void)pool->stats();
    words[0] = ~std::uint64_t{0};
    for (std::size_t i = 8; i < 8 + 1024; ++i) words[i] = ~std::uint64_t{0};
    for (std::size_t i = 8 + 1024; i < 8 + 1024 + 65536; ++i)
      words[i] = random() % (2 * both.generation);
    (void)pool->stats();
    EXPECT_EQ(info(held).pending, std::vector<std::uint32_t>{good});
    EXPECT_EQ(info(both).pending.front(), good);
    close(held);
    close(both);
    EXPECT_EQ(pool->ack(held, good).result, AckResult::released);
    (void)pool->ack(both, good);
    EXPECT_EQ(pool->verify(), nullptr);
  }
  (void)munmap(map, kBoardBytes);
  (void)pool->detach_peer(evil);
  expect_all_returned(*pool);
}

TEST_F(SharedPool, TheBellRingsOnlyForWaiters) {
  const std::uint32_t gpu = device("sgpu0");
  auto peer = attach(gpu);
  const auto rung = [&] {
    pollfd source{pool->bell(), POLLIN, 0};
    return poll(&source, 1, 0) == 1;
  };
  const Handle quiet = open(*pool, {.devices = {gpu}});
  EXPECT_EQ(ack(*peer, refer(quiet, nullptr)), AckResult::pending);
  EXPECT_FALSE(rung());
  close(quiet);
  const Handle handle = open(*pool, {.devices = {gpu}});
  const Reference reference = refer(handle, nullptr);
  close(handle);
  std::thread waiter([&] { EXPECT_TRUE(pool->wait_released(handle, in_seconds(120))); });
  std::thread other([&] { EXPECT_TRUE(pool->wait_released(handle, in_seconds(120))); });
  EXPECT_EQ(ack(*peer, reference), AckResult::released);
  waiter.join();
  other.join();
  pool->answer_bell();
  EXPECT_FALSE(rung());
  expect_all_returned(*pool);
}

TEST_F(SharedPool, TheLastOfManyIsAnsweredOnce) {
  constexpr std::uint32_t kDevices = 40;  // two words of holders
  std::vector<std::uint32_t> numbers;
  std::vector<std::unique_ptr<SharedPeer>> peers;
  for (std::uint32_t i = 0; i < kDevices; ++i) {
    numbers.push_back(device("s" + std::to_string(i)));
    peers.push_back(attach(numbers.back()));
  }
  for (int round = 0; round < 200; ++round) {
    const Handle handle = open(*pool, {.devices = numbers});
    const Reference reference = refer(handle, take(kept(100, handle)));
    close(handle);
    std::atomic<int> last{0};
    const auto work = [&](std::uint32_t first) {
      for (std::uint32_t i = first; i < kDevices; i += 2)
        last += ack(*peers[i], reference) == AckResult::released;
    };
    std::thread one(work, 0), two(work, 1);
    while (!pool->released(handle)) std::this_thread::yield();
    one.join();
    two.join();
    EXPECT_EQ(last, 1);
  }
  expect_all_returned(*pool);
}

// An ack that was answered counts in whatever the owner does next, even while another of its threads is
// collecting it: allocations, the end of the request, and closing depend on it.
TEST_F(SharedPool, AnAckThatAnotherThreadCollectsIsWaitedFor) {
  const std::uint32_t gpu = device("sgpu0");
  auto peer = attach(gpu);
  std::atomic<bool> over{false};
  std::thread looker([&] {
    while (!over.load(std::memory_order_relaxed)) (void)pool->stats();
  });
  int behind = 0;
  const int total = rounds(20'000);
  for (int round = 0; round < total; ++round) {
    const Handle handle = open(*pool, {.devices = {gpu}});
    const Reference reference = refer(handle, nullptr);
    Block* block = pool->allocate(bytes(kCapacity, handle)).block;
    if (block == nullptr) ++behind;  // the previous round still holds it
    if (block != nullptr) pool->drop_view(*block);
    close(handle);
    EXPECT_EQ(ack(*peer, reference), AckResult::released);
    if (round % 2 == 0 && (!pool->released(handle) || pool->stats().live != 0)) ++behind;
  }
  over = true;
  looker.join();
  EXPECT_EQ(behind, 0);
  expect_all_returned(*pool);
}

TEST_F(SharedPool, ADeviceIsAttachedOnceAndItsBoardGoesWithIt) {
  const std::uint32_t gpu = device("sgpu0");
  auto peer = attach(gpu);
  PeerFiles files;
  Error error;
  EXPECT_FALSE(pool->attach_peer(gpu, files, error));
  EXPECT_EQ(error.system_errno, EEXIST);
  const Handle handle = open(*pool, {.devices = {gpu}});
  const Reference reference = refer(handle, nullptr);
  EXPECT_EQ(pool->detach_peer(gpu), 1U);
  EXPECT_EQ(pool->detach_peer(gpu), 0U);
  auto next = attach(gpu);
  const Handle later = open(*pool, {.devices = {gpu}});
  const Reference second = refer(later, nullptr);
  // The old peer writes to a board that no owner reads.
  EXPECT_EQ(ack(*peer, second), AckResult::pending);
  EXPECT_EQ(info(later).pending, std::vector<std::uint32_t>{gpu});
  EXPECT_EQ(ack(*next, reference), AckResult::duplicate);
  (void)ack(*next, second);
  EXPECT_TRUE(info(later).pending.empty());
  pool->dismiss_peers();
  EXPECT_TRUE(next->lost());
  EXPECT_EQ(next->ack(second).status, PeerStatus::closed);
}

TEST_F(SharedPool, AForcedCloseLeavesToAttachedPeersWhatTheyHold) {
  PoolOptions options;
  options.capacity = kCapacity;
  options.shared = true;
  options.scrub_on_release = true;
  pool = make_pool(options);
  const std::uint32_t gpu = device("sgpu0"), second = device("sgpu1"), local = device("slocal");
  auto peer = attach(gpu);
  auto other = attach(second);
  const Handle both = open(*pool, {.devices = {gpu, second, local}});
  const Handle mine = open(*pool, {.devices = {local}});
  Block* block = take(kept(100'000, both));
  const Reference reference = refer(both, block);
  std::memset(block->data, 7, 100'000);
  (void)take(kept(100'000, mine));
  std::byte* seen = nullptr;
  ASSERT_EQ(peer->open(reference, false, seen), PeerStatus::ok);
  const auto intact = [&] { return seen[0] == std::byte{7} && seen[99'999] == std::byte{7}; };

  EXPECT_EQ(pool->close(true), Status::ok);
  EXPECT_TRUE(pool->released(mine));
  EXPECT_FALSE(pool->released(both));
  EXPECT_EQ(info(both).pending, (std::vector<std::uint32_t>{gpu, second}));
  EXPECT_TRUE(pool->peer_holds(gpu));
  EXPECT_FALSE(pool->peer_holds(local));
  EXPECT_TRUE(intact());
  PeerFiles files;
  Error error;
  EXPECT_FALSE(pool->attach_peer(local, files, error));
  EXPECT_EQ(error.system_errno, ESHUTDOWN);
  EXPECT_EQ(pool->close(true), Status::ok);
  EXPECT_TRUE(intact());

  EXPECT_EQ(pool->detach_peer(second), 1U);
  EXPECT_TRUE(intact());
  EXPECT_EQ(pool->detach_peer(gpu), 1U);
  EXPECT_TRUE(pool->released(both));
  EXPECT_EQ(pool->stats().committed, 0U);
  EXPECT_FALSE(intact());
  EXPECT_EQ(pool->verify(), nullptr);
}

// What a peer holds when the pool is destroyed stays readable in its map; cached pages go.
TEST_F(SharedPool, DestroyingThePoolLeavesThePeersBytes) {
  const std::uint32_t gpu = device("sgpu0");
  auto peer = attach(gpu);
  const Handle held = open(*pool, {.devices = {gpu}});
  const Handle over = open(*pool, {.devices = {gpu}});
  Block* block = take(kept(100'000, held));
  Block* gone = take(kept(500'000, over));
  std::memset(block->data, 7, 100'000);
  std::memset(gone->data, 8, 500'000);
  const Reference reference = refer(held, block), second = refer(over, gone);
  std::byte* seen = nullptr;
  std::byte* cached = nullptr;
  ASSERT_EQ(peer->open(reference, false, seen), PeerStatus::ok);
  ASSERT_EQ(peer->open(second, false, cached), PeerStatus::ok);
  close(over);
  EXPECT_EQ(ack(*peer, second), AckResult::released);
  EXPECT_EQ(cached[0], std::byte{8});
  pool.reset();
  EXPECT_EQ(seen[0], std::byte{7});
  EXPECT_EQ(seen[99'999], std::byte{7});
  EXPECT_EQ(cached[0], std::byte{0});
}

TEST_F(SharedPool, AFileThatIsNotThePoolsIsRefusedWithTheReason) {
  const std::uint32_t gpu = device("sgpu0");
  PeerFiles files;
  Error error;
  ASSERT_TRUE(pool->attach_peer(gpu, files, error)) << error.text;
  EXPECT_EQ(
      SharedPeer::create(gpu, files.data, files.board, files.board, files.tally, files.bell, error),
      nullptr);
  EXPECT_EQ(error.status, Status::system_refused);
  EXPECT_EQ(error.system_errno, EPROTO);
  EXPECT_EQ(error.text, std::string("the table: ") + strerror(EPROTO));
  EXPECT_EQ(pool->detach_peer(gpu), 0U);
}

TEST_F(SharedPool, NamesOfPeersComeAndGo) {
  std::uint32_t sweeps = 0;
  for (std::uint32_t i = 0; i < kMaxDevices + 100; ++i) {
    const std::string name = "s" + std::to_string(i);
    std::optional<std::uint32_t> number = pool->devices().hold(name);
    if (!number) {
      std::vector<std::uint32_t> retired;
      pool->retire_devices(retired);
      EXPECT_EQ(retired.size(), kMaxDevices);
      ++sweeps;
      number = pool->devices().hold(name);
    }
    ASSERT_TRUE(number.has_value());
    PeerFiles files;
    Error error;
    ASSERT_TRUE(pool->attach_peer(*number, files, error)) << error.text;
    pool->devices().drop(*number);
    EXPECT_EQ(pool->detach_peer(*number), 0U);
  }
  EXPECT_EQ(sweeps, 1U);
}

TEST_F(SharedPool, ThePeerOfANewNameStartsWithoutTheAcksOfTheOld) {
  const std::uint32_t other = device("sother");
  const std::uint32_t number = pool->devices().hold("sold").value();
  auto old = attach(number);
  pool->devices().drop(number);
  const Handle handle = open(*pool, {.devices = {other, number}});
  const Reference reference = refer(handle, nullptr);
  std::vector<std::uint32_t> retired;
  pool->retire_devices(retired);
  EXPECT_TRUE(retired.empty()) << "attached, and waited for";
  EXPECT_EQ(ack(*old, reference), AckResult::pending);
  pool->retire_devices(retired);
  EXPECT_TRUE(retired.empty()) << "attached";
  EXPECT_EQ(pool->detach_peer(number), 0U);
  pool->retire_devices(retired);
  EXPECT_EQ(retired, std::vector{number});

  ASSERT_EQ(pool->devices().hold("snew"), number);
  auto next = attach(number);
  EXPECT_EQ(pool->add_device(handle, number), Status::ok);
  close(handle);
  EXPECT_EQ(pool->ack(handle, other).result, AckResult::pending)
      << "the new device has not acknowledged";
  (void)old->ack(reference);  // on the board of the old device, which is not read any more
  pool->collect_acks();
  EXPECT_FALSE(pool->released(handle));
  EXPECT_EQ(ack(*next, reference), AckResult::released);
  EXPECT_TRUE(pool->released(handle));
  next.reset();
  EXPECT_EQ(pool->detach_peer(number), 0U);
}

}  // namespace
}  // namespace slabpool::test
