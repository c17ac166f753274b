"""Count the operations of an ONNX file: the baseline that a spiking network is compared with.

- `count`: the entry; one row for each node, and effective operations where there are inputs.
- `model`: the file as the counter sees it: shapes at batch 1, values of constants, and clear
  refusals.
- `products`: multiplications as two factors, counted with and without zeros.
- `convolutions`: convolutions over any number of axes.
- `matrices`: matrix products and recurrent layers.
- `elementwise`: pools, normalisations, activations and arithmetic between elements.
"""
