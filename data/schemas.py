"""The Parquet tables: what each column is called and holds. `data.rows` has the same rows as Python types.

`prompt_id` is a hash of the prompt's content and `sample` counts the completions of a prompt from 0; together they key
`candidates` and `scores`. Token ids are those that the policy read and sampled, so nothing is tokenised twice.
`policy` and `reward_model` columns hold the digest of the model that made the row.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data.errors import CorruptArtifact

_TOKENS = pa.list_(pa.field("item", pa.int32(), nullable=False))
_COUNTS = _TOKENS
_MESSAGES = pa.list_(
    pa.field(
        "item",
        pa.struct([pa.field(name, pa.string(), nullable=False) for name in ("role", "content")]),
        nullable=False,
    )
)


def _schema(*fields: tuple[str, pa.DataType], nullable: tuple[str, ...] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name in nullable) for name, kind in fields])


_PAIR = (
    ("prompt_id", pa.string()),
    ("prompt", pa.string()),
    ("chosen", pa.string()),
    ("rejected", pa.string()),
    ("prompt_token_ids", _TOKENS),
    ("chosen_token_ids", _TOKENS),
    ("rejected_token_ids", _TOKENS),
    ("chosen_sample", pa.int32()),
    ("rejected_sample", pa.int32()),
    ("chosen_reward", pa.float64()),  # NaN where a reference was chosen, which no reward has seen
    ("rejected_reward", pa.float64()),
    ("policy", pa.string()),
)

SCHEMAS: dict[str, pa.Schema] = {
    "prompts": _schema(
        ("split", pa.string()),  # train, heldout, test, or text: human prose for perplexity
        ("prompt_id", pa.string()),
        ("source_id", pa.string()),  # the id in the user's file
        ("prompt", pa.string()),  # a conversation as a readable dialogue
        ("reference", pa.string()),  # the right answer, if the user's file gives one
        ("messages", _MESSAGES),  # of a conversation; empty where the prompt is a text
        nullable=("source_id", "reference", "messages"),
    ),
    "candidates": _schema(
        ("prompt_id", pa.string()),
        ("mode", pa.string()),  # greedy or sampled
        ("sample", pa.int32()),
        ("prompt", pa.string()),  # as rendered for the policy
        ("prompt_token_ids", _TOKENS),
        ("completion", pa.string()),
        ("token_ids", _TOKENS),
        ("logprob", pa.float64()),  # of the whole completion under the policy, nats
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("policy", pa.string()),
    ),
    "scores": _schema(
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("reward", pa.float64()),
        ("reward_model", pa.string()),
        # The reward of each member of an ensemble, in the order of the config; empty for any other reward.
        ("members", pa.list_(pa.field("item", pa.float64(), nullable=False))),
        nullable=("members",),
    ),
    "pairs": _schema(*_PAIR),
    # Pairs of earlier rounds, and which made each; round 0 are the user's, which no reward has seen.
    "replay": _schema(*_PAIR, ("round", pa.int32()), nullable=("chosen_reward", "rejected_reward")),
    "preferences": _schema(
        *_PAIR,
        ("source_prompt", pa.string()),  # as it is in the user's file; a conversation as a readable dialogue
        ("messages", _MESSAGES),
        nullable=("chosen_reward", "rejected_reward", "source_prompt", "messages"),
    ),
    "feedback": _schema(
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("good", pa.bool_()),
        ("prompt_token_ids", _TOKENS),
        ("token_ids", _TOKENS),
        ("messages", _MESSAGES),
        nullable=("messages",),
    ),
    "reference_logps": _schema(
        ("round", pa.int32()),  # of a replayed pair
        ("prompt_id", pa.string()),
        ("chosen_sample", pa.int32()),
        ("rejected_sample", pa.int32()),
        ("chosen_logp", pa.float64()),  # of the whole completion under the reference policy, nats
        ("rejected_logp", pa.float64()),
        ("policy", pa.string()),
        nullable=("round",),
    ),
    "train_log": _schema(
        ("step", pa.int32()),
        ("epoch", pa.int32()),
        ("pairs", pa.int32()),
        ("feedback", pa.int32()),  # unpaired completions
        ("tokens", pa.int64()),  # completion tokens that the loss reads
        ("loss", pa.float64()),  # as optimised: per completion token, or per pair with `divide_by: pairs`
        ("margin", pa.float64()),  # the rest: means over pairs
        ("gate", pa.float64()),
        ("ce", pa.float64()),
        ("cringe", pa.float64()),
        ("feedback_loss", pa.float64()),  # mean over the unpaired completions
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),  # before clipping
        ("seconds", pa.float64()),
        # Losses without a margin, gate or Cringe term leave those columns empty, as steps without feedback do theirs.
        nullable=("margin", "gate", "ce", "cringe", "feedback_loss"),
    ),
    # Of a reward training: the user's preferences as the reward model reads them.
    "reward_pairs": _schema(
        ("split", pa.string()),  # train or heldout
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_token_ids", _TOKENS),  # prompt and completion
        ("rejected_token_ids", _TOKENS),
        ("chosen_length", pa.int32()),  # tokens of the completion alone
        ("rejected_length", pa.int32()),
        ("margin", pa.float64()),  # by how much chosen is better, in the source's own unit
        ("messages", _MESSAGES),
        nullable=("margin", "messages"),
    ),
    "reward_log": _schema(
        ("step", pa.int32()),
        ("epoch", pa.int32()),
        ("pairs", pa.int32()),
        ("tokens", pa.int64()),  # that the reward model read
        ("loss", pa.float64()),  # per pair, as optimised
        ("accuracy", pa.float64()),  # share of pairs whose chosen text has the higher reward
        ("margin", pa.float64()),  # reward of chosen minus rejected, mean over pairs
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),  # before clipping
        ("seconds", pa.float64()),
    ),
    "reward_tests": _schema(
        ("prompt_id", pa.string()),
        ("reward_chosen", pa.float64()),
        ("reward_rejected", pa.float64()),
        ("length_chosen", pa.int32()),  # tokens of the completion alone
        ("length_rejected", pa.int32()),
        ("reward_model", pa.string()),
    ),
    "evaluations": _schema(
        ("measure", pa.string()),
        ("mode", pa.string()),  # greedy, sampled or text
        ("prompt_id", pa.string()),  # empty for a measure of all completions together
        ("sample", pa.int32()),
        ("value", pa.float64()),
        ("policy", pa.string()),
        nullable=("prompt_id", "sample"),
    ),
    "decisions": _schema(
        ("round", pa.int32()),
        ("rule", pa.string()),
        ("value", pa.float64()),
        ("bound", pa.string()),
        ("passed", pa.bool_()),
        ("reason", pa.string()),
        ("promoted", pa.bool_()),  # the round's decision, the same in every row
        ("low", pa.float64()),  # the interval of `value`, where it has one
        ("high", pa.float64()),
        ("doubt", pa.string()),  # where mean and interval say different things: how many prompts would decide
        nullable=("low", "high", "doubt"),
    ),
    # Of a public benchmark of reward models: a row per answer, the right ones of a prompt first.
    "reward_benchmark": _schema(
        ("item", pa.int32()),  # a prompt, by its place among all
        ("source_id", pa.string()),  # the id in the file
        ("subset", pa.string()),
        ("tie", pa.string()),  # of RewardBench 2's Ties: ref or tied
        ("tie_number", pa.int32()),
        ("correct", pa.bool_()),
        ("length", pa.int32()),  # in characters
        ("reward", pa.float64()),  # of a judge: the share of the win over the right answer, whose own is a half
        ("as_first", pa.float64()),  # of a judge: that share where the answer came first,
        ("as_second", pa.float64()),  # and where it came second
        ("reward_model", pa.string()),
        nullable=("source_id", "tie", "tie_number", "as_first", "as_second"),
    ),
    # A judge's word on a policy's greedy completions against another's answers, a row per prompt.
    "judgements": _schema(
        ("prompt_id", pa.string()),
        ("win", pa.float64()),  # the policy's share of it, 0 to 1
        ("as_first", pa.float64()),  # where its answer came first; empty of imported annotations
        ("as_second", pa.float64()),
        ("length", pa.int32()),  # in characters
        ("other_length", pa.int32()),
        ("style", _COUNTS),  # headers, list items and bold passages of Markdown
        ("other_style", _COUNTS),
        nullable=("as_first", "as_second"),
    ),
    # The best policy against the starting one on the test prompts, a row per metric.
    "tests": _schema(
        ("metric", pa.string()),
        ("prompts", pa.int32()),  # that both policies answered; 0 for a metric of all completions together
        ("start", pa.float64()),
        ("best", pa.float64()),
        ("difference", pa.float64()),  # best minus start; of wins against the start, the share less a half
        ("low", pa.float64()),  # the 95 % interval of the difference, where it has one
        ("high", pa.float64()),
        nullable=("low", "high"),
    ),
    # Of a trace: by how much the pairs of a training moved the log-probability of one answer (docs/evaluation.md).
    "influence": _schema(
        ("round", pa.int32()),  # of a replayed pair
        ("prompt_id", pa.string()),
        ("chosen_sample", pa.int32()),
        ("rejected_sample", pa.int32()),
        ("influence", pa.float64()),  # nats, to first order under plain gradient descent; above 0 it was raised
        nullable=("round",),
    ),
    # Of a study: each measure of each evaluated round of each run, and what the round cost.
    "study_results": _schema(
        ("study", pa.string()),
        ("variant", pa.string()),
        ("seed", pa.int64()),
        ("run", pa.string()),
        ("round", pa.int32()),  # 0 is the starting policy
        ("measure", pa.string()),
        ("value", pa.float64()),  # as the run's own report has it
        ("promoted", pa.bool_()),  # by the gate; empty for the start and an undecided round
        ("kept", pa.bool_()),  # whether the run's best policy is this round's
        ("tokens_sampled", pa.int64()),  # of the round's candidates for training; the rest are of the round, too
        ("tokens_trained", pa.int64()),  # completion tokens, once for each epoch
        ("seconds", pa.float64()),  # of all its stages, those that are shared with another run included
        ("judge_requests", pa.int64()),  # to a judge; empty without one
        nullable=("promoted", "judge_requests"),
    ),
    # Of a study: where each run stands.
    "study_runs": _schema(
        ("study", pa.string()),
        ("variant", pa.string()),
        ("seed", pa.int64()),
        ("run", pa.string()),
        ("state", pa.string()),  # finished, refused by the gate, failed, unfinished, ...
        ("note", pa.string()),  # why it failed
        ("decided", pa.int32()),  # rounds
        ("kept", pa.int32()),  # the round whose policy was promoted last; 0: the starting policy
        ("made", pa.int32()),  # stages that it made itself
        ("shared", pa.int32()),  # stages that it shares with an earlier run
    ),
}


# What `pco data import` writes: files of the user's, not of a run.
IMPORTED: dict[str, pa.Schema] = {
    "prompts": _schema(
        ("prompt_id", pa.string()),
        ("source_id", pa.string()),  # the id in the source
        ("prompt", pa.string()),  # a conversation as a readable dialogue
        ("messages", _MESSAGES),  # of a conversation; empty where the prompt is a text
        ("reference", pa.string()),  # the right answer, if the source gives one
        nullable=("source_id", "messages", "reference"),
    ),
    "preferences": _schema(
        ("prompt_id", pa.string()),
        ("source_id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("margin", pa.float64()),  # by how much chosen is better, in the source's own unit
        ("chosen_generator", pa.string()),  # the model that wrote it
        ("rejected_generator", pa.string()),
        ("messages", _MESSAGES),
        nullable=("source_id", "margin", "chosen_generator", "rejected_generator", "messages"),
    ),
    "feedback": _schema(
        ("prompt_id", pa.string()),
        ("source_id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("good", pa.bool_()),
        ("messages", _MESSAGES),
        nullable=("source_id", "messages"),
    ),
}


# Columns that were added to a table later. In a file that was written before, they are empty.
_ADDED = {
    "prompts": ("reference", "messages"),
    "scores": ("members",),
    "preferences": ("source_prompt", "messages"),
    "feedback": ("messages",),
    "reward_pairs": ("messages",),
    "decisions": ("low", "high", "doubt"),
}


def completed(table: str, content: pa.Table) -> pa.Table:
    """A table as read, with the columns that were not there yet when it was written."""
    for name in _ADDED.get(table, ()):
        if name not in content.column_names:
            field = SCHEMAS[table].field(name)
            content = content.append_column(field, pa.nulls(content.num_rows, field.type))
    return content


def build(table: str, rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Rows as a table of the named schema, checked."""
    content = pa.Table.from_pylist(list(rows), schema=SCHEMAS[table])
    check(table, content, where="rows to be written")
    return content


def check(table: str, content: pa.Table, *, where: str) -> None:
    """Check `content` against the named schema, nulls included (pyarrow itself lets nulls into non-nullable fields).

    Raises CorruptArtifact naming `where`, the column, and what was expected.
    """
    expected = SCHEMAS[table]
    if not content.schema.equals(expected):
        raise CorruptArtifact(
            f"{where}: not a `{table}` table. Expected columns {_brief(expected)}; found {_brief(content.schema)}. "
            "It was written by another version or by hand; move it away and resume the run to make it again."
        )
    for field in expected:
        column = content.column(field.name)
        nulls = 0 if field.nullable else column.null_count
        if pa.types.is_list(field.type):
            nulls += pc.list_flatten(column).null_count
        if nulls:
            raise CorruptArtifact(
                f"{where}: column `{field.name}` of `{table}` has {nulls} empty value(s); it allows none."
            )


def _brief(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
