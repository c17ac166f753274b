"""Generate clips of single eyes."""
