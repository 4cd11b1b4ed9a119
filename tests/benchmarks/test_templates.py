from pathlib import Path
from typing import Any

from benchmarks.templates import main
from tests.content import traits


def test_a_row_for_each_template_says_how_answers_were_found(tmp_path: Path, capsys: Any) -> None:
    files = {
        "appends": traits.CHAT_TEMPLATE,
        "marks": traits.MASKED,
        "opens": traits.OPENS_REASONING,
        "refuses": "{{ raise_exception('nothing goes') }}",
    }
    for name, template in files.items():
        (tmp_path / f"{name}.jinja").write_text(template, encoding="utf-8")
    main(tmp_path)
    rows = [[cell.strip() for cell in line.split(" | ")] for line in capsys.readouterr().out.splitlines()[2:]]
    told = {row[0].strip("| "): row[1:7] for row in rows}
    assert list(told) == sorted(files)
    assert told["appends"] == ["diff"] * 5 + ["not written"]
    assert told["marks"][:5] == ["mask"] * 5
    assert told["opens"][:5] == ["sentinel", "sentinel (2)", "sentinel", "sentinel (2)", "sentinel (2)"]
    assert told["refuses"][0] == "refused: nothing goes"
