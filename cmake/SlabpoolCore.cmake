# libslabpool: csrc/ as objects (so that tests can link what the library hides), the one shared library
# made of them, its headers, and the CMake package `slabpool` with the target `slabpool::slabpool`.
include(CMakePackageConfigHelpers)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

file(GLOB_RECURSE SLABPOOL_CORE_SOURCES CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/slabpool/*.cpp")

add_library(slabpool_objects OBJECT ${SLABPOOL_CORE_SOURCES})
target_include_directories(slabpool_objects PUBLIC "${PROJECT_SOURCE_DIR}/csrc")
target_compile_definitions(slabpool_objects PRIVATE SLABPOOL_VERSION="${PROJECT_VERSION}")
target_link_libraries(slabpool_objects PUBLIC slabpool_core_flags Threads::Threads ${CMAKE_DL_LIBS})
# As one file the core compiles in a third of the time. Names in anonymous namespaces must therefore differ between
# its files. Link-time optimisation of that one file adds nothing to the time, and tells the compiler which
# functions have no caller elsewhere: without it, opening and closing a request took 9 % more instructions.
# For work on it (SLABPOOL_UNITY off) each layer is one file: a changed line costs one layer, and a changed header one file
# for each layer above it.
set_target_properties(slabpool_objects PROPERTIES
  UNITY_BUILD ON
  INTERPROCEDURAL_OPTIMIZATION ${SLABPOOL_USE_LTO})
if(SLABPOOL_UNITY)
  set_target_properties(slabpool_objects PROPERTIES UNITY_BUILD_BATCH_SIZE 0)
else()
  set_target_properties(slabpool_objects PROPERTIES UNITY_BUILD_MODE GROUP)
  foreach(source IN LISTS SLABPOOL_CORE_SOURCES)
    cmake_path(GET source PARENT_PATH folder)
    cmake_path(GET folder FILENAME layer)
    set_source_files_properties("${source}" PROPERTIES UNITY_GROUP ${layer})
  endforeach()
  # Half of what compiling a file of the core costs is the standard library's headers.
  target_precompile_headers(slabpool_objects PRIVATE
    <atomic> <cstdint> <map> <memory> <mutex> <optional> <span> <string> <string_view> <thread> <unordered_map> <vector>)
endif()

# No SOVERSION: wheels cannot hold symlinks, and each wheel carries the only copy it uses.
add_library(slabpool SHARED $<TARGET_OBJECTS:slabpool_objects>)
add_library(slabpool::slabpool ALIAS slabpool)
set_target_properties(slabpool PROPERTIES
  LINKER_LANGUAGE CXX
  INTERPROCEDURAL_OPTIMIZATION ${SLABPOOL_USE_LTO})
target_compile_features(slabpool INTERFACE cxx_std_20)
target_include_directories(slabpool INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc>
  $<INSTALL_INTERFACE:${SLABPOOL_INSTALL_INCLUDEDIR}>)
target_link_libraries(slabpool PRIVATE slabpool_core_flags Threads::Threads ${CMAKE_DL_LIBS})
if(NOT SLABPOOL_SANITIZE)
  # nodelete: threads run our thread-local destructors at their end, which may come after a dlclose.
  target_link_options(slabpool PRIVATE -Wl,--no-undefined -Wl,-z,nodelete)
endif()

set(_slabpool_cmake_dir "${SLABPOOL_INSTALL_LIBDIR}/cmake/slabpool")
install(TARGETS slabpool EXPORT slabpoolTargets
  LIBRARY DESTINATION "${SLABPOOL_INSTALL_LIBDIR}"
  RUNTIME DESTINATION "${SLABPOOL_INSTALL_LIBDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/csrc/slabpool" DESTINATION "${SLABPOOL_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(EXPORT slabpoolTargets NAMESPACE slabpool:: DESTINATION "${_slabpool_cmake_dir}")

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/slabpoolConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/slabpoolConfig.cmake" INSTALL_DESTINATION "${_slabpool_cmake_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/slabpoolConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/slabpoolConfig.cmake" "${PROJECT_BINARY_DIR}/slabpoolConfigVersion.cmake"
  DESTINATION "${_slabpool_cmake_dir}")
