"""Weight files from a mirror: fetched once for all processes of a machine."""

from concurrent.futures import ThreadPoolExecutor

import torch

from inpaint import weights
from tests.faulty_s3 import shared_server


def test_ranks_that_begin_together_fetch_a_mirrored_file_once(tmp_path, monkeypatch):
    server = shared_server().forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    torch.save({"weight": torch.arange(4.0)}, tmp_path / "vgg.pth")
    server.objects["mirror/vgg.pth"] = (tmp_path / "vgg.pth").read_bytes()

    with ThreadPoolExecutor(6) as ranks:
        loaded = list(ranks.map(lambda _: weights.load("vgg19", "s3://lab/mirror/vgg.pth"), range(6)))

    assert all(torch.equal(state["weight"], torch.arange(4.0)) for state in loaded)
    assert server.count("GET", "mirror/vgg.pth") == 1
