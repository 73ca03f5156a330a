// Stands in for cublasLt where there is no CUDA: the functions of cuda/cublaslt.h on the CPU. What cublasLt would refuse
// (or compute differently) is refused here as well: other types, no transposed weight, sizes that 4 does not divide.
#include <initializer_list>

#include "../cuda/cublaslt.h"

extern "C" {

int64_t fake_cublaslt_products = 0;
int fake_cublaslt_refuses = 0;

struct Layout {
  int type;
  int64_t rows, columns, leading;
};
struct Desc {
  int compute, scale, transpose_a;
};

int cublasLtCreate(void **handle) {
  static int only;
  *handle = &only;
  return 0;
}
int cublasLtMatmulDescCreate(void **desc, int compute, int scale) {
  *desc = new Desc{compute, scale, 0};
  return 0;
}
int cublasLtMatmulDescSetAttribute(void *desc, int attribute, const void *value, size_t size) {
  if (attribute != kLtTransposeA || size != 4) return 7;
  ((Desc *)desc)->transpose_a = *(const int32_t *)value;
  return 0;
}
int cublasLtMatmulDescDestroy(void *desc) {
  delete (Desc *)desc;
  return 0;
}
int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  *layout = new Layout{type, (int64_t)rows, (int64_t)columns, leading};
  return 0;
}
int cublasLtMatrixLayoutDestroy(void *layout) {
  delete (Layout *)layout;
  return 0;
}
int cublasLtMatmul(void *handle, void *desc_, const void *alpha, const void *a_, void *a_layout, const void *b_, void *b_layout, const void *beta,
                   const void *c, void *, void *d_, void *d_layout, const void *algorithm, void *, size_t, void *) {
  const Desc &desc = *(const Desc *)desc_;
  const Layout &a = *(const Layout *)a_layout, &b = *(const Layout *)b_layout, &d = *(const Layout *)d_layout;
  const bool right = handle && desc.compute == kLtCompute32I && desc.scale == kLtInt32 && desc.transpose_a == kLtTransposed && a.type == kLtInt8 &&
                     b.type == kLtInt8 && d.type == kLtInt32 && a.rows == b.rows && d.rows == a.columns && d.columns == b.columns &&
                     *(const int32_t *)alpha == 1 && *(const int32_t *)beta == 0 && c == d_ && !algorithm;
  if (!right || fake_cublaslt_refuses) return 15;
  for (const int64_t size : {a.rows, a.columns, a.leading, b.leading, d.leading})
    if (size % 4) return 15;
  for (const void *at : {a_, b_, (const void *)d_})
    if ((uintptr_t)at % 16) return 15;
  for (int64_t column = 0; column < d.columns; ++column) {
    for (int64_t row = 0; row < d.rows; ++row) {
      int32_t sum = 0;
      for (int64_t k = 0; k < a.rows; ++k) sum += (int32_t)((const int8_t *)a_)[row * a.leading + k] * ((const int8_t *)b_)[column * b.leading + k];
      ((int32_t *)d_)[column * d.leading + row] = sum;
    }
  }
  ++fake_cublaslt_products;
  return 0;
}

}  // extern "C"
