"""Recordings of event cameras, real and simulated.

`nmnist` reads N-MNIST and counts its events in time bins; `camera` simulates an event camera on
grey frames, `video` decodes these from files.
"""
