// The limits of this process, for the message after a refusal: which there are, and how much of each is in use.
#pragma once

#include <cstdint>
#include <string>

#include "slabpool/base/error.hpp"

namespace slabpool {

// Bytes of address space that this process may still reserve under RLIMIT_AS; the largest number if there is no limit.
std::uint64_t addresses_left() noexcept;

// What limits the memory of this process, one sentence: RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK (only with `locked`),
// vm.max_map_count with the number of mappings, strict overcommit with CommitLimit and Committed_AS. A limit of
// mappings is named only if most of them are in use. Where /proc cannot be read, what is in use is left out. Throws
// std::bad_alloc.
std::string describe_limits(bool locked = false);

// Adds the limits to an error of a system call that may be refused because of one (ENOMEM, ENOSPC, EAGAIN), or to an
// error without a number, which is an allocation of the pool's own tables. Other errors stay as they are. If there is
// no memory for the text, it is left out.
void explain_refusal(Error& error, bool locked = false) noexcept;

}  // namespace slabpool
