"""Runs the notebooks: percent scripts in, executed notebooks beside them out, with nothing in the outputs that names this machine.

`python -m evals.notebook [NAME...]` (`make notebooks`) asks the house that runs at INHOUSE_HOME and INHOUSE_PORT. Not here: what a
notebook says.
"""

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "notebooks"


def read(script: Path) -> Any:
    """A script's cells as a notebook, with ids that stay the same from run to run."""
    import jupytext

    made = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    made.metadata = {"jupytext": {"formats": "ipynb,py:percent"},
                     "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}  # fmt: skip
    return made


def execute(script: Path, folder: Path, parameters: dict[str, Any], env: dict[str, str]) -> Any:
    """The notebook as it ran top to bottom in a kernel of its own in `folder`, parameters of ours after its own.

    Raises nbclient's `CellExecutionError` where a cell failed.
    """
    from nbclient import NotebookClient

    made = read(script)
    own = next(cell for cell in made.cells if "parameters" in cell.metadata.get("tags", ()))
    source, own.source = own.source, "\n".join([own.source, *(f"{name} = {value!r}" for name, value in parameters.items())])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(made, timeout=600, kernel_name="python3", resources=resources, record_timing=False).execute(env=env)
    own.source = source
    made.metadata.pop("language_info", None)
    return made


def anonymous(made: Any, home: Path) -> Any:
    """The same notebook with paths as seen from the repository. Raises `ValueError` where an output still names this machine."""
    import nbformat

    root = FOLDER.parent.resolve()
    for cell in made.cells:
        if cell.cell_type == "code":
            text = json.dumps(cell.outputs, ensure_ascii=False)
            text = text.replace(str(home.resolve()), ".inhouse").replace(f"{root}/", "")
            for name in (str(root), str(Path.home()) + "/", socket.gethostname()):
                if len(name) > 3 and name in text:
                    raise ValueError(f"an output names this machine (`{name}`); its cell begins: {cell.source[:80]}")
            cell.outputs = [nbformat.from_dict(output) for output in json.loads(text)]
    return made


def runs_of(made: Any) -> list[str]:
    """The MLflow runs that a notebook's last cell says it made."""
    last = [cell for cell in made.cells if cell.cell_type == "code"][-1]
    told = "".join(output.data.get("text/plain", "") for output in last.outputs if "data" in output)
    found = re.search(r"'mlflow': (\[[^]]*\]|'[^']*')", told)
    return re.findall("[0-9a-f]{32}", found[1]) if found else []


def main(names: list[str]) -> None:
    """Executes the notebooks named, or all, in their order, writes each beside its script and keeps it with the MLflow runs it made."""
    import nbformat

    from evals.tracking import attach

    home = Path(os.environ.get("INHOUSE_HOME", FOLDER.parent / ".inhouse")).resolve()
    port = os.environ.get("INHOUSE_PORT", "8000")
    given = {"home": str(home), "base_url": f"http://127.0.0.1:{port}/v1"}
    env = dict(os.environ) | {"PYTHONPATH": str(FOLDER.parent)}
    for script in [FOLDER / f"{name}.py" for name in names] or sorted(FOLDER.glob("[0-9]*.py")):
        made = anonymous(execute(script, FOLDER, given, env), home)
        nbformat.write(made, script.with_suffix(".ipynb"))
        for run in runs_of(made):
            attach(home, run, script.with_suffix(".ipynb"))
        print(f"notebook  {script.stem}")


if __name__ == "__main__":
    main(sys.argv[1:])
