"""What the tests of others' checkpoints share."""

import json

import torch

from models import backbone_from_checkpoint
from tests.models.hf import clips_for, tokens_of


def check_tokens(path, model, **options):
    """The backbone at `path` gives the tokens of `model`; the backbone."""
    backbone = backbone_from_checkpoint(path, **options).eval()
    clips = clips_for(model)
    with torch.no_grad():
        tokens = backbone(clips)
    torch.testing.assert_close(tokens, tokens_of(model, clips), atol=1e-4, rtol=0)
    return backbone


SQUARE = {"image_size": 32, "layer_norm_eps": 1e-6}


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
