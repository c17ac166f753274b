"""Turn a NIR graph into a chip network of integers.

lower     the passes in their order, the scale of every node, and what the integers cost
read      a graph as nodes that hear each other through linear maps
neurons   neurons in one normal form
levels    nodes as a row of layers, with relay neurons where branches pass a layer
places    where nodes lie in layers that hold several
quantise  float parts of a layer and their scales as integers
"""
