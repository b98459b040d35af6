"""The attention bench: train what a plan declares, with several seeds, and say what was shown and what was not.

``run`` trains piece by piece (a dataset, a network, a seed), appends rows to a CSV file, and continues where it
stopped; ``cost`` measures parameters, time and memory of the networks side by side, for which nothing else should
run; ``check`` says what is missing or cannot be compared; ``report`` prints the tables of what is complete.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mmccd.cli  # noqa: F401  first: before PyTorch and anything of mmdet
from mmccd.analysis.bench.compare import compare, markdown
from mmccd.analysis.bench.cost import read_costs, write_costs
from mmccd.analysis.bench.plan import Plan, Table, read_plan
from mmccd.analysis.bench.rows import of_table, problems, read_rows
from mmccd.cli.arguments import run_tool
from mmccd.cli.bench import commit, piece_command, recipes, run_pieces
from mmccd.cli.bench_cost import measure_costs
from mmccd.cli.bench_piece import do_piece
from mmccd.cli.numbers import whole_number
from mmccd.cli.outputs import check_file, check_folder
from mmccd.cli.parser import tool_parser
from mmccd.errors import UserError, suggest

EXAMPLES = """examples:
  python tools/analysis_tools/bench_attention.py run
  python tools/analysis_tools/bench_attention.py run --tables fashion --jobs 2
  python tools/analysis_tools/bench_attention.py check
  python tools/analysis_tools/bench_attention.py report --tables fashion ablation
"""


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(dest='command', required=True, metavar='{run,cost,check,report}')
    for name, text in (
        ('run', 'train what has no rows yet'),
        ('cost', 'measure what the networks cost'),
        ('check', 'say which rows are missing or do not fit, with exit code 1'),
        ('report', 'print the tables of what is complete'),
        ('piece', None),
    ):
        sub = commands.add_parser(name, **({'help': text} if text else {}))
        sub.add_argument('--plan', default='benchmarks/attention/plan.yml', help='YAML file (default: %(default)s)')
        if name in ('run', 'piece'):
            sub.add_argument(
                '--work-dir', default='work_dirs/bench_attention', help="the pieces' folders (default: %(default)s)"
            )
        if name == 'piece':  # run starts it
            sub.add_argument('names', nargs=3)
            continue
        sub.add_argument(
            '--csv', default='benchmarks/attention/rows.csv', help='file of all rows (default: %(default)s)'
        )
        sub.add_argument('--tables', nargs='+', metavar='TABLE', help='of the plan (default: all)')
        if name in ('cost', 'report'):
            sub.add_argument(
                '--costs', default='benchmarks/attention/costs.csv', help='file of all costs (default: %(default)s)'
            )
        if name == 'cost':
            sub.add_argument(
                '--runs', type=whole_number(1), default=20, metavar='N', help='timed steps of each (default: 20)'
            )
        if name == 'run':
            sub.add_argument(
                '--jobs', type=whole_number(1), default=1, metavar='N', help='pieces at a time (default: 1)'
            )
    return parser.parse_args()


def chosen(plan: Plan, names: Sequence[str] | None) -> list[Table]:
    known = {t.name: t for t in plan.tables}
    for name in names or ():
        if name not in known:
            raise UserError(f'--tables: the plan has {", ".join(known)}, not {name!r}{suggest(name, known)}')
    return [known[n] for n in dict.fromkeys(names)] if names else list(plan.tables)


def report(plan: Plan, tables: Sequence[Table], path: str, costs: str) -> int:
    """Print each table; 1 if one is begun and not complete, or a control came out wrong."""
    rows, code = read_rows(path), 0
    for table in tables:
        print(f'## {table.name}\n')
        own = of_table(rows, table)
        found = problems(rows, table, _today(plan, table)) if own else []
        if not own:
            print('not run\n')
            continue
        if found:
            print('not complete, so not compared: ' + '; '.join(found) + '\n')
            code = 1
            continue
        comparisons = compare(rows, table)
        print(markdown(comparisons, table, read_costs(costs)))
        print(
            f'\n{len(table.seeds)} seeds; differences by seed, with intervals of 95 % for all '
            f'{len(table.arms) - 1} comparisons of a column at once (Bonferroni).'
        )
        for c in comparisons:
            if c.expect:
                wrong = '' if c.as_expected else ', which it must not'
                print(f'Control {c.arm}: came out as {c.verdict!r}{wrong}.')
                code = code or int(not c.as_expected)
        print()
    return code


def check(plan: Plan, tables: Sequence[Table], path: str) -> int:
    rows, code = read_rows(path), 0
    for table in tables:
        found = problems(rows, table, _today(plan, table))
        print(f'{table.name}: ' + ('; '.join(found) if found else 'complete'))
        code = code or int(bool(found))
    return code


def _today(plan: Plan, table: Table) -> dict[str, dict[str, str]]:
    """Recipe and attention by arm."""
    return {arm: found for (_, arm), found in recipes(plan, plan.pieces([table])).items()}


def main() -> None:
    args = parse_args()
    plan = read_plan(args.plan)
    if args.command == 'piece':
        data, arm, seed = args.names
        do_piece(plan, plan.data[data], plan.arms[arm], int(seed), args.work_dir, commit())
        return
    tables = chosen(plan, args.tables)
    if args.command == 'run':
        check_folder(args.work_dir, '--work-dir')
        check_file(args.csv, '--csv')
        command = piece_command(args.plan, args.work_dir)
        failed = run_pieces(plan, plan.pieces(tables), command, args.work_dir, args.csv, args.jobs)
        if failed:
            print(f'error: {failed} pieces failed; the same command tries them again', file=sys.stderr)
        sys.exit(int(failed > 0))
    if args.command == 'cost':
        check_file(args.costs, '--costs')
        read_costs(args.costs)  # a file that is none is found before minutes of measuring
        for table in tables:
            write_costs(args.costs, measure_costs(table, plan.threads, args.runs, commit()))
        return
    if args.command == 'report':
        sys.exit(report(plan, tables, args.csv, args.costs))
    sys.exit(check(plan, tables, args.csv))


if __name__ == '__main__':
    run_tool(main)
