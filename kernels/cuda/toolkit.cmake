# The cuda backend for real devices: nvcc compiles the kernels, the host compiler the rest. Included
# by the top CMakeLists.txt with KVERN_CUDA=ON.
find_program(KVERN_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin REQUIRED)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)  # before enable_language, which would ask a device
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 100-real 100-virtual)
endif()
set(CMAKE_CUDA_COMPILER ${KVERN_NVCC})
enable_language(CUDA)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_EXTENSIONS OFF)
get_filename_component(KVERN_CUDA_ROOT ${KVERN_NVCC} REALPATH)
get_filename_component(KVERN_CUDA_ROOT ${KVERN_CUDA_ROOT}/../.. ABSOLUTE)
find_library(KVERN_CUDART cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} ${KVERN_CUDA_ROOT}
  PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib REQUIRED)

kvern_library(kvern_cuda_host kernels/cuda kvern_base)
target_include_directories(kvern_cuda_host SYSTEM PUBLIC ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
file(GLOB kernels CONFIGURE_DEPENDS kernels/cuda/*.cu)
add_library(kvern_cuda STATIC ${kernels})
target_include_directories(kvern_cuda PRIVATE ${PROJECT_SOURCE_DIR})
# The compile options of the whole project are a host compiler's: -Xcompiler passes them on.
target_compile_options(kvern_cuda PRIVATE -fmad=false --expt-relaxed-constexpr
  -Werror all-warnings -lineinfo)
target_link_libraries(kvern_cuda PUBLIC kvern_cuda_host ${KVERN_CUDART} Threads::Threads dl rt)
