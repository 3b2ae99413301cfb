"""Numbers are read in one place: what is checked is what is used."""

from __future__ import annotations

import pytest

from nas_mnist.core.cli import real, size, whole
from nas_mnist.core.errors import InputError
from nas_mnist.core.process_pool import MAX_WORKERS, parse_workers, threads_per_process


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("20000", 20_000), ("20,000", 20_000), ("20_000", 20_000), ("20k", 20_000), ("0.5K", 500)),
        *(("2M", 2_000_000), ("1,234,567", 1_234_567), ("000000064", 64), ("0" * 5_000 + "7", 7), ("0", 0)),
    ],
)
def test_whole_numbers_may_have_separators_a_factor_and_leading_zeros(text: str, number: int) -> None:
    assert whole(0, 10**9)(text) == number
    assert real(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("32KB", 32_768), ("1.5kb", 1_536), ("1 MB", 1_048_576), ("16384", 16_384), ("100B", 100)),
        *(("20,000", 20_000), ("20_000", 20_000), ("1,024KB", 1_048_576), ("1_024 kB", 1_048_576)),
    ],
)
def test_sizes_take_units_of_1024_bytes_and_separators(text: str, number: int) -> None:
    assert size(1, 10**9)(text) == number


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "k",
            ".",
            "-1",
            "+1",
            "1.5",
            "1,00",
            "1,0000",
            "10_00",
            "1,000_000",
            ",1",
            "1__000",
            "1k5",
            "20.000",
        ),
        *("0.0001k", "1e3", "0x10", " 1", "1 ", "٣", "½", "nan", "inf", "9" * 5_000, "1000000001"),
    ],
)
def test_other_texts_are_no_whole_numbers(text: str) -> None:
    with pytest.raises(Exception, match="use a whole number from 0 to 1,000,000,000"):
        whole(0, 10**9)(text)


@pytest.mark.parametrize("text", ["000000001234", "1,234", "1.234k", "65", "0" * 30, "1" * 12])
def test_the_number_of_workers_is_checked_as_it_is_used(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=f"use 'auto' or 1 to {MAX_WORKERS}"):
        parse_workers(text)
    assert parse_workers("00000000064") == 64
    monkeypatch.setattr("nas_mnist.core.process_pool.available_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "0000000000003")
    assert threads_per_process(1) == 3


def test_percentages_are_rounded_before_they_are_checked() -> None:
    assert real("99.99999999999999999999") == 100.0  # `SearchConfig` refuses it
    assert (real("99.4"), real(".5")) == (99.4, 0.5)
