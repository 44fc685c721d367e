// For tests of CUDA: the stand-in driver under slabpool, as it was when it started, and afterwards nothing wrong
// or left over.
//
// Loaded by slabpool as a driver would be (SLABPOOL_CUDA_DRIVER), and linked to the test for its controls.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "slabpool/cuda/driver.hpp"
#include "standin.h"

namespace slabpool::test {

class StandinTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    ASSERT_EQ(setenv("SLABPOOL_CUDA_DRIVER", SLABPOOL_STANDIN_CUDA, 1), 0);
  }

  void SetUp() override {
    standin_reset();
    Error error;
    driver = cuda::Driver::get(error);
    ASSERT_NE(driver, nullptr) << error.text;
  }
  void TearDown() override {
    standin_clear_faults();
    EXPECT_STREQ(standin_complaints(), "");
    EXPECT_STREQ(standin_leaks(), "");
    EXPECT_EQ(standin_context_depth(), 0u);
    standin_reset();
  }

  // After something in which the `nth` call of the driver was to fail: whether it got that far. Nothing may be wrong
  // either way.
  static bool failed_at(int nth) {
    const bool failed = standin_faults_left() == 0;
    standin_clear_faults();
    EXPECT_STREQ(standin_complaints(), "") << nth;
    EXPECT_EQ(standin_context_depth(), 0u) << nth;
    return failed;
  }

  // The context of a device, made current until the end of the block.
  struct InContext {
    InContext(const cuda::Driver& driver, int device) : driver_(driver) {
      cuda::Result result = cuda::kSuccess;
      context = driver.context(device, result);
      EXPECT_EQ(result, cuda::kSuccess);
      EXPECT_EQ(driver.cuCtxPushCurrent(context), cuda::kSuccess);
    }
    ~InContext() {
      cuda::Context gone = nullptr;
      EXPECT_EQ(driver_.cuCtxPopCurrent(&gone), cuda::kSuccess);
      EXPECT_EQ(gone, context);
    }
    InContext(const InContext&) = delete;
    InContext& operator=(const InContext&) = delete;
    cuda::Context context = nullptr;

   private:
    const cuda::Driver& driver_;
  };

  const cuda::Driver* driver = nullptr;
};

}  // namespace slabpool::test
