"""The video model: what moves from frame to frame, told right and alone or in company; heads of one's own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError
from tests import videos
from tests.noise import noise
from tests.serving import TOLERANCE, Served, answered, assert_alike
from workers.models.backends.choice import Backend
from workers.models.built_in.video.video_model import NUM_FRAMES, VideoModel, centre
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source
from workers.models.sources.model_source import Pulled
from workers.training import camera, data
from workers.training import train_video as training
from workers.training.camera import Scene

TASKS = {"camera-motion": "video-classification", "video-embedding": "video-feature-extraction"}


class ServedVideos(Served):
    """As a fleet serves it: by class and folder."""

    def __init__(self, folder: Path, tasks: Mapping[str, str], **options: Any) -> None:
        self.catalogue = Catalogue({}).with_models({"own": {"tasks": tasks}}, where="fleet.toml")
        self.model: Any = VideoModel(ModelSpec("own", folder, "1", self.catalogue.tasks, options))


@pytest.fixture(scope="module")
def served(pulled_models: Mapping[str, Pulled]) -> Served:
    return ServedVideos(pulled_models["vision"].folder, TASKS).load()


@pytest.fixture(scope="module")
def clips() -> list[tuple[bytes, str]]:
    """A clip of every motion over photographs that were not trained on, as files."""
    folder = data.pull("photographs", model_source.cache_folder())
    chosen = [
        Scene(name, (Image.open(folder / name).convert("RGB"),)) for name in training.TEST if name != "rocket.jpg"
    ]
    random = np.random.default_rng(7)
    return [(videos.file(list(camera.clip(label, chosen, 32, 192, random))), label) for label in camera.LABELS]


@pytest.mark.long
def test_it_knows_what_it_has_not_seen(served: Served, clips: list[tuple[bytes, str]]) -> None:
    """Whole files, decoded and sampled; the same frames in another order show no motion that is known."""
    found = served.ask("camera-motion", [file for file, _ in clips], top_k=1)
    right = [answer[0]["label"] == label for answer, (_, label) in zip(found, clips, strict=True)]
    assert sum(right) >= 0.8 * len(clips)
    random = np.random.default_rng(0)
    disorder = []
    for file, _ in clips[:5]:
        whole = videos.plain(file)
        disorder.append(videos.file([whole[place] for place in random.permutation(len(whole))]))
    shuffled = served.ask("camera-motion", disorder, top_k=1)
    still_right = [answer[0]["label"] == label for answer, (_, label) in zip(shuffled, clips, strict=False)]
    assert sum(still_right) <= 2


def test_the_answer_is_that_of_a_plain_loop(served: Served, clips: list[tuple[bytes, str]]) -> None:
    """All frames decoded, every second one cut to its middle, the backbone, the head: by hand, one video after the
    other.
    """
    import torch

    from workers.models.built_in.video.video_network import VideoEncoder, load_head

    network = VideoEncoder(served.model.spec.folder, {"map", "pooled"}).eval()
    head = load_head(model_source.BUNDLED / "camera-motion" / "head.safetensors").eval()
    files = [file for file, _ in clips[:2]]
    answers = served.ask("camera-motion", files, top_k=None)
    vectors = served.ask("video-embedding", files, normalize=False)
    for file, answer, vector in zip(files, answers, vectors, strict=True):
        with av.open(io.BytesIO(file), "r") as container:
            pixels = np.stack([centre(frame) for frame in list(container.decode(video=0))[::2]])
        with torch.inference_mode():
            features = network(torch.from_numpy(pixels))
            scores = head({**features, "lengths": torch.tensor([NUM_FRAMES])}).softmax(-1)[0].tolist()
        by_label = {one["label"]: one["score"] for one in answer}
        assert by_label == pytest.approx(dict(zip(camera.LABELS, scores, strict=True)), abs=TOLERANCE)
        np.testing.assert_allclose(vector, features["pooled"].mean(0).numpy(), atol=TOLERANCE)


def test_neighbours_do_not_change_an_answer(served: Served, clips: list[tuple[bytes, str]]) -> None:
    """Of other lengths too: frames of all videos go through the backbone together."""
    kinds = {name: served.task(name).kind.params for name in TASKS}
    wanted = [
        {"camera-motion": kinds["camera-motion"](top_k=None)},
        {"video-embedding": kinds["video-embedding"](num_frames=5)},
        {name: kind(num_frames=9) for name, kind in kinds.items()},
        {name: kind() for name, kind in kinds.items()},
        {"camera-motion": kinds["camera-motion"](num_frames=2)},
    ]
    items = [(file, own) for (file, _), own in zip(clips, wanted, strict=False)]
    alone = [answered(served.model, [item])[0] for item in items]
    before = served.model.passes
    for order in ((0, 1, 2, 3, 4), (4, 2, 0), (3, 1)):
        together = answered(served.model, [items[n] for n in order])
        for found, place in zip(together, order, strict=True):
            for task, answer in found.items():
                if task == "video-embedding":
                    np.testing.assert_allclose(answer, alone[place][task], atol=TOLERANCE)
                else:
                    assert_alike(answer, alone[place][task])
    assert served.model.passes == before + 3


@pytest.mark.long
def test_another_backend_answers_alike(
    served: Served,
    clips: list[tuple[bytes, str]],
    pulled_models: Mapping[str, Pulled],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First with one task, which needs the beginning of the network only, then with both: what is kept of the one is
    not taken for the other.
    """
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path))
    file = clips[1][0]
    expected = served.ask("camera-motion", [file], top_k=None)[0]
    for tasks in ({"camera-motion": "video-classification"}, TASKS):
        other = ServedVideos(pulled_models["vision"].folder, tasks)
        other.model = VideoModel(
            ModelSpec("own", other.model.spec.folder, "1", other.catalogue.tasks, {}, Backend("openvino"))
        )
        other.load()
        assert_alike(other.ask("camera-motion", [file], top_k=None)[0], expected, 1e-4)
    [vector] = other.ask("video-embedding", [file])
    np.testing.assert_allclose(vector, served.ask("video-embedding", [file])[0], atol=1e-4)


def test_every_sort_of_video(served: Served) -> None:
    """A single frame stands still, a GIF counts, a frame of odd sides too."""
    still = Image.open(data.pull("photographs", model_source.cache_folder()) / "astronaut.png").convert("RGB")
    one = videos.file([np.asarray(still.resize((256, 256)))])
    odd = videos.file(videos.moving(12, 35, 61), "webm", "libvpx-vp9")
    photo = noise(90, 70, 80).resize((300, 200), Image.Resampling.BICUBIC)
    frames = [photo.crop((60 - shift, 20, 220 - shift, 180)) for shift in range(0, 48, 3)]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    found = served.ask("camera-motion", [one, odd, animation.getvalue()], top_k=1)
    assert found[0][0]["label"] == "still"
    assert found[2][0]["label"] == "pan-left"
    assert len(served.ask("video-embedding", [one])[0]) == 1280


def test_what_is_wrong_is_named(served: Served, pulled_models: Mapping[str, Pulled], tmp_path: Path) -> None:
    assert "not a complete, readable video" in str(served.refusal("camera-motion", b"no video"))
    refused = served.refusal("camera-motion", b"no video", num_frames=1)
    assert refused.field == "params.num_frames"
    folder = pulled_models["vision"].folder
    with pytest.raises(ConfigurationError, match="'fencing' has no head"):
        _ = ServedVideos(folder, {"fencing": "video-classification"}).model.revision
    with pytest.raises(ConfigurationError, match=r"options\.max_video_s: must be a number over 0"):
        _ = ServedVideos(folder, TASKS, max_video_s=0).model.revision
    small = ServedVideos(folder, TASKS, max_frame_pixels=1000)
    assert "over 1,000 in all" in str(small.refusal("camera-motion", videos.file(videos.moving(3))))
    (tmp_path / "topic").symlink_to(model_source.BUNDLED / "topic")
    texts = ServedVideos(folder, {"topic": "video-classification"}, heads=str(tmp_path))
    with pytest.raises(ConfigurationError, match="but videos need 'motion'"):
        texts.load()


@pytest.mark.long
def test_a_head_of_ones_own(pulled_models: Mapping[str, Pulled], tmp_path: Path) -> None:
    """A folder of clips for each label is all it takes."""
    for number in range(5):
        for label, step in (("grows", 1), ("shrinks", -1)):
            path = tmp_path / "clips" / label / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(videos.file(videos.moving(16, 96, 64, number)[::step]))
    quiet = Console(quiet=True)
    score = training.train_own(tmp_path / "clips", "bar", tmp_path / "heads", model_source.cache_folder(), quiet)
    assert score.clips == 2
    assert score.majority == 0.5
    own = ServedVideos(pulled_models["vision"].folder, {"bar": "video-classification"}, heads=str(tmp_path / "heads"))
    own.load()
    new = [videos.file(videos.moving(16, 96, 64, 9)[::step]) for step in (1, -1)]
    assert [answer[0]["label"] for answer in own.ask("bar", new)] == ["grows", "shrinks"]


def test_clips_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    """Before anything is computed, or with the file that is wrong."""
    (tmp_path / "a").mkdir()
    for number in range(5):
        (tmp_path / "a" / f"{number}.mp4").write_bytes(b"no video")
    with pytest.raises(ConfigurationError, match="each of two labels"):
        training.own_clips(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigurationError, match="b: has 0 clips; give it five or more"):
        training.own_clips(tmp_path)
    with pytest.raises(ConfigurationError, match=r"0\.mp4: input: is not a complete, readable video"):
        list(training.from_files([tmp_path / "a" / "0.mp4"]))


def test_a_mirror_shows_the_other_motion() -> None:
    """What training makes of a clip turned over is what the turned clip gives: labels and correlations alike."""
    import torch

    from workers.models.built_in.video.video_network import correlations, pairs

    torch.manual_seed(0)
    maps = torch.randn(3, 4, 20, 20)
    first, second = pairs(torch.tensor([3]))
    plain = correlations(maps, first, second)[None]
    wanted = torch.tensor([camera.LABELS.index(label) for label in ("pan-left", "tilt-up", "roll-left", "zoom-in")])
    turned, labels = training.mirrored(plain.repeat(4, 1, 1, 1, 1), wanted)
    names = [camera.LABELS[place] for place in labels.tolist()]
    assert set(names) <= {"pan-left", "pan-right", "tilt-up", "tilt-down", "roll-left", "roll-right", "zoom-in"}
    far = slice(49, 98)  # the near ones are taken at every second place, which a mirror moves by one
    mirrors = {
        (across, down): correlations(maps.flip([3] * across + [2] * down), first, second)
        for across in (0, 1)
        for down in (0, 1)
    }
    for one in turned:
        assert any(torch.allclose(one[:, far], other[:, far], atol=1e-5) for other in mirrors.values())
