// What the AMX version takes over from the AVX-512 one.
#pragma once

#include "int8_kernels.h"

int ts_avx512_row_range(const void *x, int64_t k, int32_t dtype, float *lowest, float *highest);
void ts_avx512_quantize(const void *x, int64_t k, int32_t dtype, float inverse, int32_t zero_point, uint8_t *q, int64_t stride);
void ts_avx512_quantize12(const void *x, int64_t k, int32_t dtype, float inverse, uint8_t *q, int64_t stride);
void ts_avx512_finish(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point, const TsTail &tail);
void ts_avx512_finish12(const int32_t *c, int m, const float *row_scale, int wide, const TsTail &tail);
void ts_avx512_add_group12(const int32_t *c, int m, const TsTail &tail, float *y);
void ts_avx512_finish_groups(const float *y, int m, const float *row_scale, const TsTail &tail);
void ts_avx512_moments(const uint8_t *q, int64_t k, int64_t stride, int64_t *sum, int64_t *squares);
