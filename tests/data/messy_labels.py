"""Small files with labels, votes, scores and ranks, each with the table or the refusal that is right."""

from tests.data.messy import BAD, GOOD, OUTPUTS, PAIR, Messy, Q, hh, pairs, said

MESSY_LABELS: dict[str, Messy] = {
    # Labels.
    "preferences of 0, 1 and 2": pairs(
        *[OUTPUTS | {"preference": value} for value in (1, 2, 0)], refused="line 3: `preference` is 0.*--labels first=0"
    ),
    "preferences of 0, 1 and 2 with their meaning": pairs(
        *[OUTPUTS | {"preference": value} for value in (0, 1, 2)],
        table=[PAIR, (Q, BAD, GOOD)],
        dropped={"tie or no preference": 1},
        settings={"coding": {"0": "first", "1": "second", "2": "tie"}},
    ),
    "preferences that are true and false": pairs(
        OUTPUTS | {"preference": True}, refused="`preference` is True.*--labels"
    ),
    "true and false with their meaning": pairs(
        *[OUTPUTS | {"preference": value} for value in (True, False)],
        table=[PAIR, (Q, BAD, GOOD)],
        settings={"coding": {"true": "first", "false": "second"}},
    ),
    "a label that --labels does not name": pairs(
        OUTPUTS | {"preference": 3},
        refused="`preference` is 3, which --labels does not name",
        settings={"coding": {"0": "first"}},
    ),
    "votes of three annotators": pairs(
        *[OUTPUTS | {"a": a, "b": b, "c": c} for a, b, c in ((1, 1, 2), (2, 2, None), (1, 2, 1.5))],
        table=[PAIR, (Q, BAD, GOOD)],
        dropped={"annotators disagree, no majority": 1},
        settings={"names": {"a": "preference", "b": "preference", "c": "preference"}},
    ),
    "a list of votes": pairs(
        OUTPUTS | {"labels": [2, 2, 1]}, table=[(Q, BAD, GOOD)], settings={"names": {"labels": "preference"}}
    ),
    "thumbs of several people": Messy(
        "feedback",
        [
            {"prompt": Q, "completion": GOOD, "a": 1, "b": 1, "c": 0},
            {"prompt": Q, "completion": BAD, "a": 1, "b": 0, "c": None},
        ],
        table=[(Q, GOOD, True)],
        dropped={"annotators disagree, no majority": 1},
        settings={"names": {"a": "good", "b": "good", "c": "good"}},
    ),
    "stars with their meaning": Messy(
        "feedback",
        [{"prompt": Q, "completion": text, "label": stars} for text, stars in ((GOOD, 5), (BAD, 1), ("Hm.", 3))],
        table=[(Q, GOOD, True), (Q, BAD, False)],
        dropped={"tie or no preference": 1},
        settings={"coding": {"5": "good", "1": "bad", "3": "tie"}},
    ),
    "KTO as messages": Messy(
        "feedback",
        [{"messages": said(Q, GOOD), "label": True}, {"messages": said(Q, BAD), "label": False}],
        table=[(Q, GOOD, True), (Q, BAD, False)],
    ),
    "a completion that may repeat its prompt": Messy(
        "feedback",
        [{"prompt": Q, "completion": GOOD, "label": 1}, {"prompt": Q, "completion": f"{Q} {GOOD}", "label": 1}],
        table=[(Q, GOOD, True)],
        dropped={"answers begin with the prompt's words, maybe repeating it": 1},
    ),
    # Scores and ranks.
    "UltraFeedback": pairs(
        {
            "instruction": Q,
            "completions": [
                {"model": "a", "response": BAD, "overall_score": 2.0, "principle": "honesty"},
                {"model": "b", "response": GOOD, "overall_score": 9.0, "principle": "honesty"},
                {"model": "c", "response": "Hm.", "overall_score": None, "principle": "honesty"},
            ],
        },
        table=[PAIR],
    ),
    "Nectar": pairs(
        {
            "prompt": hh(Q, ""),
            "answers": [{"answer": BAD, "model": "a", "rank": 2.0}, {"answer": GOOD, "model": "b", "rank": 1.0}],
        },
        table=[PAIR],
    ),
    "NeMo": pairs(
        {
            "context": said(Q),
            "completions": [{"rank": 0, "completion": said(Q, GOOD)[1:]}, {"rank": 1, "completion": said(Q, BAD)[1:]}],
        },
        table=[PAIR],
    ),
    "all pairs of a ranking": pairs(
        {"prompt": Q, "responses": ["a", "b", "c", "d"], "scores": [1, 3, 3, None]},
        table=[(Q, "b", "a"), (Q, "c", "a")],
        dropped={"tie or no preference": 1},
        settings={"pairs": "all"},
    ),
    "neighbours of a ranking": pairs(
        {"prompt": Q, "responses": ["a", "b", "c"], "ranks": [3, 1, 2]},
        table=[(Q, "b", "c"), (Q, "c", "a")],
        settings={"pairs": "adjacent"},
    ),
    "a list of scores that is too short": pairs(
        {"prompt": Q, "responses": ["a", "b"], "scores": [1]}, refused="`scores` is no list as long as `responses`"
    ),
    "answers without scores": pairs(
        {"prompt": Q, "responses": ["a", "b"]}, refused="fewer than two answers with a score: 1"
    ),
    "answers with two scores": pairs(
        {"prompt": Q, "responses": [{"text": "a", "score": 1, "rank": 2}] * 2}, refused="several scores: score, rank"
    ),
    "HelpSteer": pairs(
        *[{"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": value} for value in (-3, 2, 0)],
        table=[PAIR, (Q, BAD, GOOD)],
        dropped={"tie or no preference": 1},
    ),
    "a strength outside the scale": pairs(
        {"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": 5}, refused="Expected -3"
    ),
}
