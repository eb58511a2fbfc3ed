"""The tables of a report: cells of text that HTML and Markdown render alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pco.evaluation import lm_eval_tasks
from pco.report import wording
from pco.report.cells import Cell, Column, Table, Tone
from pco.report.numbers import RoundReport, RunReport

Kind = Literal["share", "win", "plain", "relative"]


@dataclass(frozen=True)
class _Measure:
    """How one measure of an evaluation is shown; `better` is +1 if more is better, -1 if less is, 0 if neither."""

    key: str
    label: str
    meaning: str
    kind: Kind
    better: int


_MEASURES = (
    _Measure("reward", "Reward", "mean over greedy and sampled completions; higher is better", "plain", 1),
    _Measure("repetition/greedy", "Repetition, greedy", "share of repeated 3-grams of tokens", "share", -1),
    _Measure("repetition/sampled", "Repetition, sampled", "the same at the sampling temperature", "share", -1),
    _Measure("win_vs_previous", "Wins against the previous", "share with more reward; ties half", "win", 1),
    _Measure("win_vs_start", "Wins against the start", "the same against the starting policy", "win", 1),
    _Measure("lc_win_vs_start", "Wins at equal length", "against the start, were both as long", "win", 1),
    _Measure("win_vs_reference", "Wins against the references", "share with more reward than the reference", "win", 1),
    _Measure("second_reward", "Second reward", "of one that makes no labels; higher is better", "plain", 1),
    _Measure("second_win_vs_start", "Second wins", "against the start, by the second reward", "win", 1),
    _Measure("f1", "F1", "words in common with the prompt's reference", "share", 1),
    _Measure("distinct_2", "Distinct 2-grams", "share of token 2-grams that are different ones", "share", 1),
    _Measure("entropy", "Entropy", "nats per sampled token; near 0 all samples are alike", "plain", 0),
    _Measure("kl", "KL from the start", "nats per token, on what the start sampled", "plain", 0),
    _Measure("length", "Length (tokens)", "mean per completion", "relative", 0),
    _Measure("perplexity", "Perplexity", "on human text; a sharp rise tells of a degenerate policy", "relative", -1),
)

_HEADLINES = ("repetition/greedy", "win_vs_start", "perplexity", "length")


def measures(report: RunReport, shown: Sequence[RoundReport] | None = None) -> Table:
    """A row per measure, a column per evaluated policy, each with its change against the start."""
    rounds = [one for one in shown or report.rounds if one.summary is not None]
    return Table(
        "Held-out prompts, which no training sees. Small print: change against the start "
        "(pp: percentage points; for wins: against 50 %).",
        [Column("Measure", number=False), *(_round_column(report, one) for one in rounds)],
        [
            [Cell(measure.label, measure.meaning), *(_measured(measure, one, report.start) for one in rounds)]
            for measure in (*_MEASURES, *_tasks(report))
            if any(measure.key in (one.summary or {}) for one in rounds)
        ],
    )


def _tasks(report: RunReport) -> list[_Measure]:
    names = report.config.evaluate.tasks
    return [
        _Measure(lm_eval_tasks.measure(name), f"Task {name}", "by lm-eval, its first metric", "plain", 1)
        for name in names
    ]


def headlines(report: RunReport) -> list[tuple[str, Cell]]:
    """The few measures that stand at the top: from the starting policy to the one kept last."""
    start, subject = report.start, report.subject
    if subject is None or subject.summary is None or start.summary is None:
        return []
    return [
        (measure.label, _from_start(measure, subject, start))
        for measure in _MEASURES
        if measure.key in _HEADLINES and measure.key in subject.summary
    ]


def _from_start(measure: _Measure, subject: RoundReport, start: RoundReport) -> Cell:
    cell = _measured(measure, subject, start)
    before = _measured(measure, start, start).text
    return cell if before == wording.ABSENT else Cell(f"{before} → {cell.text}", cell.note, cell.tone)


def _round_column(report: RunReport, one: RoundReport) -> Column:
    if not one.number:
        return Column("Start", "the policy before any training")
    status = wording.status(report, one.number)
    return Column(f"Round {one.number}" + ("" if status == "promoted" else f" ({status})"), f"this policy: {status}")


def _measured(measure: _Measure, one: RoundReport, start: RoundReport) -> Cell:
    value = (one.summary or {}).get(measure.key)
    if value is None:
        return Cell(wording.ABSENT)
    text = _as_text(measure, value)
    then = 0.5 if measure.kind == "win" else (start.summary or {}).get(measure.key)
    if not one.number or then is None:
        return Cell(text)
    change = _change(measure, value, then)
    return Cell(text, _arrowed(change), _tone(measure, change))


def _as_text(measure: _Measure, value: float) -> str:
    match measure.kind:
        case "share" | "win":
            return wording.percent(value)
        case "plain":
            return wording.decimal(value)
        case "relative":
            return wording.decimal(value, 1)


def _change(measure: _Measure, now: float, then: float) -> str:
    match measure.kind:
        case "share" | "win":
            return wording.points(now - then)
        case "plain":
            return wording.signed(now - then)
        case "relative":
            return wording.relative(now, then)


def _arrowed(change: str) -> str:
    return change.replace("+", "▲ ").replace("−", "▼ ")


def _tone(measure: _Measure, change: str) -> Tone:
    """Whether a change is welcome; what rounds to none is neither."""
    direction = {"+": 1, "−": -1}.get(change[0], 0) * measure.better
    return "good" if direction > 0 else "bad" if direction < 0 else ""


def gate(report: RunReport, shown: Sequence[RoundReport] | None = None) -> Table:
    """Every rule of the gate in every decided round."""
    return Table(
        "A round's policy is promoted when every rule passes. The previous policy is the best one before the round, "
        "the start the one that the run began with. Brackets hold intervals over prompts, of 95 % where a rule demands "
        "none.",
        [
            Column("Round"),
            Column("Rule", number=False),
            Column("Value"),
            Column("Bound", "what the value must be", number=False),
            Column("Verdict", number=False),
            Column("Reason", number=False),
        ],
        [
            [
                Cell(str(one.number)),
                Cell(ruling.rule),
                Cell(f"{ruling.value:.4g}".replace("-", "−")),
                Cell(ruling.bound),
                Cell("✓ passed" if ruling.passed else "✗ failed", tone="good" if ruling.passed else "bad"),
                Cell(ruling.reason),
            ]
            for one in shown or report.rounds
            if one.decision is not None
            for ruling in one.decision.rulings
        ],
    )


def funnel(report: RunReport, shown: Sequence[RoundReport] | None = None) -> Table:
    """From training prompts to the pairs trained on, a row per round."""
    rounds = [one for one in shown or report.rounds if one.funnel is not None]
    return Table(
        "From training prompts to the pairs trained on. A prompt's best completion is paired against its worst, or as "
        "pair.strategy says. What is left out is counted by reason.",
        [
            Column("Round"),
            Column("Prompts", "training prompts of the run"),
            Column("Candidates", "sampled completions"),
            Column("Scored", "candidates with a finite reward"),
            Column("Pairs", "prompts that gave a pair, and their share of all"),
            Column("Trained on", "pairs, replayed ones included, that fit into train.max_pair_tokens"),
            Column("Dropped, by reason", number=False),
        ],
        [_funnel_row(report, one) for one in rounds],
    )


def _funnel_row(report: RunReport, one: RoundReport) -> list[Cell]:
    found = one.funnel
    assert found is not None
    dropped = [f"{wording.count(number)} {unit}: {reason}" for (_, unit, reason), number in found.dropped.items()]
    share = wording.percent(found.pairs / found.prompts) if found.pairs is not None and found.prompts else ""
    return [
        Cell(str(one.number)),
        Cell(wording.count(report.train_prompts)),
        Cell(wording.count(found.candidates)),
        Cell(wording.count(found.scored)),
        Cell(wording.count(found.pairs), share),
        Cell(wording.count(found.trained)),
        Cell("; ".join(dropped) or "nothing"),
    ]


def pairs(report: RunReport, shown: Sequence[RoundReport] | None = None) -> Table:
    """Chosen against rejected, a row per round."""
    rounds = [(one, one.pairs) for one in shown or report.rounds if one.pairs is not None]
    return Table(
        "Means over a round's pairs. Chosen and rejected should differ in reward and not in length: "
        "training on a length gap teaches length.",
        [
            Column("Round"),
            Column("Chosen reward"),
            Column("Rejected reward"),
            Column("Margin", "chosen minus rejected reward"),
            Column("Chosen length (tokens)"),
            Column("Rejected length (tokens)"),
        ],
        [
            [
                Cell(str(one.number)),
                Cell(wording.decimal(found.chosen_reward)),
                Cell(wording.decimal(found.rejected_reward)),
                Cell(wording.decimal(found.chosen_reward - found.rejected_reward)),
                Cell(wording.decimal(found.chosen_length, 1)),
                Cell(wording.decimal(found.rejected_length, 1)),
            ]
            for one, found in rounds
        ],
    )
