"""Networks of three published systems, written anew from their facts, and the students that go to
the chip.

cnn                an ANN teacher and a spiking student, for the small demonstration
mskd               SEEN on events and frames of eyes, MSKD's teachers and student
branch_merge       convolutions of several sizes that become one
emotion            EmotionKD's teacher and student on EEG and skin conductance
stress             a smaller teacher of skin conductance and heart rate
gsr                spiking students of skin conductance, one for the chip, one not
spiking_emotions   voting networks on simulated events of faces, and the ANN to compare
neurons, heads     cells to train with, runs over time, votes
chip_form          a trained network as `knarr.export.to_nir` takes it: plain Norse cells and synapses

Import the module of the network that is wanted: importing one does not import the others' data.
Docstrings tag what a paper states [paper], what its published code does [code], and what we chose
where both are silent [reconstruction].
"""
