# liblynx_rt for C++ and C: shared and static, headers, find_package(lynx_rt) and pkg-config files.
# cmake --install BUILD --prefix WHERE --component devel
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(public_headers ${CMAKE_CURRENT_SOURCE_DIR}/csrc/include)
add_library(lynx_c_api OBJECT csrc/engine/c_api.cc csrc/engine/c_api_structs.cc)
target_link_libraries(lynx_c_api PRIVATE lynx_flags)
add_library(lynx_rt SHARED $<TARGET_OBJECTS:lynx_core> $<TARGET_OBJECTS:lynx_devices> $<TARGET_OBJECTS:lynx_c_api>)
add_library(lynx_rt_static STATIC $<TARGET_OBJECTS:lynx_core> $<TARGET_OBJECTS:lynx_devices> $<TARGET_OBJECTS:lynx_c_api>)
set_target_properties(lynx_rt PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
set_target_properties(lynx_rt_static PROPERTIES OUTPUT_NAME lynx_rt)
foreach(library lynx_rt lynx_rt_static)
  add_library(lynx_rt::${library} ALIAS ${library})
  target_link_libraries(${library} PRIVATE $<BUILD_INTERFACE:lynx_flags> Threads::Threads)
  target_include_directories(${library} INTERFACE $<BUILD_INTERFACE:${public_headers}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_compile_features(${library} INTERFACE cxx_std_20)
endforeach()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/lynx_rt)
install(TARGETS lynx_rt lynx_rt_static EXPORT lynx_rt_targets COMPONENT devel
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} NAMELINK_COMPONENT devel ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${public_headers}/lynx_rt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT devel FILES_MATCHING PATTERN "*.h")
install(EXPORT lynx_rt_targets NAMESPACE lynx_rt:: FILE lynx_rtTargets.cmake DESTINATION ${package_dir} COMPONENT devel)

set(generated ${CMAKE_CURRENT_BINARY_DIR}/package)
configure_package_config_file(csrc/lynx_rtConfig.cmake.in ${generated}/lynx_rtConfig.cmake INSTALL_DESTINATION ${package_dir})
# 0.x: a new minor version may change the ABI.
write_basic_package_version_file(${generated}/lynx_rtConfigVersion.cmake VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${generated}/lynx_rtConfig.cmake ${generated}/lynx_rtConfigVersion.cmake DESTINATION ${package_dir} COMPONENT devel)
file(RELATIVE_PATH prefix_from_pc /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(csrc/lynx_rt.pc.in ${generated}/lynx_rt.pc @ONLY)
install(FILES ${generated}/lynx_rt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT devel)
