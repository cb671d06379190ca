# The cuda backend for real devices: nvcc compiles the kernels, the host compiler the rest. Included
# by the top CMakeLists.txt with KVERN_CUDA=ON.
find_program(KVERN_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin REQUIRED)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)  # before enable_language, which would ask a device
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 100-real 100-virtual)
endif()
set(CMAKE_CUDA_COMPILER ${KVERN_NVCC})
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 knows no later one for nvcc: the flag below wins
enable_language(CUDA)
get_filename_component(KVERN_CUDA_ROOT ${KVERN_NVCC} REALPATH)
get_filename_component(KVERN_CUDA_ROOT ${KVERN_CUDA_ROOT}/../.. ABSOLUTE)
find_library(KVERN_CUDART cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} ${KVERN_CUDA_ROOT}
  PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib REQUIRED)

kvern_library(kvern_cuda_host kernels/cuda kvern_base)
target_include_directories(kvern_cuda_host SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
file(GLOB kernels CONFIGURE_DEPENDS kernels/cuda/*.cu)
add_library(kvern_cuda STATIC ${kernels})
target_include_directories(kvern_cuda PRIVATE ${PROJECT_SOURCE_DIR})
# The compile options of the whole project are a host compiler's: -Xcompiler passes them on.
target_compile_options(kvern_cuda PRIVATE -std=c++20 -fmad=false --expt-relaxed-constexpr
  -Werror all-warnings -lineinfo)
target_link_libraries(kvern_cuda PUBLIC kvern_cuda_host ${KVERN_CUDART} Threads::Threads dl rt)
