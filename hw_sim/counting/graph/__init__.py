"""Count the operations of a NIR graph."""
