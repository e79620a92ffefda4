# SPDX-License-Identifier: Apache-2.0
"""The compiler of the fault suite: a real sandboxed child that builds in name only, and copies the model.

Started without site packages, so it is there in some 10 ms. What it answers was written into its directory by the
worker's side, `worker_process`; what it does on the way is in the same file.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path


def main(directory: Path) -> None:
    answer = json.loads((directory / "answer.json").read_text())
    for number, phase in enumerate(("building", "gating", "measuring")):
        step = {"phase": phase, "fraction": number / 3, "message": f"scripted {phase}"}
        print(json.dumps(step), flush=True)
        if phase == answer["phase"]:
            _misbehave(answer["behaviour"])
        time.sleep(answer["build_ms"] / 3000)  # stands for the work
    (directory / "out").mkdir(exist_ok=True)
    shutil.copyfile(directory / "model.onnx", directory / "out" / "model.onnx")
    (directory / "out" / "goldens.npz").write_bytes(b"goldens of " + answer["build"]["recipe"]["name"].encode())
    (directory / "result.json").write_text(json.dumps({"build": answer["build"], "confined": ["network"]}))


def _misbehave(behaviour: str) -> None:
    if behaviour == "abort":
        os.abort()
    elif behaviour == "hang":
        while True:
            time.sleep(3600)
    elif behaviour == "gil":
        # One call into C that never gives the interpreter back, as a compiler that forgot to release it.
        sum(range(10**12))


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
