"""What a model looked at, in pictures and pages."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers import read_jsonl, scored
from made_up_results import Page, invoke, record, write
from PIL import Image
from rollouts import rollout_of_transformers

from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.report.attention import LEAST, MOST, OPACITY, tint


def test_plot_draws_it_for_each_token(
    vit: Path, make_checkpoint: Callable[..., Path], made: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    distilled = make_checkpoint("DeiTForImageClassificationWithTeacher")
    for model, width in ((vit, 1800), (distilled, 2400)):
        done = invoke("plot", photos / "03.jpg", "--model", model, "--attention", "--out", tmp_path / "p.png")
        assert done.exit_code == 0, done.output
        with Image.open(tmp_path / "p.png") as picture:
            assert picture.width == width
    (tmp_path / "p.png").unlink()
    for model, *options in ((made("convnext"),), (vit, "--runtime", "onnx")):
        done = invoke("plot", photos / "03.jpg", "--model", model, *options, "--attention", "--out", tmp_path / "p.png")
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert "--attention: " in done.stderr
    assert not (tmp_path / "p.png").exists()


def test_what_a_model_looked_at_is_seen_on_any_picture() -> None:
    """Whatever the picture's colour: by lightness (ITU-R BT.601), so by those who tell no colours apart, too."""
    least, most = (np.array(Image.new("RGBA", (1, 1), tuple(each))) for each in tint(np.array([[0.0, 1.0]], "f4"))[0])
    for grey in range(0, 256, 51):
        seen = [Image.new("RGBA", (1, 1), (grey, grey, grey, 255)) for _ in range(2)]
        for picture, colour in zip(seen, (least, most), strict=True):
            picture.alpha_composite(Image.fromarray(colour))
        dark, bright = (picture.convert("L").getpixel((0, 0)) for picture in seen)
        assert isinstance(dark, int)
        assert isinstance(bright, int)
        assert bright - dark > 60


def test_a_page_colours_the_pictures_by_what_the_model_looked_at(photos: Path, vit: Path, tmp_path: Path) -> None:
    predictions = scored(photos, vit, tmp_path, limit=4)
    done = invoke("report", predictions, "--attention", vit, "--thumbnails", "1", "--out", tmp_path / "r.html")
    assert done.exit_code == 0, done.output
    assert "--attention" not in done.stderr
    page = (tmp_path / "r.html").read_text()
    tints = dict(re.findall(r'data-place="(\d)".+?class="tint" src="data:image/png;base64,(.+?)"', page, re.DOTALL))
    assert {*tints} == {*"0123"}
    recipe = find_recipe(find_checkpoint(str(vit)), None)
    for each in read_jsonl(predictions):
        pixels = decode(Path(each["image"]).read_bytes(), recipe, Limits())
        shares = rollout_of_transformers(vit, pixels)[0, 1:].reshape(4, 4)
        relative = (shares - shares.min()) / (shares.max() - shares.min())
        with Image.open(io.BytesIO(base64.b64decode(tints[str(each["index"])]))) as found:
            assert found.mode == "RGBA"
            *colours, opacity = np.moveaxis(np.asarray(found), -1, 0)
        assert np.unique(opacity).tolist() == [round(255 * OPACITY)]
        for colour, least, most in zip(colours, LEAST, MOST, strict=True):
            assert np.abs(colour - (least + (most - least) * relative)).max() < 1


def test_a_page_says_whose_attention_it_may_not_be(
    photos: Path, vit: Path, make_checkpoint: Callable[..., Path], made: Callable[..., Path], tmp_path: Path
) -> None:
    predictions = scored(photos, vit, tmp_path, limit=2)
    other = make_checkpoint("DeiTForImageClassification")
    out = tmp_path / "r.html"
    for path, said in (
        (predictions, ["the predictions are of other weights", "were made with another image processor"]),
        (write(tmp_path / "q.jsonl", [record(0, str(photos / "00.jpg"), ("can", 0.9))]), ["no run report lies beside"]),
    ):
        done = invoke("report", path, "--attention", other, "--thumbnails", "1", "--out", out)
        assert done.exit_code == 0, done.output
        for what in said:
            assert what in done.stderr
            assert what in Page(out.read_text()).text
    (tmp_path / "p.jsonl").write_text("no records")  # which are not looked at
    refused = invoke("report", predictions, "--attention", made("convnext"), "--out", tmp_path / "s.html")
    assert (refused.exit_code, "not a DeiT classifier" in refused.stderr) == (2, True)
    assert not (tmp_path / "s.html").exists()
