"""Generated clips of single eyes in the layout of SEE.

`face` draws an eye from anatomy and muscle actions and knows of no light, camera or file;
`generate` films it for people, takes and lights, and writes the dataset.
"""
