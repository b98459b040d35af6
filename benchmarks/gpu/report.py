"""The report: a page of Markdown about what the other steps have written; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpu.decision import BOTH, CONDITIONS, FORWARD, Finding, RanTests, Verdict
from gpu.schedule import Outcome

TITLES = {
    'copy': 'copy',
    'triton': 'Triton',
    'torch': '`torch`',
    'reference': 'textbook',
    'compiled': 'textbook, compiled',
    'SE': 'SE',
}
RULE = {
    'a': 'no test failed on the card; values at the timed shapes within twice the error of the textbook',
    'b': 'GPU time of forward + backward at most 0.9 of the faster of `torch` and textbook at every shape, mean 0.5',
    'c': "host time of forward + backward at most the textbook's",
    'd': "peak memory at most 1.05 of `torch`'s",
    'e': 'training step of CCD-ResNet-50 at most that with `torch`',
}
PEERS = ('se', 'ge', 'cbam', 'sk', 'gc')
SHOWN = 10
Row = Mapping[str, Any]


class Results(NamedTuple):
    """What a run has found so far; what is not there is empty."""

    dry: bool
    outcomes: Sequence[Outcome]
    where: Mapping[str, Any]
    tests: RanTests
    operators: Sequence[Row]
    tuning: Mapping[str, Any]
    backbones: Sequence[Row]
    profile: Mapping[str, Any]
    verdicts: Sequence[Verdict]


def markdown(r: Results) -> str:
    """The page."""
    sections = (
        _head(r),
        _verdict(r),
        _goals(r),
        _steps(r),
        _tests(r.tests),
        _operators(r.operators),
        _tuning(r.tuning),
        _backbones(r.backbones),
        _profile(r.profile),
    )
    return '\n\n'.join(section for section in sections if section) + '\n'


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown; '|' in a cell is escaped."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in line) + ' |' for line in lines)


def number(row: Row, column: str) -> float | None:
    """Of a cell, None where it is empty."""
    value = row.get(column, '')
    return None if value in ('', None) else float(value)


def shown(value: float | None, digits: int = 2) -> str:
    """'' for what was not measured."""
    return '' if value is None else f'{value:.{digits}f}'


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _head(r: Results) -> str:
    where = r.where
    smi, packages = where.get('nvidia_smi', {}), where.get('packages', {})
    if r.dry:
        title = '# CCD on a GPU: dry run, CPU'
        remark = (
            'This was a dry run on the CPU with tiny shapes: it shows that every step works. Nothing was timed, what '
            'needs a GPU is empty, and the verdict says so.'
        )
    else:
        title = f'# CCD on a GPU: {where.get("device", "no card found")}'
        remark = ''
    facts = {
        'card' if not r.dry else 'processor': where.get('device', ''),
        'capability': where.get('capability', ''),
        'driver': smi.get('driver_version', ''),
        'clock now / highest': ' / '.join(filter(None, (smi.get('clocks.sm'), smi.get('clocks.max.sm')))),
        'copy, read + written': f'{where["copy_gb_per_s"]} GB/s' if where.get('copy_gb_per_s') else '',
        'PyTorch, Triton': ', '.join(filter(None, (packages.get('torch'), packages.get('triton')))),
        'Python': where.get('python', ''),
        'commit (+: with changes)': where.get('commit', '') or 'not a git checkout',
        'date': where.get('date', ''),
    }
    return '\n\n'.join(filter(None, (title, remark, table(('', ''), facts.items()))))


def _verdict(r: Results) -> str:
    lines = ['## Verdict']
    if not r.verdicts:
        return '\n\n'.join([*lines, 'None: the operator was not measured.'])
    if r.dry:
        lines.append("No card was measured, so nothing speaks for Triton: `impl='auto'` stays with `torch`.")
    else:
        takes = [v for v in r.verdicts if v.takes == 'triton']
        lines.append(
            f"`impl='auto'` takes Triton in {len(takes)} of {len(r.verdicts)} classes of inputs on this card, and "
            '`torch` in the others.'
        )
    lines.append(
        table(
            ('dtype', 'layout', 'way', '`auto` takes', *CONDITIONS, 'fast'),
            [
                (v.dtype, v.layout, v.way, v.takes, *(_holds(v.findings[c]) for c in CONDITIONS), _holds(v.fast))
                for v in r.verdicts
            ],
        )
    )
    lines.append(
        'Half is float16 and bfloat16. Whole: one program has a slab (one group of one sample); split: several. '
        '"Fast" is nowhere slower than the compiled textbook. A condition that was not measured does not hold.'
    )
    lines.append(table(('', 'condition'), RULE.items()))
    reasons: dict[tuple[str, str], list[str]] = {}
    for v in r.verdicts:
        for name, finding in (*v.findings.items(), ('fast', v.fast)):
            reasons.setdefault((name, finding.why), []).append(f'{v.dtype} {v.layout} {v.way}')
    rows = [
        (name, why, 'all' if len(which) == len(r.verdicts) else ', '.join(which))
        for (name, why), which in sorted(reasons.items(), key=lambda item: item[0][0].rjust(4))
    ]
    lines.append(table(('', 'found', 'in'), rows))
    return '\n\n'.join(lines)


def _holds(finding: Finding) -> str:
    return {True: 'yes', False: 'no', None: 'not measured'}[finding.holds]


def _goals(r: Results) -> str:
    """What was wanted, and what was found, in float16 and channels_last as networks are trained."""
    sums = {(p, mode): _sum(r.operators, '224', 'float16', 'channels_last', p, mode) for p in TITLES for mode in _MODES}
    copies = {mode: ratio(sums['triton', mode], sums['copy', FORWARD]) for mode in _MODES}
    compiled = [ratio(sums['triton', mode], sums['compiled', mode]) for mode in _MODES]
    hosts = [number(row, 'host_us') for row in r.operators if row['provider'] == 'triton' and row['mode'] == BOTH]
    host = max((h for h in hosts if h is not None), default=None)
    step = _of_plain(r.backbones, 'eager')
    ccd, peers = step.get('ccd-triton'), [step.get(name) for name in PEERS]
    ahead = None if ccd is None or None in peers else all(ccd < p for p in peers if p is not None)
    networks = _of_plain(r.backbones, 'compiled')
    rival = ratio(networks.get('ccd-triton'), networks.get('ccd-textbook-compiled'))
    worst = None if None in compiled else max(c for c in compiled if c is not None)
    rows = [
        ('16 layers of ResNet-50, forward, in copies of x', '1.5', shown(copies[FORWARD])),
        ('the same, forward + backward', '4.0', shown(copies[BOTH])),
        ('the same, of the compiled textbook (the worse of forward, forward + backward)', '1.00', shown(worst)),
        ('host time of a layer, forward + backward, the largest', '100 us', f'{host:.0f} us' if host else ''),
        ('CCD-ResNet-50 of ResNet-50, training step, batch 64', '1.03', shown(ccd)),
        (f'ahead of {", ".join(p.upper() for p in PEERS)}', 'yes', {True: 'yes', False: 'no', None: ''}[ahead]),
        ('CCD-ResNet-50 of the compiled network with the textbook, the same step', '1.00', shown(rival)),
    ]
    title = (
        '## Goals\n\nfloat16, channels_last, Triton; times are of kernels unless called host time. Empty: not measured.'
    )
    return f'{title}\n\n{table(("measure", "goal", "found"), rows)}'


_MODES = (FORWARD, BOTH)


def _sum(rows: Sequence[Row], size: str, dtype: str, layout: str, provider: str, mode: str) -> float | None:
    """Microseconds of the 16 layers of ResNet-50, None if a stage was not measured."""
    chosen = [
        row
        for row in rows
        if (row['size'], row['dtype'], row['layout'], row['provider'], row['mode'])
        == (size, dtype, layout, provider, mode)
    ]
    times = [(int(row['layers']), number(row, 'gpu_us')) for row in chosen]
    if sum(layers for layers, _ in times) != 16 or any(us is None for _, us in times):
        return None
    return sum(layers * us for layers, us in times if us is not None)


def _of_plain(rows: Sequence[Row], comparison: str) -> dict[str, float | None]:
    """Time of a training step at batch 64 of the plain network's, by network."""
    return {
        row['network']: number(row, 'of_plain')
        for row in rows
        if (row['comparison'], row['mode'], str(row['batch'])) == (comparison, 'train', '64')
    }


def _steps(r: Results) -> str:
    rows = [(o.name, o.state, f'{o.seconds:.0f} s', '; '.join(o.notes)) for o in r.outcomes]
    return f'## Steps\n\n{table(("step", "state", "time", "notes"), rows)}'


def _tests(tests: RanTests) -> str:
    text = f'## Tests\n\n{tests.passed} passed, {len(tests.failed)} failed, {tests.skipped} skipped'
    text += '.' if tests.ended else '; they did not run to their end.'
    return '\n'.join([text, *(['', *(f'* {name}' for name in tests.failed[:30])] if tests.failed else [])])


def _operators(rows: Sequence[Row]) -> str:
    if not rows:
        return ''
    lines = ['## Operator']
    kinds = dict.fromkeys((row['size'], row['dtype'], row['layout']) for row in rows)
    sums = [
        (*kind, *(' / '.join(shown(_ms(_sum(rows, *kind, p, mode))) for mode in _MODES).strip(' /') for p in TITLES))
        for kind in kinds
    ]
    lines.append('ms of the 16 layers of ResNet-50 on the GPU, forward / forward + backward:')
    lines.append(table(('images', 'dtype', 'layout', *TITLES.values()), sums))
    lines.append(
        'Triton at every shape. Times: forward / forward + backward. Of copy: forward, in copies of x. Of others: '
        'forward + backward. Host: time until forward + backward return, Triton / textbook. Kept: memory for backward, '
        "in sizes of x. Peak: in times of `torch`'s. Error: the largest, of what is allowed."
    )
    cells: dict[tuple, dict[tuple[str, str], Row]] = {}
    for row in rows:
        key = (row['shape'], row['dtype'], row['layout'], row['way'])
        cells.setdefault(key, {})[row['provider'], row['mode']] = row
    header = (
        *('shape', 'dtype', 'layout', 'way', 'Triton, us', 'of copy'),
        *('of `torch`', 'of textbook', 'of compiled', 'host, us', 'kept', 'peak', 'error'),
    )
    lines.append(table(header, [_shape(key, found) for key, found in cells.items()]))
    failed = [
        f'* {row["provider"]}, {row["shape"]} {row["dtype"]}: {row["failed"]}' for row in rows if row.get('failed')
    ]
    if failed:
        lines += ['Failed:', '\n'.join(failed[:30])]
    return '\n\n'.join(lines)


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1e3


def _shape(key: tuple, found: Mapping[tuple[str, str], Row]) -> list[str]:
    def value(provider: str, column: str = 'gpu_us', mode: str = BOTH) -> float | None:
        return number(found.get((provider, mode), {}), column)

    forward, both = value('triton', mode=FORWARD), value('triton')
    hosts = [shown(value(p, 'host_us'), 0) for p in ('triton', 'reference')]
    return [
        *key,
        f'{shown(forward, 1)} / {shown(both, 1)}'.strip(' /'),
        shown(ratio(forward, value('copy', mode=FORWARD))),
        *(shown(ratio(both, value(p))) for p in ('torch', 'reference', 'compiled')),
        ' / '.join(hosts).strip(' /'),
        shown(value('triton', 'kept_of_x')),
        shown(ratio(value('triton', 'peak_bytes'), value('torch', 'peak_bytes'))),
        shown(value('triton', 'error_of_allowed')),
    ]


def _tuning(tuning: Mapping[str, Any]) -> str:
    if not tuning:
        return ''
    lines = ['## Tuning']
    if tuning['missing']:
        lines.append(f'Constants that the backend does not have, not tuned: {", ".join(tuning["missing"])}.')
    if not tuning['timed']:
        count = sum(len(case['settings']) for case in tuning['cases'])
        ran = sum('failed' not in row for case in tuning['cases'] for row in case['settings'])
        return '\n\n'.join([*lines, f'{ran} of {count} settings ran; not timed.'])
    lines.append('Settings by forward + backward in times of the constants as they are, geometric mean:')
    rows = [(_setting(o['setting']), o['cases'], shown(o['of_now'], 3)) for o in tuning['overall'][:SHOWN]]
    lines.append(table(('setting', 'cases', 'of now'), rows))
    lines.append('The best and the runner-up of each case, us:')
    best = []
    for case in tuning['cases']:
        timed = [row for row in case['settings'] if row['us'] is not None]
        now = next((shown(row['us'], 1) for row in timed if not row['setting']), '')
        two = [f'{row["us"]:.1f}: {_setting(row["setting"])}, {row["way"]}' for row in timed[:2]]
        best.append((case['shape'], case['dtype'], case['layout'], now, *two, *[''] * (2 - len(two))))
    lines.append(table(('shape', 'dtype', 'layout', 'now', 'best', 'runner-up'), best))
    return '\n\n'.join(lines)


def _setting(values: Mapping[str, int]) -> str:
    return ', '.join(f'{name} {value}' for name, value in values.items()) or 'as it is'


def _backbones(rows: Sequence[Row]) -> str:
    if not rows:
        return ''
    lines = [
        '## Networks',
        'Mixed precision, channels_last; a training step has GradScaler and SGD in it. The networks of a table were '
        'timed in turns. Cells: ms, and in times of plain; empty for those that ran but were not timed.',
    ]
    for comparison in dict.fromkeys(row['comparison'] for row in rows):
        mine = [row for row in rows if row['comparison'] == comparison]
        modes = list(dict.fromkeys((row['mode'], row['batch'], row['size']) for row in mine))
        cells = {(row['network'], row['mode'], row['batch'], row['size']): row for row in mine}
        header = ('network', *(f'{mode}, batch {batch}, {size} px' for mode, batch, size in modes), 'peak, MiB')
        content = []
        for network in dict.fromkeys(row['network'] for row in mine):
            found = [cells.get((network, *mode), {}) for mode in modes]
            times = [f'{shown(number(c, "ms_p50"))} ({shown(number(c, "of_plain"))})' for c in found]
            peak = number(found[0], 'peak_bytes')
            content.append((network, *(t if t != ' ()' else '' for t in times), shown(peak and peak / 2**20, 0)))
        lines.append(table(header, content))
    return '\n\n'.join(lines)


def _profile(profile: Mapping[str, Any]) -> str:
    if not profile:
        return ''
    lines = ['## Profile']
    titles = {
        'layers_waits': '16 layers, forward and backward: waits for the GPU',
        'layers_graph': 'the same in a CUDA graph',
        'step': 'training step of CCD-ResNet-50, batch 64',
        'detector_waits': 'RetinaNet, training iterations',
    }
    rows = []
    for part, title in titles.items():
        for impl, found in profile.get(part, {}).items():
            if isinstance(found, Mapping) and found:
                found = ', '.join(
                    f'{key} {value}' for key, value in found.items() if not isinstance(value, (dict, list))
                )
            rows.append((title, impl, found or 'ran, not measured'))
    memcheck = profile.get('memcheck')
    if memcheck:
        errors = 'not counted' if memcheck['errors'] is None else memcheck['errors']
        rows.append(('memcheck', 'triton', f'{len(memcheck["shapes"])} shapes, errors: {errors}'))
    lines.append(table(('part', 'CCD by', 'found'), rows))
    for impl, found in profile.get('step', {}).items():
        if isinstance(found, Mapping) and found.get('by_name'):
            lines.append(f'Kernels of the training step with `{impl}`, the longest first:')
            names = [(row['name'], row['count'], row['us']) for row in found['by_name'][:SHOWN]]
            lines.append(table(('kernel', 'calls', 'us'), names))
    for impl, found in profile.get('detector_waits', {}).items():
        if isinstance(found, Mapping) and found.get('by_line'):
            lines.append(f'Where RetinaNet with `{impl}` waits, most first:')
            lines.append(table(('line', 'waits'), list(found['by_line'].items())[:SHOWN]))
    return '\n\n'.join(lines)
