"""Losses of the published systems as pure functions of tensors, and the feedback of a student to
its teacher.

terms        cross entropy, squared errors, divergences from a teacher, and plain distillation
mskd         MSKD's weighted sum, with its hit and temporal consistency
emotion      EmotionKD's weighted sum
feedback     EmotionKD's temporary student and what it tells the teacher, exact or first order
checks       LossError: wrong shapes, labels, temperatures, values that are not finite

A loss is a mean over the batch. It differentiates with respect to the teacher too: freeze or
detach a teacher that is not to learn. NaN and infinity are refused, not passed on. Docstrings tag
what a paper states [paper], what its published code does [code], and what we chose where both are
silent [reconstruction].
"""
