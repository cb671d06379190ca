# The tests, one binary per folder and build, and the gates. Included by ../CMakeLists.txt: folders and
# targets are its own.

# One binary per tests folder (ruling 24) and build, its cases found by gtest itself. In a twin there
# is a cuda backend, which `auto` then chooses.
function(kvern_tests folder)
  cmake_parse_arguments(PARSE_ARGV 1 TESTS "" "" "BUILDS;LIBRARIES")
  string(REPLACE "/" "_" name ${folder})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${folder}/*_test.cc)
  set(libraries kvern_support ${TESTS_LIBRARIES} GTest::gmock GTest::gtest_main)
  add_library(${name}_objects OBJECT ${sources})
  target_compile_options(${name}_objects PRIVATE ${optimise} -Wall -Wextra -Werror)
  if(folder MATCHES "integration|client|rpc|engine" AND NOT folder MATCHES "device")  # gRPC, protobuf
    set_target_properties(${name}_objects PROPERTIES UNITY_BUILD ON)
  else()
    set_target_properties(${name}_objects PROPERTIES UNITY_BUILD OFF)
  endif()
  target_compile_definitions(${name}_objects PRIVATE KVERN_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
  target_link_libraries(${name}_objects PRIVATE ${libraries})
  set(builds ${TESTS_BUILDS})
  if(NOT builds)
    set(builds product)
  endif()
  kvern_program(${name} "${builds}" ${libraries})
  foreach(build ${builds})
    set(suffix _${build})
    set(prefix ${build}/)
    if(build STREQUAL "product")
      set(suffix "")
      set(prefix "")
    endif()
    if(NOT TARGET ${name}${suffix})
      continue()
    endif()
    if(folder MATCHES "golden|integration|client|device")  # they run the programs
      add_dependencies(${name}${suffix} kvernd${suffix} kvern${suffix})
    endif()
    # An emulated device is slow, which is no hang; sanitizers take a fifth of the random cases.
    set(environment KVERN_HANG_SECONDS=300)
    if(KVERN_SANITIZE)
      set(environment KVERN_CASES=2000)
    endif()
    gtest_discover_tests(${name}${suffix} TEST_PREFIX ${prefix}${folder}/ DISCOVERY_TIMEOUT 60
      PROPERTIES TIMEOUT 600 ENVIRONMENT ${environment})
  endforeach()
endfunction()

kvern_library(kvern_support tests/support kvern_ref kvern_cpu kvern_formats)
foreach(layer memory pipeline engine rpc telemetry main)
  kvern_tests(tests/unit/server/${layer} LIBRARIES kvern_${layer})
endforeach()
kvern_tests(tests/unit/kernels LIBRARIES kvern_formats)
kvern_tests(tests/unit/formats LIBRARIES kvern_formats)
kvern_tests(tests/unit/client LIBRARIES kvern_cli)
kvern_tests(tests/parity BUILDS product simt simt_asan simt_check LIBRARIES kvern_formats)
if(NOT KVERN_SANITIZE)  # what they add is numbers, not accesses
  kvern_tests(tests/golden BUILDS product simt LIBRARIES kvern_cli)
  file(GLOB gpu_bench_sources CONFIGURE_DEPENDS tests/bench/gpu/*.cc)
  add_library(gpu_bench_objects OBJECT ${gpu_bench_sources})
  target_link_libraries(gpu_bench_objects PRIVATE kvern_support CLI11::CLI11 nlohmann_json::nlohmann_json)
  kvern_program(gpu_bench "product;simt" kvern_support CLI11::CLI11)
  if(TARGET gpu_bench_simt)  # the times mean nothing: that all stages run, and the table is made
    add_test(NAME simt/gpu_bench COMMAND sh -c "$<TARGET_FILE:gpu_bench_simt> --layers 2 --kv-heads 2 \
      --q-heads 4 --tokens 600 --kept 100 --rounds 1 --scratch-bytes 268435456 >gpu_bench.json && \
      ${PROJECT_SOURCE_DIR}/tests/gates/model.py --measured gpu_bench.json")
  endif()
endif()
foreach(folder integration/equality integration/faults integration/hostile
               integration/serving integration/command_line)
  kvern_tests(tests/${folder} BUILDS product simt LIBRARIES kvern_cli)
endforeach()
if(KVERN_SIMT)
  foreach(folder device integration/device)  # they make emulated device memory of their own
    kvern_tests(tests/${folder} BUILDS simt LIBRARIES kvern_cli)
    string(REPLACE "/" "_" name ${folder})
    target_include_directories(tests_${name}_objects PRIVATE tests tests/simt/include)
  endforeach()
endif()
# Neither built nor run with the tests: make bench.
file(GLOB bench_sources CONFIGURE_DEPENDS tests/bench/*.cc)
add_executable(kvern_bench EXCLUDE_FROM_ALL ${bench_sources})
target_link_libraries(kvern_bench PRIVATE kvern_support kvern_cli kvern_kernels benchmark::benchmark)
add_dependencies(kvern_bench kvernd)
add_executable(kvern_rounds EXCLUDE_FROM_ALL tests/bench/peers/kvern_rounds.cc)  # make peers
target_link_libraries(kvern_rounds PRIVATE kvern_support kvern_cli kvern_kernels)
if(NOT KVERN_SANITIZE)  # exit code 77: no valgrind, or another compiler than that of the counts
  add_test(NAME gates/instructions COMMAND ${PROJECT_SOURCE_DIR}/tests/gates/instructions.py --kvern $<TARGET_FILE:kvern>
    --built "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} ${CMAKE_BUILD_TYPE}")
  set_tests_properties(gates/instructions PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600)
  # Sanitizers have an allocator of their own.
  add_executable(gate_counts tests/gates/counts.cc tests/bench/frontend.cc tests/bench/in_process.cc
    tests/bench/allocations.cc)
  target_link_libraries(gate_counts PRIVATE kvern_support kvern_cli kvern_kernels)
  add_test(NAME gates/counts COMMAND ${PROJECT_SOURCE_DIR}/tests/gates/counts.py $<TARGET_FILE:gate_counts>)
endif()
# The same bits under every schedule of the emulator: forward is among the tests above.
if(TARGET tests_parity_simt)
  foreach(schedule reverse:0 random:1 random:2 random:3 random:4 random:5 random:6 random:7 random:8
                   random:9 random:10)
    string(REPLACE ":" ";" order_and_seed ${schedule})
    list(GET order_and_seed 0 order)
    list(GET order_and_seed 1 seed)
    add_test(NAME simt/schedules/${order}-${seed} COMMAND tests_parity_simt --gtest_brief=1)
    set_tests_properties(simt/schedules/${order}-${seed} PROPERTIES TIMEOUT 600
      ENVIRONMENT "KVERN_SIMT_ORDER=${order};KVERN_SIMT_SEED=${seed}")
  endforeach()
endif()
if(NOT KVERN_SANITIZE)  # exit code 77: nvcc is absent, nothing was checked
  add_test(NAME gates/kernels COMMAND ${PROJECT_SOURCE_DIR}/tests/gates/kernels.py --work ${PROJECT_BINARY_DIR}/gates)
  set_tests_properties(gates/kernels PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600)
endif()
if(TARGET kvern_kernels_simt_check)
  add_library(gate_sectors_objects OBJECT tests/gates/sector_ops.cc)
  target_link_libraries(gate_sectors_objects PRIVATE kvern_support)
  kvern_program(gate_sectors simt_check kvern_support)
  add_test(NAME gates/sectors COMMAND ${PROJECT_SOURCE_DIR}/tests/gates/sectors.py
    $<TARGET_FILE:gate_sectors_simt_check> --work ${PROJECT_BINARY_DIR}/gates)
  set_tests_properties(gates/sectors PROPERTIES TIMEOUT 120)
endif()
if(NOT KVERN_SANITIZE)  # exit code 77: PyPI cannot be reached
  add_test(NAME client/python COMMAND ${PROJECT_SOURCE_DIR}/client/python/tests/run.sh
    $<TARGET_FILE:kvernd> $<TARGET_FILE:kvern> ${PROJECT_BINARY_DIR}/python)
  set_tests_properties(client/python PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600)
endif()
add_test(NAME lint/layers COMMAND ${PROJECT_SOURCE_DIR}/tests/lint/layers.py)
if(KVERN_LINT)
  add_test(NAME lint/proto COMMAND ${PROJECT_SOURCE_DIR}/tests/lint/proto.sh)
endif()
