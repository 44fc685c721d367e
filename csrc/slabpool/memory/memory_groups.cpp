#include "slabpool/memory/memory_groups.hpp"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

#include "slabpool/memory/system_files.hpp"

namespace slabpool {
namespace {

constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};
// Version 1 writes "no limit" as the largest number of pages. No machine has this much memory.
constexpr std::uint64_t kUnlimitedFrom = std::uint64_t{1} << 60;

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

// mountinfo writes space, tab, newline and backslash as "\040" and so on.
std::string unescaped(const std::string& text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain +=
          static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

// A mounted hierarchy of groups that may limit memory.
struct Mount {
  std::string root;   // the group that is mounted
  std::string point;  // where
  bool version_2;
};

// A line: id parent major:minor root point options [fields] - type source options
std::optional<Mount> parse_mount(const std::string& line) {
  const std::vector<std::string> fields = split(line, ' ');
  const auto dash = std::find(fields.begin(), fields.end(), "-");
  if (fields.size() < 6 || fields.end() - dash < 4) return std::nullopt;
  const bool version_2 = dash[1] == "cgroup2";
  if (!version_2) {
    const std::vector<std::string> options = split(dash[3], ',');
    if (dash[1] != "cgroup" || std::find(options.begin(), options.end(), "memory") == options.end())
      return std::nullopt;
  }
  return Mount{unescaped(fields[3]), unescaped(fields[4]), version_2};
}

// The path of the process's group in a hierarchy. A line: id:controllers:path, with id 0 and no controllers in version 2.
std::optional<std::string> group_path(const std::vector<std::string>& lines, bool version_2) {
  for (const std::string& line : lines) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::vector<std::string> controllers = split(line.substr(first + 1, second - first - 1), ',');
    const bool matches =
        version_2 ? line.substr(0, first) == "0" && controllers.empty()
                  : std::find(controllers.begin(), controllers.end(), "memory") != controllers.end();
    if (matches) return line.substr(second + 1);
  }
  return std::nullopt;
}

std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The part of the group's path below the mount. In a container the path may be one that its mount does not show
// ("/../other", or as the host sees it); the mounted group is then the one that is known to hold the process.
std::string below(const std::string& path, const std::string& root) {
  if (path.find("/..") != std::string::npos) return {};
  std::string rest = path;
  if (root != "/") {
    if (path.compare(0, root.size(), root) != 0 ||
        (path.size() > root.size() && path[root.size()] != '/'))
      return {};
    rest = path.substr(root.size());
  }
  return rest == "/" ? std::string() : rest;
}

std::optional<std::uint64_t> number_at(const std::string& root, const std::string& folder,
                                       const char* file) noexcept {
  char name[64] = "/";
  std::size_t length = 1;
  while (*file != '\0' && length < sizeof name) name[length++] = *file++;
  return SystemFile(root, folder, {name, length}).number();
}

std::uint64_t difference(std::uint64_t a, std::uint64_t b) noexcept { return a > b ? a - b : 0; }

}  // namespace

MemoryGroups MemoryGroups::find(const std::string& root) {
  MemoryGroups groups;
  groups.root_ = root;
  const std::vector<std::string> own = lines_of(root + "/proc/self/cgroup");
  for (const std::string& line : lines_of(root + "/proc/self/mountinfo")) {
    const std::optional<Mount> mount = parse_mount(line);
    if (!mount) continue;
    const std::optional<std::string> path = group_path(own, mount->version_2);
    if (!path) continue;
    // From the process's group up to the mounted one.
    std::string rest = below(*path, mount->root);
    for (bool top = false; !top;) {
      top = rest.empty();
      MemoryGroup group{mount->point + rest, mount->version_2, 0};
      const bool known =
          std::any_of(groups.limited_.begin(), groups.limited_.end(),
                      [&](const MemoryGroup& other) { return other.folder == group.folder; });
      const auto limit = number_at(root, group.folder, group.limit_file());
      if (limit && *limit < kUnlimitedFrom && !known) {
        group.limit = *limit;
        groups.limited_.push_back(std::move(group));
      }
      if (!top) rest.resize(rest.rfind('/'));
    }
  }
  return groups;
}

bool MemoryGroups::admits(std::uint64_t bytes, Error& error) const {
  const auto tightest =
      std::min_element(limited_.begin(), limited_.end(),
                       [](const MemoryGroup& a, const MemoryGroup& b) { return a.limit < b.limit; });
  if (tightest == limited_.end() || bytes <= tightest->limit) return true;
  return error.fail(
      Status::system_refused,
      "a capacity of " + show_bytes(bytes) +
          " is more than the processes of its control group may have: " + describe(*tightest) +
          ". The kernel ends a process of the group that fills more. Make the pool smaller, or raise "
          "the limit of the container");
}

// What can be charged to the group. Looks no further once `enough` is found.
std::uint64_t MemoryGroups::room(const MemoryGroup& group, std::uint64_t enough) const noexcept {
  const auto limit = number_at(root_, group.folder, group.limit_file());
  const auto usage = number_at(root_, group.folder, group.usage_file());
  if (!limit || !usage || *limit >= kUnlimitedFrom) return kNoLimit;
  std::uint64_t room = difference(*limit, *usage);
  if (room >= enough) return room;
  // Pages of files that the kernel drops before it ends a process. Pages of shared memory are not among them.
  const SystemFile stat(root_, group.folder, "/memory.stat");
  std::uint64_t cached = 0;
  for (const char* list : {"inactive_file ", "active_file "}) {
    const std::string_view name(list);
    cached += stat.number_of(name).value_or(0);
  }
  if (!group.version_2) {
    // Of the group and the groups in it, as the usage is.
    const auto inactive = stat.number_of("total_inactive_file ");
    const auto active = stat.number_of("total_active_file ");
    if (inactive && active) cached = *inactive + *active;
  }
  const std::uint64_t swap = SystemFile(root_, "/proc/meminfo").number_of("SwapFree:").value_or(0) << 10;
  if (group.version_2) {
    const auto most = number_at(root_, group.folder, "memory.swap.max");
    const auto used = number_at(root_, group.folder, "memory.swap.current");
    return room + cached + (most && used ? std::min(swap, difference(*most, *used)) : swap);
  }
  room += cached + swap;
  const auto most = number_at(root_, group.folder, "memory.memsw.limit_in_bytes");
  const auto used = number_at(root_, group.folder, "memory.memsw.usage_in_bytes");
  if (most && used) room = std::min(room, difference(*most, *used) + cached);
  return room;
}

const MemoryGroup* MemoryGroups::full_for(std::uint64_t bytes) const noexcept {
  for (const MemoryGroup& group : limited_) {
    // A part stays free for what the process and its neighbours allocate at the same time.
    const std::uint64_t margin = std::min<std::uint64_t>(group.limit / 32, std::uint64_t{8} << 20);
    if (room(group, bytes + margin) < bytes + margin) return &group;
  }
  return nullptr;
}

std::string MemoryGroups::describe(const MemoryGroup& group) const {
  const auto limit = number_at(root_, group.folder, group.limit_file());
  const auto usage = number_at(root_, group.folder, group.usage_file());
  std::string text = std::string(group.limit_file()) + " of " + group.folder + " is " +
                     show_bytes(limit.value_or(group.limit));
  if (usage) text += ", of which " + show_bytes(*usage) + " is in use";
  return text;
}

}  // namespace slabpool
