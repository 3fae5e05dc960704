"use strict";
// Where the answers come from: here, from the network in this file. See source.js of nnx serve for what they are.

const source = (() => {
  const MAX_MAPS = 32, MAX_UNITS = 1024; // of a layer that are shown
  const PATIENCE = 50; // milliseconds for finding out which parts speak for the answer
  const PARTS = 7; // down and across, at least
  const { spec, classes, model, columns } = facts;
  const isImage = spec.shape.length === 3;
  let cost = Infinity; // milliseconds of the fastest forward pass
  const blank = isImage ? new Float32Array(spec.shape.reduce((a, b) => a * b)) : null;

  const base64 = (values) => {
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return btoa(text);
  };

  // numbers as the page takes them: scale * int8 / 127
  function pack(shape, values) {
    const scale = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const levels = Int8Array.from(values, (value) => Math.round((value * 127) / (scale || 1)));
    return { shape, scale, data: base64(levels) };
  }

  const packImage = ({ height, width, channels, data }) => ({ shape: [channels, height, width], data: base64(data) });

  // (H, W, C) pixels -> (C, H, W) as the network takes them
  function asInput({ height, width, channels, data }) {
    const area = height * width;
    return Float32Array.from({ length: data.length }, (_, i) => data[(i % area) * channels + Math.floor(i / area)]);
  }

  const probabilitiesOf = (data) => network.predict(arithmetic.tensor(spec.shape, data)).data;

  // ---------------------------------------------------------------- inputs

  async function pixelsOf({ canvas, file }) {
    const drawn = file ? pictures.shrink(await pictures.open(file)) : canvas;
    const { data, height, width } = drawn.getContext("2d").getImageData(0, 0, drawn.width, drawn.height);
    const colours = Uint8Array.from({ length: height * width * 3 }, (_, i) => data[Math.floor(i / 3) * 4 + (i % 3)]);
    const isGray = colours.every((level, i) => level === colours[i - (i % 3)]);
    return isGray ? { height, width, channels: 1, data: colours.filter((_, i) => i % 3 === 0) } : { height, width, channels: 3, data: colours };
  }

  const MISSING = ["", "NA", "N/A", "nan", "NaN", "null", "None", "?", "-"];

  // {column: text} -> a number for each column: its value, or the index of its category, -1 for any other, NaN for none
  function readRow(row) {
    return Float64Array.from(columns, ({ name, kind, codes }) => {
      const text = (row[name] ?? "").trim();
      if (MISSING.includes(text) && !(kind === "category" && codes.includes(text))) {
        if (!spec.columns) throw new Error(`${name} is not a number; correct it`);
        return NaN;
      }
      if (kind === "category") return codes.indexOf(text);
      const value = Number(text.replace(/_/g, ""));
      if (!Number.isFinite(value)) throw new Error(`${name} is not a number; write it like 1234.5`);
      return value;
    });
  }

  // ---------------------------------------------------------------- samples

  const { split, listed } = facts.samples;
  const order = listed.map((_, n) => n).sort(() => Math.random() - 0.5); // each once, then all again
  let turn = 0;

  async function sample() {
    const { index, label, image, row } = listed[order[turn++ % order.length]];
    return { index, split, label: classes[label], image, row: row && Object.fromEntries(columns.map(({ name }, n) => [name, row[n] || null])) };
  }

  // the picture of a sample, as it is in the dataset
  function pictureOf(index) {
    const { shape: [channels, height, width], data } = listed.find((each) => each.index === index).image;
    return { height, width, channels, data: Uint8Array.from(atob(data), (character) => character.charCodeAt(0)) };
  }

  // ---------------------------------------------------------------- answers

  function asMaps({ shape, data }) {
    if (shape.length === 3) {
      const [maps, height, width] = [Math.min(shape[0], MAX_MAPS), shape[1], shape[2]];
      return ["maps", [maps, height, width], data.subarray(0, maps * height * width)];
    }
    if (shape.length === 2) {
      const [T, D] = shape, units = Math.min(D, MAX_UNITS);
      const kind = model === "rnn" ? "states" : "tokens";
      return [kind, [1, T, units], data.filter((_, i) => i % D < units)];
    }
    const units = Math.min(data.length, MAX_UNITS);
    return ["units", [1, 1, units], data.subarray(0, units)];
  }

  // how much attention each patch, or feature, receives from each head
  function received({ shape: [heads, T], data }) {
    const others = network.classToken ? 1 : 0, N = T - others, out = new Float32Array(heads * N);
    for (let head = 0; head < heads; head++) {
      for (let u = 0; u < N; u++) {
        const from = others ? [0] : Array.from({ length: T }, (_, t) => t);
        out[head * N + u] = from.reduce((sum, t) => sum + data[(head * T + t) * T + others + u], 0) / from.length;
      }
    }
    const [rows, across] = isImage ? [spec.shape[1] / facts.patch, spec.shape[2] / facts.patch] : [1, N];
    return [[heads, rows, across], out];
  }

  function layersOf({ outputs, attention, belief }) {
    const layers = outputs.map(({ title, x }) => {
      const [kind, shape, values] = asMaps(x);
      return { title, kind, shape, values };
    });
    attention.forEach((shares, n) => {
      const [shape, values] = received(shares);
      layers.push({ title: `Attention ${n + 1}`, kind: "attention", shape, values });
    });
    if (belief) layers.push({ title: `Belief after each ${isImage ? "row" : "feature"}`, kind: "belief", shape: [1, ...belief.shape], values: belief.data });
    return layers.map((layer) => ({ ...layer, values: pack(layer.shape, layer.values) }));
  }

  // How much the logit of the answer falls when a square of the image is blank: squares as small as time permits.
  function occlude(data, k) {
    const [C, H, W] = spec.shape, area = H * W, out = new Float32Array(area);
    const count = PATIENCE / Math.max(cost, 0.01); // squares
    const side = Math.min(Math.ceil(Math.sqrt(area / count)), Math.ceil(Math.max(H, W) / PARTS));
    const logit = (share) => Math.log(share + 1e-9) - Math.log(1 - share + 1e-9);
    const whole = logit(probabilitiesOf(data)[k]);
    for (let top = 0; top < H; top += side) {
      for (let left = 0; left < W; left += side) {
        const places = [];
        for (let y = top; y < Math.min(H, top + side); y++) for (let x = left; x < Math.min(W, left + side); x++) places.push(y * W + x);
        const isBlank = places.every((at) => Array.from({ length: C }, (_, c) => data[c * area + at] === blank[c * area + at]).every(Boolean));
        if (isBlank) continue;
        const without = data.slice();
        for (const at of places) for (let c = 0; c < C; c++) without[c * area + at] = blank[c * area + at];
        const falls = whole - logit(probabilitiesOf(without)[k]);
        for (const at of places) out[at] = falls;
      }
    }
    return pack([1, H, W], out);
  }

  // The same for each column of a table: the mean of the training data, or no category, instead of its value.
  function omitColumns(values, k) {
    const logit = (share) => Math.log(share + 1e-9) - Math.log(1 - share + 1e-9);
    const of = (row) => logit(network.predict(arithmetic.tensor([row.length], row)).data[k]);
    const whole = of(values), contributions = [], end = performance.now() + 4 * PATIENCE;
    columns.forEach(({ kind, mean, features }, n) => {
      if (performance.now() > end) return contributions.push(...new Array(features).fill(0));
      const without = values.slice();
      without[n] = kind === "category" ? -1 : mean;
      contributions.push(whole - of(without), ...new Array(features - 1).fill(0));
    });
    return pack([contributions.length], Float32Array.from(contributions));
  }

  const top = (probabilities) =>
    Array.from(probabilities, (probability, k) => ({ label: classes[k], probability }))
      .sort((a, b) => b.probability - a.probability)
      .slice(0, 3);

  async function answer(input) {
    await new Promise((done) => setTimeout(done)); // let the page draw what was drawn
    let steps = null;
    if ("sample" in input) steps = [{ text: "as in the dataset", picture: pictureOf(input.sample) }];
    else if (isImage) steps = prepare(await pixelsOf(input), spec);
    const data = isImage ? asInput(steps[steps.length - 1].picture) : readRow(input.row);
    const start = performance.now();
    const seen = network.look(arithmetic.tensor(isImage ? spec.shape : [data.length], data));
    cost = Math.min(cost, performance.now() - start);
    const probabilities = Array.from(seen.probabilities.data);
    const best = probabilities.indexOf(Math.max(...probabilities));
    return [
      {
        model,
        label: classes[best],
        probability: probabilities[best],
        probabilities,
        prepared: steps && steps.map(({ text, picture }) => ({ step: text, image: packImage(picture), top: top(probabilitiesOf(asInput(picture))) })),
        layers: layersOf(seen),
        saliency: isImage ? occlude(data, best) : omitColumns(data, best),
      },
    ];
  }

  async function models() {
    const empty = isImage ? blank : Float64Array.from(columns, ({ kind, mean }) => (kind === "category" ? -1 : mean));
    const layers = layersOf(network.look(arithmetic.tensor(isImage ? spec.shape : [empty.length], empty)));
    const { drawing, parameters, accuracy } = facts;
    const pictures = isImage && [1, 3].includes(spec.shape[0]);
    const described = {
      id: model,
      architecture: model,
      parameters,
      test_accuracy: accuracy.split === "test" ? accuracy.accuracy : null,
      validation_accuracy: accuracy.split === "validation" ? accuracy.accuracy : null,
      shape: spec.shape,
      layers: layers.map(({ title, kind, shape }) => ({ title, kind, shape })),
    };
    return { input: isImage ? "image" : "row", drawing, pictures, samples: listed.length > 0, classes, models: [described], columns };
  }

  return { models, sample, answer };
})();
