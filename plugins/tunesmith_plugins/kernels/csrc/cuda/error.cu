// Messages and version of the CUDA library.
#include "block.h"

namespace {

thread_local char message[512] = "";

}  // namespace

int32_t ts_cuda_fail(int32_t code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return code;
}

int32_t ts_cuda_launched() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return TS_OK;
  return ts_cuda_fail(TS_INTERNAL, "CUDA: %s", cudaGetErrorString(error));
}

extern "C" int32_t ts_cuda_abi_version(void) { return TS_ABI_VERSION; }

extern "C" const char *ts_cuda_last_error(void) { return message; }
