# Defines lynx_devices, an object library of make_backend() and the backends other than the CPU's. Sets LYNX_RT_WITH_CUDA, and
# LYNX_RT_CUDA_LIBS, the libraries that a static library of these objects needs.
set(LYNX_RT_CUDA_SOURCES
  csrc/backend/registry_cuda.cc
  csrc/backend/cuda/attention/attention_plan.cc
  csrc/backend/cuda/cuda_backend.cc
  csrc/backend/cuda/cuda_step.cc
  csrc/backend/cuda/cuda_weights.cc
  csrc/backend/cuda/expert_tier.cc
  csrc/backend/cuda/gemm/weight_loader.cc)
set(LYNX_RT_CUDA_KERNELS
  csrc/backend/cuda/attention/attention.cu
  csrc/backend/cuda/attention/gated_delta.cu
  csrc/backend/cuda/attention/mamba2.cu
  csrc/backend/cuda/gemm/down.cu
  csrc/backend/cuda/gemm/gate_up.cu
  csrc/backend/cuda/gemm/head_linear.cu
  csrc/backend/cuda/gemm/linear.cu
  csrc/backend/cuda/gemm/pack.cu
  csrc/backend/cuda/gemm/pack_codes.cu
  csrc/backend/cuda/attention/qkv_post.cu
  csrc/backend/cuda/route/route.cu
  csrc/backend/cuda/route/route_gates.cu
  csrc/backend/cuda/route/route_keys.cu
  csrc/backend/cuda/route/route_large.cu
  csrc/backend/cuda/route/route_rows.cu
  csrc/backend/cuda/route/router.cu
  csrc/backend/cuda/rows/combine.cu
  csrc/backend/cuda/rows/gather.cu
  csrc/backend/cuda/rows/norm.cu
  csrc/backend/cuda/rows/round.cu
  csrc/backend/cuda/rows/soft_cap.cu
  csrc/backend/cuda/sample/sample.cu)
set(runtime csrc/backend/cuda/runtime/runtime.cu)  # tests/simt runs the kernels with a runtime of its own

if(NOT LYNX_RT_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "LYNX_RT_CUDA: expected auto, on or off, got '${LYNX_RT_CUDA}'")
endif()
set(supported 80 86 89 90a 100a 120)
string(REPLACE ";" "|" pattern "^(${supported})$")

# The architectures of this build. Hopper's and data-centre Blackwell's own instructions need the names with an "a".
set(architectures ${LYNX_RT_CUDA_ARCHITECTURES})
list(TRANSFORM architectures REPLACE "^(90|100)$" "\\1a")
list(REMOVE_DUPLICATES architectures)
foreach(architecture ${architectures})
  if(NOT architecture MATCHES "${pattern}")
    message(FATAL_ERROR "LYNX_RT_CUDA_ARCHITECTURES: expected some of ${supported}, separated by semicolons, got '${architecture}'")
  endif()
endforeach()

# `gpus`: the architectures of this machine's GPUs; empty where there are none.
set(gpus "")
find_program(LYNX_RT_NVIDIA_SMI nvidia-smi)
mark_as_advanced(LYNX_RT_NVIDIA_SMI)
if(NOT LYNX_RT_CUDA STREQUAL "off" AND LYNX_RT_NVIDIA_SMI)
  execute_process(COMMAND ${LYNX_RT_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE capabilities ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" gpus "${capabilities}")
  list(TRANSFORM gpus REPLACE "\\." "")
  list(TRANSFORM gpus REPLACE "^87$" "86")  # code for an architecture without "a" runs on later minor versions
  list(TRANSFORM gpus REPLACE "^121$" "120")
  list(TRANSFORM gpus REPLACE "^(90|100)$" "\\1a")
  list(REMOVE_DUPLICATES gpus)
  set(others ${gpus})
  list(FILTER others EXCLUDE REGEX "${pattern}")
  list(FILTER gpus INCLUDE REGEX "${pattern}")
  if(others)
    message(STATUS "lynx_rt: there is no CUDA code for this machine's GPUs of compute capability ${others}")
  endif()
endif()

# nvcc is CMAKE_CUDA_COMPILER or CUDACXX, else the one on PATH, else the one where NVIDIA's installers put it.
set(LYNX_RT_WITH_CUDA OFF)
set(LYNX_RT_CUDA_LIBS "")
set(oldest_nvcc 12.8)  # the first version that knows 100a and 120
if(LYNX_RT_CUDA STREQUAL "on" OR (LYNX_RT_CUDA STREQUAL "auto" AND gpus))
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(LYNX_RT_NVCC nvcc PATHS /usr/local/cuda/bin)
    mark_as_advanced(LYNX_RT_NVCC)
    if(LYNX_RT_NVCC)
      set(ENV{CUDACXX} ${LYNX_RT_NVCC})
    elseif(LYNX_RT_CUDA STREQUAL "on")
      message(FATAL_ERROR "LYNX_RT_CUDA=on: no nvcc in CUDACXX, on PATH or in /usr/local/cuda/bin. With LYNX_RT_CUDA=on in the "
                          "environment, pip install brings one along")
    endif()
  endif()
endif()
if(LYNX_RT_CUDA STREQUAL "on")
  set(LYNX_RT_WITH_CUDA ON)
elseif(LYNX_RT_CUDA STREQUAL "auto" AND gpus)
  include(CheckLanguage)
  check_language(CUDA)
  set(version 0)
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE text)
    string(REGEX REPLACE ".*release ([0-9.]+).*" "\\1" version "${text}")
  endif()
  if(version VERSION_LESS oldest_nvcc)
    message(STATUS "lynx_rt: this machine has a GPU, but no nvcc ${oldest_nvcc} or newer that works: building for the CPU only "
                   "(LYNX_RT_CUDA=on pip install brings nvcc along)")
  else()
    set(LYNX_RT_WITH_CUDA ON)
  endif()
endif()

if(NOT LYNX_RT_WITH_CUDA)
  add_library(lynx_devices OBJECT csrc/backend/registry_cpu.cc)
  target_link_libraries(lynx_devices PUBLIC lynx_flags)
  return()
endif()

if(NOT architectures)
  set(architectures ${gpus})
endif()
if(NOT architectures)
  set(architectures 90a)
endif()
list(TRANSFORM architectures APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
if("120" IN_LIST architectures)
  list(APPEND CMAKE_CUDA_ARCHITECTURES 120-virtual)  # later GPUs compile it when it is loaded
endif()

if(CMAKE_VERSION VERSION_LESS 3.26)
  message(FATAL_ERROR "LYNX_RT_CUDA: CMake 3.26 or newer is needed, which knows C++20 of nvcc; this is ${CMAKE_VERSION} "
                      "(pip install cmake)")
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS oldest_nvcc)
  message(FATAL_ERROR "LYNX_RT_CUDA: nvcc ${oldest_nvcc} or newer is needed, ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
# The static runtime is searched here because find_package(CUDAToolkit) wants a shared runtime beside it, and because the nvcc 13.0
# of the wheels makes the linker look in lib64, where its libraries are in lib.
cmake_path(GET CMAKE_CUDA_COMPILER PARENT_PATH toolkit)
find_library(cudart_static cudart_static NO_CACHE REQUIRED
  HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} ${toolkit}/../lib ${toolkit}/../lib64 ENV LIBRARY_PATH)
cmake_path(GET cudart_static PARENT_PATH cuda_libraries)
add_link_options(-L${cuda_libraries})  # link_directories() would add a run path
set(LYNX_RT_CUDA_LIBS " ${cudart_static} -ldl -lrt")
message(STATUS "lynx_rt: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${architectures}")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
add_library(lynx_devices OBJECT ${LYNX_RT_CUDA_SOURCES} ${LYNX_RT_CUDA_KERNELS} ${runtime})
target_link_libraries(lynx_devices PUBLIC lynx_flags)
target_link_options(lynx_devices INTERFACE -L${cuda_libraries})
set_source_files_properties(${runtime} PROPERTIES COMPILE_DEFINITIONS "LYNX_RT_CUDA_ARCHITECTURES=\"${architectures}\"")
# -fmad=false forbids contraction, so that the bits of a result do not depend on what the compiler fuses.
target_compile_options(lynx_devices PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false --compress-mode=size>)
if(LYNX_RT_WERROR)
  target_compile_options(lynx_devices PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
