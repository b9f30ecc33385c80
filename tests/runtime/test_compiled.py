import shutil

import sfb.kernels as kernels
from sfb.runtime.compiled import cache_folder, missing


def test_what_the_cache_holds(tmp_path):
    kernels.load("sync")
    folder = cache_folder()
    assert missing(folder, [("sync", "status")]) == []  # status has no kernels
    assert missing(tmp_path, kernels.STAGES)[0] == "sync"
    for path in folder.glob("sync.*.nbi"):
        shutil.copy(path, tmp_path)
    assert missing(tmp_path, [("sync",)]) == []
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert missing(tmp_path, [("sync",)]) == ["sync"]
