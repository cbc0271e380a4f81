"""Where in a recording: scores of any words over time, segments by thresholds, spans ranked for a text."""

from .formats import audacity_labels, web_vtt, write_scores
from .segments import Segment, ranked_spans, segments, smooth
from .timeline import Spectrogram, Timeline, false_alarm_thresholds, score_timeline

__all__ = [
    "Segment",
    "Spectrogram",
    "Timeline",
    "audacity_labels",
    "false_alarm_thresholds",
    "ranked_spans",
    "score_timeline",
    "segments",
    "smooth",
    "web_vtt",
    "write_scores",
]
