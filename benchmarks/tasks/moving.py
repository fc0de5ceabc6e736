"""What benchmarks.catalogue needs for what moves: videos, and what sensors measured."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from producers import Client
from workers.models.sources import model_source

Plain = Callable[[Sequence[Any], int], object]

#: Every so manieth frame, by the fleet and by the pipeline.
RATE = 2

_SECONDS, _RATE, _SIDE = 2, 16, 192


def clips(count: int) -> list[bytes]:
    """Return so many MP4 files of two seconds, with a virtual camera over photographs that no head was trained on."""
    return [file for file, _ in labelled_clips(count)]


def labelled_clips(count: int) -> Iterator[tuple[bytes, str]]:
    import numpy as np

    from workers.training import camera, data, train_video

    folder = data.pull("scenes", model_source.cache_folder())
    scenes = train_video.scenes(folder, lambda name: name in train_video.TEST)
    random = np.random.default_rng(11)
    for number in range(count):
        label = camera.LABELS[number % len(camera.LABELS)]
        yield _file(camera.clip(label, scenes, _SECONDS * _RATE, _SIDE, random)), label


def _file(frames: Sequence[Any]) -> bytes:
    import av

    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=_RATE, options={"x264-params": "log-level=error"})
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return made.getvalue()


def recordings(count: int) -> list[dict[str, list[float]]]:
    """Return so many recordings of a smart watch; those that were held out, again and again."""
    known = [values for values, _ in _watch().held_out]
    names = _watch().channels
    return [dict(zip(names, known[n % len(known)].T.tolist(), strict=True)) for n in range(count)]


def _watch() -> Any:
    from workers.training import train_series

    return train_series.basic_motions(model_source.cache_folder())


# --- what the fleet is compared with ------------------------------------------------------------


def video_pipeline(folder: Path) -> Plain:
    """Return transformers' pipeline, which takes paths."""
    import transformers

    plain = transformers.pipeline("video-classification", model=str(folder), device="cpu")

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        with tempfile.TemporaryDirectory() as own:
            paths = [Path(own) / f"{number}.mp4" for number in range(len(inputs))]
            for path, data in zip(paths, inputs, strict=True):
                path.write_bytes(data)
            return plain([str(path) for path in paths], batch_size=batch_size, frame_sampling_rate=RATE)

    return run


def camera_by_hand(folder: Path) -> Plain:
    """The loop one writes: PyAV, Pillow, the same backbone and head, one video after the other or several together."""
    import numpy as np
    import torch

    from workers.models.built_in.video.video_network import VideoEncoder, load_head

    network = VideoEncoder(folder, {"map"}).eval()
    head = load_head(model_source.BUNDLED / "camera-motion" / "head.safetensors").eval()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found = []
        for start in range(0, len(inputs), batch_size):
            videos = [_sampled(data) for data in inputs[start : start + batch_size]]
            lengths = torch.tensor([len(frames) for frames in videos])
            with torch.inference_mode():
                features = network(torch.from_numpy(np.concatenate(videos)))
                found += head({**features, "lengths": lengths}).softmax(-1).tolist()
        return found

    return run


def _sampled(data: bytes) -> Any:
    import av
    import numpy as np

    with av.open(io.BytesIO(data), "r") as container:
        whole = list(container.decode(video=0))
    pictures = [whole[number * len(whole) // 16].to_image() for number in range(16)]
    return np.stack([np.asarray(picture.resize((176, 176)).crop((8, 8, 168, 168))) for picture in pictures])


def motion_by_hand(folder: Path) -> Plain:
    """The network itself, series by series, or several of equal length together."""
    import torch
    from safetensors.torch import load_file

    from workers.models.built_in.tables.series import FILE
    from workers.models.built_in.tables.series_network import SeriesNetwork

    tensors = load_file(folder / FILE)
    network = SeriesNetwork.of_shape(tensors)
    network.load_state_dict(tensors)
    network.eval()

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found = []
        for start in range(0, len(inputs), batch_size):
            batch = torch.tensor([list(one.values()) for one in inputs[start : start + batch_size]]).mT
            with torch.inference_mode():
                scores = network(batch, torch.full((len(batch),), batch.shape[1]))
            found += scores.softmax(-1).tolist()
        return found

    return run


# --- quality ------------------------------------------------------------------------------------


def camera_motions_told(client: Client) -> tuple[str, float, float]:
    """Judge camera motions by clips made of photographs of which nothing was trained."""
    judged = list(labelled_clips(100))
    job = client.submit_many("camera-motion", [file for file, _ in judged], params={"top_k": 1})
    return "accuracy", _accuracy(job, [label for _, label in judged]), 0.1


def motions_told(client: Client) -> tuple[str, float, float]:
    """Judge activities by the recordings that were held out."""
    judged = [label for _, label in _watch().held_out]
    return "accuracy", _accuracy(client.submit_many("motion", recordings(len(judged))), judged), 0.25


def _accuracy(job: Any, labels: Sequence[str]) -> float:
    job.wait(timeout_s=600)
    best = {row.seq: row.output[0]["label"] for row in job.results()}
    return sum(best[place] == label for place, label in enumerate(labels)) / len(labels)
