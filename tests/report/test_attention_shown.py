"""What a model looked at, in pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from made_up_results import invoke
from PIL import Image


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
