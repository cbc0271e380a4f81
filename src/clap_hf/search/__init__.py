"""Collections of sounds on disk: embedded once, kept true to their files, searched by words, sounds and parts of sounds."""

from .check import CollectionCheck, check_collection, collection_facts
from .collection import CollectionUpdate, SearchHit, SoundCollection
from .duplicates import find_duplicates
from .index import Filter

__all__ = [
    "CollectionCheck",
    "CollectionUpdate",
    "Filter",
    "SearchHit",
    "SoundCollection",
    "check_collection",
    "collection_facts",
    "find_duplicates",
]
