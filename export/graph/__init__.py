"""NIR graphs: files, shapes, topology, their executable meaning and folding."""
