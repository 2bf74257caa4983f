"""A newcomer's session, timed: fetch, prune, and let the pruned checkpoint write, in plain transformers.

    python tests/benchmarks/newcomer.py              # an empty cache, so that the downloads count
    python tests/benchmarks/newcomer.py --install    # `make setup` first: a new virtual environment, gigabytes

Every command runs as it is printed, in an empty folder. The record goes to `book/results/benchmarks/newcomer.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cpu import RECORDS, machine

from igsp.assets import whole_or_nothing

ROOT = Path(__file__).parents[2]
WRITE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("pruned"), AutoTokenizer.from_pretrained("pruned")
prompt = tokenizer("The best way to learn to cook is", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]))
assert "igsp" not in sys.modules
"""
NEEDED = ("igsp", "pyproject.toml", "requirements.lock", "Makefile", "README.md", "LICENSE")  # by `make setup`


def timed(command: str, folder: Path, environment: dict[str, str]) -> dict[str, object]:
    """One step of the session; ends the program if it fails."""
    started = time.perf_counter()
    run = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{command}\n{run.stdout}{run.stderr}")
    seconds = time.perf_counter() - started
    print(f"{seconds:6.0f} s  {command}")
    output = run.stdout.replace(f"{folder}/", "").replace(environment["IGSP_CACHE"], "cache")
    return {"command": command, "output": output, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="begin with a fresh virtual environment")
    parser.add_argument("--cache", type=Path, help="a cache that is filled already, instead of an empty one")
    parser.add_argument("--out", type=Path, default=RECORDS / "newcomer.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "write.py").write_text(WRITE.lstrip())
        programs = folder / ".venv/bin" if options.install else Path(sys.executable).parent
        cache = str(options.cache.resolve() if options.cache else folder / "cache")
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "IGSP_CACHE": cache}
        session = []
        if options.install:
            for name in NEEDED:
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
            session = [{**timed("make setup", folder, environment), "output": ""}]
        commands = ["igsp fetch --quiet", "igsp prune --mix uniform --n 16 --seqlen 256 --out pruned --quiet",
                    "cat write.py", "python write.py"]
        session += [timed(command, folder, environment) for command in commands]
    note = "" if options.install else "Installing is not timed: nearly all of it is the download of torch. "
    note += "The cache was full before." if options.cache else "The downloads of model and text are counted."
    record = {"benchmark": "newcomer", "machine": machine(), "note": note, "session": session}
    with whole_or_nothing(options.out) as path:
        path.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
