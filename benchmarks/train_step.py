"""What layout, number format and head do for a real training step: tokens a second and peak memory of stage `train`.

    python benchmarks/train_step.py [--model FOLDER] [--sizes 40x48 200x128] [--repeat 2] [--set key=value ...]

Trains a few steps of 8 pairs with DeepSpeed, each form in a process of its own, all forms in turn and that several
times over, so that a disturbance of the machine meets all of them; the table shows the fastest repetition and the
largest peak. A size is PROMPTxCOMPLETION: lengths are drawn evenly from half of either to all of it. Token ids are
random: the cost does not depend on them. Peak memory is the largest resident set of the training process.

Predicted from token counts alone (docs/performance.md says what came out): with shared prompts a step of 8 pairs holds
1.3 times fewer tokens at 40x48 and 1.5 times fewer at 200x128; the larger mask takes a tenth of that back in float32,
more in bf16. bf16 is faster than float32 where the CPU multiplies it, by less than the two times of its matrix
products, and slower elsewhere. The head's form changes memory, and little of the time at these sizes.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from data import files, schemas, store
from pco import hardware
from pco.config.run import load
from pco.execution import launcher
from pco.stage import Artifact, Stage

RESULTS = Path(__file__).parent / "results"
PAIRS, STEPS = 8, 4


@dataclass(frozen=True)
class Form:
    """How a step is computed."""

    head: str
    layout: str
    precision: str

    @property
    def settings(self) -> list[str]:
        """As for `pco run --set`."""
        fused = self.head == "fused"
        return [f"train.fused_head={fused}", f"train.layout={self.layout}", f"train.precision={self.precision}"]


FORMS = [
    Form(head, layout, precision)
    for precision in ("fp32", "bf16")
    for head, layout in (("plain", "padded"), ("fused", "padded"), ("fused", "shared"), ("fused", "auto"))
]


def main() -> None:
    arguments = _arguments()
    if arguments.case:
        size, form = arguments.case.split(",")
        print(json.dumps(_measure(size, FORMS[int(form)], arguments)))
        return
    _, reason = hardware.number_format()
    print(f"{hardware.cpu()}, {len(os.sched_getaffinity(0))} cores: {reason}\n")
    print(f"{'size':>10} {'format':>7} {'head':>6} {'layout':>7} {'tokens/s':>9} {'of padded':>9} {'peak GiB':>9}")
    rows = [row for size in arguments.sizes for row in _rows(size, arguments.repeat)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "train_step.json").write_text(json.dumps(rows, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--sizes", nargs="+", default=["40x48", "200x128"], metavar="PROMPTxCOMPLETION")
    parser.add_argument("--repeat", type=int, default=2, help="how often each form is measured")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `pco run`")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def _rows(size: str, repeat: int) -> list[dict[str, object]]:
    """Measure all forms at one size, and print them."""
    runs = [[_in_a_process(f"{size},{i}") for i in range(len(FORMS))] for _ in range(repeat)]
    speeds = {form: max(run[i]["tokens_per_s"] for run in runs) for i, form in enumerate(FORMS)}
    peaks = {form: max(run[i]["peak_gib"] for run in runs) for i, form in enumerate(FORMS)}
    rows = []
    for form in FORMS:
        share = speeds[form] / speeds[Form("fused", "padded", form.precision)]
        print(
            f"{size:>10} {form.precision:>7} {form.head:>6} {form.layout:>7} {speeds[form]:>9,.0f} {share:>9.2f} "
            f"{peaks[form]:>9.2f}",
            flush=True,
        )
        rows.append({"size": size, **asdict(form), "tokens_per_s": speeds[form], "peak_gib": peaks[form]})
    return rows


def _in_a_process(case: str) -> dict[str, float]:
    """A process of its own, since a process's peak memory never falls."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, float] = json.loads(output.splitlines()[-1])
    return row


def _measure(size: str, form: Form, arguments: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"runs_dir={folder}", f"policy.model={arguments.model}", *form.settings]
        config = load(Path("configs/quickstart.yaml"), [*settings, *arguments.set])
        model = Path(config.policy.model)
        policy = Artifact(model, files.folder_digest(model))
        stage = Stage("train", 1, config, {"policy": policy, "pairs": _pairs(Path(folder) / "pairs", size)})
        launcher.run(stage)
        log = store.read_table(stage.folder, "train_log").to_pylist()[1:]  # the first step warms up
    speed = sum(row["tokens"] for row in log) / sum(row["seconds"] for row in log)
    return {"tokens_per_s": speed, "peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20}


def _pairs(folder: Path, size: str) -> Artifact:
    draw = random.Random(0)
    prompt, completion = map(int, size.split("x"))

    def ids(at_most: int) -> list[int]:
        return [draw.randrange(1000, 40000) for _ in range(draw.randint(at_most // 2, at_most))]

    rows = [
        {
            **dict.fromkeys(("prompt", "chosen", "rejected", "policy"), ""),
            "prompt_id": str(i),
            "prompt_token_ids": ids(prompt),
            "chosen_token_ids": ids(completion),
            "rejected_token_ids": ids(completion),
            "chosen_sample": 0,
            "rejected_sample": 1,
            "chosen_reward": 1.0,
            "rejected_reward": 0.0,
        }
        for i in range(PAIRS * STEPS)
    ]
    fingerprint = files.digest(["benchmark", size])
    store.write_part(folder, "pairs", 0, schemas.build("pairs", rows), fingerprint)
    account = {"unit": "pairs", "rows_in": len(rows), "rows_out": len(rows), "dropped": {}, "started": 0.0}
    store.finish(folder, stage="pair", fingerprint=fingerprint, inputs={}, settings={}, **account)
    return Artifact(folder, fingerprint)


if __name__ == "__main__":
    main()
