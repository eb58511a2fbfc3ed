"""The report as one self-contained HTML page."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from data.visible import visible
from pco.report import plots, run_tables, tables, wording
from pco.report.numbers import HeldoutChange, RunReport, SamplePair, TracedPair

_TEXT_LIMIT = 1500  # characters of a prompt or completion
_TONES = {"finished": "good", "refused": "bad", "unfinished": "open"}


@dataclass(frozen=True)
class _Side:
    """One of two completions side by side."""

    label: str
    reward: str
    text: str


@dataclass(frozen=True)
class _Comparison:
    """A prompt and two completions of it; of the second, the training pairs that it was traced to."""

    prompt: str
    change: str
    sides: tuple[_Side, _Side]
    traced: tuple[tuple[str, tuple[_Side, ...]], ...] = ()


def template(name: str) -> Template:
    """A page's template. The template engine escapes what comes from outside; only plots are markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = _svg
    return environment.get_template(name)


def render(report: RunReport) -> str:
    """The page's HTML."""
    return template("template.html").render(
        report=report,
        headline=wording.headline(report),
        model=_model_name(report.config.policy.model),
        tone=_TONES[report.outcome],
        when=f"{wording.moment(report.timings.began)} to {wording.moment(report.timings.ended)}",
        tiles=[*tables.headlines(report), ("Wall clock", run_tables.total_time(report))],
        tables=tables,
        run_tables=run_tables,
        plots=plots,
        decisions=[wording.decision(report, entry.number) for entry in report.rounds if entry.decision is not None],
        pair_samples=_pair_samples(report),
        heldout=_heldout(report),
        config=yaml.safe_dump(report.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )


def _model_name(model: str) -> str:
    """A hub id, or the name of a local folder without the path to it."""
    return Path(model).name if Path(model).is_absolute() else model


def _svg(plot: plots.Plot) -> Markup:
    # Drawn here from numbers alone, so it needs no escaping.
    return Markup(plot.svg)  # noqa: S704


def _pair_samples(report: RunReport) -> list[tuple[str, list[tuple[str, list[_Comparison]]]]]:
    """By round: the pairs at both ends of the reward margin."""
    rounds = [(entry.name.capitalize(), entry.pairs) for entry in reversed(report.rounds) if entry.pairs is not None]
    return [
        (
            name,
            [
                ("Largest margin", [_pair(pair) for pair in pairs.largest]),
                ("Smallest margin", [_pair(pair) for pair in pairs.smallest]),
            ],
        )
        for name, pairs in rounds
    ]


def _pair(pair: SamplePair) -> _Comparison:
    chosen = _side("Chosen", pair.chosen_reward, pair.chosen)
    rejected = _side("Rejected", pair.rejected_reward, pair.rejected)
    return _Comparison(_shown(pair.prompt), f"margin {wording.decimal(pair.margin)}", (chosen, rejected))


def _side(label: str, reward: float, text: str) -> _Side:
    return _Side(label, f"reward {wording.decimal(reward)}", _shown(text))


def _shown(text: str) -> str:
    return wording.clipped(visible(text).strip(), _TEXT_LIMIT)


@dataclass(frozen=True)
class _Heldout:
    """How greedy completions of held-out prompts changed, in words and samples."""

    summary: str
    groups: list[tuple[str, list[_Comparison]]]


def _heldout(report: RunReport) -> _Heldout | None:
    changes = report.changes
    if changes is None:
        return None
    status = wording.status(report, changes.round)
    summary = (
        f"Greedy completions of the starting policy and of round {changes.round}'s ({status}), by reward: "
        f"{wording.count(changes.improved)} prompts improved, {wording.count(changes.equal)} stayed equal, "
        f"{wording.count(changes.worsened)} worsened."
    )
    labels = ("Start", f"Round {changes.round}")
    return _Heldout(
        summary,
        [
            ("Improved most", side_by_side(changes.most_improved, labels)),
            ("Worsened most", side_by_side(changes.most_worsened, labels)),
        ],
    )


def side_by_side(shown: list[HeldoutChange], labels: tuple[str, str]) -> list[_Comparison]:
    """The completions of two policies, with the label of each."""
    return [
        _Comparison(
            _shown(change.prompt),
            f"change {wording.signed(change.gain)}",
            (
                _side(labels[0], change.before_reward, change.before),
                _side(labels[1], change.after_reward, change.after),
            ),
            tuple(_traced(pair) for pair in change.traced),
        )
        for change in shown
    ]


def _traced(pair: TracedPair) -> tuple[str, tuple[_Side, ...]]:
    texts = {"Prompt": pair.prompt, "Chosen": pair.chosen, "Rejected": pair.rejected}
    return wording.nats(pair.influence), tuple(_Side(label, "", _shown(text)) for label, text in texts.items())
