"""What the three published systems minimise, as pure functions of tensors, and the feedback of a student to its teacher.

label_loss   cross entropy, mean square error of votes: labels alone
softened     divergence of softened logits, and of clipped probabilities as Keras computes it
consistency  MSKD's hit and temporal consistency, two readings each
mskd         MSKD's weighted sum
emotion      EmotionKD's weighted sum and its teacher's loss
functional   networks run with other parameters, themselves unchanged
feedback     EmotionKD's temporary student and what it tells the teacher, exact or first order
loop         quizzes, and the one step that changes teacher and student
checks       LossError: wrong shapes, labels, temperatures, values that are not finite

A loss is a mean over the batch. It differentiates with respect to the teacher too: freeze or detach a teacher that is not to
learn. NaN and infinity are refused, not passed on. Docstrings tag what a paper states [paper], what its published code does
[code], and what we chose where both are silent [reconstruction].
"""
