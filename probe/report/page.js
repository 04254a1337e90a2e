"use strict";
(() => {
const root = document.documentElement, by = (id) => document.getElementById(id);
const all = (query, from = document) => [...from.querySelectorAll(query)];
root.classList.add("on");

// --- one metric on all of the page
const switched = [];
all("[data-metric]:not(html)").forEach((button) => button.addEventListener("click", () => {
  const top = button.getBoundingClientRect().top;
  root.dataset.metric = button.dataset.metric;
  all(".metrics button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.metric === root.dataset.metric));
  switched.forEach((after) => after());
  scrollBy(0, button.getBoundingClientRect().top - top); // what is above may have changed its height
}));

// --- the leaderboard
const board = by("board");
if (board) {
  const body = board.tBodies[0], rows = [...body.rows], heads = all("thead th", board);
  const count = by("count"), order = by("order"), find = by("find"), family = by("family"), state = by("state");
  let column = Math.max(0, heads.findIndex((th) => th.hasAttribute("aria-sort"))), down = column > 1;
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const key = (row) => {
    const cell = row.cells[column];
    if (heads[column].dataset.sort !== "number") return cell.firstChild.textContent.trim();
    const value = cell && cell.querySelector(`.${root.dataset.metric} data`);
    return value ? Number(value.value) : NaN;
  };
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const sort = () => {
    const sign = down ? -1 : 1, keys = new Map(rows.map((row) => [row, row.dataset.state === "blocked" &&
      heads[column].dataset.sort === "number" ? NaN : key(row)]));
    const sorted = [...rows].sort((a, b) => {
      const blocked = (a.dataset.state === "blocked") - (b.dataset.state === "blocked");
      if (blocked) return blocked; // whatever the order, what has no numbers comes last
      const x = keys.get(a), y = keys.get(b);
      if (typeof x === "string") return sign * words.compare(x, y);
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return sign * (x - y);
    });
    body.append(...sorted);
    heads.forEach((th, i) => i === column ? th.setAttribute("aria-sort", down ? "descending" : "ascending")
      : th.removeAttribute("aria-sort"));
    order.value = String(column);
  };
  const choose = (i) => {
    down = i === column ? !down : heads[i].dataset.sort === "number";
    column = i;
    sort();
    tell(`, sorted by ${heads[i].querySelector("button").textContent}, ${down ? "highest or last" : "lowest or first"} first`);
  };
  const tell = (more = "") => {
    const seen = rows.filter((row) => !row.hidden).length;
    count.textContent = `${seen} of ${rows.length} systems`;
    count.setAttribute("aria-label", count.textContent + more);
  };
  const filter = () => {
    const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row) => {
      row.hidden = !(wanted.every((word) => texts.get(row).includes(word))
        && (!family.value || row.dataset.family === family.value)
        && (!state.value || row.dataset.state === state.value));
    });
    tell();
  };
  heads.forEach((th, i) => th.querySelector("button").addEventListener("click", () => choose(i)));
  order.addEventListener("change", () => { column = -1; choose(Number(order.value)); });
  find.addEventListener("input", filter);
  [family, state].forEach((select) => select.addEventListener("change", filter));
  switched.push(sort);
  sort();
  filter();
}

// --- domains: one system's rows, or one domain's
const domains = by("domain-board");
if (domains) {
  const system = by("by-system"), domain = by("by-domain"), rows = [...domains.tBodies[0].rows];
  const show = () => {
    rows.forEach((row) => {
      row.hidden = !((!system.value || row.dataset.system === system.value)
        && (!domain.value || row.dataset.domain === domain.value));
    });
    domains.classList.toggle("one-system", Boolean(system.value));
    domains.classList.toggle("one-domain", Boolean(domain.value));
    by("domain-count").textContent = `${rows.filter((row) => !row.hidden).length} rows`;
  };
  system.addEventListener("change", show);
  domain.addEventListener("change", () => { if (domain.value) system.value = ""; show(); });
  show();
}

// --- the maps
const data = by("map-data") && JSON.parse(by("map-data").textContent);
const frame = by("map");
if (data && frame) {
  const canvas = frame.querySelector("canvas"), pen = canvas.getContext("2d"), tip = by("tip");
  const image = tip.querySelector("canvas"), words = tip.querySelector("div"), live = by("map-live");
  const legend = by("legend"), which = by("which"), SERIES = 7, REACH = 22, PAD = 14;
  let map, rows, colour = "label", alone = -1, at = -1, places = [], size = [1, 1], dark = matchMedia("(prefers-color-scheme:dark)");

  const names = () => colour === "label" ? data.labels : colour === "dataset" ? rows.datasets : rows.domains;
  const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const shades = () => Array.from({ length: SERIES }, (_, i) => style(`--s${i}`));
  // of two classes the positive one in the accent, the other grey; categories beyond the seven colours in other shapes
  const twoClasses = () => colour === "label" && data.labels.length === 2;
  const shade = (category, colours) => twoClasses() ? colours[category ? 0 : SERIES - 1] : colours[category % SERIES];
  const shape = (to, kind, x, y, r) => {
    to.beginPath();
    if (kind % 4 === 1) to.rect(x - r * .9, y - r * .9, r * 1.8, r * 1.8);
    else if (kind % 4 === 2) { to.moveTo(x, y - r * 1.2); to.lineTo(x + r * 1.15, y + r * .9); to.lineTo(x - r * 1.15, y + r * .9); to.closePath(); }
    else if (kind % 4 === 3) { to.moveTo(x, y - r * 1.3); to.lineTo(x + r * 1.3, y); to.lineTo(x, y + r * 1.3); to.lineTo(x - r * 1.3, y); to.closePath(); }
    else to.arc(x, y, r, 0, 2 * Math.PI);
  };

  const draw = () => {
    const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    if (!box.width) return;
    size = [box.width, box.height];
    canvas.width = Math.round(box.width * ratio);
    canvas.height = Math.round(box.height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const mx = Math.max(...map.x, 1), my = Math.max(...map.y, 1);
    const scale = Math.min((size[0] - 2 * PAD) / mx, (size[1] - 2 * PAD) / my); // one scale: distances stay true
    const left = (size[0] - mx * scale) / 2, bottom = (size[1] + my * scale) / 2;
    places = map.x.map((x, i) => [left + x * scale, bottom - map.y[i] * scale]);
    const colours = shades(), radius = (places.length > 600 ? 2.8 : 4) * (size[0] < 500 ? .75 : 1), of = rows[colour];
    const first = places.map((_, i) => i).sort((a, b) => (of[a] === alone) - (of[b] === alone) || rows.label[a] - rows.label[b]);
    pen.clearRect(0, 0, ...size);
    for (const i of first) {
      pen.globalAlpha = alone < 0 || of[i] === alone ? .78 : .08;
      pen.fillStyle = shade(of[i], colours);
      shape(pen, twoClasses() ? 0 : Math.floor(of[i] / SERIES), ...places[i], radius);
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (at >= 0) {
      pen.strokeStyle = style("--ink");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(...places[at], radius + 4, 0, 2 * Math.PI);
      pen.stroke();
    }
  };

  const list = () => {
    const colours = shades();
    legend.replaceChildren(...names().map((name, category) => {
      const button = document.createElement("button"), chip = document.createElement("canvas");
      const total = rows[colour].filter((c) => c === category).length;
      chip.width = chip.height = 24;
      const ink = chip.getContext("2d");
      ink.fillStyle = shade(category, colours);
      shape(ink, twoClasses() ? 0 : Math.floor(category / SERIES), 12, 12, 8);
      ink.fill();
      button.type = "button";
      button.append(chip, `${name} (${total})`);
      button.setAttribute("aria-pressed", category === alone);
      button.addEventListener("click", () => {
        alone = alone === category ? -1 : category;
        all("button", legend).forEach((b, i) => b.setAttribute("aria-pressed", i === alone));
        draw();
      });
      return button;
    }));
  };

  const hide = () => { at = -1; tip.hidden = true; frame.removeAttribute("data-patch"); draw(); };
  const select = (i, speak) => {
    if (i === at) return;
    at = i;
    draw();
    const lines = [rows.id[i], data.labels[rows.label[i]], rows.datasets[rows.dataset[i]], rows.domains[rows.domain[i]]];
    words.replaceChildren(...lines.map((text, k) => {
      const line = document.createElement(k ? "div" : "b");
      line.textContent = text;
      return line;
    }));
    const sprite = map.sprite < 0 ? null : by(`sprite${map.sprite}`);
    image.hidden = !sprite || !sprite.naturalWidth;
    if (!image.hidden) {
      const [tile, ink] = [map.tile, image.getContext("2d")];
      ink.imageSmoothingQuality = "high";
      ink.drawImage(sprite, i % map.columns * tile, Math.floor(i / map.columns) * tile, tile, tile, 0, 0, image.width, image.height);
    }
    tip.hidden = false;
    frame.dataset.patch = rows.id[i];
    const [x, y] = places[i], [w, h] = [tip.offsetWidth, tip.offsetHeight];
    const right = x + 14 + w <= size[0] - 4;
    tip.style.left = `${Math.max(4, right ? x + 14 : Math.min(x - 14 - w, size[0] - w - 4))}px`;
    const clear = right || x - 14 - w >= 4; // else it would lie over its point: above or below then
    tip.style.top = `${clear ? Math.min(Math.max(4, y - h / 2), Math.max(4, size[1] - h - 4)) : y > h + 18 ? y - h - 14 : y + 14}px`;
    if (speak) live.textContent = `${lines.join(", ")}; point ${i + 1} of ${places.length}`;
  };
  const nearest = (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, least = REACH * REACH;
    places.forEach(([px, py], i) => {
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least && (alone < 0 || rows[colour][i] === alone)) { least = far; best = i; }
    });
    return best;
  };
  const point = (event) => { const i = nearest(event); if (i < 0) hide(); else select(i, event.type === "pointerdown"); };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  frame.addEventListener("blur", hide);
  frame.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const axis = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1], Home: [0, 0], End: [0, 0] }[event.key];
    if (event.key === "Escape" && at >= 0) { hide(); live.textContent = ""; event.preventDefault(); }
    if (!axis) return;
    event.preventDefault();
    const along = axis[0] ? map.y : map.x;
    const line = along.map((_, i) => i).filter((i) => alone < 0 || rows[colour][i] === alone).sort((a, b) => along[a] - along[b] || a - b);
    const now = line.indexOf(at), last = line.length - 1;
    const next = event.key === "Home" ? 0 : event.key === "End" ? last
      : now < 0 ? (axis[1] > 0 ? 0 : last) : Math.min(last, Math.max(0, now + axis[1]));
    if (line.length) select(line[next], true);
  });
  const load = (i) => {
    map = data.maps[i];
    rows = data.rows[map.rows];
    alone = -1;
    all(".caption").forEach((one) => { one.hidden = one.dataset.map !== String(i); });
    hide();
    list();
  };
  if (which) which.addEventListener("change", () => load(Number(which.value)));
  all("[data-colour]").forEach((button) => button.addEventListener("click", () => {
    colour = button.dataset.colour;
    alone = -1;
    all("[data-colour]").forEach((b) => b.setAttribute("aria-pressed", b === button));
    list();
    draw();
  }));
  new ResizeObserver(() => { // also called once when it starts, when nothing has changed
    if (canvas.getBoundingClientRect().width !== size[0]) hide();
  }).observe(canvas);
  dark.addEventListener("change", () => { list(); draw(); });
  load(0);
}
})();
