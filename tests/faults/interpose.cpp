// Preloaded into a process: makes the k-th call of one function of the C library fail, once.
//
// The test arms it through the four exported functions below. Memory is the C library's malloc, and operator new, which
// is counted under the same name. With `native`, only calls by slabpool's own library and modules count, and by the C++
// library.
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);
}

namespace {

enum Call {
  kNone,
  kMmap,
  kMprotect,
  kMadvise,
  kFallocate,
  kFtruncate,
  kMemfd,
  kEventfd,
  kEpoll,
  kThread,
  kMalloc
};
constexpr const char* kNames[] = {"",          "mmap",           "mprotect",     "madvise",
                                  "fallocate", "ftruncate",      "memfd_create", "eventfd",
                                  "epoll_ctl", "pthread_create", "malloc"};

struct Range {
  std::uintptr_t first, end;
};
Range ranges[64];
int range_count = 0;
std::atomic<int> armed{kNone};
bool native_only = false;
long nth = 0;
std::atomic<long> calls{0};
std::atomic<long> failed{0};

int note(dl_phdr_info* info, std::size_t, void*) {
  if (info->dlpi_name == nullptr) return 0;
  // A std::string allocates in the C++ library on behalf of its caller.
  if (std::strstr(info->dlpi_name, "/slabpool/") == nullptr &&
      std::strstr(info->dlpi_name, "/libstdc++.so") == nullptr)
    return 0;
  for (int i = 0; i < info->dlpi_phnum && range_count < 64; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD || (header.p_flags & PF_X) == 0) continue;
    const auto first = info->dlpi_addr + header.p_vaddr;
    ranges[range_count++] = {first, first + header.p_memsz};
  }
  return 0;
}

bool is_native(const void* caller) {
  const auto at = reinterpret_cast<std::uintptr_t>(caller);
  for (int i = 0; i < range_count; ++i) {
    if (at >= ranges[i].first && at < ranges[i].end) return true;
  }
  return false;
}

bool fails(Call call, const void* caller) {
  if (armed.load(std::memory_order_relaxed) != call || (native_only && !is_native(caller))) return false;
  if (calls.fetch_add(1) + 1 != nth) return false;
  failed.fetch_add(1);
  return true;
}

template <typename F>
F* next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

int refuse(int number) {
  errno = number;
  return -1;
}

void* checked(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

#define CALLER __builtin_return_address(0)

extern "C" {

// `k` 0: counts and fails none. Calls count from now on, until faults_pause().
int faults_arm(const char* name, long k, int native) {
  for (int i = 1; i <= kMalloc; ++i) {
    if (std::strcmp(kNames[i], name) != 0) continue;
    range_count = 0;
    dl_iterate_phdr(note, nullptr);
    native_only = native != 0;
    nth = k;
    calls = 0;
    failed = 0;
    armed = i;
    return range_count;
  }
  return -1;
}
void faults_pause(int paused) {
  static int was = kNone;
  if (paused != 0) {
    was = armed.exchange(kNone);
  } else {
    armed = was;
  }
}
long faults_calls() { return calls; }
long faults_failed() { return failed; }

void* mmap(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) {
  static auto* real = next<void*(void*, std::size_t, int, int, int, off_t)>("mmap");
  if (!fails(kMmap, CALLER)) return real(at, bytes, protection, flags, fd, offset);
  errno = ENOMEM;
  return reinterpret_cast<void*>(-1);
}
void* mmap64(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) {
  static auto* real = next<void*(void*, std::size_t, int, int, int, off_t)>("mmap64");
  if (!fails(kMmap, CALLER)) return real(at, bytes, protection, flags, fd, offset);
  errno = ENOMEM;
  return reinterpret_cast<void*>(-1);
}
int mprotect(void* at, std::size_t bytes, int protection) {
  static auto* real = next<int(void*, std::size_t, int)>("mprotect");
  return fails(kMprotect, CALLER) ? refuse(ENOMEM) : real(at, bytes, protection);
}
int madvise(void* at, std::size_t bytes, int advice) {
  static auto* real = next<int(void*, std::size_t, int)>("madvise");
  return fails(kMadvise, CALLER) ? refuse(ENOMEM) : real(at, bytes, advice);
}
int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  static auto* real = next<int(int, int, off_t, off_t)>("fallocate");
  return fails(kFallocate, CALLER) ? refuse(ENOSPC) : real(fd, mode, offset, bytes);
}
int ftruncate(int fd, off_t bytes) {
  static auto* real = next<int(int, off_t)>("ftruncate");
  return fails(kFtruncate, CALLER) ? refuse(ENOSPC) : real(fd, bytes);
}
int memfd_create(const char* name, unsigned flags) {
  static auto* real = next<int(const char*, unsigned)>("memfd_create");
  return fails(kMemfd, CALLER) ? refuse(EMFILE) : real(name, flags);
}
int eventfd(unsigned count, int flags) {
  static auto* real = next<int(unsigned, int)>("eventfd");
  return fails(kEventfd, CALLER) ? refuse(EMFILE) : real(count, flags);
}
int epoll_ctl(int fd, int what, int other, epoll_event* event) noexcept {
  static auto* real = next<int(int, int, int, epoll_event*)>("epoll_ctl");
  return fails(kEpoll, CALLER) ? refuse(ENOSPC) : real(fd, what, other, event);
}
int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*),
                   void* with) noexcept {
  static auto* real =
      next<int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)>("pthread_create");
  return fails(kThread, CALLER) ? EAGAIN : real(thread, how, run, with);
}

void* malloc(std::size_t bytes) noexcept {
  if (!fails(kMalloc, CALLER)) return __libc_malloc(bytes);
  errno = ENOMEM;
  return nullptr;
}
void* calloc(std::size_t count, std::size_t bytes) noexcept {
  if (!fails(kMalloc, CALLER)) return __libc_calloc(count, bytes);
  errno = ENOMEM;
  return nullptr;
}
void* realloc(void* memory, std::size_t bytes) noexcept {
  if (!fails(kMalloc, CALLER)) return __libc_realloc(memory, bytes);
  errno = ENOMEM;
  return nullptr;
}

}  // extern "C"

void* operator new(std::size_t bytes) {
  return checked(fails(kMalloc, CALLER) ? nullptr : __libc_malloc(bytes));
}
void* operator new[](std::size_t bytes) {
  return checked(fails(kMalloc, CALLER) ? nullptr : __libc_malloc(bytes));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return fails(kMalloc, CALLER) ? nullptr : __libc_malloc(bytes);
}
void* operator new(std::size_t bytes, std::align_val_t align) {
  const auto unit = static_cast<std::size_t>(align);
  return checked(fails(kMalloc, CALLER) ? nullptr : __libc_memalign(unit, bytes));
}
void* operator new[](std::size_t bytes, std::align_val_t align) {
  const auto unit = static_cast<std::size_t>(align);
  return checked(fails(kMalloc, CALLER) ? nullptr : __libc_memalign(unit, bytes));
}
void operator delete(void* memory) noexcept { __libc_free(memory); }
void operator delete[](void* memory) noexcept { __libc_free(memory); }
void operator delete(void* memory, std::size_t) noexcept { __libc_free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { __libc_free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { __libc_free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { __libc_free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { __libc_free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { __libc_free(memory); }
