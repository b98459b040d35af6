'use strict';

// Tables: a click on a column's button sorts by it, the next one turns the order round. Cells without a key stay last.
for (const table of document.querySelectorAll('table')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const key = row => row.cells[column].dataset.key;
    const rows = [...table.tBodies[0].rows];
    const numbers = rows.every(row => key(row) === undefined || (key(row) !== '' && !isNaN(key(row))));
    const now = head.getAttribute('aria-sort');
    // Numbers begin with the largest, words with the first.
    const descending = now ? now === 'ascending' : numbers;
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const order = numbers ? x - y : x.localeCompare(y, 'en', {numeric: true});
      return descending ? -order : order;
    });
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
    table.tBodies[0].append(...rows);
  }));
}

// Curves: the values at the pointer, or at a position that the arrow keys move.
for (const plot of document.querySelectorAll('svg.plot')) {
  const curves = JSON.parse(plot.dataset.curves);
  const places = [...new Set(curves.flatMap(curve => curve.at.map(point => point[0])))].sort((a, b) => a - b);
  const cursor = plot.querySelector('.cursor');
  const values = plot.parentElement.querySelector('.values');
  let at = -1;

  const hide = () => {
    at = -1;
    cursor.setAttribute('hidden', '');
    values.replaceChildren();
  };
  const show = index => {
    at = Math.max(0, Math.min(places.length - 1, index));
    const x = places[at];
    cursor.setAttribute('x1', x);
    cursor.setAttribute('x2', x);
    cursor.removeAttribute('hidden');
    let place = '';
    const spans = curves.map(curve => {
      const near = curve.at.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
      const span = document.createElement('span');
      if (Math.abs(near[0] - x) > 6) return span;  // this run was not logged here
      if (near[0] === x) place = near[2];
      const name = document.createElement('b');
      name.className = `run-${curve.run}`;
      name.textContent = curve.name;
      span.append(name, ` ${near[3]}`);
      return span;
    });
    const head = document.createElement('span');
    head.textContent = `${plot.dataset.x} ${place}:`;
    values.replaceChildren(head, ...spans.filter(span => span.textContent));
  };
  plot.addEventListener('pointermove', event => {
    const box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * plot.viewBox.baseVal.width;
    let nearest = 0;
    places.forEach((place, i) => {
      if (Math.abs(place - x) < Math.abs(places[nearest] - x)) nearest = i;
    });
    show(nearest);
  });
  plot.addEventListener('pointerleave', () => { if (document.activeElement !== plot) hide(); });
  plot.addEventListener('focus', () => { if (at < 0 && plot.matches(':focus-visible')) show(places.length - 1); });
  plot.addEventListener('blur', hide);
  plot.addEventListener('keydown', event => {
    const step = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: places.length - 1}[event.key];
    if (event.key === 'Escape') hide();
    if (step === undefined) return;
    event.preventDefault();
    show(step);
  });
}
