// Small text files of the kernel (/proc, control groups), read without heap memory: they are read when memory has run
// out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace slabpool {

// The text of a file, as far as it fits into the buffer. Empty if it cannot be read.
class SystemFile {
 public:
  // The path is the parts one after another.
  explicit SystemFile(std::string_view part, std::string_view part2 = {},
                      std::string_view part3 = {}) noexcept;
  std::string_view text() const noexcept { return {buffer_, length_}; }
  // The whole text as a number; empty if it is none ("max").
  std::optional<std::uint64_t> number() const noexcept;
  // The number behind the first line that starts with `name`: of "VmSize:    12 kB" that is 12.
  std::optional<std::uint64_t> number_of(std::string_view name) const noexcept;

 private:
  std::size_t length_ = 0;
  char buffer_[16384];
};

// The number of lines of a file of any length; 0 if it cannot be read.
std::uint64_t count_lines(const char* path) noexcept;

// A number of bytes for a message: "2 MiB", "1.5 GiB", "300 bytes".
std::string show_bytes(std::uint64_t bytes);

}  // namespace slabpool
