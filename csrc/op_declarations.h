// The ops as every device implements them. No include guard: ops.h includes it in the namespace of each.
void masked_sgd_(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers, const Tensors& masks,
                 const Tensors& copies, double lr, double momentum, double dampening, double weight_decay,
                 bool nesterov, bool maximize, bool mask_momentum, const std::optional<Tensor>& lr_tensor,
                 const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
                 const std::optional<Tensor>& rounding_seed);
bool planned_sgd_(const Tensor& plan, const Tensors& grads, bool dry_run, double lr, double momentum, double dampening,
                  double weight_decay, bool nesterov, bool maximize, bool mask_momentum,
                  const std::optional<Tensor>& lr_tensor, const std::optional<Tensor>& grad_scale,
                  const std::optional<Tensor>& found_inf);
Tensor kth_magnitude(const Tensors& tensors, const Tensor& k);
void prune_(const Tensors& params, const Tensors& momentum_buffers, const Tensors& masks, const Tensor& k);
Tensor global_counts(const Tensors& tensors, const Tensor& k);
Tensor magnitude_histogram(const Tensors& tensors, const Tensor& prefixes, int64_t shift);
Tensors pack_mask(const Tensors& masks);
Tensors unpack_mask(const Tensors& packed, const Tensors& like);
