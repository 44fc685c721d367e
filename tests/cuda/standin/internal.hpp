// Shared by the files of the stand-in driver: its one lock, the beginning of each call, and the lookup of addresses.
//
// Every function of the driver begins with STANDIN_CALL or STANDIN_CONTEXT_CALL, which takes the lock for the rest of
// the function, counts the call, and returns a fault that a test has set.
//
// Invariants:
//   The stand-in never calls back into the program.   Queued work looks up its addresses when it runs.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "slabpool/cuda/api.hpp"

#define STANDIN_DRIVER extern "C" __attribute__((visibility("default"))) ::slabpool::cuda::Result

namespace standin {

using namespace slabpool::cuda;

struct ContextRecord {
  int device = 0;
  unsigned retained = 0;  // how often the primary context was retained
};

struct DeviceRecord {
  std::size_t total = 0;
  std::size_t used = 0;
  Result lost = kSuccess;  // the result of every call once the device is lost
  std::map<int, int> attributes;
  ContextRecord primary;
};

struct Fault {
  std::string name;
  int skip = 0;    // calls that succeed before it
  int times = -1;  // calls that then fail; -1: all
  Result result = kUnknown;
};

struct State {
  std::mutex mutex;                 // guards everything
  std::condition_variable changed;  // queued work is done, or may continue
  bool started = false;             // cuInit
  int version = 0;
  std::vector<std::string> hidden;
  std::vector<DeviceRecord> devices;  // their number is fixed
  std::vector<Fault> faults;
  std::map<std::string, std::uint64_t> calls;
  std::vector<std::string> complaints;
};

State& state();

// The beginning of a function. Holds the lock until the function returns.
class Call {
 public:
  explicit Call(const char* name, bool needs_context = false);
  std::unique_lock<std::mutex> lock;
  Result result = kSuccess;
  ContextRecord* context = nullptr;  // the current one; may be null unless the function needs one
  int device() const { return context->device; }
};

#define STANDIN_CALL(name)       \
  ::standin::Call call(#name);   \
  if (call.result != kSuccess) { \
    return call.result;          \
  }
// For functions that need a current context, on a device that is not lost.
#define STANDIN_CONTEXT_CALL(name)   \
  ::standin::Call call(#name, true); \
  if (call.result != kSuccess) {     \
    return call.result;              \
  }

// All functions below need the lock.
[[gnu::format(printf, 1, 2)]] Result complain(const char* format, ...);  // returns kInvalidValue
ContextRecord* context_of(Context context);  // null if there is no such context
inline Context handle_of(ContextRecord* context) { return context; }

// The stand-in's own addresses of the bytes, in pieces; an address that is no device's is taken as the host's. False,
// with a complaint, if some bytes are not mapped, or `device` has no access to them.
struct Piece {
  std::byte* at = nullptr;
  std::size_t bytes = 0;
};
bool resolve(DevicePointer address, std::size_t bytes, int device, std::vector<Piece>& pieces);
enum class Place { device, managed, registered, pageable };
Place place_of(DevicePointer address);

// memory.cpp and virtual_memory.cpp
void reset_memory();
void reset_virtual_memory();
void list_memory(std::string& out);
void list_virtual_memory(std::string& out);
// Part of resolve(): whether the address lies in a range of cuMemAddressReserve, and the piece that begins there.
bool resolve_virtual(DevicePointer address, std::size_t bytes, int device, Piece& piece, bool& failed);

// Memory that the stand-in uses in place of an address that the program must not touch.
std::byte* map_backing(std::size_t bytes, int fd);  // fd -1: anonymous; null: no memory
// An address range without access, at `offset` from a multiple of 2 MiB.
std::byte* map_forbidden(std::size_t bytes, std::size_t alignment, std::size_t offset);
void unmap(void* at, std::size_t bytes);

// streams.cpp
void reset_streams();  // waits for the threads; call it without the lock
void list_streams(std::string& out);

}  // namespace standin
