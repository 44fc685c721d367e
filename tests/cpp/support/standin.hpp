// For tests of CUDA: each test starts with the stand-in driver in its initial state, and ends with the check that there
// were no complaints and no leaks.
//
// slabpool loads the stand-in as it would load a driver (SLABPOOL_CUDA_DRIVER). The test links it for its controls.
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

  // After an operation in which the `nth` call of the driver was to fail: whether there were that many calls. Checks
  // that the stand-in has no complaints in either case.
  static bool failed_at(int nth) {
    const bool failed = standin_faults_left() == 0;
    standin_clear_faults();
    EXPECT_STREQ(standin_complaints(), "") << nth;
    EXPECT_EQ(standin_context_depth(), 0u) << nth;
    return failed;
  }

  // The context of a device, current until the end of the scope.
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
