"""Reading a calibration file."""

from pathlib import Path

from pydantic import ValidationError

from schemas.calibration import Calibration
from schemas.problems import first_error


def read_calibration(file: Path) -> Calibration:
    """Read what `nightcourt eval calibrate` wrote.

    Raises:
        ValueError: there is no such file, or it is none; the message says so and what to do.
    """
    try:
        return Calibration.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        where, message = first_error(error)
        raise ValueError(
            f"{file} is no calibration file ({where or 'file'}: {message}); `nightcourt eval calibrate` writes one"
        ) from None
