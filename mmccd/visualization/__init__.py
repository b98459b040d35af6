"""Looking into a network: what its attention layers do to a picture."""
from .gates import Gate, SeenPicture, attention_layers, choose_layers, record_gates
from .inference import list_pictures, load_model, prepare_picture
from .sheet import draw_sheet

__all__ = [
    'Gate', 'SeenPicture', 'attention_layers', 'choose_layers', 'draw_sheet', 'list_pictures', 'load_model',
    'prepare_picture', 'record_gates'
]
