# Compiler flags as two interface targets: `slabpool_flags` for everything we compile, and
# `slabpool_core_flags` for hand-written C++ (strict warnings, which generated Cython code cannot meet).
include(CheckCXXCompilerFlag)
include(CheckIPOSupported)

set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_CXX_EXTENSIONS OFF)

set(SLABPOOL_USE_LTO OFF)
if(SLABPOOL_LTO AND NOT SLABPOOL_SANITIZE AND CMAKE_BUILD_TYPE MATCHES "^(Release|RelWithDebInfo|MinSizeRel)$")
  check_ipo_supported(RESULT SLABPOOL_USE_LTO OUTPUT _slabpool_ipo_output LANGUAGES CXX)
endif()

add_library(slabpool_flags INTERFACE)
target_compile_features(slabpool_flags INTERFACE cxx_std_20)

if(SLABPOOL_COVERAGE)
  # Atomic, because the tests' threads would lose counts otherwise.
  add_compile_options(--coverage -fprofile-update=atomic -fprofile-abs-path)
  add_link_options(--coverage)
endif()

if(SLABPOOL_SANITIZE)
  # For the whole directory: a sanitizer that covers only part of a program reports nonsense.
  # Lines are all that a sanitizer's report needs of debug information, and a fifth less to compile.
  add_compile_options(-fsanitize=${SLABPOOL_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${SLABPOOL_SANITIZE})
  if(SLABPOOL_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
else()
  # Calls between the modules and the core go straight through the GOT, without the PLT's extra jump.
  check_cxx_compiler_flag(-fno-plt SLABPOOL_HAS_NO_PLT)
  if(SLABPOOL_HAS_NO_PLT)
    target_compile_options(slabpool_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fno-plt>)
  endif()
endif()

add_library(slabpool_core_flags INTERFACE)
target_link_libraries(slabpool_core_flags INTERFACE slabpool_flags)
target_compile_options(slabpool_core_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion)
if(SLABPOOL_WERROR)
  target_compile_options(slabpool_core_flags INTERFACE -Werror)
endif()

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # gcc takes every included file for a header, where types of anonymous namespaces would be wrong.
  target_compile_options(slabpool_core_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-subobject-linkage>)
endif()

if(SLABPOOL_UNITY AND SLABPOOL_USE_LTO AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # gcc lets inlining grow one file by 40 %, and reaches that before the hot paths: allocating and freeing a block
  # takes 172 instructions at 60 %, and 157 at 100 %.
  target_compile_options(slabpool_core_flags INTERFACE
    "SHELL:$<$<COMPILE_LANGUAGE:CXX>:--param inline-unit-growth=100>")
endif()

# Exported functions may be inlined inside the core, because no other library is meant to interpose them.
check_cxx_compiler_flag(-fno-semantic-interposition SLABPOOL_HAS_NO_INTERPOSITION)
if(SLABPOOL_HAS_NO_INTERPOSITION)
  target_compile_options(slabpool_core_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fno-semantic-interposition>)
endif()

# One instruction to reach a thread-local instead of a call. The price is room in glibc's small static
# TLS surplus, shared by all libraries loaded with dlopen, so the core's thread-locals must stay tiny
# (tests/packaging checks the size).
target_compile_options(slabpool_core_flags INTERFACE -ftls-model=initial-exec)
