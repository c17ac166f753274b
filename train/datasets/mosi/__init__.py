"""CMU-MOSI: filmed opinions with a sentiment.

`labels` reads its three label files, `read` shows the segments to a simulated event camera, `clips`
holds them in memory, `generate` writes talking heads in the same layout.
"""
