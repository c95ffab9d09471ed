"""Batch to outputs: the video transformer, its heads, and their weights. Knows no dataset and no training engine."""

from models.attention import attention_function, eager_attention, scaled_dot_product_attention
from models.cofinetune import CofinetuneModel, create_model
from models.flops import Cost, backbone_cost, flops_per_clip, task_cost
from models.heads import ClassificationHead, LocalisationHead
from models.inflate import init_from_image_vit
from models.load_report import LoadReport
from models.param_rules import layer_index, no_weight_decay
from models.pretrained import backbone_from_checkpoint, init_from_checkpoint
from models.sources import init_backbone, read_source
from models.vit import PRESETS, VideoViT, VideoViTConfig, check_execution, create_backbone
from models.weights import load_model, model_document, save_model, write_model

__all__ = [
    "PRESETS",
    "ClassificationHead",
    "CofinetuneModel",
    "Cost",
    "LoadReport",
    "LocalisationHead",
    "VideoViT",
    "VideoViTConfig",
    "attention_function",
    "backbone_cost",
    "backbone_from_checkpoint",
    "check_execution",
    "create_backbone",
    "create_model",
    "eager_attention",
    "flops_per_clip",
    "init_backbone",
    "init_from_checkpoint",
    "init_from_image_vit",
    "layer_index",
    "load_model",
    "model_document",
    "no_weight_decay",
    "read_source",
    "save_model",
    "scaled_dot_product_attention",
    "task_cost",
    "write_model",
]
