// Built where cublasLt.h is found: what cuda/cublaslt.h says must be what it says.
#include <cublasLt.h>

#include <type_traits>

#include "../cuda/cublaslt.h"

namespace {

// Pointers are alike to a call, and so are enumerations and int.
template <typename T>
using Alike = std::conditional_t<std::is_pointer<T>::value, void *, std::conditional_t<std::is_enum<T>::value, int, T>>;

template <typename A, typename B>
struct Same : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
struct Same<R (*)(A...), S (*)(B...)> : std::is_same<void(Alike<R>, Alike<A>...), void(Alike<S>, Alike<B>...)> {};

static_assert(Same<decltype(&cublasLtCreate), TsLtCreate>::value, "");
static_assert(Same<decltype(&cublasLtMatmulDescCreate), TsLtDescCreate>::value, "");
static_assert(Same<decltype(&cublasLtMatmulDescSetAttribute), TsLtDescSet>::value, "");
static_assert(Same<decltype(&cublasLtMatmulDescDestroy), TsLtDestroy>::value, "");
static_assert(Same<decltype(&cublasLtMatrixLayoutCreate), TsLtLayoutCreate>::value, "");
static_assert(Same<decltype(&cublasLtMatrixLayoutDestroy), TsLtDestroy>::value, "");
static_assert(Same<decltype(&cublasLtMatmul), TsLtMatmul>::value, "");
static_assert(kLtCompute32I == CUBLAS_COMPUTE_32I && kLtInt8 == CUDA_R_8I && kLtInt32 == CUDA_R_32I, "");
static_assert(kLtTransposeA == CUBLASLT_MATMUL_DESC_TRANSA && kLtTransposed == CUBLAS_OP_T && CUBLAS_STATUS_SUCCESS == 0, "");

}  // namespace
