"use strict";

/* A click on a cell of the confusion matrix shows its samples. */
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

/* A click on a column head sorts the table, ascending first: the worst class is on top. */
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

/* The film of the training: draws the frame that the slider selects, again when the slider, the theme or the width of the page changes. */
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

  /* The head of a row or column of the confusion matrix: the name of the class if it is short, else its number. */
  const head = (k) => (film.classes[k].length <= 2 ? film.classes[k] : String(k));

  /* All pictures of one layer in the current frame, side by side; a long vector is wrapped into rows. */
  const tiles = (canvas, layer, stops) => {
    layer.bytes ??= bytes(layer.data);
    const [n, height, width] = layer.shape, channels = layer.channels;
    const frameSize = n * height * width * channels, start = layer.bytes.length === frameSize ? 0 : frameSize * now;
    const isVector = n * height === 1, w = isVector ? Math.min(width, 32) : width, h = isVector ? Math.ceil(width / w) : height;
    const about = Math.min(n, Math.max(n > 8 ? 8 : 1, Math.round(Math.sqrt((1.4 * n * h) / w))));
    const columns = [about, about + 1, about - 1, about + 2, about - 2].find((count) => (count > 1 || n === 1) && n % count === 0) || about;
    const rows = Math.ceil(n / columns), zoom = Math.ceil(96 / w), gap = n > 1 ? Math.max(2, Math.round(0.08 * w * zoom)) : 0;
    canvas.width = columns * (w * zoom + gap) - gap;
    canvas.height = rows * (h * zoom + gap) - gap;
    const pen = canvas.getContext("2d"), image = new ImageData(w, h), sketch = new OffscreenCanvas(w, h), table = [];
    for (let v = 0; v < 256 && channels === 1; v++) table.push(between(stops, v / 255));
    pen.imageSmoothingEnabled = false;
    for (let tile = 0; tile < n; tile++) {
      for (let pixel = 0; pixel < w * h; pixel++) {
        const from = start + (tile * height * width + pixel) * channels, exists = pixel < height * width;
        const pixelColour = channels === 1 ? table[layer.bytes[from]] : layer.bytes.subarray(from, from + 3);
        image.data.set(exists ? [...pixelColour, 255] : [0, 0, 0, 0], 4 * pixel);
      }
      sketch.getContext("2d").putImageData(image, 0, 0);
      const left = (tile % columns) * (w * zoom + gap), top = Math.floor(tile / columns) * (h * zoom + gap);
      pen.drawImage(sketch, left, top, w * zoom, h * zoom);
    }
  };

  /* A square canvas at the resolution of the screen. */
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
    const [pen, side] = square($("embedding")), start = 2 * samples * now;
    const position = (value) => side / 2 + (value / 32767) * (side / 2 - 10);
    for (let n = 0; n < samples; n++) {
      const wrong = predicted[samples * now + n] !== film.labels[n];
      dot(pen, position(embedding[start + 2 * n]), position(-embedding[start + 2 * n + 1]), film.labels[n], wrong);
    }
  };
  const drawConfusion = () => {
    const [pen, side] = square($("confusion")), counts = new Map();
    for (let n = 0; n < samples; n++) {
      const cell = film.labels[n] * K + predicted[samples * now + n];
      counts.set(cell, (counts.get(cell) || 0) + 1);
    }
    const margin = K <= 20 ? 22 : 4, cellSize = (side - margin - 4) / K, largest = Math.max(...counts.values());
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `${Math.min(13, cellSize * 0.55)}px system-ui, sans-serif`;
    pen.fillStyle = theme("--soft");
    for (let k = 0; k < K && margin > 4; k++) {
      pen.fillText(head(k), margin + (k + 0.5) * cellSize, margin / 2);
      pen.fillText(head(k), margin / 2, margin + (k + 0.5) * cellSize);
    }
    for (const [cell, count] of counts) {
      const row = Math.floor(cell / K), column = cell % K, x = margin + column * cellSize, y = margin + row * cellSize;
      pen.fillStyle = `rgb(${theme(row === column ? "--blue" : "--red")} / ${0.15 + 0.55 * Math.sqrt(count / largest)})`;
      pen.fillRect(x + 0.5, y + 0.5, cellSize - 1, cellSize - 1);
      pen.fillStyle = theme("--ink");
      if (cellSize > 15) pen.fillText(String(count), x + cellSize / 2, y + cellSize / 2);
    }
  };
  const drawRegions = () => {
    const canvas = $("regions"), map = film.regions;
    if (!canvas) return;
    map.predicted ??= new Uint16Array(bytes(map.classes).buffer);
    map.confidence ??= bytes(map.sure);
    const [pen, side] = square(canvas), start = map.side ** 2 * now, edge = theme("--paper");
    const plane = new ImageData(map.side, map.side), sketch = new OffscreenCanvas(map.side, map.side);
    for (let n = 0; n < map.side ** 2; n++) {
      const certainty = Math.max(0, (map.confidence[start + n] / 255 - 1 / K) / (1 - 1 / K));
      plane.data.set([...rgb(solid(map.predicted[start + n])), 25 + 130 * certainty], 4 * n);
    }
    sketch.getContext("2d").putImageData(plane, 0, 0);
    pen.drawImage(sketch, 0, 0, side, side);
    map.points.forEach(([x, y], n) => {
      const wrong = predicted[samples * now + n] !== film.labels[n];
      dot(pen, x * side, (1 - y) * side, film.labels[n], wrong, edge);
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
    const caption = `step ${film.steps[now].toLocaleString("en")}${epoch}: accuracy ${(100 * film.accuracy[now]).toFixed(1)} % on ${samples} samples, cross-entropy ${film.loss[now].toFixed(3)}`;
    $("caption").textContent = caption;
    $("frame").setAttribute("aria-valuetext", caption);
    tiles($("filters"), film.filters, signed());
    for (const canvas of document.querySelectorAll("[data-layer]")) {
      const isSample = canvas.dataset.layer === "sample", layer = isSample ? film.sample : film.layers[canvas.dataset.layer];
      tiles(canvas, layer, isSample ? [[0, 0, 0], [255, 255, 255]] : layer.signed ? signed() : viridis);
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
