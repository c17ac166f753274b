"""DEAP and MAHNOB-HCI: EEG, skin conductance and ratings of people who watch videos.

`deap` and `mahnob` read them, `windows` cuts both alike. `bdf` reads the file format of
MAHNOB-HCI's recorder and knows nothing of the dataset.
"""
