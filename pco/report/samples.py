"""Sample completions: the pairs at both ends of the margin, and how held-out completions changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from data import store
from data.rows import CandidateRow, EvaluationRow, PairRow, PromptRow
from pco.evaluation.metrics import read
from pco.models.sampling import GREEDY
from pco.report.numbers import HeldoutChange, HeldoutChanges, PairStatistics, SamplePair, TracedPair
from pco.runs.traces import Found

SHOWN = 3  # of each kind
_SHOWN_COLUMNS = ["prompt_id", "prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"]

Prompts = Mapping[str, PromptRow]


def statistics(folder: Path, prompts: Prompts) -> PairStatistics:
    """Means over a round's pairs, and the pairs with the largest and the smallest reward margin."""
    table = store.read_table(folder, "pairs")
    rows: list[PairRow] = table.select(_SHOWN_COLUMNS).to_pylist()
    ranked = sorted(rows, key=lambda row: row["rejected_reward"] - row["chosen_reward"])
    # No pair is shown twice.
    largest, smallest = ranked[:SHOWN], ranked[SHOWN:][-SHOWN:][::-1]
    return PairStatistics(
        chosen_reward=fmean(row["chosen_reward"] for row in rows),
        rejected_reward=fmean(row["rejected_reward"] for row in rows),
        chosen_length=fmean(map(len, table.column("chosen_token_ids").to_pylist())),
        rejected_length=fmean(map(len, table.column("rejected_token_ids").to_pylist())),
        largest=[_pair(row, prompts) for row in largest],
        smallest=[_pair(row, prompts) for row in smallest],
    )


def _pair(row: PairRow, prompts: Prompts) -> SamplePair:
    prompt = _as_written(row["prompt_id"], row["prompt"], prompts)
    return SamplePair(prompt, row["chosen"], row["rejected"], row["chosen_reward"], row["rejected_reward"])


def _as_written(prompt_id: str, rendered: str, prompts: Prompts) -> str:
    """The prompt as the user wrote it, where that is known, rather than as rendered for the policy."""
    return prompts[prompt_id]["prompt"] if prompt_id in prompts else rendered


def changes(number: int, before: Path, after: Path, prompts: Prompts, found: Iterable[Found] = ()) -> HeldoutChanges:
    """Compare the greedy completions of two evaluations, prompt by prompt; `number` is the later one's round.

    `found` are the traces of its completions that were made.
    """
    old, new = _greedy(before), _greedy(after)
    traced = {trace.prompt_id: _traced(trace, prompts) for trace in found if trace.mode == GREEDY}
    changed = []
    for prompt_id, completion in old.items():
        if prompt_id in new:
            later = new[prompt_id]
            prompt = _as_written(prompt_id, completion.rendered, prompts)
            sides = (completion.text, later.text, completion.reward, later.reward)
            changed.append(HeldoutChange(prompt, *sides, traced.get(prompt_id, ())))
    ranked = sorted(changed, key=lambda change: -change.gain)
    improved = [change for change in ranked if change.gain > 0]
    worsened = [change for change in reversed(ranked) if change.gain < 0]
    return HeldoutChanges(
        round=number,
        improved=len(improved),
        equal=len(changed) - len(improved) - len(worsened),
        worsened=len(worsened),
        most_improved=improved[:SHOWN],
        most_worsened=worsened[:SHOWN],
    )


def _traced(trace: Found, prompts: Prompts) -> list[TracedPair]:
    """The pairs that raised an answer's log-probability most."""
    shown = [(moved.pair, moved.influence) for moved in trace.raised(SHOWN)]
    return [
        TracedPair(_as_written(pair["prompt_id"], pair["prompt"], prompts), pair["chosen"], pair["rejected"], influence)
        for pair, influence in shown
    ]


@dataclass(frozen=True)
class _Completion:
    """The greedy completion of a prompt."""

    rendered: str
    text: str
    reward: float


def _greedy(folder: Path) -> dict[str, _Completion]:
    """The greedy completions that got a reward, by prompt id."""
    rewards = {row["prompt_id"]: row["value"] for row in read(folder) if _is_greedy_reward(row)}
    table = store.read_table(folder, "candidates").select(["prompt_id", "mode", "prompt", "completion"])
    candidates: list[CandidateRow] = table.to_pylist()
    completions = {}
    for row in candidates:
        if row["mode"] == GREEDY and row["prompt_id"] in rewards:
            completions[row["prompt_id"]] = _Completion(row["prompt"], row["completion"], rewards[row["prompt_id"]])
    return completions


def _is_greedy_reward(row: EvaluationRow) -> bool:
    return row["measure"] == "reward" and row["mode"] == GREEDY
