# Locates each dependency: LYNX_RT_<DEP>_DIR, else an installed package, else the pip wheel of the Python in use.
# Nothing is downloaded or vendored. See README.md beside this file.

# nlohmann-json (headers): sets LYNX_RT_JSON_INCLUDE.
set(LYNX_RT_JSON_DIR "" CACHE PATH "folder that holds nlohmann/json.hpp")
if(NOT EXISTS "${LYNX_RT_JSON_INCLUDE}/nlohmann/json.hpp")
  unset(LYNX_RT_JSON_INCLUDE CACHE)  # a build folder may outlive the environment that pip built in
endif()
if(NOT LYNX_RT_JSON_DIR)
  find_path(LYNX_RT_JSON_INCLUDE nlohmann/json.hpp)
  if(NOT LYNX_RT_JSON_INCLUDE)
    find_package(Python3 COMPONENTS Interpreter)
    if(Python3_FOUND)
      execute_process(
        COMMAND ${Python3_EXECUTABLE} -c "import os, nlohmann_json; print(os.path.join(os.path.dirname(nlohmann_json.__file__), 'include'))"
        OUTPUT_VARIABLE wheel_include OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      find_path(LYNX_RT_JSON_INCLUDE nlohmann/json.hpp PATHS "${wheel_include}" NO_DEFAULT_PATH)
    endif()
  endif()
else()
  find_path(LYNX_RT_JSON_INCLUDE nlohmann/json.hpp PATHS "${LYNX_RT_JSON_DIR}" NO_DEFAULT_PATH)
endif()
if(NOT LYNX_RT_JSON_INCLUDE)
  message(FATAL_ERROR "nlohmann/json.hpp not found: pip install nlohmann-json, apt install nlohmann-json3-dev, "
                      "or set LYNX_RT_JSON_DIR to the folder that holds nlohmann/json.hpp")
endif()
