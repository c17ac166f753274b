"""The systems that recipes describe.

cnn               the small demonstration on digits and generated eyes
mskd              single-eye emotion: SEEN or a hybrid teaches a spiking student of frames
emotionkd         skin conductance: EEG and skin conductance teach a spiking student
spiking_emotions  emotion polarity: PLIF voters on a simulated event camera

Each gives data, networks, losses and what is exported (`base.System`); everything else is the same for all.
"""
