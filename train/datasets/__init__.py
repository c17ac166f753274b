"""Read datasets strictly, in their real formats, and generate two of them.

A folder for each dataset, or for those that share a recording's form:

    see     SEE: event and grey images of single eyes
    eyes    generated eyes in SEE's layout
    mosi    CMU-MOSI: filmed opinions as events; and generated talking heads in its layout
    physio  DEAP and MAHNOB-HCI: EEG and skin conductance
    stress  Stress-Predict: skin conductance and heart rate
    events  recordings of event cameras, N-MNIST among them; and a simulated one for any video

and beside them what all use: `files` (paths, sizes, the report of what was left out), `splits`
(people apart), `cache` (prepared arrays on disk, work in several processes), `check` (the list of
all datasets), `generated`, `arrays`.

A dataset consists of four things. To add one, say of npz clips, make a folder here and write

1. a reader: `read_<name>(root, ...)` gives a frozen dataclass of arrays with labels, names and
subjects. It opens files
   through `files.checked_file`, raises `DataError` for each fault with the file, the record and a
   cure, and with ``on_bad="skip"`` leaves bad records out, counted by kind. What is slow goes
   through `cache.cached`, under a key of the files' content.
2. a check: `check(root)` gives a `files.DataReport`. Register its module in `check.CHECKS`; `knarr data
check <name>` finds it there.
3. splits: indices from the functions of `splits`, by person where people repeat.
4. clips: what student and teacher see of it, a class with the methods of `knarr.train.clips.Clips`.
Then a system in
   `knarr.train.systems` takes it as a kind of its recipe's data.

Import from the modules; this package imports none of them, for each needs other libraries.
"""
