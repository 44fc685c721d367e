// The limits of the process, as messages name them.
#include "slabpool/memory/limits.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cerrno>

#include "slabpool/memory/system_files.hpp"

namespace slabpool {
namespace {

// Sets a soft limit for as long as it lives.
class SoftLimit {
 public:
  SoftLimit(__rlimit_resource_t which, std::uint64_t bytes) : which_(which) {
    EXPECT_EQ(getrlimit(which, &old_), 0);
    struct rlimit now = old_;
    now.rlim_cur = bytes;
    EXPECT_EQ(setrlimit(which, &now), 0);
  }
  ~SoftLimit() { EXPECT_EQ(setrlimit(which_, &old_), 0); }

 private:
  __rlimit_resource_t which_;
  struct rlimit old_ {};
};

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

constexpr std::uint64_t kTiB = std::uint64_t{1} << 40;
// More than a process has addresses: sanitizers map up to 128 TiB, count them as data, and end the process at a refusal.
constexpr std::uint64_t kAddresses = 400 * kTiB;
constexpr std::uint64_t kData = 300 * kTiB;

TEST(Limits, ThoseThatAreSetAreNamedWithWhatIsInUse) {
  const SoftLimit addresses(RLIMIT_AS, kAddresses);
  const SoftLimit data(RLIMIT_DATA, kData);
  const std::string text = describe_limits();
  EXPECT_TRUE(has(text, "RLIMIT_AS is 400 TiB, of which ")) << text;
  EXPECT_TRUE(has(text, "RLIMIT_DATA is 300 TiB, of which ")) << text;
  EXPECT_FALSE(has(text, "RLIMIT_MEMLOCK")) << text;
  EXPECT_FALSE(has(text, "max_map_count")) << text;  // few mappings are in use
}

TEST(Limits, LockedMemoryIsNamedWhereItMatters) {
  const SoftLimit locked(RLIMIT_MEMLOCK, 65536);
  EXPECT_TRUE(has(describe_limits(true), "RLIMIT_MEMLOCK is 64 KiB")) << describe_limits(true);
}

TEST(Limits, AddressesLeftAreTheLimitLessWhatIsMapped) {
  {
    const SoftLimit addresses(RLIMIT_AS, kAddresses);
    EXPECT_LT(addresses_left(), kAddresses);
    EXPECT_GT(addresses_left(), 10 * kTiB);
  }
  struct rlimit limit {};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &limit), 0);
  if (limit.rlim_cur == RLIM_INFINITY) {
    EXPECT_EQ(addresses_left(), ~std::uint64_t{0});
  }
}

TEST(Limits, OnlyRefusalsThatALimitCausesAreExplained) {
  const SoftLimit data(RLIMIT_DATA, kData);
  Error error;
  (void)error.fail_errno("the table", ENOMEM);
  explain_refusal(error);
  EXPECT_TRUE(has(error.text, "the table: Cannot allocate memory: ")) << error.text;
  EXPECT_TRUE(has(error.text, "RLIMIT_DATA is 300 TiB")) << error.text;
  (void)error.fail_errno({}, 0);
  explain_refusal(error);
  EXPECT_TRUE(has(error.text, "the system refuses more memory or mappings (")) << error.text;
  (void)error.fail_errno("the table", EPERM);
  explain_refusal(error);
  EXPECT_FALSE(has(error.text, "RLIMIT")) << error.text;
}

TEST(SystemFiles, NumbersAndLines) {
  EXPECT_GT(SystemFile("/proc/self/", "status").number_of("VmSize:").value_or(0), 0U);
  EXPECT_FALSE(SystemFile("/proc/self/status").number_of("Nothing:").has_value());
  EXPECT_FALSE(SystemFile("/proc/self/status").number().has_value());
  EXPECT_TRUE(SystemFile("/nowhere").text().empty());
  EXPECT_GT(count_lines("/proc/self/maps"), 5U);
  EXPECT_EQ(count_lines("/nowhere"), 0U);
  EXPECT_EQ(show_bytes(300), "300 bytes");
  EXPECT_EQ(show_bytes(3 << 19), "1.5 MiB");
}

}  // namespace
}  // namespace slabpool
