"""The pages of the project agree with each other and with the tree: links, anchors, the form of decision pages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "docker/**/*.md") for path in ROOT.glob(pattern))
DECISIONS = ROOT / "docs" / "decisions"
DECISION_PAGES = sorted(DECISIONS.glob("[0-9]*.md"))

_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def named(path: Path) -> str:
    """The path of a page as a test's name."""
    return path.relative_to(ROOT).as_posix()


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere: no such file, or no such heading in it."""
    links = _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8")))
    return [link for link in links if "://" not in link and not leads_somewhere(page, link)]


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether the file of a relative link is there, with the heading that the link names."""
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not anchor:
        return target.exists()
    return target.is_file() and anchor in anchors(target)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page, for headings that occur once."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("link", ["nowhere.md", "#nowhere", "page.md#nowhere", "nowhere.md#a-heading"])
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, link: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A heading\n[a](page.md) [b](#a-heading) [c]({link}) `[d](code.md)`\n", encoding="utf-8")
    assert broken_links(page) == [link]


@pytest.mark.parametrize("page", DECISION_PAGES, ids=named)
def test_a_decision_page_has_its_number_and_its_four_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(page.name[:4])}. ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Status", "Context", "Decision", "Consequences"]
    assert re.search(r"^## Status\n\n(Accepted|Superseded), \d{4}-\d\d-\d\d[.,]", text, re.MULTILINE)


def test_the_index_of_decisions_lists_each_page_once_under_its_title_and_status() -> None:
    rows = re.findall(r"^\| (\d+) \| \[(.+)\]\((.+)\) \| (\w+) \|", (DECISIONS / "README.md").read_text("utf-8"), re.M)
    assert rows == [index_row(page) for page in DECISION_PAGES]


def index_row(page: Path) -> tuple[str, str, str, str]:
    """Number, title, file and status of a decision page."""
    text = page.read_text(encoding="utf-8")
    number, title = text.partition("\n")[0].removeprefix("# ").split(". ", 1)
    status = text.partition("## Status\n\n")[2].partition(",")[0]
    return number, title, page.name, status.lower()


def test_no_two_decisions_have_the_same_number() -> None:
    numbers = [page.name[:4] for page in DECISION_PAGES]
    assert len(numbers) == len(set(numbers))
