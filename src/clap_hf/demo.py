"""The page of `clap-hf demo`: labels of a sound, search of a collection, a timeline, a caption. Needs gradio."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .audio import AudioReader, open_audio, read_whole
from .calibration import FALSE_ALARMS, Calibration
from .embedding import TEMPLATES, embed_files
from .moments import false_alarm_thresholds, score_timeline, segments
from .pipelines.zero_shot import DEFAULT_TEMPLATE, MSClapZeroShotAudioClassificationPipeline, check_labels
from .search import SearchHit, SoundCollection, parse_words
from .streaming import clock

if TYPE_CHECKING:
    import gradio
    from PIL import Image

    from .model.modeling_msclap import MSClapModel
    from .model.processing_msclap import MSClapProcessor

LABELS = "dog, bird, speech, footsteps, applause, music, drums, rain, thunder, stream, fire, glass breaking, engine"
TIMELINE_FALSE_ALARMS = 0.01
TIMELINE_THRESHOLD = 0.35  # a cosine, for a model without calibration
HITS, SHOWN_LABELS, MOST_LABELS = 10, 6, 100
EXCERPT_S = 30.0  # of a hit that is played
SILENT_PEAK = 1e-4  # -80 dBFS
QUEUE = 16  # requests that wait
LARGEST_REQUEST = 1_000_000  # bytes; uploads are requests of another kind
KEPT_S = 3600  # that uploads are kept


@dataclass(frozen=True)
class Demo:
    """What the page does, without the page.

    Args:
        model: The model, on its device.
        processor: Its processor.
        calibration: Of the model, for "none of these", matches and thresholds.
        collection: A collection that can be searched, of the same model.
        captioner: The captioning pipeline.
        max_mb: Largest file, MB.
        max_s: Longest sound, s.
    """

    model: MSClapModel
    processor: MSClapProcessor
    calibration: Calibration | None = None
    collection: SoundCollection | None = None
    captioner: Callable[[str], Any] | None = None
    max_mb: int = 50
    max_s: float = 600.0

    def check(self, file: str | None) -> str:
        """Refuse no file, one over the limits, and silence; memory does not grow with its length.

        Raises:
            ValueError: With what was found and what is expected.
        """
        if file is None:
            raise ValueError("There is no sound yet: upload a file, or record one.")
        name = Path(file).name
        if (size := os.path.getsize(file)) > 1e6 * self.max_mb:
            raise ValueError(f"{name} has {size / 1e6:.1f} MB, expected at most {self.max_mb} MB. Cut it.")
        peak, frames = 0.0, 0
        with open_audio(file) as reader:
            longest = self.max_s * reader.sampling_rate
            frames = reader.frames or 0
            if frames <= longest:
                frames = 0
                for block in reader:
                    frames += block.shape[1]
                    peak = max(peak, float(np.ptp(block.mean(axis=0))) / 2)
                    if frames > longest:
                        break
        if frames > longest:
            length = f"{'over ' if reader.frames is None else ''}{clock(frames / reader.sampling_rate)}"
            raise ValueError(
                f"{name} is {length} long, expected at most {clock(self.max_s)} (minutes:seconds). Cut it, "
                "or use clap-hf timeline, which takes any length."
            )
        if peak < SILENT_PEAK:
            raise ValueError(f"{name} is silent, expected a sound.")
        return file

    def classify(self, file: str | None, labels: str) -> tuple[str, dict[str, float]]:
        """The answer in words, and the labels' shares, best first."""
        path, names = self.check(file), _labels(labels)
        pipeline = MSClapZeroShotAudioClassificationPipeline(
            model=self.model,
            tokenizer=self.processor.tokenizer,
            feature_extractor=self.processor.feature_extractor,
            calibration=self.calibration or False,
            candidate_labels=names,
            hypothesis_template=TEMPLATES,
            device=self.model.device,
        )
        found = embed_files(self.model, self.processor, [path])
        if found.skipped:
            raise ValueError(next(iter(found.skipped.values())))
        scores = pipeline.score_vector(found.vectors[0])
        answer, best = scores[0]["label"], scores[0]["score"]
        text = f"## {answer}\n{best:.0%} among these labels"
        if self.calibration is not None:
            threshold = self.calibration.threshold(FALSE_ALARMS, count=len(names))
            probability = scores[0]["probability"]
            text += f"; the probability that it is there is {probability:.0%}."
            if probability < threshold:
                text = (
                    f"## none of these\nThe closest, {answer}, is there with a probability of {probability:.0%}, "
                    f"below the {threshold:.0%} that a label needs here."
                )
        return text, {score["label"]: score["score"] for score in scores[:SHOWN_LABELS]}

    def search(self, words: str) -> tuple[str, list[list[Any]], list[SearchHit]]:
        """Whether anything matches, in words; a row for each hit; and the hits."""
        assert self.collection is not None
        query = parse_words(words)
        hits = self.collection.search(query, HITS)
        count = f"{len(self.collection):,} sounds"
        text = f"The closest of {count}. Click a row to play it from its second."
        if self.calibration is not None and isinstance(query, str):
            threshold = self.collection.match_threshold()
            if all((hit.probability or 0.0) < threshold for hit in hits):
                text = f"**Nothing in this collection matches.** {text}"
        rows = [
            [
                number,
                hit.file.name,
                _place(hit.start_s, hit.end_s),
                f"{hit.similarity:.2f}",
                "" if hit.probability is None else f"{hit.probability:.0%}",
            ]
            for number, hit in enumerate(hits, start=1)
        ]
        return text, rows, hits

    def timeline(self, file: str | None, labels: str) -> tuple[Image.Image, list[list[str]]]:
        """The picture, and a row for each segment."""
        from PIL import Image

        from .moments.plot import draw_timeline

        path, names = self.check(file), _labels(labels)
        found = score_timeline(self.model, self.processor, Path(path), names, templates=[DEFAULT_TEMPLATE])
        thresholds = np.full(len(names), TIMELINE_THRESHOLD)
        if self.calibration is not None:
            thresholds = false_alarm_thresholds(self.calibration, found.vectors, TIMELINE_FALSE_ALARMS)
        spans = segments(found.scores, names, found.step_s, thresholds.tolist(), duration_s=found.duration_s)
        with tempfile.TemporaryDirectory() as folder:
            draw_timeline(found, spans, Path(folder, "timeline.png"))
            picture = Image.open(io.BytesIO(Path(folder, "timeline.png").read_bytes()))
        return picture, [
            [clock(span.start_s, exact=True), clock(span.end_s, exact=True), f"{span.score:.2f}", span.label]
            for span in spans
        ]

    def caption(self, file: str | None) -> str:
        """What the captioner writes of a sound."""
        assert self.captioner is not None
        return f"## {self.captioner(self.check(file))[0]['generated_text']}"


def excerpt(file: Path, start_s: float) -> tuple[int, np.ndarray]:
    """Rate, Hz, and samples `[samples]`, int16, of a file from a second on, at most `EXCERPT_S`."""
    with AudioReader(file, start_s=start_s, duration_s=EXCERPT_S) as reader:
        sound = read_whole(reader)
    return sound.sampling_rate, np.round(32767 * np.clip(sound.samples.mean(axis=0), -1, 1)).astype(np.int16)


def _labels(text: str) -> list[str]:
    """Labels of a text, separated by commas or lines, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.replace("\n", ",").split(",") if name.strip()))
    if len(names) > MOST_LABELS:
        raise ValueError(f"There are {len(names)} labels, expected at most {MOST_LABELS}.")
    return list(check_labels(names))


def _place(start_s: float | None, end_s: float | None) -> str:
    """A window as minutes and seconds; nothing for a whole file."""
    return "" if start_s is None or end_s is None else f"{_minutes(start_s)}–{_minutes(end_s)}"


def _minutes(seconds: float) -> str:
    """A time as minutes, seconds and tenths, within its hour."""
    return clock(seconds, exact=True)[3:10]


# The page


class RefuseUrls:
    """Server middleware: what asks for a file at another address, which gradio would fetch, is answered by 403."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        asks = _is_url(scope.get("path", "").partition("=")[2])
        if scope["type"] == "http" and b"json" in dict(scope["headers"]).get(b"content-type", b""):
            body, more = b"", True
            while more and len(body) <= LARGEST_REQUEST:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            try:
                asks = asks or more or _names_url(json.loads(body or b"null"))
            except (ValueError, RecursionError):
                asks = True
            later, read = receive, [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> Any:
                return read.pop() if read else await later()

        if asks:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Files at other addresses are not fetched: upload it."})
        else:
            await self.app(scope, receive, send)


def _is_url(text: Any) -> bool:
    return isinstance(text, str) and text.strip().lower().startswith(("http:", "https:"))


def _names_url(value: Any) -> bool:
    """Whether a request names a file by its address, at any depth."""
    if isinstance(value, dict):
        return _is_url(value.get("path")) or any(map(_names_url, value.values()))
    return isinstance(value, list) and any(map(_names_url, value))


def build_page(demo: Demo) -> gradio.Blocks:
    """The page, ready to be served by `serve`.

    Args:
        demo: What it does.

    Raises:
        ImportError: gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The page needs gradio: pip install 'clap-hf[demo]'") from error

    def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except (ValueError, OSError, RuntimeError) as error:
                message = " ".join(str(error).split())
                for argument in arguments:  # of a file its name, not where the server keeps it
                    if isinstance(argument, str) and os.path.isabs(argument):
                        message = message.replace(argument, Path(argument).name)
                raise gradio.Error(message, print_exception=False) from error

        return call

    def sound(name: str) -> gradio.Audio:
        length = f"{demo.max_s / 60:.3g} minutes" if demo.max_s >= 120 else f"{demo.max_s:g} s"
        label = f"A sound of at most {demo.max_mb} MB and {length}"
        options = {"sources": ["upload", "microphone"], "type": "filepath", "editable": False, "buttons": []}
        return gradio.Audio(label=label, elem_id=f"{name}-sound", **options)

    def played(name: str) -> gradio.Audio:
        return gradio.Audio(elem_id=f"{name}-player", interactive=False, autoplay=True, visible=False, buttons=[])

    def table(name: str, headers: list[str], widths: list[str]) -> gradio.Dataframe:
        options = {"elem_id": f"{name}-table", "interactive": False, "show_label": False, "wrap": True, "buttons": []}
        return gradio.Dataframe(headers=headers, column_widths=widths, **options)

    def play_hit(hits: list[SearchHit], event: gradio.SelectData) -> Any:
        hit = hits[int(event.row_value[0]) - 1]
        label = hit.file.name if hit.start_s is None else f"{hit.file.name} from {_minutes(hit.start_s)}"
        return gradio.update(value=in_words(excerpt)(hit.file, hit.start_s or 0.0), label=label, visible=True)

    def play_segment(file: str | None, event: gradio.SelectData) -> Any:
        hours, minutes, seconds = event.row_value[0].split(":")
        start_s = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        label = f"{event.row_value[3]} from {event.row_value[0]}"
        value = in_words(excerpt)(Path(demo.check(file)), start_s)
        return gradio.update(value=value, label=label, visible=True)

    for function in (play_hit, play_segment):  # gradio looks for the class itself, and text is not looked up here
        function.__annotations__["event"] = gradio.SelectData
    page = gradio.Blocks(title="Sounds and words", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S))
    with page:
        gradio.Markdown("# Sounds and words\nName, find and time sounds by any words, with CLAP.")
        with gradio.Tab("Classify", elem_id="classify"), gradio.Row():
            with gradio.Column():
                given = sound("classify")
                labels = gradio.Textbox(LABELS, label="Labels, in any words, separated by commas", lines=3)
                button = gradio.Button("Classify", variant="primary")
            with gradio.Column():
                answer = gradio.Markdown("The answer is shown here.", elem_id="answer")
                shares = gradio.Label(label="Shares among the labels", show_heading=False, elem_id="classify-labels")
            gradio.on([button.click, labels.submit], in_words(demo.classify), [given, labels], [answer, shares])
        if demo.collection is not None:
            with gradio.Tab("Search", elem_id="search"):
                with gradio.Row(equal_height=True):
                    words = gradio.Textbox(label="What to look for, in any words", scale=5, max_length=1000)
                    button = gradio.Button("Search", variant="primary", scale=1)
                verdict, player = gradio.Markdown(elem_id="verdict"), played("search")
                rows = table(
                    "search", ["", "file", "where", "similarity", "probability"], ["6%", "40%", "24%", "15%", "15%"]
                )
                hits = gradio.State([])
                gradio.on([button.click, words.submit], in_words(demo.search), words, [verdict, rows, hits])
                rows.select(play_hit, hits, player)
        with gradio.Tab("Timeline", elem_id="timeline"):
            with gradio.Row():
                recording = sound("timeline")
                with gradio.Column():
                    wanted = gradio.Textbox(LABELS, label="Labels, in any words, separated by commas", lines=3)
                    button = gradio.Button("Find them", variant="primary")
            looks = {"show_label": False, "interactive": False, "buttons": ["download", "fullscreen"]}
            picture = gradio.Image(format="png", elem_id="timeline-plot", **looks)
            part = played("timeline")
            spans = table("timeline", ["start", "end", "score", "label"], ["20%", "20%", "15%", "45%"])
            gradio.on([button.click, wanted.submit], in_words(demo.timeline), [recording, wanted], [picture, spans])
            spans.select(play_segment, recording, part)
        if demo.captioner is not None:
            with gradio.Tab("Caption", elem_id="caption"):
                described = sound("caption")
                button = gradio.Button("Describe", variant="primary")
                text = gradio.Markdown(elem_id="text")
                button.click(in_words(demo.caption), described, text)
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    return page


def serve(demo: Demo, *, host: str = "127.0.0.1", port: int | None = None, wait: bool = True) -> gradio.Blocks:
    """Serve the page.

    Args:
        demo: What it does.
        host: Address that it is served at.
        port: Its port; a free one from 7860 on when None.
        wait: Until it is interrupted.

    Returns:
        The page; its address is `local_url`, and `close` ends it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    page = build_page(demo)
    import gradio
    from starlette.middleware import Middleware

    fonts = ["system-ui", "sans-serif"]  # none is fetched
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=int(1e6 * demo.max_mb),
        theme=gradio.themes.Soft(primary_hue="teal", font=fonts, font_mono=fonts),
        app_kwargs={"middleware": [Middleware(RefuseUrls)]},
        footer_links=[],
        ssr_mode=False,
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
    )
    if wait:
        print(f"The page is at {page.local_url} (Ctrl-C ends it).", flush=True)
        page.block_thread()
    return page
