// The part of cublasLt's interface that is used, as cublasLt.h of CUDA 12 and 13 has it.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef int (*TsLtCreate)(void **handle);
typedef int (*TsLtDescCreate)(void **desc, int compute_type, int scale_type);
typedef int (*TsLtDescSet)(void *desc, int attribute, const void *value, size_t size);
typedef int (*TsLtLayoutCreate)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t leading);
typedef int (*TsLtDestroy)(void *object);
// algorithm null: cublasLt chooses
typedef int (*TsLtMatmul)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b, void *b_layout,
                          const void *beta, const void *c, void *c_layout, void *d, void *d_layout, const void *algorithm,
                          void *workspace, size_t workspace_bytes, void *stream);

constexpr int kLtCompute32I = 72;  // CUBLAS_COMPUTE_32I
constexpr int kLtInt8 = 3;         // CUDA_R_8I
constexpr int kLtInt32 = 10;       // CUDA_R_32I
constexpr int kLtTransposeA = 3;   // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kLtTransposed = 1;   // CUBLAS_OP_T
