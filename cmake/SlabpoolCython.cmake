# One extension module per python/slabpool/_core/*.pyx, compiled as C++ and linked to libslabpool, which
# it finds beside itself at run time (so one copy of the core serves all modules of a process).

find_package(Python REQUIRED COMPONENTS Interpreter Development.Module NumPy)

set(SLABPOOL_CYTHON_DIR "${PROJECT_BINARY_DIR}/cython")
set(SLABPOOL_NUMPY_INCLUDE "${Python_NumPy_INCLUDE_DIRS}")
if(SLABPOOL_NUMPY_INCLUDE MATCHES "pip-build-env")
  # pip's isolated builds give numpy another path each time. Copied, its headers have the same path relative
  # to the build folder, so that a compiler cache recognises the modules.
  file(COPY "${SLABPOOL_NUMPY_INCLUDE}/numpy" DESTINATION "${PROJECT_BINARY_DIR}/numpy-include")
  set(SLABPOOL_NUMPY_INCLUDE "${PROJECT_BINARY_DIR}/numpy-include")
endif()

# What every module is compiled with. The same for all of them, because they share a precompiled header.
add_library(slabpool_module_flags INTERFACE)
target_link_libraries(slabpool_module_flags INTERFACE slabpool slabpool_flags)
target_include_directories(slabpool_module_flags SYSTEM INTERFACE "${SLABPOOL_NUMPY_INCLUDE}")
# NPY_TARGET_VERSION is the oldest numpy the module runs on (1.25's C API is also 1.26's).
target_compile_definitions(slabpool_module_flags INTERFACE
  NPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION
  NPY_TARGET_VERSION=NPY_1_25_API_VERSION)
# At -O3 they compile a sixth slower and take no fewer instructions, because of -O3 only -fpeel-loops serves their
# loops over a tensor's few axes.
target_compile_options(slabpool_module_flags INTERFACE
  "$<$<CONFIG:Release>:-O2;$<$<CXX_COMPILER_ID:GNU>:-fpeel-loops>>" "$<$<CONFIG:Debug>:-O1;-g1>")

function(slabpool_translate_cython sources)
  # One process translates every stale module: as a process for each, Cython spent more time starting and
  # parsing than translating. cython_modules.py leaves outputs that did not change alone, so ninja compiles
  # only what did.
  set(outputs)
  foreach(pyx IN LISTS sources)
    cmake_path(GET pyx STEM name)
    list(APPEND outputs "${SLABPOOL_CYTHON_DIR}/${name}.cpp")
  endforeach()
  set(script "${PROJECT_SOURCE_DIR}/cmake/cython_modules.py")
  add_custom_command(
    OUTPUT ${outputs}
    COMMAND Python::Interpreter "${script}" --package slabpool._core --include "${PROJECT_SOURCE_DIR}/python"
            --output "${SLABPOOL_CYTHON_DIR}" --depfile "${SLABPOOL_CYTHON_DIR}/modules.d" ${sources}
    DEPENDS ${sources} "${script}"
    DEPFILE "${SLABPOOL_CYTHON_DIR}/modules.d"
    COMMENT "Cython slabpool._core"
    VERBATIM)
  add_custom_target(slabpool_cython DEPENDS ${outputs})
endfunction()

function(slabpool_add_cython_module name)
  set(target "slabpool_core_${name}")
  python_add_library(${target} MODULE WITH_SOABI "${SLABPOOL_CYTHON_DIR}/${name}.cpp")
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME "${name}"
    DEFINE_SYMBOL ""  # else one macro would differ from the precompiled header's
    LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/slabpool/_core")
  target_link_libraries(${target} PRIVATE slabpool_module_flags)
  target_precompile_headers(${target} REUSE_FROM slabpool_module_header)
  add_dependencies(${target} slabpool_cython)
  add_dependencies(slabpool_package ${target})
  set_property(TARGET ${target} PROPERTY INSTALL_RPATH "$ORIGIN/../lib")
  install(TARGETS ${target} LIBRARY DESTINATION slabpool/_core)
endfunction()

function(slabpool_add_cython_modules)
  file(MAKE_DIRECTORY "${SLABPOOL_CYTHON_DIR}")
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/python/slabpool/_core/*.pyx")
  slabpool_translate_cython("${sources}")

  file(CONFIGURE OUTPUT "${SLABPOOL_CYTHON_DIR}/header.cpp" CONTENT "// Compiled for its precompiled header alone.\n")
  add_library(slabpool_module_header OBJECT "${SLABPOOL_CYTHON_DIR}/header.cpp")
  target_link_libraries(slabpool_module_header PRIVATE slabpool_module_flags Python::Module)
  target_precompile_headers(slabpool_module_header PRIVATE "${PROJECT_SOURCE_DIR}/cmake/module_header.hpp")

  foreach(pyx IN LISTS sources)
    cmake_path(GET pyx STEM name)
    slabpool_add_cython_module("${name}")
  endforeach()
endfunction()
