"""Bars of the results: time of the operator (all layers of a network) as a share of the reference's, time of networks
as a multiple of the plain one's.

Example:
    python benchmarks/plot.py benchmarks/results/op_cpu_float32_contiguous.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', type=Path, nargs='+', help='CSV files of bench_op.py or bench_backbone.py')
    parser.add_argument('--out', type=Path, help='folder of the images; default: beside the results')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for path in args.results:
        with path.open(newline='') as file:
            rows = list(csv.DictReader(file))
        operator = 'provider' in rows[0]
        if operator:  # the sums over a network; a stage more would make it unreadable
            rows = [r for r in rows if r['shape'] == 'sum' and r['of_reference']]
        bar, ratio = ('provider', 'of_reference') if operator else ('network', 'of_plain')
        labels = [(f'{r["size"]}, batch {r["batch"]}\n{r["mode"]}', r) for r in rows]
        places = list(dict.fromkeys(label for label, _ in labels))
        bars = list(dict.fromkeys(r[bar] for _, r in labels))
        figure, axes = plt.subplots(figsize=(max(7, 2 * len(places)), 4))
        for i, name in enumerate(bars):
            points = [(places.index(label), float(r[ratio])) for label, r in labels if r[bar] == name]
            axes.bar(
                [x + 0.8 * i / len(bars) for x, _ in points],
                [y for _, y in points],
                0.8 / len(bars),
                label=name,
                align='edge',
            )
        axes.set_xticks([i + 0.4 for i in range(len(places))], places, fontsize=8)
        axes.set_ylabel(f'time, {ratio.replace("_", " ")}')
        axes.set_title(f'{path.stem}, {rows[0]["device"]}', fontsize=10)
        axes.legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
        out = (args.out or path.parent) / f'{path.stem}.png'
        figure.savefig(out, dpi=120)
        plt.close(figure)
        print(out)


if __name__ == '__main__':
    main()
