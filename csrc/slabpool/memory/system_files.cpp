#include "slabpool/memory/system_files.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdio>
#include <cstring>

#include "slabpool/base/descriptor.hpp"

namespace slabpool {
namespace {

std::optional<std::uint64_t> number_in(std::string_view text) noexcept {
  const std::size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return std::nullopt;
  std::uint64_t value = 0;
  const auto [end, wrong] = std::from_chars(text.data() + begin, text.data() + text.size(), value);
  if (wrong != std::errc()) return std::nullopt;
  return value;
}

ssize_t read_some(const Descriptor& file, char* at, std::size_t bytes) noexcept {
  ssize_t got = 0;
  do got = read(file.get(), at, bytes);
  while (got < 0 && errno == EINTR);
  return got;
}

}  // namespace

SystemFile::SystemFile(std::string_view part, std::string_view part2, std::string_view part3) noexcept {
  char path[PATH_MAX];
  if (part.size() + part2.size() + part3.size() >= sizeof path) return;
  char* end = path;
  for (const std::string_view piece : {part, part2, part3})
    end = std::copy(piece.begin(), piece.end(), end);
  *end = '\0';
  const Descriptor file(open(path, O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return;
  while (length_ < sizeof buffer_) {
    const ssize_t got = read_some(file, buffer_ + length_, sizeof buffer_ - length_);
    if (got <= 0) break;
    length_ += static_cast<std::size_t>(got);
  }
}

std::optional<std::uint64_t> SystemFile::number() const noexcept { return number_in(text()); }

std::optional<std::uint64_t> SystemFile::number_of(std::string_view name) const noexcept {
  for (std::string_view rest = text(); !rest.empty();) {
    if (rest.substr(0, name.size()) == name)
      return number_in(rest.substr(name.size(), rest.find('\n') - name.size()));
    const std::size_t line = rest.find('\n');
    if (line == std::string_view::npos) break;
    rest.remove_prefix(line + 1);
  }
  return std::nullopt;
}

std::uint64_t count_lines(const char* path) noexcept {
  const Descriptor file(open(path, O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return 0;
  std::uint64_t lines = 0;
  char buffer[16384];
  for (ssize_t got = 0; (got = read_some(file, buffer, sizeof buffer)) > 0;)
    lines += static_cast<std::uint64_t>(std::count(buffer, buffer + got, '\n'));
  return lines;
}

std::string show_bytes(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  unsigned unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, "%.4g %s", value, kUnits[unit]);
  return text;
}

}  // namespace slabpool
