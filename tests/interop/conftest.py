"""Files as torch writes them."""

import pytest

from tests.interop import torch_format


@pytest.fixture
def saved(tmp_path):
    """saved(object) -> path of what torch.save would have made of it."""

    def save(tree, name="model.pth", **options):
        return torch_format.save(tmp_path / name, tree, **options)

    return save
