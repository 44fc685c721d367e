#include "slabpool/base/fork.hpp"

#include <pthread.h>

namespace slabpool {

std::atomic<std::uint32_t> g_fork_epoch{0};

namespace {

[[maybe_unused]] const int g_registered =
    pthread_atfork(nullptr, nullptr, [] { g_fork_epoch.fetch_add(1, std::memory_order_relaxed); });

}  // namespace
}  // namespace slabpool
