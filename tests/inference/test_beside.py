"""Files beside the weights of a checkpoint: read, absent, damaged."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from xtrimogene.inference.beside import read_beside


def test_a_file_is_read_with_its_metadata_and_a_damaged_one_is_named(tmp_path):
    def read(file, about):
        return file.get_tensor("numbers").tolist(), int(about["cells"])

    assert read_beside(tmp_path, "numbers.safetensors", "numbers", read) is None
    path = tmp_path / "numbers.safetensors"
    save_file({"numbers": np.arange(2)}, path, metadata={"cells": "7"})
    assert read_beside(tmp_path, path.name, "numbers", read) == ([0, 1], 7)
    for arrays, metadata in (({"numbers": np.arange(2)}, None), ({"others": np.arange(2)}, {"cells": "7"})):
        save_file(arrays, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"numbers\.safetensors holds no numbers \(.*\): delete it, or copy the"):
            read_beside(tmp_path, path.name, "numbers", read)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"numbers\.safetensors holds no numbers"):
        read_beside(tmp_path, path.name, "numbers", read)
