"""Read, check and write the `.net` files of Lava-DL's netx.

files       reading, checking and writing, and the manifest
file_rules  what only a file can get wrong, rule by rule
draft       a file as plain arrays, and the layers that can be built from it
"""
