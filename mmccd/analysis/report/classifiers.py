"""The page's sections about classifiers: accuracy, classes, confusions, and images with their predictions."""

from __future__ import annotations

from collections import Counter

from . import classification as cls
from .blocks import Item, Panel, Section
from .context import Context
from .curves import line_style
from .images import ALL_RIGHT, IMAGE_SIDE, add_galleries, data_uri, image_name
from .run import Run
from .tables import Cell, Table, compared, decimal, tell_others

CONFUSIONS = 12


def add_classifiers(
    context: Context, runs: list[Run], metrics: Section, classes: Section, images: Section, errors: Section
) -> list[str]:
    """Fill the sections with classifiers; returns paths of images worth showing again."""
    found: dict[str, tuple[list[cls.Prediction], list[str]]] = {}
    for run in runs:

        def predict(run: Run = run) -> tuple:
            predictions, class_names, context.sources[run.name] = cls.predictions_of(
                run, context.device, context.options.limit
            )
            if not predictions:
                raise ValueError('there is no image in the test set')
            return predictions, class_names

        result = metrics.attempt(run.name, predict)
        if result is not None:
            found[run.name] = result
    if not found:
        return []
    base = next(iter(found))
    truth, class_names = {p.path: p.label for p in found[base][0]}, found[base][1]
    same = {n: p for n, (p, c) in found.items() if c == class_names and {x.path: x.label for x in p} == truth}
    tell_others(metrics.problems, found, same)
    names = [run.name for run in runs]
    values = [same.get(n) for n in names]
    table = Table(f'Accuracy in percent on {len(truth):,} images', ['metric', *names])
    for top in (1, cls.TOP):
        if top < len(class_names):
            table.rows.append(compared(f'top-{top}', [v and cls.accuracy(v, top) for v in values], decimal(2)))
    metrics.tables.append(table)

    _add_classes(classes, class_names, truth, names, values)
    _add_confusions(errors, class_names, same)
    return images.attempt('images', lambda: _images(context, images, truth, class_names, same)) or []


def _add_classes(
    section: Section,
    class_names: list[str],
    truth: dict[str, int],
    names: list[str],
    values: list[list[cls.Prediction] | None],
) -> None:
    counts = dict.fromkeys(class_names, 0)
    for label in truth.values():
        counts[class_names[label]] += 1
    accuracies = [v and cls.class_accuracy(v, class_names) for v in values]
    per_class = Table('Accuracy of each class in percent', ['class', 'images', *names])
    for name, n in counts.items():
        first, *row = compared(name, [a and a[name] for a in accuracies], decimal(1))
        per_class.rows.append([first, Cell(f'{n:,}', float(n)), *row])
    section.tables.append(per_class)


def _add_confusions(section: Section, class_names: list[str], found: dict[str, list[cls.Prediction]]) -> None:
    mistakes = {n: cls.confusions(p) for n, p in found.items()}
    total = sum(mistakes.values(), Counter())
    if total:
        confused = Table(
            f'Most frequent confusions ({min(CONFUSIONS, len(total))} of {len(total)} pairs)',
            ['class', 'predicted as', *found],
            words={0, 1},
        )
        for (label, predicted), _ in total.most_common(CONFUSIONS):
            first, *row = compared(
                class_names[label], [m[label, predicted] for m in mistakes.values()], decimal(0), 'low'
            )
            confused.rows.append([first, Cell(class_names[predicted], class_names[predicted]), *row])
        section.tables.append(confused)


def _images(
    context: Context,
    section: Section,
    truth: dict[str, int],
    class_names: list[str],
    found: dict[str, list[cls.Prediction]],
) -> list[str]:
    if not context.options.images:
        return []
    predicted = {path: [] for path in truth}
    for predictions in found.values():
        for p in predictions:
            predicted[p.path].append(p)
    order = sorted(predicted, key=lambda path: sum(p.score for p in predicted[path]))
    worst = [path for path in order if not all(p.right for p in predicted[path])]
    chosen = {
        'Worst': worst,
        'Largest differences between runs': [path for path in worst if any(p.right for p in predicted[path])],
        'Best': [path for path in reversed(order) if any(p.right for p in predicted[path])],
    }
    section.intro = 'Worst: wrong with the highest score. Best: right with the highest score.'
    section.intro += '' if worst else ALL_RIGHT
    return add_galleries(
        section,
        chosen,
        context.options.images,
        lambda path: path,
        lambda path: _labelled(context, path, class_names, truth[path], dict(zip(found, predicted[path]))),
        kind='cards',
    )


def _labelled(
    context: Context, path: str, class_names: list[str], label: int, predicted: dict[str, cls.Prediction]
) -> Item:
    uri, (width, height) = data_uri(path, IMAGE_SIDE // 2)
    panels = [
        Panel(
            f'label: {class_names[label]}',
            f'image of class {class_names[label]}',
            uri=uri,
            width=width,
            height=height,
        )
    ]
    for name, p in predicted.items():
        panels.append(
            Panel(
                name,
                note=f'{"right" if p.right else "wrong"}: {class_names[p.classes[0]]}, {p.scores[0]:.2f}',
                colour=line_style(context.index[name])[0],
                right=p.right,
            )
        )
    return Item(image_name('classification', path), panels)
