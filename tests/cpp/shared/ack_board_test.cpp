// AckBoard and AckTally alone: threads of one device that acknowledge at once, one of them late.
#include "slabpool/shared/ack_board.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "slabpool/shared/ack_tally.hpp"

namespace slabpool {
namespace {

std::vector<std::uint64_t> collected(AckBoard& board) {
  std::vector<std::uint64_t> found;
  board.collect([&](std::uint32_t, std::uint64_t generation) { found.push_back(generation); });
  return found;
}

TEST(AckBoard, AGenerationIsPostedOnce) {
  const auto board = std::make_unique<AckBoard>();
  EXPECT_TRUE(board->post(3, 7));
  EXPECT_FALSE(board->post(3, 7));
  EXPECT_TRUE(board->posted(3, 7));
  board->publish(3);
  EXPECT_EQ(collected(*board), std::vector<std::uint64_t>{7});
  EXPECT_TRUE(collected(*board).empty());
}

TEST(AckBoard, ALatePostDoesNotOverwriteALaterRequests) {
  const auto board = std::make_unique<AckBoard>();
  EXPECT_TRUE(board->post(3, 8));
  board->publish(3);
  EXPECT_FALSE(board->post(3, 7)) << "by a thread that was asleep while the slot got another request";
  EXPECT_TRUE(board->posted(3, 8));
  EXPECT_EQ(collected(*board), std::vector<std::uint64_t>{8});
  board->forget(3, 8);
  EXPECT_TRUE(board->post(3, 8)) << "the device was named again";
}

TEST(AckBoard, OfThreadsThatPostAtOnceTheLatestGenerationStays) {
  const auto board = std::make_unique<AckBoard>();
  constexpr std::uint64_t kRounds = 20'000;
  std::atomic<std::uint64_t> firsts{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (std::uint64_t generation = 1; generation <= kRounds; ++generation) {
        if (board->post(0, generation)) firsts.fetch_add(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(board->posted(0, kRounds));
  EXPECT_LE(firsts.load(), kRounds) << "no generation was posted twice";
}

TEST(AckTally, ALateThreadDoesNotUndoWhatALaterRequestsDevicesLeft) {
  const auto tally = std::make_unique<AckTally>();
  FirstHolders first_word{};
  const auto more = std::make_unique<MoreHolders>();
  HolderSet holders(first_word, *more);
  const HolderBit first = device_bit(0), second = device_bit(1);
  holders.open(8);
  holders.add(8, first);
  holders.add(8, second);
  (void)holders.leave(8, kHost);
  EXPECT_FALSE(tally->leave(3, holders, 8, first)) << "the second device still holds";
  EXPECT_FALSE(tally->leave(3, holders, 7, second)) << "late, of the request before";
  EXPECT_TRUE(tally->leave(3, holders, 8, second)) << "the last: it is answered RELEASED";
  EXPECT_FALSE(tally->leave(3, holders, 8, second)) << "once";
}

// Every bit of a generation is compared: these differ by 2^32 and more.
TEST(AckTally, AGenerationIsComparedWhole) {
  const auto tally = std::make_unique<AckTally>();
  FirstHolders word{};
  const auto more = std::make_unique<MoreHolders>();
  HolderSet holders(word, *more);
  const HolderBit device = device_bit(0);
  std::uint64_t generation = 1;
  for (const int bit : {31, 32, 33, 47}) {
    const std::uint64_t old = generation;
    generation = 1 + (std::uint64_t{1} << bit);
    holders.open(generation);
    holders.add(generation, device);
    (void)holders.leave(generation, kHost);
    EXPECT_FALSE(tally->leave(3, holders, old, device)) << bit;
    EXPECT_TRUE(tally->leave(3, holders, generation, device)) << bit;
    EXPECT_FALSE(tally->leave(3, holders, old, device)) << bit;
  }
}

}  // namespace
}  // namespace slabpool
