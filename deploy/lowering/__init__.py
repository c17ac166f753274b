"""Turn a NIR graph into a chip network of integers.

lower     the passes in their order, the scale of every layer, and what the integers cost
chain     a graph as a row of float layers in one normal form
quantise  a float layer and a scale as integers
"""
