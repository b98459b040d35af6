"""Attention maps: the gates of a backbone's attention layers for an image, recorded and drawn."""

from .figure import draw_attention_maps
from .gates import Gate, SeenImage, attention_layers, choose_layers, record_gates

__all__ = ['Gate', 'SeenImage', 'attention_layers', 'choose_layers', 'draw_attention_maps', 'record_gates']
