"""Turn a NIR graph into a chip network of integers."""
