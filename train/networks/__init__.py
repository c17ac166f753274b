"""Networks of three published systems, written anew from their facts, and the students that go to the chip.

seen, mskd_teacher         events and frames of eyes: SEEN, and the MSKD teachers
mskd_student               frames alone, spiking; branch_merge joins its scales to one convolution
emotion_net                EEG and skin conductance: EmotionKD's teacher and student, of emotion_layers
gsr_student, gsr_repeat    spiking students of skin conductance, one for the chip, one not
spiking_emotions           simulated events of faces: voting networks and the ANN beside them
neurons, heads             cells to train with, runs over time, votes
chip_form                  a trained network as plain Norse cells and synapses, which `knarr.export.to_nir` takes

Docstrings tag what a paper states [paper], what its published code does [code], and what we chose where both are silent
[reconstruction].
"""
