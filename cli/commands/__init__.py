"""The work behind each verb: read files, call a stage, print what came out."""
