"""Features of SoundNet and Whisper for every clip of a training set, for a recipe's `teacher`.

`soundnet` and `whisper` are the networks, `features` prepares clips and reduces features, `extract` works through a
data set in several processes. `python -m tools.teachers` runs it all.
"""
