"""Features of other audio networks for every clip of a training set, for a recipe's `teacher`.

`soundnet`, `whisper`, `yamnet` and `aisfx` are the networks, `features` prepares clips and reduces features, `extract`
works through a data set in several processes. `python -m tools.teachers` runs it all.
"""
