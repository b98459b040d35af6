"""Store what a report needs of a run, without weights, in a folder small enough for a repository."""

from __future__ import annotations

import datetime
import os
import os.path as osp
import re

import torch

from mmccd.checkpoints.files import valid_json, write_atomically
from mmccd.errors import UserError

from . import classification, detection
from .measure import surroundings
from .run import RECORDED, RECORDED_PREDICTIONS, Run


def record(run: Run, folder: str, command: str, device: torch.device) -> list[str]:
    """Write config, scalars.json, predictions.json, recorded.json and README.md of a run.

    A report reads the folder like a work folder, and marks the run as recorded. The machine noted is this one.

    Args:
        run (Run): As :func:`.read_run` read it.
        folder (str): Output folder, made with its parents.
        command (str): The command that made the run, for readers.
        device (torch.device): For predictions, where the work folder has none.

    Returns:
        list[str]: The files.

    Raises:
        UserError: If something of the run is missing.
    """
    if run.cfg is None or not run.training or run.task is None:
        raise UserError(
            f'{run.folder} cannot be recorded: it needs a config and the log of a training. ' + '; '.join(run.notes)
        )
    try:
        if run.task == 'detection':
            truth = detection.truth_of(run)
            predictions = detection.pack_detections(detection.detections_of(run, truth, device)[0])
        else:
            predictions = classification.pack_predictions(classification.predictions_of(run, device)[0])
    except (ValueError, OSError) as e:
        raise UserError(f'{run.folder} cannot be recorded: {e}') from e
    place = surroundings(device)
    machine = place['device'] + (f', {place["threads"]} threads' if 'threads' in place else '')
    stamp = _trained(run)
    content = dict(
        command=command,
        machine=machine,
        date=stamp,
        iterations=int(run.training[-1]['step']),
        seconds=None if run.seconds is None else round(run.seconds),
        torch=place['torch'],
    )
    name = osp.splitext(osp.basename(osp.abspath(run.folder)))[0]
    scalars = '\n'.join(valid_json(line) for line in (*run.training, *run.validation))
    readme = (
        f'# {name}\n\nA recorded run, without weights, for `tools/analysis_tools/report.py`: `{command}`, '
        f'{machine}, {stamp}; {content["iterations"]:,} iterations in {content["seconds"] or "?"} s, validation '
        'not counted.\n'
    )
    files = {
        f'{name}.py': run.config_text,
        'scalars.json': f'{scalars}\n',
        RECORDED_PREDICTIONS: predictions.decode(),
        RECORDED: valid_json(content, indent=2) + '\n',
        'README.md': readme,
    }
    os.makedirs(folder, exist_ok=True)
    for file, text in files.items():
        write_atomically(osp.join(folder, file), text.encode())
    return [osp.join(folder, file) for file in files]


def _trained(run: Run) -> str:
    """Day of the newest start, by the name that mmengine gave its folder; else today."""
    stamps = sorted(m[0] for name in os.listdir(run.folder) if (m := re.fullmatch(r'(20\d{6})_\d{6}', name)))
    day = datetime.datetime.strptime(stamps[-1][:8], '%Y%m%d').date() if stamps else datetime.date.today()
    return day.isoformat()
