"""What is read of the processor, where there is something to read."""

import os
import platform

import pytest

from hftl.runtime import cpu as processor

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9B14: 96-Core
flags\t\t: fpu avx2 avx512f avx512_bf16

processor\t: 1
vendor_id\t: GenuineIntel
"""


@pytest.fixture
def told(monkeypatch):
    """Function: what the module answers where Linux tells this."""

    def tell(text):
        def read(path, **kwargs):
            if text is None:
                raise FileNotFoundError(path)
            return text

        monkeypatch.setattr(processor.Path, "read_text", read)
        processor._read_cpuinfo.cache_clear()

    yield tell
    monkeypatch.undo()
    processor._read_cpuinfo.cache_clear()


def test_the_first_processor_speaks_for_all(told):
    told(CPUINFO)
    assert processor.describe_processor() == "AMD EPYC 9B14: 96-Core"
    assert processor.is_made_by("AuthenticAMD") and not processor.is_made_by("GenuineIntel")
    assert processor.has_instructions("avx512_bf16", "amx_bf16") and not processor.has_instructions("avx512")


def test_outside_linux_nothing_is_known(told):
    told(None)
    assert processor.describe_processor() == (platform.processor() or platform.machine())
    assert not processor.is_made_by("AuthenticAMD") and not processor.has_instructions("avx2")


def test_the_users_own_spinning_stays(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is put back
    monkeypatch.delenv("GOMP_SPINCOUNT")
    processor.limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == processor.SPIN_COUNT
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    processor.limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
