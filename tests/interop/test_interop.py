"""What is saved, read again: by the files alone here, by other tools where `IGSP_INTEROP=1` (gigabytes to install)."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import check
import pytest

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("interop")
    check.make(made, checkpoints=["wanda-2-4"])
    return made


def test_the_files_alone_say_what_the_model_in_memory_held(folder):
    command = [sys.executable, check.__file__, "read", "--tools", "safetensors", "--folder", str(folder)]
    subprocess.run(command, check=True, timeout=120, cwd=folder)
    row, = check.rows("safetensors", folder)
    assert row["differences"] == [] and row["result"] == "equal"
    assert {"zeros", "kept of four", "dtype", "tied", "template", "in the mask but not zero", "round trip"} <= {
        *row["checked"]}


def test_a_difference_is_told_by_name(folder):
    ours = json.loads((folder / "expected.json").read_text(encoding="utf8"))["wanda-2-4"]
    assert ours["kept of four"] == 2 and ours["tied"] and ours["dtype"] == "bfloat16"
    theirs = copy.deepcopy(ours)
    theirs["tokens"][1][5] += 1
    theirs["round trip"][" one leading space"][1] = "one leading space"
    theirs["tied"] = False
    told = " | ".join(check.differences(ours, theirs))
    assert "prompt 2 from token 6, where our logit leads by" in told
    assert "' one leading space'" in told and "tied: False, ours True" in told and told.count(" | ") == 2


@pytest.mark.skipif(os.environ.get("IGSP_INTEROP") != "1", reason="IGSP_INTEROP=1 installs each tool (gigabytes)")
@pytest.mark.parametrize("tool", [tool for tool in check.TOOLS if tool != "safetensors"])
def test_another_tool_says_the_same(tool, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "interop-all"
    if not folder.exists():
        folder.mkdir()
        check.make(folder)
    assert [row["differences"] for row in check.checked(tool, folder, folder / "environments")] == [[]] * len(
        check.ONCE.get(tool, check.CHECKPOINTS))
