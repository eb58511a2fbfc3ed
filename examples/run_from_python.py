"""A run without Prefect: load a config, run it, read its tables. Call it again, and it resumes.

    python run_from_python.py [CONFIG] [KEY=VALUE ...]

Without a config it takes the one of `pco quickstart`, whose model is unpacked by `pco model FOLDER`.
"""

import sys

import pco


def main(config="package:presets/quickstart.yaml", *overrides):
    config = pco.load(config, overrides)
    run = pco.run(config, on_progress=lambda stage, now: print(stage.title, now.done, "of", now.total, now.unit))

    for number, (promoted, reason) in enumerate(zip(run.promoted, run.reasons, strict=True), start=1):
        pairs = run.table("pairs", round=number).to_pandas()
        margin = (pairs["chosen_reward"] - pairs["rejected_reward"]).mean()
        print(f"Round {number}: {len(pairs)} pairs with a mean margin of {margin:.3f}. Promoted: {promoted}. {reason}")
    print("Best policy:", run.best)
    print("Report:", run.report)


if __name__ == "__main__":
    main(*sys.argv[1:])
