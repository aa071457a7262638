"""A folder of files that may go: within its bytes, what was used last stays."""

import os

from calift_core.files.disk_cache import DiskCache


def test_disk_cache__stays_within_its_bytes_and_keeps_what_was_used_last(tmp_path):
    kept = DiskCache(tmp_path / "kept", 10_000)
    for k in range(60):
        kept.put(f"{k:064x}", bytes(500))
        assert sum(p.stat().st_size for p in tmp_path.glob("*/*/*")) <= 10_000
        for age, path in enumerate(sorted(tmp_path.glob("*/*/*"))):
            os.utime(path, (age, age))
        assert kept.get(f"{0:064x}") is not None
    assert kept.get(f"{59:064x}") == bytes(500)
    assert kept.get(f"{1:064x}") is None


def test_disk_cache__of_no_bytes_keeps_nothing(tmp_path):
    kept = DiskCache(tmp_path / "kept", 0)
    kept.put("00", b"x")
    assert kept.get("00") is None
    (tmp_path / "file").touch()
    DiskCache(tmp_path / "file", 10).put("00", b"x")  # where nothing can be written nothing is kept
