"""Count the operations of an ONNX file: the baseline that a spiking network is compared with.

- `count`: the entry; one row for each node, and effective operations where there are inputs.
- `model`: the file as the counter sees it: shapes at batch 1, values of constants, and clear
  refusals.
- `products`: convolutions, matrix products and recurrent layers as products of two factors, counted
  with and without zeros.
- `spikes`: which tensors are spikes, or sums of spikes, by the way they are made.
- `precision`: the numbers that a layer multiplies, and the bits of its weights.
- `fused`: attention, and onnxruntime's own operators.
- `elementwise`: pools, normalisations, activations and arithmetic between elements.
"""
