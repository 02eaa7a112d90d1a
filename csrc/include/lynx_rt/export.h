// LYNX_RT_API marks what the shared library exports; everything else in it is hidden.
#pragma once

#if defined(__GNUC__) || defined(__clang__)
#define LYNX_RT_API __attribute__((visibility("default")))
#else
#define LYNX_RT_API
#endif
