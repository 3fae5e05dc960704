"use strict";
// Each kind of layer, for one sample, as nnx/export/_numpy_layers.py has it. A tensor is {shape, data}: its numbers are in
// a Float32Array, the last index fastest. C channels, H and W height and width, T steps or tokens, D numbers for each.

const arithmetic = (() => {
  let watch = null; // called with what each attention does

  const tensor = (shape, data) => ({ shape, data });
  const size = (shape) => shape.reduce((a, b) => a * b, 1);
  const zeros = (...shape) => tensor(shape, new Float32Array(size(shape)));
  const last = (x) => x.shape[x.shape.length - 1];
  const map = (x, f) => tensor(x.shape, x.data.map(f));

  // (columns) -> (features): each column as one number, or as one feature for each of its categories
  function tableFeatures(row, numbers) {
    const [column, category, missing, mean, std, isNumber, isCategory, isMissing] = [
      "column", "category", "missing", "mean", "std", "is_number", "is_category", "is_missing",
    ].map((name) => numbers[`table.${name}`].data);
    return tensor([column.length], Float32Array.from(column, (n, k) => {
      const value = row.data[n], absent = Number.isNaN(value);
      if (isNumber[k]) return Math.max(-1e6, Math.min(1e6, ((absent ? missing[k] : value) - mean[k]) / std[k]));
      return (isCategory[k] && value === category[k]) || (isMissing[k] && absent) ? 1 : 0;
    }));
  }

  // mean 0 and standard deviation 1 over the training data, per channel or feature
  function standardise(x, factor, offset) {
    const each = x.data.length / factor.data.length;
    return tensor(x.shape, Float32Array.from(x.data, (value, i) => {
      const k = Math.floor(i / each);
      return value * factor.data[k] + offset.data[k];
    }));
  }

  // (..., inputs) -> (..., units). Each unit adds up its inputs, each times its weight, and a bias.
  function linear(x, weights, bias) {
    const [inputs, units] = weights.shape, rows = x.data.length / inputs;
    const out = zeros(...x.shape.slice(0, -1), units), sums = new Float64Array(units);
    for (let row = 0; row < rows; row++) {
      sums.set(bias.data);
      for (let i = 0; i < inputs; i++) {
        const value = x.data[row * inputs + i];
        if (value === 0) continue;
        for (let j = 0, at = i * units; j < units; j++, at++) sums[j] += value * weights.data[at];
      }
      out.data.set(sums, row * units);
    }
    return out;
  }

  // (C, H, W) -> (filters, H', W'). Each filter slides over the image: at each place, it adds up the pixels below it,
  // each times its weight. The image gets rows and columns of zeros `before` and `after` it.
  function convolution(x, weights, bias, before, after, stride) {
    const [C, H, W] = x.shape, [filters, , height, width] = weights.shape;
    const rows = Math.floor((H + before + after - height) / stride) + 1;
    const columns = Math.floor((W + before + after - width) / stride) + 1;
    const out = zeros(filters, rows, columns), sums = new Float64Array(rows * columns);
    for (let f = 0; f < filters; f++) {
      sums.fill(bias.data ? bias.data[f] : bias);
      for (let c = 0; c < C; c++) {
        for (let i = 0; i < height; i++) {
          for (let j = 0; j < width; j++) {
            const weight = weights.data[((f * C + c) * height + i) * width + j];
            const start = Math.max(0, Math.ceil((before - j) / stride));
            const end = Math.min(columns, Math.floor((W - 1 + before - j) / stride) + 1);
            for (let row = 0; row < rows; row++) {
              const y = row * stride + i - before;
              if (y < 0 || y >= H) continue;
              const from = (c * H + y) * W + j - before, to = row * columns;
              for (let column = start; column < end; column++) sums[to + column] += weight * x.data[from + column * stride];
            }
          }
        }
      }
      out.data.set(sums, f * rows * columns);
    }
    return out;
  }

  // (C, H, W) -> (C, H/2, W/2). A last row or column without a partner is left out.
  function pool(x, ofFour) {
    const [C, H, W] = x.shape, rows = H >> 1, columns = W >> 1, out = zeros(C, rows, columns);
    for (let c = 0, i = 0; c < C; c++) {
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++, i++) {
          const at = (c * H + 2 * row) * W + 2 * column;
          out.data[i] = ofFour(x.data[at], x.data[at + 1], x.data[at + W], x.data[at + W + 1]);
        }
      }
    }
    return out;
  }
  const maxPool = (x) => pool(x, Math.max);
  const averagePool = (x) => pool(x, (a, b, c, d) => (a + b + c + d) / 4);

  // batch normalisation with the mean and the variance of the training data: per unit, or per channel of images
  const normalise = standardise;

  // (..., D): each row of D numbers, shifted to mean 0 and scaled to variance 1, then by learned numbers
  function layerNorm(x, scale, shift, epsilon) {
    const D = last(x), out = zeros(...x.shape);
    for (let at = 0; at < x.data.length; at += D) {
      let mean = 0, variance = 0;
      for (let i = 0; i < D; i++) mean += x.data[at + i] / D;
      for (let i = 0; i < D; i++) variance += (x.data[at + i] - mean) ** 2 / D;
      const factor = 1 / Math.sqrt(variance + epsilon);
      for (let i = 0; i < D; i++) out.data[at + i] = (x.data[at + i] - mean) * factor * scale.data[i] + shift.data[i];
    }
    return out;
  }

  const row = (x, t) => tensor([last(x)], x.data.subarray(t * last(x), (t + 1) * last(x)));

  // (T, inputs) -> (T, units): the state after each step. `next` computes it from weighted sums of the step and of the
  // state before it.
  function recurrent(steps, inputWeights, stateWeights, inputBias, stateBias, next) {
    const T = steps.shape[0], units = stateWeights.shape[0], states = zeros(T, units);
    const ofInput = linear(steps, inputWeights, inputBias);
    let state = zeros(units);
    for (let t = 0; t < T; t++) {
      const values = next(row(ofInput, t).data, linear(state, stateWeights, stateBias).data, state.data, units);
      states.data.set(values, t * units);
      state = row(states, t);
    }
    return states;
  }
  const noBias = (weights) => zeros(weights.shape[1]);

  function rnn(steps, inputWeights, stateWeights, bias) {
    const next = (ofInput, ofState) => ofInput.map((sum, i) => Math.tanh(sum + ofState[i]));
    return recurrent(steps, inputWeights, stateWeights, bias, noBias(stateWeights), next);
  }

  // Gates between 0 and 1 decide what the memory forgets, what it takes in, and what the state shows of it.
  function lstm(steps, inputWeights, stateWeights, bias) {
    let memory = null;
    const next = (ofInput, ofState, state, units) => {
      memory ??= new Float32Array(units);
      const sum = (gate, i) => ofInput[gate * units + i] + ofState[gate * units + i];
      memory = memory.map((old, i) => sigma(sum(1, i)) * old + sigma(sum(0, i)) * Math.tanh(sum(2, i)));
      return memory.map((value, i) => sigma(sum(3, i)) * Math.tanh(value));
    };
    return recurrent(steps, inputWeights, stateWeights, bias, noBias(stateWeights), next);
  }

  // One gate decides how much of the old state the candidate sees, another how much of it remains.
  function gru(steps, inputWeights, stateWeights, inputBias, stateBias) {
    const next = (ofInput, ofState, state, units) =>
      state.map((old, i) => {
        const reset = sigma(ofInput[i] + ofState[i]);
        const update = sigma(ofInput[units + i] + ofState[units + i]);
        const candidate = Math.tanh(ofInput[2 * units + i] + reset * ofState[2 * units + i]);
        return (1 - update) * candidate + update * old;
      });
    return recurrent(steps, inputWeights, stateWeights, inputBias, stateBias, next);
  }

  // (C, H, W) -> (T, C * P * P): the image cut into T squares, each a row of numbers
  function patches(x, P) {
    const [C, H, W] = x.shape, across = W / P, out = zeros((H / P) * across, C * P * P);
    for (let c = 0; c < C; c++) {
      for (let y = 0; y < H; y++) {
        for (let z = 0; z < W; z++) {
          const token = Math.floor(y / P) * across + Math.floor(z / P);
          out.data[token * C * P * P + (c * P + (y % P)) * P + (z % P)] = x.data[(c * H + y) * W + z];
        }
      }
    }
    return out;
  }

  // (T, D) -> (T, D). Each token asks a query. Its similarity to the key of each token says how much of that token's
  // value it takes. Each head does so with its own D / heads numbers.
  function attention(x, weights, bias, heads) {
    const [T, D] = x.shape, each = D / heads, out = zeros(T, D), shares = zeros(heads, T, T);
    const sums = linear(x, weights, bias).data; // (T, 3 * D)
    for (let head = 0; head < heads; head++) {
      const query = head * each, key = D + query, value = 2 * D + query;
      for (let t = 0; t < T; t++) {
        const similarity = zeros(T);
        for (let u = 0; u < T; u++) {
          let sum = 0;
          for (let i = 0; i < each; i++) sum += sums[t * 3 * D + query + i] * sums[u * 3 * D + key + i];
          similarity.data[u] = sum / Math.sqrt(each);
        }
        const share = softmax(similarity).data;
        shares.data.set(share, (head * T + t) * T);
        for (let i = 0; i < each; i++) {
          let sum = 0;
          for (let u = 0; u < T; u++) sum += share[u] * sums[u * 3 * D + value + i];
          out.data[t * D + query + i] = sum;
        }
      }
    }
    if (watch) watch(shares);
    return out;
  }

  // (..., K) -> (..., K): positive numbers that add up to 1. Subtracting the largest avoids numbers that are too large.
  function softmax(x) {
    const K = last(x), out = zeros(...x.shape);
    for (let at = 0; at < x.data.length; at += K) {
      const values = Float64Array.from(x.data.subarray(at, at + K)), most = Math.max(...values);
      const exponentials = values.map((value) => Math.exp(value - most));
      const sum = exponentials.reduce((a, b) => a + b, 0);
      out.data.set(exponentials.map((value) => value / sum), at);
    }
    return out;
  }

  // (..., 1) -> (..., 2): the probability of the second class by a sigmoid, and the rest for the first
  function twoClasses(logit) {
    const second = Array.from(logit.data, sigma);
    return tensor([...logit.shape.slice(0, -1), 2], Float32Array.from(second.flatMap((share) => [1 - share, share])));
  }

  // ---------------------------------------------------------------- shapes

  const add = (x, y) => tensor(x.shape, x.data.map((value, i) => value + y.data[i]));
  const flatten = (x) => tensor([x.data.length], x.data);
  const column = (x) => tensor([x.data.length, 1], x.data); // (F) -> (F, 1)
  const first = (x) => tensor(x.shape.slice(1), x.data.subarray(0, size(x.shape.slice(1))));
  const at = (x, t) => row(x, t < 0 ? x.shape[0] + t : t);
  const join = (rows) => {
    const out = new Float32Array(rows.reduce((sum, { data }) => sum + data.length, 0));
    rows.reduce((place, { data }) => (out.set(data, place), place + data.length), 0);
    return out;
  };
  const rowsOf = (x) => Array.from({ length: x.shape[0] }, (_, t) => row(x, t));
  const reverse = (x) => tensor(x.shape, join(rowsOf(x).reverse()));

  function concatenate(x, y, axis) {
    const shape = x.shape.map((n, k) => (k === axis ? n + y.shape[k] : n));
    if (axis === 0) return tensor(shape, join([x, y]));
    return tensor(shape, join(rowsOf(x).flatMap((part, t) => [part, row(y, t)])));
  }

  // (C, H, W) -> (H, C * W): a step is a row of the image
  function imageRows(x) {
    const [C, H, W] = x.shape, out = zeros(H, C * W);
    for (let c = 0; c < C; c++) {
      for (let y = 0; y < H; y++) out.data.set(x.data.subarray((c * H + y) * W, (c * H + y + 1) * W), (y * C + c) * W);
    }
    return out;
  }

  // (C, H, W) -> (C)
  function meanOfMaps(x) {
    const [C, H, W] = x.shape;
    return tensor([C], Float32Array.from({ length: C }, (_, c) => x.data.subarray(c * H * W, (c + 1) * H * W).reduce((a, b) => a + b, 0) / (H * W)));
  }

  // (T, D) -> (D)
  function meanOfSteps(x) {
    const [T, D] = x.shape;
    return tensor([D], Float32Array.from({ length: D }, (_, i) => {
      let sum = 0;
      for (let t = 0; t < T; t++) sum += x.data[t * D + i];
      return sum / T;
    }));
  }

  // ---------------------------------------------------------------- activations

  const sigma = (x) => 1 / (1 + Math.exp(-x));
  const softly = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  const clip = (x, low, high) => Math.min(Math.max(x, low), high);

  // The error function: its Taylor series near 0, else the continued fraction of its complement, both to 1e-15.
  function errorFunction(x) {
    const size = Math.abs(x);
    if (size > 6) return Math.sign(x);
    if (size < 2.5) {
      let sum = x, term = x;
      for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
        term *= (-x * x) / n;
        sum += term / (2 * n + 1);
      }
      return (2 / Math.sqrt(Math.PI)) * sum;
    }
    let fraction = 0;
    for (let n = 60; n > 0; n--) fraction = n / 2 / (size + fraction);
    return Math.sign(x) * (1 - Math.exp(-size * size) / (Math.sqrt(Math.PI) * (size + fraction)));
  }

  const hardsigmoid = (x) => clip(x + 3, 0, 6) / 6;
  const elu = (x, alpha = 1) => (x > 0 ? x : alpha * Math.expm1(x));
  const scalar = {
    relu: (x) => Math.max(x, 0),
    relu6: (x) => clip(x, 0, 6),
    leakyRelu: (x) => (x > 0 ? x : 0.01 * x),
    rrelu: (x) => (x > 0 ? x : (x * (1 / 8 + 1 / 3)) / 2), // random in training
    elu: (x) => elu(x),
    celu: (x) => elu(x),
    selu: (x) => 1.0507009873554805 * elu(x, 1.6732632423543772), // Klambauer et al. 2017
    gelu: (x) => (x * (1 + errorFunction(x / Math.SQRT2))) / 2,
    sigmoid: sigma,
    logsigmoid: (x) => -softly(-x),
    silu: (x) => x * sigma(x),
    softplus: softly,
    mish: (x) => x * Math.tanh(softly(x)),
    softsign: (x) => x / (1 + Math.abs(x)),
    tanh: Math.tanh,
    tanhshrink: (x) => x - Math.tanh(x),
    softshrink: (x) => Math.sign(x) * Math.max(Math.abs(x) - 0.5, 0),
    hardshrink: (x) => (Math.abs(x) > 0.5 ? x : 0),
    hardtanh: (x) => clip(x, -1, 1),
    hardsigmoid,
    hardswish: (x) => x * hardsigmoid(x),
  };
  const activations = Object.fromEntries(Object.entries(scalar).map(([name, f]) => [name, (x) => map(x, (value) => f(value))]));
  const prelu = (x, slope) => map(x, (value) => (value > 0 ? value : slope.data[0] * value));

  return {
    tensor, tableFeatures, standardise, linear, convolution, maxPool, averagePool, normalise, layerNorm, rnn, lstm, gru,
    patches, attention, softmax, twoClasses, add, flatten, column, first, at, reverse, concatenate, imageRows, meanOfMaps,
    meanOfSteps, errorFunction, prelu, ...activations,
    watchAttention: (callback) => (watch = callback),
  };
})();
