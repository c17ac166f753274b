"""Read the SEE data set of single eyes."""
