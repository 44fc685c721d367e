// DLPack's binary interface: the layout of the structures by which tensors are exchanged.
//
// Source: dlpack.h 1.x (dmlc/dlpack). Both the structure from before 1.0 and the versioned one.
#pragma once

#include <cstdint>

namespace slabpool::dlpack {

inline constexpr int kCpu = 1;
inline constexpr int kCuda = 2;
inline constexpr int kCudaHost = 3;
inline constexpr int kCudaManaged = 13;

inline constexpr std::uint64_t kReadOnly = 1;
inline constexpr std::uint64_t kIsCopied = 2;

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};
struct Device {
  std::int32_t type;
  std::int32_t id;
};
struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null before 1.2 means C order
  std::uint64_t byte_offset;
};
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};
static_assert(sizeof(Tensor) == 48 && sizeof(Managed) == 64 && sizeof(ManagedVersioned) == 80);

}  // namespace slabpool::dlpack
