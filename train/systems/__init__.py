"""The systems that recipes describe; each gives data, networks, losses and what is exported,
everything else is the same for all.

cnn               the small demonstration on digits and generated eyes
mskd              single-eye emotion: SEEN or a hybrid teaches a spiking student of frames
emotionkd         skin conductance: EEG and skin conductance teach a spiking student
spiking_emotions  emotion polarity: PLIF voters on a simulated event camera
custom            a user's own arrays, teacher and student, without a class
base              `System`, the class of all, and `RunData`, the data of a run
generated_eyes    the making of eyes, which `cnn` and `mskd` share
registry          `SYSTEMS`, the systems by name

To add a system, write a module here with two classes: a `Recipe` whose `system` is a Literal of its
name, and a `System` with `recipe_class = <that recipe>`, which implements the abstract methods of
`base.System`. `cnn` is the shortest example. Add it to `registry.SYSTEMS`, and a recipe to
`train/recipes/`; `knarr pipeline <recipe>` then runs all stages. Data of a new kind need a class
with the three members of `knarr.train.clips.Clips`, and a test that trains it for an epoch and
deploys it (`tests/train/systems/`).
"""
