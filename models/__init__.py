"""Batch to outputs: the video transformer, its heads, and their weights. Knows no dataset and no training engine."""

from models.attention import eager_attention, scaled_dot_product_attention
from models.cofinetune import CofinetuneModel, create_model
from models.heads import ClassificationHead, LocalisationHead
from models.inflate import init_from_image_vit
from models.load_report import LoadReport
from models.param_rules import layer_index, no_weight_decay
from models.pretrained import backbone_from_checkpoint, init_from_checkpoint
from models.sources import init_backbone, read_source
from models.vit import PRESETS, VideoViT, VideoViTConfig, create_backbone, flops_per_clip
from models.weights import load_model, save_model

__all__ = [
    "PRESETS",
    "ClassificationHead",
    "CofinetuneModel",
    "LoadReport",
    "LocalisationHead",
    "VideoViT",
    "VideoViTConfig",
    "backbone_from_checkpoint",
    "create_backbone",
    "create_model",
    "eager_attention",
    "flops_per_clip",
    "init_backbone",
    "init_from_checkpoint",
    "init_from_image_vit",
    "layer_index",
    "load_model",
    "no_weight_decay",
    "read_source",
    "save_model",
    "scaled_dot_product_attention",
]
