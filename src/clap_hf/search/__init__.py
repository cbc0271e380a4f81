"""Collections of sounds on disk: embedded once, kept true to their files, searched by words and by sounds."""

from .check import CollectionCheck, check_collection, collection_facts
from .collection import CollectionUpdate, SearchHit, SoundCollection
from .duplicates import Duplicates, find_duplicates
from .index import Filter
from .map import draw_map
from .query import WeightedQuery, load_part, parse_words
from .shards import add_in_shards

__all__ = [
    "CollectionCheck",
    "CollectionUpdate",
    "Duplicates",
    "Filter",
    "SearchHit",
    "SoundCollection",
    "WeightedQuery",
    "add_in_shards",
    "check_collection",
    "collection_facts",
    "draw_map",
    "find_duplicates",
    "load_part",
    "parse_words",
]
