// What the files of the stand-in driver share: its one lock, how a call begins, and where addresses lie.
//
// Every function of the driver begins with STANDIN_CALL or STANDIN_CONTEXT_CALL, which takes the lock for the
// rest of the function, counts the call, and answers a fault that a test has asked for. What must stay true:
// nothing here calls back into the program, and work that is queued finds its addresses when it runs.
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
  unsigned retained = 0;  // of the primary context
};

struct DeviceRecord {
  std::size_t total = 0;
  std::size_t used = 0;
  Result lost = kSuccess;  // what everything answers once the device is lost
  std::map<int, int> attributes;
  ContextRecord primary;
};

struct Fault {
  std::string name;
  int skip = 0;    // calls that still go well
  int times = -1;  // and then this many do not; -1: all
  Result result = kUnknown;
};

struct State {
  std::mutex mutex;                 // of everything
  std::condition_variable changed;  // queued work is done, or may go on
  bool started = false;             // cuInit
  int version = 0;
  std::vector<std::string> hidden;
  std::vector<DeviceRecord> devices;  // as many for good
  std::vector<Fault> faults;
  std::map<std::string, std::uint64_t> calls;
  std::vector<std::string> complaints;
};

State& state();

// The beginning of a function: the lock, until the function returns.
class Call {
 public:
  explicit Call(const char* name, bool needs_context = false);
  std::unique_lock<std::mutex> lock;
  Result result = kSuccess;
  ContextRecord* context = nullptr;  // of this thread; may be null unless the function needs one
  int device() const { return context->device; }
};

#define STANDIN_CALL(name)       \
  ::standin::Call call(#name);   \
  if (call.result != kSuccess) { \
    return call.result;          \
  }
// With a current context, on a device that is not lost.
#define STANDIN_CONTEXT_CALL(name)   \
  ::standin::Call call(#name, true); \
  if (call.result != kSuccess) {     \
    return call.result;              \
  }

// All of these with the lock held.
[[gnu::format(printf, 1, 2)]] Result complain(const char* format, ...);  // returns kInvalidValue
ContextRecord* context_of(Context context);                              // null if there is no such one
inline Context handle_of(ContextRecord* context) { return context; }

// Where bytes are for the stand-in itself, in pieces; addresses that are no device's are the host's own. False
// with a complaint if some of them are nowhere, or `device` has no access to them.
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
// Of resolve(): whether the address lies in a range of cuMemAddressReserve, and the piece it begins.
bool resolve_virtual(DevicePointer address, std::size_t bytes, int device, Piece& piece, bool& failed);

// Memory of the stand-in's own behind an address that the program must not touch.
std::byte* map_backing(std::size_t bytes, int fd);  // fd -1: anonymous; null: no memory
// An address range without access, at `offset` from a multiple of 2 MiB.
std::byte* map_forbidden(std::size_t bytes, std::size_t alignment, std::size_t offset);
void unmap(void* at, std::size_t bytes);

// streams.cpp
void reset_streams();  // waits for its threads, without the lock
void list_streams(std::string& out);

}  // namespace standin
