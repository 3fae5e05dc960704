"use strict";

/* A number of the confusion matrix shows what is behind it. */
{
  const buttons = [...document.querySelectorAll("[data-cell]")];
  const show = (chosen) => {
    for (const button of buttons) {
      const open = button === chosen;
      button.setAttribute("aria-expanded", String(open));
      document.getElementById(button.dataset.cell).hidden = !open;
    }
  };
  for (const button of buttons) {
    button.setAttribute("aria-controls", button.dataset.cell);
    button.addEventListener("click", () => show(button.getAttribute("aria-expanded") === "true" ? null : button));
  }
  show(document.querySelector("[data-cell][data-first]"));
}

/* A head of a table sorts it, first by what is worst. */
for (const table of document.querySelectorAll(".sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], order = [...body.rows];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => column ? parseFloat(row.cells[column].textContent.replace(/,/g, "")) : order.indexOf(row);
    body.append(...[...body.rows].sort((a, b) => (value(a) - value(b) || order.indexOf(a) - order.indexOf(b)) * (up ? 1 : -1)));
  }));
}

/* The film of learning: the frame that the slider stands at, drawn anew where it, the theme or the page's width changes. */
const film = JSON.parse(document.getElementById("data").textContent).film;
if (film) {
  const $ = (id) => document.getElementById(`film-${id}`);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const frames = film.steps.length, samples = film.labels.length, K = film.classes.length;
  const predicted = new Uint16Array(bytes(film.predicted).buffer), embedding = new Int16Array(bytes(film.embedding).buffer);
  const colours = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#b8a800", "#7b5ea7", "#8b5a2b"];
  const colour = (k) => (K <= colours.length ? colours[k] : `hsl(${(360 * k) / K} 65% ${45 + 12 * (k % 2)}%)`);
  const solid = (k) => colours[k % colours.length];
  const rgb = (css) => [1, 3, 5].map((at) => parseInt(css.slice(at, at + 2), 16));
  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const viridis = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"].map(rgb);
  const between = (stops, t) => {
    const at = Math.min(t * (stops.length - 1), stops.length - 1.001), low = Math.floor(at);
    return stops[low].map((value, n) => value + (stops[low + 1][n] - value) * (at - low));
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const signed = () => (dark.matches ? ["#5aaaf0", "#1e2125", "#ff7f66"] : ["#2166ac", "#f7f7f7", "#b2182b"]).map(rgb);

  /* How the confusions are headed: by a class's name, if it is short, else by its number. */
  const head = (k) => (film.classes[k].length <= 2 ? film.classes[k] : String(k));

  /* All pictures of a kind in one frame, side by side; a long line of numbers is broken. */
  const tiles = (canvas, kind, stops) => {
    kind.bytes ??= bytes(kind.data);
    const [n, tall, wide] = kind.shape, c = kind.channels, size = n * tall * wide * c, of = kind.bytes.length === size ? 0 : size * now;
    const w = n * tall === 1 ? Math.min(wide, 32) : wide, h = n * tall === 1 ? Math.ceil(wide / w) : tall;
    const about = Math.min(n, Math.max(n > 8 ? 8 : 1, Math.round(Math.sqrt((1.4 * n * h) / w))));
    const columns = [about, about + 1, about - 1, about + 2, about - 2].find((count) => (count > 1 || n === 1) && n % count === 0) || about, rows = Math.ceil(n / columns);
    const zoom = Math.ceil(96 / w), gap = n > 1 ? Math.max(2, Math.round(0.08 * w * zoom)) : 0;
    canvas.width = columns * (w * zoom + gap) - gap;
    canvas.height = rows * (h * zoom + gap) - gap;
    const pen = canvas.getContext("2d"), image = new ImageData(w, h), sketch = new OffscreenCanvas(w, h), table = [];
    for (let v = 0; v < 256 && c === 1; v++) table.push(between(stops, v / 255));
    pen.imageSmoothingEnabled = false;
    for (let tile = 0; tile < n; tile++) {
      for (let p = 0; p < w * h; p++) {
        const from = of + (tile * tall * wide + p) * c, is = p < tall * wide;
        image.data.set(is ? [...(c === 1 ? table[kind.bytes[from]] : kind.bytes.subarray(from, from + 3)), 255] : [0, 0, 0, 0], 4 * p);
      }
      sketch.getContext("2d").putImageData(image, 0, 0);
      const left = (tile % columns) * (w * zoom + gap), top = Math.floor(tile / columns) * (h * zoom + gap);
      pen.drawImage(sketch, left, top, w * zoom, h * zoom);
    }
  };

  /* A square that is drawn as sharp as the screen is. */
  const square = (canvas) => {
    const side = canvas.clientWidth || 300, dots = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(side * dots);
    const pen = canvas.getContext("2d");
    pen.scale(dots, dots);
    return [pen, side];
  };
  const dot = (pen, x, y, k, open, edge) => {
    pen.beginPath();
    pen.arc(x, y, open ? 4 : 3.5, 0, 7);
    pen.lineWidth = edge ? 3.5 : 1.8;
    pen.strokeStyle = edge || colour(k);
    if (open || edge) pen.stroke();
    pen[open ? "strokeStyle" : "fillStyle"] = colour(k);
    pen.lineWidth = 1.8;
    open ? pen.stroke() : pen.fill();
  };

  const drawEmbedding = () => {
    const [pen, side] = square($("embedding")), of = 2 * samples * now, place = (value) => side / 2 + (value / 32767) * (side / 2 - 10);
    for (let n = 0; n < samples; n++) {
      const mistaken = predicted[samples * now + n] !== film.labels[n];
      dot(pen, place(embedding[of + 2 * n]), place(-embedding[of + 2 * n + 1]), film.labels[n], mistaken);
    }
  };
  const drawConfusion = () => {
    const [pen, side] = square($("confusion")), counts = new Map();
    for (let n = 0; n < samples; n++) {
      const cell = film.labels[n] * K + predicted[samples * now + n];
      counts.set(cell, (counts.get(cell) || 0) + 1);
    }
    const margin = K <= 20 ? 22 : 4, each = (side - margin - 4) / K, most = Math.max(...counts.values());
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `${Math.min(13, each * 0.55)}px system-ui, sans-serif`;
    pen.fillStyle = theme("--soft");
    for (let k = 0; k < K && margin > 4; k++) {
      pen.fillText(head(k), margin + (k + 0.5) * each, margin / 2);
      pen.fillText(head(k), margin / 2, margin + (k + 0.5) * each);
    }
    for (const [cell, count] of counts) {
      const row = Math.floor(cell / K), column = cell % K, x = margin + column * each, y = margin + row * each;
      pen.fillStyle = `rgb(${theme(row === column ? "--blue" : "--red")} / ${0.15 + 0.55 * Math.sqrt(count / most)})`;
      pen.fillRect(x + 0.5, y + 0.5, each - 1, each - 1);
      pen.fillStyle = theme("--ink");
      if (each > 15) pen.fillText(String(count), x + each / 2, y + each / 2);
    }
  };
  const drawRegions = () => {
    const canvas = $("regions"), map = film.regions;
    if (!canvas) return;
    map.said ??= new Uint16Array(bytes(map.classes).buffer);
    map.certain ??= bytes(map.sure);
    const [pen, side] = square(canvas), of = map.side ** 2 * now, edge = theme("--paper");
    const plane = new ImageData(map.side, map.side), sketch = new OffscreenCanvas(map.side, map.side);
    for (let n = 0; n < map.side ** 2; n++) {
      const sure = Math.max(0, (map.certain[of + n] / 255 - 1 / K) / (1 - 1 / K));
      plane.data.set([...rgb(solid(map.said[of + n])), 25 + 130 * sure], 4 * n);
    }
    sketch.getContext("2d").putImageData(plane, 0, 0);
    pen.drawImage(sketch, 0, 0, side, side);
    map.points.forEach(([x, y], n) => {
      const mistaken = predicted[samples * now + n] !== film.labels[n];
      dot(pen, x * side, (1 - y) * side, film.labels[n], mistaken, edge);
    });
  };
  const drawAccuracy = () => {
    const canvas = $("accuracy"), width = canvas.clientWidth || 300, dots = window.devicePixelRatio || 1;
    canvas.width = width * dots;
    canvas.height = 48 * dots;
    const pen = canvas.getContext("2d"), x = (n) => 8 + ((width - 16) * n) / Math.max(1, frames - 1), y = (share) => 44 - 38 * share;
    pen.scale(dots, dots);
    pen.strokeStyle = theme("--line");
    pen.strokeRect(8, y(1), width - 16, y(0) - y(1));
    pen.strokeStyle = `rgb(${theme("--blue")})`;
    pen.lineWidth = 1.8;
    pen.beginPath();
    film.accuracy.forEach((share, n) => pen.lineTo(x(n), y(share)));
    pen.stroke();
    pen.fillStyle = pen.strokeStyle;
    pen.beginPath();
    pen.arc(x(now), y(film.accuracy[now]), 4.5, 0, 7);
    pen.fill();
  };

  let now = frames - 1, playing = 0;
  const draw = () => {
    const epoch = film.epochs ? `, epoch ${film.epochs[now].toFixed(film.epochs[now] < 10 ? 2 : 1)}` : "";
    const said = `step ${film.steps[now].toLocaleString("en")}${epoch}: ${(100 * film.accuracy[now]).toFixed(1)} % of ${samples} right, cross-entropy ${film.loss[now].toFixed(3)}`;
    $("caption").textContent = said;
    $("frame").setAttribute("aria-valuetext", said);
    tiles($("filters"), film.filters, signed());
    for (const canvas of document.querySelectorAll("[data-layer]")) {
      const kind = canvas.dataset.layer === "sample" ? film.sample : film.layers[canvas.dataset.layer];
      tiles(canvas, kind, kind === film.sample ? [[0, 0, 0], [255, 255, 255]] : kind.signed ? signed() : viridis);
    }
    drawEmbedding();
    drawConfusion();
    drawRegions();
    drawAccuracy();
  };
  const go = (frame) => {
    now = frame;
    $("frame").value = String(frame);
    draw();
  };
  const stop = () => {
    clearInterval(playing);
    playing = 0;
    $("play").textContent = "▶";
    $("play").setAttribute("aria-label", "play");
  };
  $("frame").addEventListener("input", () => { stop(); go(Number($("frame").value)); });
  $("play").addEventListener("click", () => {
    if (playing) return stop();
    if (now === frames - 1) go(0);
    $("play").textContent = "❚❚";
    $("play").setAttribute("aria-label", "pause");
    playing = setInterval(() => (now < frames - 1 ? go(now + 1) : stop()), 180);
  });
  if (K <= 20) {
    for (let k = 0; k < K; k++) {
      const spot = document.createElement("i");
      spot.style.background = colour(k);
      $("classes").append(spot, head(k) === film.classes[k] ? head(k) : `${head(k)} ${film.classes[k]}`);
    }
  }
  dark.addEventListener("change", draw);
  addEventListener("resize", draw);
  draw();
}
