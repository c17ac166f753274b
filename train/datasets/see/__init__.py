"""SEE: event and grey images of single eyes that show emotions.

`tree` checks the index and the folders, `sequences` decodes what they name, `windows` draws the
frames that a network sees.
"""
