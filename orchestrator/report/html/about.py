"""About the experiment: what failed, the fleet, the data, and how to load what it made."""

from collections.abc import Iterator
from html import escape

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.models import table
from workers.storage.layout import SERVED


def failures(known: Json) -> str:
    if not known["failures"]:
        return ""
    lines = [
        f'<tr class="{"failed" if each["gave_up"] else ""}"><td>{escape(each["order"])}</td>'
        f'<td class="number">{each["times"]}</td><td>{escape(each["message"] or "")}</td>'
        f"<td>{escape(each['gave_up'] or 'mended by another attempt')}</td></tr>"
        for each in known["failures"]
    ]
    return table(["order", "times", "last message", "outcome"], lines, "count-second")


def fleet(known: Json) -> str:
    used = known["fleet_efficiency"]
    sentence = (
        f"{format.duration(known['wall_s'])} in all. Slots were at work "
        f"{format.percent(used['value'])} of the time in which there was work for them, and "
        f"{format.percent(used['whole_wall'])} of the whole time."
    )
    return f"<p>{escape(sentence)}</p>"


def data(known: Json) -> str:
    lines = [
        f'<tr><td>{escape(name)}</td><td class="number">{split["count"]}</td>'
        f"<td><code>{escape(split['fingerprint'])}</code></td></tr>"
        for name, split in known["splits"].items()
    ]
    return "".join(
        [
            "<p>A fingerprint is the sha256 over key, label and content of every image of a split. "
            "Equal fingerprints: equal data.</p>",
            table(["split", "images", "fingerprint"], lines, "count-second"),
            *_folds(known["folds"]),
            f"<p>{len(known['classes'])} classes: {escape(', '.join(known['classes']))}.</p>",
            *_corrupt(known["corrupt"]),
        ]
    )


def _folds(counts: list[int]) -> Iterator[str]:
    if counts:
        yield (
            f"<p>{len(counts)} folds of train hold out {', '.join(map(str, counts))} images. What "
            "a run holds out ends its training and fits stacked classifiers, nothing else.</p>"
        )


def _corrupt(keys: list[str]) -> Iterator[str]:
    if keys:
        listed = ", ".join(keys[:20]) + (" and more" if len(keys) > 20 else "")
        yield f"<p>{len(keys)} do not decode and belong to no split: {escape(listed)}.</p>"


def loading(known: Json) -> str:
    if known["served"] is None:
        return ""
    is_remote = "://" in known["uri"]
    folder = SERVED if is_remote else f"{known['uri']}/{SERVED}"
    first = f"<p>Copy <code>{escape(SERVED)}/</code> from {escape(known['uri'])}, then:</p>"
    return (first if is_remote else "") + f"<pre>{escape(SNIPPET.format(folder=folder))}</pre>"


SNIPPET = """\
import timm
from PIL import Image

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open("image.png").convert("RGB")).unsqueeze(0))
print(model.pretrained_cfg["label_names"][logits.argmax()])"""
