"""The reader of configuration: what is wrong in a file is said by file and key."""

from pathlib import Path

import pytest

from pipeline.config import load_config, parse_config
from pipeline.errors import UserError
from pipeline.settings import StreamConfig


def message_of(text: str, tmp_path: Path, section: str | None = "stream") -> str:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(StreamConfig, file, section=section)
    return str(caught.value).removeprefix(f"{file}: ")


def test_an_unknown_key_is_named_in_full(tmp_path: Path) -> None:
    asked = "unknown key `stream.thread`, did you mean `threads`?"
    assert message_of("stream: {thread: 3}", tmp_path) == asked
    assert message_of("thread: 3", tmp_path, None) == asked.replace("stream.", "")
    listed = message_of("stream: {views: {zzz: 3}}", tmp_path)
    assert listed.startswith("unknown key `stream.views.zzz`, known here: ")
    assert listed.endswith(".")


def test_a_key_that_lies_elsewhere_is_found_there(tmp_path: Path) -> None:
    found = message_of("stream: {match_height: 3}", tmp_path)
    assert found == "unknown key `stream.match_height`, did you mean `stream.views.match_height`?"
    found = message_of("seed: 1\nviews: {threads: 3}", tmp_path, None)
    assert found == "unknown key `views.threads`, did you mean `threads`?"


def test_a_wrong_value_is_named_in_full(tmp_path: Path) -> None:
    assert message_of("stream: {seed: x}", tmp_path).startswith("`stream.seed`: ")
    both = message_of("stream: {seed: x, thread: 3}", tmp_path)
    assert both.endswith("; unknown key `stream.thread`, did you mean `threads`?")
    with pytest.raises(UserError, match=r"^somewhere: `seed`: .*[.]$"):
        parse_config(StreamConfig, {"seed": "x"}, "somewhere")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^cannot read {tmp_path}: Is a directory[.]$"):
        load_config(StreamConfig, tmp_path)
    with pytest.raises(UserError, match=r"^no configuration file .*absent\.yaml[.]$"):
        load_config(StreamConfig, tmp_path / "absent.yaml")
    under_a_file = tmp_path / "file" / "run.yaml"
    under_a_file.parent.write_text("")
    with pytest.raises(UserError, match=r"cannot read .*: Not a directory"):
        load_config(StreamConfig, under_a_file)


def test_a_file_holds_what_differs_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "root.yaml").write_text(
        "stream: {seed: 1, threads: 3, views: {flip: 0.1, blur: 0.2}}"
    )
    (tmp_path / "middle.yaml").write_text("base: root.yaml\nstream: {seed: 2, views: {blur: 0.3}}")
    leaf = tmp_path / "deep" / "leaf.yaml"
    leaf.write_text("base: ../middle.yaml\nstream: {scene_size: [96, 160]}")
    config = load_config(StreamConfig, leaf, ["stream.views.grey=0.4"], section="stream")
    assert (config.seed, config.threads, config.scene_size) == (2, 3, (96, 160))
    assert (config.views.flip, config.views.blur, config.views.grey) == (0.1, 0.3, 0.4)


def test_a_base_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("base: run.yaml")
    ring = message_of("base: other.yaml", tmp_path)
    assert ring.startswith(f"{tmp_path / 'other.yaml'}: {tmp_path / 'run.yaml'} is its own base")
    assert message_of("base: [other.yaml]", tmp_path).startswith(
        "`base` must be the path of one other"
    )
    assert message_of("base: absent.yaml", tmp_path).startswith("no configuration file")
    (tmp_path / "other.yaml").write_text("stream: {thread: 3}")
    asked = "unknown key `stream.thread`, did you mean `threads`?"
    assert message_of("base: other.yaml", tmp_path).endswith(
        f"on {tmp_path / 'other.yaml'}: {asked}"
    )
