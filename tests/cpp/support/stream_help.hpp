// For tests of streams: a pool of host memory, and streams of the stand-in driver. Work on a stream finishes at once,
// except between standin_hold() and standin_release().
#pragma once

#include <cstdlib>
#include <string>

#include "slabpool/cuda/driver.hpp"
#include "standin.h"
#include "support/pool_help.hpp"

namespace slabpool::test {

class StreamFixture : public PoolFixture {
 protected:
  void SetUp() override {
    setenv("SLABPOOL_CUDA_DRIVER", SLABPOOL_STANDIN_CUDA, 1);
    Error error;
    driver = cuda::Driver::get(error);
    ASSERT_NE(driver, nullptr) << error.text;
    standin_reset();
    cuda::Result result{};
    context = driver->context(0, result);
    ASSERT_EQ(result, cuda::kSuccess);
  }
  void TearDown() override {
    standin_clear_faults();
    standin_release_all();
    pool.reset();
    EXPECT_STREQ(standin_complaints(), "");
    EXPECT_EQ(standin_context_depth(), 0U);
    standin_reset();
  }

  cuda::Stream make_stream(int device = 0) {
    cuda::Result result{};
    const cuda::CurrentContext current(*driver, driver->context(device, result));
    cuda::Stream made = nullptr;
    EXPECT_EQ(driver->cuStreamCreate(&made, cuda::kStreamNonBlocking), cuda::kSuccess);
    return made;
  }
  // A stream of device 0.
  void synchronize(cuda::Stream on) {
    const cuda::CurrentContext current(*driver, context);
    ASSERT_EQ(driver->cuStreamSynchronize(on), cuda::kSuccess);
  }

  const cuda::Driver* driver = nullptr;
  cuda::Context context = nullptr;
};

}  // namespace slabpool::test
