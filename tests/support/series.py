"""Reading the numbers of a process, as Prometheus would."""

from prometheus_client.parser import text_string_to_metric_families

from infra.meters import Meters

Series = dict[tuple[str, tuple[str, ...]], float]
"""Values by the name of the series and the values of its labels, these in the order of their names."""


def read_series(text: str) -> Series:
    """Everything in a text of Prometheus' format."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def series(meters: Meters) -> Series:
    """Everything that is read of some meters."""
    return read_series(meters.text().decode())
