"""Read, check and write Lava-DL netx `.net` files."""
