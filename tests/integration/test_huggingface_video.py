"""Any Hugging Face video model by its folder and kinds alone: the answers of plain transformers, whoever shares the
batch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import ConfigurationError, InvalidInput
from tests import tiny_checkpoints as tiny
from tests import videos
from tests.serving import TOLERANCE, Served, answered, assert_alike, pipeline

Made = Callable[..., Path]

#: Long and short, upright and lying, in several containers; the last is of as many frames as the models read.
FILES = [
    videos.file(videos.moving(40, 64, 48, 1)),
    videos.file(videos.moving(30, 40, 70, 2), "webm", "libvpx-vp9"),
    videos.file(videos.moving(60, 50, 50, 3), "matroska", "libx264"),
    videos.file(videos.moving(17, 90, 40, 4), "avi", "mpeg4"),
    videos.file(videos.moving(8, 64, 48, 5)),
]

MAKERS = {"videomae": tiny.videomae, "timesformer": tiny.timesformer, "vivit": tiny.vivit}


def by_pipeline(folder: Path, files: list[bytes], tmp_path: Path, **params: Any) -> list[Any]:
    """What transformers' own pipeline says of the files."""
    paths = []
    for number, data in enumerate(files):
        paths.append(str(tmp_path / str(number)))
        Path(paths[-1]).write_bytes(data)
    found: list[Any] = pipeline("video-classification", folder)(paths, **params)
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_video_classification(made: Made, tmp_path: Path, name: str) -> None:
    """Every frame from the beginning, or every second, as the pipeline reads them."""
    folder = made(MAKERS[name], num_labels=6)
    served = Served(folder, {"action": "video-classification"}).load()
    for rate, files in ((1, FILES), (2, FILES[:4])):  # the last one is too short for every second: the pipeline fails
        expected = by_pipeline(folder, files, tmp_path, frame_sampling_rate=rate)
        assert_alike(served.ask("action", files, frame_sampling_rate=rate), expected)


def test_a_single_label_has_the_score_of_the_pipeline(made: Made, tmp_path: Path) -> None:
    """Which is 1: transformers' pipelines of texts and images take a sigmoid, those of recordings do not."""
    folder = made(tiny.videomae, num_labels=1)
    served = Served(folder, {"action": "video-classification"}).load()
    expected = by_pipeline(folder, FILES[:1], tmp_path, frame_sampling_rate=1)
    assert_alike(served.ask("action", FILES[:1], frame_sampling_rate=1), expected)


def test_frames_are_spread_over_the_video_unless_told_otherwise(made: Made, tmp_path: Path) -> None:
    """As transformers' video processors do it: the answer is that for a file of just these frames."""
    folder = made(tiny.videomae, num_labels=6)
    served = Served(folder, {"action": "video-classification"}).load()
    spread = [videos.plain(FILES[0])[place] for place in range(0, 40, 5)]
    short = videos.file(spread, "matroska", "ffv1")
    [whole], [part] = served.ask("action", FILES[:1]), served.ask("action", [short])
    assert [one["label"] for one in whole] == [one["label"] for one in part]
    assert whole != served.ask("action", FILES[:1], frame_sampling_rate=1)[0]


def test_vectors_and_labels_share_a_pass(made: Made) -> None:
    """The mean over all places and times of what the labels are told from."""
    import torch
    import transformers

    folder = made(tiny.videomae, num_labels=6)
    tasks = {"action": "video-classification", "vector": "video-feature-extraction"}
    served = Served(folder, tasks).load()
    params = {name: served.task(name).kind.params() for name in tasks}
    [both] = answered(served.model, [(FILES[0], params)])
    assert served.model.passes == 1
    assert_alike(both["action"], served.ask("action", FILES[:1])[0])
    row = served.model.prepare(FILES[0], params)
    network = transformers.AutoModel.from_pretrained(folder)
    values = served.model.reader.normalized(torch.from_numpy(row.arrays["pixels"]))[None]
    with torch.inference_mode():
        expected = network(values).last_hidden_state.mean(1)[0].numpy()
    np.testing.assert_allclose(both["vector"], expected / np.linalg.norm(expected), atol=TOLERANCE)


def test_neighbours_do_not_change_an_answer(made: Made) -> None:
    served = Served(made(tiny.videomae, num_labels=6), {"action": "video-classification"}).load()
    alone = [served.ask("action", [file])[0] for file in FILES]
    random = np.random.default_rng(0)
    for _ in range(3):
        order = random.permutation(len(FILES))[: random.integers(2, len(FILES) + 1)]
        assert_alike(served.ask("action", [FILES[n] for n in order]), [alone[n] for n in order])
    before = served.model.passes
    served.ask("action", FILES)
    assert served.model.passes == before + 1


def test_bad_parameters_and_inputs_are_named(made: Made) -> None:
    served = Served(
        made(tiny.videomae, num_labels=6), {"action": "video-classification", "again": "video-classification"}
    )
    refused = served.refusal("action", FILES[0], num_frames=12)
    assert refused.field == "params.num_frames"
    assert "must be 8, the number that the model reads" in str(refused)
    assert "not a complete, readable video" in str(served.refusal("action", b"no video"))
    assert "must be the bytes of a video file, not str" in str(refusal_of(served, "a text"))
    kind = served.task("action").kind.params
    row = served.model.prepare(FILES[0], {"action": kind(), "again": kind(frame_sampling_rate=2)})
    assert "other frames" in str(row.refused["again"])


def refusal_of(served: Served, content: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        served.model.prepare(content, {"action": served.task("action").kind.params()})
    return raised.value


def changed(folder: Path, target: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(folder, target)
    settings = json.loads((target / file).read_text("utf-8"))
    change(settings)
    (target / file).write_text(json.dumps(settings), encoding="utf-8")
    return target


def test_wrong_folders_and_settings_are_named(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a worker starts, not with the first video."""
    folder, tasks = made(tiny.videomae, num_labels=6), {"action": "video-classification"}
    silent = changed(folder, tmp_path / "silent", "config.json", lambda settings: settings.pop("num_frames"))
    with pytest.raises(ConfigurationError, match="number of frames"):
        Served(silent, tasks).load()
    other = {"image_mean": [0.1, 0.2, 0.3], "do_flip_channel_order": True}
    unlike = changed(folder, tmp_path / "unlike", "preprocessor_config.json", lambda settings: settings.update(other))
    monkeypatch.setattr(
        "workers.models.huggingface.vision.image_processing.ImageReader.normalized",
        lambda _, batch: batch.permute(0, 3, 1, 2).float(),
    )
    with pytest.raises(ConfigurationError, match="frames are not prepared as by VideoMAEImageProcessor"):
        Served(unlike, tasks).load()
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match="max_film_s: not an option"):
        Served(folder, tasks, max_film_s=3).load()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'argosy\[video\]'"):
        Served(folder, tasks).load()


def test_preparing_never_imports_torch(made: Made) -> None:
    """The Celery parent stays light."""
    folder = str(made(tiny.videomae, num_labels=6))
    code = f"""
import sys
from pathlib import Path
from tests import videos
from tests.serving import Served
served = Served(Path({folder!r}), {{"task": "video-classification"}})
served.model.revision
data = videos.file(videos.moving(9))
served.model.collate([served.model.prepare(data, {{"task": served.task("task").kind.params()}})])
loaded = sorted({{"torch", "transformers"}} & set(sys.modules))
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
