# One extension module per python/slabpool/_core/*.pyx, compiled as C++ and linked to libslabpool, which
# it finds beside itself at run time (so one copy of the core serves all modules of a process).

find_package(Python REQUIRED COMPONENTS Interpreter Development.Module NumPy)

function(slabpool_add_cython_module pyx)
  cmake_path(GET pyx STEM name)
  set(cpp "${PROJECT_BINARY_DIR}/cython/${name}.cpp")
  # Several builds of one tree, for several Pythons say, translate once where Cython is told of a place to keep
  # it. Not for work on the modules: what comes from there brings no depfile.
  set(cache)
  if(DEFINED ENV{CYTHON_CACHE_DIR})
    set(cache --cache)
  endif()
  # cimports between the modules resolve through python/; the depfile makes edits of a .pxd rebuild users.
  add_custom_command(
    OUTPUT "${cpp}"
    COMMAND Python::Interpreter -m cython --cplus -3 --fast-fail --depfile ${cache}
            -I "${PROJECT_SOURCE_DIR}/python" --module-name "slabpool._core.${name}"
            -o "${cpp}" "${pyx}"
    DEPENDS "${pyx}"
    DEPFILE "${cpp}.dep"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}/python"
    COMMENT "Cython slabpool._core.${name}"
    VERBATIM)

  set(target "slabpool_core_${name}")
  python_add_library(${target} MODULE WITH_SOABI "${cpp}")
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME "${name}"
    LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/slabpool/_core")
  target_link_libraries(${target} PRIVATE slabpool slabpool_flags Python::NumPy)
  # NPY_TARGET_VERSION is the oldest numpy the module runs on (1.25's C API is also 1.26's).
  target_compile_definitions(${target} PRIVATE
    NPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION
    NPY_TARGET_VERSION=NPY_1_25_API_VERSION)
  if(APPLE)
    set_property(TARGET ${target} PROPERTY INSTALL_RPATH "@loader_path/../lib")
  else()
    set_property(TARGET ${target} PROPERTY INSTALL_RPATH "$ORIGIN/../lib")
  endif()
  install(TARGETS ${target} LIBRARY DESTINATION slabpool/_core)
endfunction()

function(slabpool_add_cython_modules)
  file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/cython")
  file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/python/slabpool/_core/*.pyx")
  foreach(pyx IN LISTS sources)
    slabpool_add_cython_module("${pyx}")
  endforeach()
endfunction()
