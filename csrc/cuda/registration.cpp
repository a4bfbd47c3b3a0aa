// The only file that knows the dispatcher: loading the library registers its kernels for CUDA.
#include <torch/csrc/stable/library.h>

#include "../ops.h"

STABLE_TORCH_LIBRARY_IMPL(dsd_kernels, CUDA, library) {
  library.impl("masked_sgd_", TORCH_BOX(&dsd::cuda::masked_sgd_));
  library.impl("planned_sgd_", TORCH_BOX(&dsd::cuda::planned_sgd_));
  library.impl("kth_magnitude", TORCH_BOX(&dsd::cuda::kth_magnitude));
  library.impl("prune_", TORCH_BOX(&dsd::cuda::prune_));
  library.impl("global_counts", TORCH_BOX(&dsd::cuda::global_counts));
  library.impl("magnitude_histogram", TORCH_BOX(&dsd::cuda::magnitude_histogram));
  library.impl("pack_mask", TORCH_BOX(&dsd::cuda::pack_mask));
  library.impl("unpack_mask", TORCH_BOX(&dsd::cuda::unpack_mask));
}
