"""Stage `pair`: scored candidates become preference pairs, shard by shard; pairs of earlier rounds are mixed in."""

import math
from collections import Counter
from itertools import groupby, repeat
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from data import schemas, store
from data.errors import BadInput, CorruptArtifact
from data.rows import PromptRow
from pco.models.rendering import load_tokenizer, written
from pco.pairing import replay
from pco.pairing.strategies import Chosen, Scored, Skipped, pairs_of, pairs_with
from pco.runs import policy
from pco.seeds import seed_of
from pco.sharding import OnDone, Shard
from pco.stage import Stage

REFERENCE = -1  # the sample of a prompt's reference, which no policy sampled


class _ReferenceRow(TypedDict):
    """A prompt's reference with the columns of `candidates` that a pair needs."""

    prompt_id: str
    sample: int
    completion: str
    token_ids: list[int]


References = dict[str, _ReferenceRow]  # by prompt


def run(stage: Stage) -> store.Manifest:
    """Write the `pairs` table, and `replay` if the config asks for it; a prompt without a pair is counted by reason.

    Only one shard is in memory at a time.

    Raises BadInput when no prompt gives a pair: there would be nothing to train on.
    """
    started = stage.launched()
    references = _references(stage)
    shards, scores = _shards(stage)
    prompts = pairs = 0

    def make(index: int, _: OnDone) -> Shard:
        candidates = _read(stage, "candidates", shards[index])
        return _paired(stage, candidates, _read(stage, "scores", scores[index]), references)

    for done in stage.shards("pairs", [1] * len(shards), make, unit="shards"):
        committed = store.read_committed(stage.folder, "pairs", done.index)
        prompts, pairs = prompts + pc.count_distinct(committed["prompt_id"]).as_py(), pairs + committed.num_rows
    dropped = store.dropped_rows(stage.folder, "pairs", stage.fingerprint)
    if not pairs:
        raise BadInput(
            f"{stage.title}: none of {dropped.total()} prompts gave a pair ({dict(dropped)}). Raise generate.n or "
            "generate.temperature so that candidates differ, or loosen the limits under `pair`."
        )
    return stage.finish(
        unit="prompts",
        rows_in=prompts + dropped.total(),
        rows_out=prompts,
        dropped=dropped,
        started=started,
        metrics={"pairs": pairs, **replay.write(stage, fresh=pairs)},
    )


def _shards(stage: Stage) -> tuple[list[store.Part], list[store.Part]]:
    """The parts of candidates and scores; each shard of scores is of the same shard of candidates."""
    tables = ("candidates", "scores")
    candidates, scores = (store.parts(stage.inputs[name].folder, name) for name in tables)
    if len(candidates) != len(scores):
        raise CorruptArtifact(
            f"{stage.inputs['scores'].folder}: has {len(scores)} shards for {len(candidates)} of candidates. Make the "
            f"scores again: `pco resume {stage.config.run} --from score --round {stage.round}`."
        )
    return candidates, scores


def _read(stage: Stage, name: str, part: store.Part) -> pa.Table:
    return store.read_part(stage.inputs[name].folder, part)


def _references(stage: Stage) -> References:
    """The references of the user's training prompts, if the strategy uses them."""
    if stage.config.pair.strategy != "reference_worst":
        return {}
    tokenizer = load_tokenizer(policy.verified(stage).folder)
    rows: list[PromptRow] = store.read_table(stage.inputs["prompts"].folder, "prompts").to_pylist()
    references: References = {}
    for row in rows:
        reference = row["reference"]
        if row["split"] == "train" and reference is not None:
            references[row["prompt_id"]] = {
                "prompt_id": row["prompt_id"],
                "sample": REFERENCE,
                "completion": reference,
                "token_ids": written(tokenizer, reference),
            }
    return references


def _paired(stage: Stage, candidates: pa.Table, scores: pa.Table, references: References) -> Shard:
    """The pairs of one shard, and why prompts gave none."""
    config, reasons, pairs = stage.config, Counter[str](), list[Chosen]()
    by_reference = config.pair.strategy == "reference_worst"
    several = config.pair.max_pairs > 1
    rows = _rows(candidates, scores, texts=config.pair.max_similarity < 1 or by_reference or several)
    candidates, reference_of = _with_references(candidates, references)
    for prompt, group in groupby(rows, key=lambda row: row[0]):
        scored = [candidate for _, candidate in group if candidate is not None]
        scored = _distinct(scored) if several else scored
        if by_reference:
            result = pairs_with(reference_of.get(prompt), scored, config.pair)
        else:
            result = pairs_of(scored, config.pair, seed=seed_of(config.seed, stage.round, prompt))
        if isinstance(result, Skipped):
            reasons[result.reason] += 1
        else:
            pairs += result
    return Shard(_table(candidates, pairs), reasons)


def _rows(candidates: pa.Table, scores: pa.Table, *, texts: bool) -> list[tuple[str, Scored | None]]:
    """Prompt and, if it has a score, candidate, in the order of the candidates table; with its text if `texts`."""
    keys = zip(scores["prompt_id"].to_pylist(), scores["sample"].to_pylist(), strict=True)
    rewards = dict(zip(keys, scores["reward"].to_pylist(), strict=True))
    lengths = pc.list_value_length(candidates["token_ids"]).to_pylist()
    completions = candidates["completion"].to_pylist() if texts else repeat("", candidates.num_rows)
    columns = (candidates["prompt_id"].to_pylist(), candidates["sample"].to_pylist(), completions)
    rows = []
    for row, (prompt, sample, text) in enumerate(zip(*columns, strict=True)):
        reward = rewards.get((prompt, sample))
        rows.append((prompt, None if reward is None else Scored(row, reward, lengths[row], text)))
    return rows


def _distinct(candidates: list[Scored]) -> list[Scored]:
    """Without candidates that repeat an earlier one, whose pairs would be the same.

    Where all have the same text, all are returned, so that they count as a tie.
    """
    first = {candidate.text: candidate for candidate in reversed(candidates)}
    if len(first) == 1:
        return candidates
    return [candidate for candidate in candidates if first[candidate.text] is candidate]


def _with_references(candidates: pa.Table, references: References) -> tuple[pa.Table, dict[str, Scored]]:
    """The candidates followed by the references of their prompts, and the references by prompt."""
    if not references:
        return candidates, {}
    prompts = dict.fromkeys(candidates["prompt_id"].to_pylist())
    rows = [references[prompt] for prompt in prompts if prompt in references]
    below = pa.Table.from_pylist(rows, schema=candidates.schema)
    by_prompt = {
        row["prompt_id"]: Scored(candidates.num_rows + i, math.nan, len(row["token_ids"]), row["completion"])
        for i, row in enumerate(rows)
    }
    return pa.concat_tables([candidates, below]), by_prompt


_SIDES = {"": "completion", "_token_ids": "token_ids", "_sample": "sample"}


def _table(candidates: pa.Table, pairs: list[Chosen]) -> pa.Table:
    """The `pairs` rows: columns of the candidates, taken by row."""
    sides = {"chosen": [chosen for chosen, _ in pairs], "rejected": [rejected for _, rejected in pairs]}
    taken = {side: candidates.take(pa.array([text.row for text in texts], pa.int64())) for side, texts in sides.items()}
    # From the rejected text: it is always a candidate, while the chosen one may be a reference.
    columns = {name: taken["rejected"][name] for name in ("prompt_id", "prompt", "prompt_token_ids", "policy")}
    for side, texts in sides.items():
        columns |= {f"{side}{suffix}": taken[side][column] for suffix, column in _SIDES.items()}
        columns[f"{side}_reward"] = pa.array([text.reward for text in texts], pa.float64())
    schema = schemas.SCHEMAS["pairs"]
    return pa.table([columns[name] for name in schema.names], schema=schema)
