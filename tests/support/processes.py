"""Finding the processes that belong to a data folder."""

from pathlib import Path

import psutil


def processes_of(folder: Path) -> list[str]:
    """The processes that work in a folder, name it in their arguments, or have it as their data folder."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()).is_relative_to(folder)
            named = any(str(folder) in argument for argument in process.cmdline())
            given = process.environ().get("NIGHTCOURT_DATA_DIR") == str(folder)
            if (inside or named or given) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue
    return found
