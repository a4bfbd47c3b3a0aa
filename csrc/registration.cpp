// The only file that knows the dispatcher: loading the library registers its kernels for the CPU.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(dsd_kernels, CPU, library) {
  library.impl("masked_sgd_", TORCH_BOX(&dsd::cpu::masked_sgd_));
  library.impl("planned_sgd_", TORCH_BOX(&dsd::cpu::planned_sgd_));
  library.impl("kth_magnitude", TORCH_BOX(&dsd::cpu::kth_magnitude));
  library.impl("prune_", TORCH_BOX(&dsd::cpu::prune_));
  library.impl("global_counts", TORCH_BOX(&dsd::cpu::global_counts));
  library.impl("magnitude_histogram", TORCH_BOX(&dsd::cpu::magnitude_histogram));
  library.impl("pack_mask", TORCH_BOX(&dsd::cpu::pack_mask));
  library.impl("unpack_mask", TORCH_BOX(&dsd::cpu::unpack_mask));
}
