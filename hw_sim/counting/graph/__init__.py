"""Count the operations of a NIR graph.

- `plan`: the paths of events through a graph, the synapses they meet, and what every other node
  costs.
- `counter`: counts step by step while the graph runs.

Nothing is imported here: both need torch, which a base installation does without.
"""
