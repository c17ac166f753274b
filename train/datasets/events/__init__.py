"""Recordings of event cameras, real and simulated.

`recordings` checks and opens the makers' formats, which `decode` decodes in a process of its own;
`convert` writes a folder of them as arrays. `nmnist` reads N-MNIST; `camera` simulates an event
camera on grey frames, `video` decodes these from files.
"""
