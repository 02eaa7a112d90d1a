// Copies of rows chosen by index.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"

namespace lynx_rt::cuda {

// out[t] = scale * row ids[t] of a packed [V, H] table as float32; [T, H].
void embed(const void* packed_table, const int32_t* ids, int num_rows, int hidden_size, float scale, float* out, Stream stream);

// out[i] = x[rows[i]], rows of H floats.
void gather_rows(const float* x, const int32_t* rows, int num_rows, int hidden_size, float* out, Stream stream);

// x[t] = from[t * from_stride ..], or += with `accumulate`; rows of num_columns floats.
void set_rows(const float* from, int64_t from_stride, int num_rows, int num_columns, bool accumulate, float* x, Stream stream);

}  // namespace lynx_rt::cuda
