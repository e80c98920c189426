"""A certificate that clients would refuse is found before it is served."""

from pathlib import Path

import pytest

from serving.certificate import CertificateError, read_end
from tests.certificates import write_certificate


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "tls.crt", tmp_path / "tls.key"


def test_a_valid_certificate_says_when_it_ends(pair: tuple[Path, Path]) -> None:
    end = write_certificate(*pair, last_day=20)
    assert read_end(*pair) == end.timestamp()


@pytest.mark.parametrize(
    ("first_day", "last_day", "words"),
    [(-2, -0.001, "certificate has expired"), (0.5, 2, "certificate is not yet valid")],
)
def test_one_that_is_not_valid_now_is_refused(
    first_day: float, last_day: float, words: str, pair: tuple[Path, Path]
) -> None:
    write_certificate(*pair, first_day=first_day, last_day=last_day)
    with pytest.raises(CertificateError, match=rf"tls\.crt: {words}; renew it, or look at the clock"):
        read_end(*pair)


def test_the_key_of_another_certificate_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_certificate(*pair)
    write_certificate(pair[0], tmp_path / "other")
    with pytest.raises(CertificateError, match="KEY_VALUES_MISMATCH"):
        read_end(*pair)


def test_a_file_that_is_no_certificate_is_refused(pair: tuple[Path, Path]) -> None:
    write_certificate(*pair)
    pair[0].write_text("no certificate")
    with pytest.raises(CertificateError, match=r"tls\.crt and its key"):
        read_end(*pair)
