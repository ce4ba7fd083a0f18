"""`lrm --help` lists every command once, in the order of work."""

from typer.main import get_command
from typer.testing import CliRunner

from lrm_ext.cli import PANELS, app

ORDER = [
    "Languages and data",
    "Translation",
    "Training",
    "Measuring",
    "Showing",
    "Serving",
    "Developer tools",
]


def test_panels_are_in_the_order_of_work():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    places = [result.output.index(f"─ {panel} ─") for panel in ORDER]
    assert places == sorted(places)
    assert "─ Commands ─" not in result.output
    listed = [line.split()[1] for line in result.output.splitlines() if line.startswith("│ ")]
    expected = [name for panel in ORDER for name in PANELS[panel]]
    assert [word for word in listed if word in expected] == expected


def test_every_command_has_a_panel():
    listed = [name for panel in PANELS.values() for name in panel]
    assert sorted(listed) == sorted(get_command(app).commands)
