"""The engines that simulate a chip network; all give the same integers.

base          what an engine is: layers laid out once, then blocks run on request
reference     numpy, written to be read: the oracle of all others
native        the compiled kernel (csrc) on the CPU's widest vectors
torch         exact float products, on the CPU without a compiler or on a CUDA device
numba_cuba    CUBA neurons through time, for the torch engine on the CPU and for training
synapse_view  a layer's synapses as the fast engines see them
selection     which engines this machine has, proved before their first use
"""
