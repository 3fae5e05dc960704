"use strict";
// Turns a drawing or a clean picture into an image like those the network was trained on, step by step as
// nnx/preprocessing does (images, image_statistics, segmentation, handwriting), on paper of one even colour.
// A picture is {height, width, channels, data}, its pixels in a row, uint8 or float.

const prepare = (() => {
  const SEARCH_SIZE = 512, DETAIL = 5, MAX_DETAIL = 400, MARGIN = 0.25, MAX_PAGES = 3, PAGE_EDGE = 0.02;
  const THIN = 0.8, FAT = 1.35, PALE = 0.95, SAME_BOX = 0.15, SAME_PLACE = 0.06;
  const LEVEL = 0.2, MIN_CONTRAST = 12, MIN_SIGNAL = 6, NEAR = 0.2, SPECK = 0.02, COARSE = 64;

  const picture = (height, width, channels, data) => ({ height, width, channels, data });
  const like = ({ height, width }, data) => picture(height, width, 1, data);
  const clip = (x, low, high) => Math.min(Math.max(x, low), high);
  const sizeOf = ({ height, width }) => `${width}x${height}`;

  // values in an array of another kind, several times as fast as its `from`
  function convert(Kind, values, f) {
    const out = new Kind(values.length);
    for (let i = 0; i < values.length; i++) out[i] = f(values[i], i);
    return out;
  }

  // half to even, as Python rounds
  function round(x) {
    const down = Math.floor(x), rest = x - down;
    return rest > 0.5 || (rest === 0.5 && down % 2) ? down + 1 : down;
  }

  function percentile(values, share) {
    const sorted = (Array.isArray(values) ? Float32Array.from(values) : values.slice()).sort(), at = share * (sorted.length - 1), low = Math.floor(at);
    return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
  }
  const median = (values) => percentile(values, 0.5);
  const maximum = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

  // ---------------------------------------------------------------- images

  // Gray is repeated; colours become luma (ITU-R BT.601).
  function toChannels(pixels, channels) {
    const { height, width, data } = pixels;
    if (pixels.channels === channels) return pixels;
    const out = new Uint8Array(height * width * channels);
    for (let i = 0; i < height * width; i++) {
      if (channels === 3) out.fill(data[i], 3 * i, 3 * i + 3);
      else out[i] = (19595 * data[3 * i] + 38470 * data[3 * i + 1] + 7471 * data[3 * i + 2] + 32768) >> 16;
    }
    return picture(height, width, channels, out);
  }

  function border({ height, width, channels, data }) {
    const values = Array.from({ length: channels }, () => []);
    for (let y = 0; y < height; y++) {
      const inside = y > 0 && y < height - 1;
      for (let x = 0; x < width; x += inside ? Math.max(1, width - 1) : 1) {
        for (let c = 0; c < channels; c++) values[c].push(data[(y * width + x) * channels + c]);
      }
    }
    return values;
  }

  // The weights of Pillow's bilinear filter, which widens when it shrinks an image, in fixed point.
  function filterWeights(from, to) {
    const scale = from / to, reach = Math.max(scale, 1);
    return Array.from({ length: to }, (_, n) => {
      const centre = (n + 0.5) * scale;
      const start = Math.max(0, Math.trunc(centre - reach + 0.5)), end = Math.min(from, Math.trunc(centre + reach + 0.5));
      const weights = Array.from({ length: end - start }, (_, i) => Math.max(0, 1 - Math.abs((i + start - centre + 0.5) / reach)));
      const sum = weights.reduce((a, b) => a + b, 0);
      return { start, weights: weights.map((weight) => Math.trunc((weight / sum) * 2 ** 22 + 0.5)) };
    });
  }

  function resize(pixels, height, width) {
    let { data } = pixels;
    const { channels } = pixels;
    const pass = (rows, to, stride, across, filters) => {
      const out = new Uint8Array(rows * to * channels);
      filters.forEach(({ start, weights }, n) => {
        for (let row = 0; row < rows; row++) {
          for (let c = 0; c < channels; c++) {
            let sum = 2 ** 21;
            for (let i = 0; i < weights.length; i++) sum += weights[i] * data[(row * across + (start + i) * stride) * channels + c];
            out[(stride === 1 ? row * to + n : n * rows + row) * channels + c] = clip(Math.floor(sum / 2 ** 22), 0, 255);
          }
        }
      });
      data = out;
    };
    if (width !== pixels.width) pass(pixels.height, width, 1, pixels.width, filterWeights(pixels.width, width));
    if (height !== pixels.height) pass(width, height, width, 1, filterWeights(pixels.height, height));
    return picture(height, width, channels, data);
  }

  // "pad" keeps the aspect ratio, "stretch" scales height and width independently.
  function toSize(pixels, height, width, fit) {
    if (fit === "stretch" || (pixels.height === height && pixels.width === width)) return resize(pixels, height, width);
    const { channels } = pixels, scale = Math.min(height / pixels.height, width / pixels.width);
    const side = (most, n) => clip(round(n * scale), 1, most);
    const inner = resize(pixels, side(height, pixels.height), side(width, pixels.width));
    const padded = new Uint8Array(height * width * channels);
    const levels = border(pixels).map((values) => Math.trunc(median(values)));
    for (let i = 0; i < padded.length; i++) padded[i] = levels[i % channels];
    const top = (height - inner.height) >> 1, left = (width - inner.width) >> 1, length = inner.width * channels;
    for (let y = 0; y < inner.height; y++) padded.set(inner.data.subarray(y * length, (y + 1) * length), ((top + y) * width + left) * channels);
    return picture(height, width, channels, padded);
  }

  function crop({ height, width, channels, data }, top, bottom, left, right) {
    [top, bottom, left, right] = [clip(top, 0, height), Math.min(bottom, height), clip(left, 0, width), Math.min(right, width)];
    const out = new data.constructor((bottom - top) * (right - left) * channels);
    for (let y = top; y < bottom; y++) out.set(data.subarray((y * width + left) * channels, (y * width + right) * channels), (y - top) * (right - left) * channels);
    return picture(bottom - top, right - left, channels, out);
  }

  const invert = (pixels) => ({ ...pixels, data: pixels.data.map((level) => 255 - level) });

  const rescale = (pixels, scale) =>
    resize(pixels, Math.max(1, round(pixels.height * scale)), Math.max(1, round(pixels.width * scale)));

  // shares of ink, antialiased, in steps of 1/255; in 32 bits, as half a step is frequent, and must round as in numpy
  function resizeInk(share, height, width) {
    const levels = like(share, convert(Uint8Array, share.data, (value) => round(Math.fround(clip(value, 0, 1) * 255))));
    return picture(height, width, 1, convert(Float32Array, resize(levels, height, width).data, (level) => level / 255));
  }

  function padded({ height, width, data }, by) {
    const out = new data.constructor((height + 2 * by) * (width + 2 * by));
    for (let y = 0; y < height; y++) out.set(data.subarray(y * width, (y + 1) * width), (y + by) * (width + 2 * by) + by);
    return picture(height + 2 * by, width + 2 * by, 1, out);
  }

  // ---------------------------------------------------------------- the ink of the training images

  const contrast = (gray, { background, ink }) =>
    like(gray, convert(Float32Array, gray.data, (level) => clip((level - background) / (ink - background || Infinity), 0, 1)));

  // first and last row, first and last column of the ink; null without ink
  function inkBox({ height, width, data }) {
    let box = null;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (!(data[y * width + x] > LEVEL)) continue;
        box ??= [y, y, x, x];
        box[1] = y;
        if (x < box[2]) box[2] = x;
        if (x > box[3]) box[3] = x;
      }
    }
    return box;
  }

  function massCentre({ width, data }) {
    let mass = 0, down = 0, right = 0;
    data.forEach((value, i) => {
      mass += value;
      down += value * Math.floor(i / width);
      right += value * (i % width);
    });
    return [down / mass, right / mass];
  }

  // twice the area over the length of the edge
  function strokeWidth(strokes) {
    const { height, width, data } = padded(strokes, 1);
    let area = 0, edge = 0;
    for (let y = 0; y < height - 1; y++) {
      for (let x = 0; x < width - 1; x++) {
        const at = y * width + x;
        area += data[at];
        edge += Math.sqrt((data[at + width] - data[at]) ** 2 + (data[at + 1] - data[at]) ** 2);
      }
    }
    return (2 * area) / Math.max(edge, 1e-6);
  }

  const isInverted = (pixels, statistics) => {
    const [levels] = border(toChannels(pixels, 1));
    const span = statistics.ink - statistics.background || Infinity;
    return levels.filter((level) => clip((level - statistics.background) / span, 0, 1) > 0.5).length > 0.5 * levels.length;
  };

  const toGrayLevels = (share, { background, ink }) =>
    like(share, convert(Uint8Array, share.data, (value) => round(Math.fround(background + Math.fround((ink - background) * clip(value, 0, 1))))));

  // ---------------------------------------------------------------- finding ink on paper of one colour

  function findInk(pixels) {
    const { height, width, channels } = pixels;
    const paper = border(pixels).map(median);
    const isGray = paper.length === 1 || pixels.data.every((level, i) => level === pixels.data[i - (i % channels)]);
    const used = isGray ? 1 : channels;
    const direction = new Float64Array(used);
    for (let y = 0; y < height; y += 2) {
      for (let x = 0; x < width; x += 2) {
        const at = (y * width + x) * channels;
        let square = 0;
        for (let c = 0; c < used; c++) square += (pixels.data[at + c] - paper[c]) ** 2;
        for (let c = 0; c < used; c++) direction[c] += (pixels.data[at + c] - paper[c]) * square;
      }
    }
    const length = Math.hypot(...direction) || 1, darker = direction.reduce((a, b) => a + b, 0) <= 0;
    const along = new Float32Array(height * width);
    for (let i = 0; i < along.length; i++) {
      for (let c = 0; c < used; c++) {
        const level = pixels.data[i * channels + c];
        along[i] += ((darker ? (level / Math.max(paper[c], 1) - 1) * paper[c] : level - paper[c]) * direction[c]) / length;
      }
    }
    const difference = soften(picture(height, width, 1, along));
    const least = Math.max(MIN_CONTRAST, MIN_SIGNAL * noise(difference));
    const candidates = difference.data.filter((value) => value > least);
    if (!candidates.length) return null;
    const threshold = otsu(candidates);
    const level = median(candidates.filter((value) => value >= threshold));
    const share = like(difference, difference.data.map((value) => value / level));
    const marks = groupMarks(share);
    return marks && { share, darker, page: isPage(marks), ...marks };
  }

  // a Gaussian filter of 0.7 pixels
  function soften(image) {
    const shape = Array.from({ length: 7 }, (_, i) => Math.exp((-0.5 * (i - 3) ** 2) / 0.49));
    const sum = shape.reduce((a, b) => a + b, 0), weights = Float64Array.from(shape, (value) => value / sum);
    const reflect = (i, n) => {
      i = ((i % (2 * n)) + 2 * n) % (2 * n);
      return i < n ? i : 2 * n - 1 - i;
    };
    const { height, width } = image;
    const pass = (data, count, length, start, stride) => {
      const out = new Float32Array(data.length);
      const place = Array.from({ length: length + 6 }, (_, i) => reflect(i - 3, length) * stride);
      for (let n = 0; n < count; n++) {
        for (let i = 0, at = n * start; i < length; i++, at += stride) {
          let total = 0;
          for (let k = 0; k < 7; k++) total += weights[k] * data[n * start + place[i + k]];
          out[at] = total;
        }
      }
      return out;
    };
    return like(image, pass(pass(image.data, width, height, 1, width), height, width, width, 1));
  }

  function noise({ height, width, data }) {
    const corners = new Float32Array(Math.max(0, (height - 1) * (width - 1)));
    for (let y = 0, i = 0; y < height - 1; y++) {
      for (let x = 0; x < width - 1; x++, i++) {
        const at = y * width + x;
        corners[i] = Math.abs(data[at + width + 1] + data[at] - data[at + width] - data[at + 1]);
      }
    }
    return corners.length ? (1.4826 / 2) * median(corners) : 0;
  }

  // the threshold with the least variance on both sides (Otsu 1979), from a histogram of 128 bins
  function otsu(values) {
    const high = maximum(values), low = -maximum(values.map((value) => -value)), bins = 128;
    if (high <= low) return low;
    const counts = new Float64Array(bins), edge = (n) => low + ((high - low) * n) / bins;
    for (const value of values) counts[Math.min(bins - 1, Math.floor(((value - low) / (high - low)) * bins))]++;
    const mean = counts.reduce((sum, count, n) => sum + (count * (edge(n) + edge(n + 1))) / 2, 0) / values.length;
    let below = 0, sum = 0, best = -Infinity, threshold = low;
    for (let n = 0; n < bins - 1; n++) {
      below += counts[n];
      sum += (counts[n] * (edge(n) + edge(n + 1))) / 2;
      const between = (mean * below - sum) ** 2 / Math.max(below * (values.length - below), 1);
      if (between > best) [best, threshold] = [between, edge(n + 1)];
    }
    return threshold;
  }

  // Connected sets of pixels, also diagonally: {labels, count}, the labels from 1.
  function connect({ height, width }, isSet) {
    const labels = new Int32Array(height * width), stack = [];
    let count = 0;
    for (let start = 0; start < labels.length; start++) {
      if (labels[start] || !isSet(start)) continue;
      labels[start] = ++count;
      stack.push(start);
      while (stack.length) {
        const at = stack.pop(), y = Math.floor(at / width), x = at % width;
        for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
          for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
            const next = v * width + u;
            if (labels[next] || !isSet(next)) continue;
            labels[next] = count;
            stack.push(next);
          }
        }
      }
    }
    return { labels, count };
  }

  // The largest mark and those near it: {mask, box, others}. A mark that touches the edge of the picture is taken for a
  // shadow, if there is another.
  function groupMarks(share) {
    const { height: H, width: W } = share;
    const { labels, count } = connect(share, (i) => share.data[i] > 0.5);
    if (!count) return null;
    const marks = Array.from({ length: count }, () => ({ area: 0, box: [H, 0, W, 0], selected: false }));
    for (let y = 0, i = 0; y < H; y++) {
      for (let x = 0; x < W; x++, i++) {
        if (!labels[i]) continue;
        const mark = marks[labels[i] - 1], { box } = mark;
        mark.area++;
        if (y < box[0]) box[0] = y;
        if (y >= box[1]) box[1] = y + 1;
        if (x < box[2]) box[2] = x;
        if (x >= box[3]) box[3] = x + 1;
      }
    }
    const isInside = ({ box }) => box[0] > 0 && box[1] < H && box[2] > 0 && box[3] < W;
    const largestOf = (some) => maximum(some.map(({ area }) => area));
    if (largestOf(marks.filter(isInside)) > 0.05 * largestOf(marks)) for (const mark of marks) if (!isInside(mark)) mark.area = 0;
    const largest = marks.find(({ area }) => area === largestOf(marks));
    largest.selected = true;
    let box = largest.box, growing = true;
    while (growing) {
      const near = marks.filter((mark) => {
        const [top, bottom, left, right] = mark.box;
        const gap = Math.max(top - box[1], box[0] - bottom, left - box[3], box[2] - right);
        return mark.area >= SPECK * largest.area && !mark.selected && gap <= NEAR * Math.max(box[1] - box[0], box[3] - box[2]);
      });
      for (const mark of near) {
        mark.selected = true;
        box = box.map((edge, n) => (n % 2 ? Math.max : Math.min)(edge, mark.box[n]));
      }
      growing = near.length > 0;
    }
    const mask = like(share, convert(Uint8Array, labels, (label) => (label && marks[label - 1].selected ? 1 : 0)));
    return { mask, box, others: marks.filter(({ selected, area }) => !selected && area >= 0.1 * largest.area).length };
  }

  // Whether the marks fill their box except for holes, like a page with writing on it.
  function isPage({ mask, box }) {
    const [top, bottom, left, right] = box, part = crop(mask, ...box);
    const scale = COARSE / Math.max(part.height, part.width), side = (n) => Math.max(1, round(n * scale));
    const coarse = resize(like(part, part.data.map((set) => 255 * set)), side(part.height), side(part.width));
    const touching = (top === 0) + (bottom === mask.height) + (left === 0) + (right === mask.width);
    const [height, width] = [coarse.height, coarse.width];
    if (touching > 2 || Math.min(height, width) < 0.4 * Math.max(height, width)) return false;
    const shape = padded(like(coarse, coarse.data.map((level) => (level > 127 ? 1 : 0))), 1);
    const outside = new Uint8Array(shape.data.length), stack = [0];
    outside[0] = 1; // flood from a corner, not diagonally
    while (stack.length) {
      const at = stack.pop(), x = at % shape.width;
      for (const next of [at - shape.width, at + shape.width, x ? at - 1 : -1, x + 1 < shape.width ? at + 1 : -1]) {
        if (next < 0 || next >= outside.length || outside[next] || shape.data[next]) continue;
        outside[next] = 1;
        stack.push(next);
      }
    }
    const free = outside.reduce((a, b) => a + b, 0), inked = shape.data.reduce((a, b) => a + b, 0);
    const filled = outside.length - free, area = height * width;
    return filled / area > 0.83 && (filled - inked) / area > 0.01;
  }

  // ---------------------------------------------------------------- making ink look like that of the training images

  // the distance of each set pixel to the nearest that is not set (Felzenszwalb & Huttenlocher 2012)
  function distances({ height, width }, isSet) {
    const FAR = 1e12;
    const squares = Float64Array.from({ length: height * width }, (_, i) => (isSet(i) ? FAR : 0));
    const pass = (count, length, start, stride) => {
      const line = new Float64Array(length), at = new Int32Array(length), from = new Float64Array(length + 1);
      for (let n = 0; n < count; n++) {
        const offset = start(n);
        for (let i = 0; i < length; i++) line[i] = squares[offset + i * stride];
        let k = 0;
        at[0] = 0;
        from[0] = -Infinity;
        from[1] = Infinity;
        for (let q = 1; q < length; q++) {
          const meets = () => (line[q] + q * q - (line[at[k]] + at[k] * at[k])) / (2 * q - 2 * at[k]);
          let s = meets();
          while (s <= from[k]) {
            k--;
            s = meets();
          }
          at[++k] = q;
          from[k] = s;
          from[k + 1] = Infinity;
        }
        for (let i = 0, j = 0; i < length; i++) {
          while (from[j + 1] < i) j++;
          squares[offset + i * stride] = (i - at[j]) ** 2 + line[at[j]];
        }
      }
    };
    pass(width, height, (n) => n, width);
    pass(height, width, (n) => n * width, 1);
    return squares.map(Math.sqrt);
  }

  function grow(strokes, growth) {
    const wide = padded(strokes, Math.trunc(Math.max(growth, 0)) + 2);
    const solid = wide.data.map((value) => (value > 0.5 ? 1 : 0));
    const inside = distances(wide, (i) => solid[i]), outside = distances(wide, (i) => !solid[i]);
    return like(wide, convert(Float32Array, solid, (set, i) => clip((set ? inside[i] : 1 - outside[i]) + growth, 0, 1)));
  }

  function placeInk(strokes, shape, statistics, box) {
    const [, H, W] = shape;
    const [top, bottom, left, right] = inkBox(strokes) || [0, 0, 0, 0];
    const part = crop(strokes, top, bottom + 1, left, right + 1);
    const scale = box / Math.max(part.height, part.width), side = (most, n) => clip(round(n * scale), 1, most);
    const small = resizeInk(part, side(H, part.height), side(W, part.width));
    const byMass = statistics.centred === "mass" && small.data.some(Boolean);
    const centre = byMass ? massCentre(small) : [(small.height - 1) / 2, (small.width - 1) / 2];
    const place = (side, own, k) => clip(round((side - 1) / 2 + statistics.centre[k] - centre[k]), 0, side - own);
    const [y, x] = [place(H, small.height, 0), place(W, small.width, 1)];
    const placed = new Float32Array(H * W);
    for (let row = 0; row < small.height; row++) placed.set(small.data.subarray(row * small.width, (row + 1) * small.width), (y + row) * W + x);
    return picture(H, W, 1, placed);
  }

  function inkSize(strokes) {
    const box = inkBox(strokes);
    return box ? Math.max(box[1] - box[0], box[3] - box[2]) + 1 : 0;
  }

  // half the width of the narrow strokes: the 20th percentile along the strokes' centre lines
  function narrowHalfWidth(strokes) {
    const wide = padded(strokes, 1), { height, width } = wide;
    const depth = distances(wide, (i) => wide.data[i] > 0.5), deepest = maximum(depth);
    const ridge = depth.filter((value, at) => {
      const y = Math.floor(at / width), x = at % width;
      let most = 0;
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) most = Math.max(most, depth[v * width + u]);
      }
      return value >= most && value > deepest / 4;
    });
    return ridge.length ? percentile(ridge, 0.2) : 0;
  }

  function matchStrokeWidth(strokes, shape, statistics, box) {
    const scaled = (some) => strokeWidth(placeInk(some, shape, statistics, box));
    const first = scaled(strokes), target = Math.min(Math.max(statistics.stroke, 0.5), box / 2);
    if (!first || (THIN * target <= first && first <= FAT * target)) return [strokes, ""];
    const pixel = inkSize(strokes) / box, narrow = first > target ? narrowHalfWidth(strokes) : 0;
    let current = first, growth = 0, changed = strokes;
    for (let n = 0; n < 4 && Math.abs(current - target) >= 0.1 * target; n++) {
      growth += ((target - current) / 2) * pixel;
      if (narrow) growth = Math.max(growth, Math.min(0, (target / 2) * pixel - narrow));
      changed = grow(strokes, growth);
      current = scaled(changed);
    }
    if (!growth) return [strokes, ""];
    return [changed, `strokes ${current > first ? "thickened" : "thinned"} from ${first.toFixed(1)} to ${current.toFixed(1)} pixels`];
  }

  function isAligned(gray, shape, statistics) {
    const [, H, W] = shape;
    if (gray.height !== H || gray.width !== W) return false;
    const share = contrast(gray, statistics), box = inkBox(share);
    if (!box) return false;
    const centre = statistics.centred === "mass" ? massCentre(share) : [(box[0] + box[1]) / 2, (box[2] + box[3]) / 2];
    const offset = Math.max(...[H, W].map((side, k) => Math.abs(centre[k] - (side - 1) / 2 - statistics.centre[k])));
    const clean = median(border(share)[0]) < 0.05 && maximum(share.data) > 0.8;
    const sameSize = Math.abs(inkSize(share) - statistics.box) <= Math.max(1, SAME_BOX * statistics.box);
    return clean && sameSize && offset <= Math.max(1, SAME_PLACE * statistics.box);
  }

  // the ink; the picture that it is in, or the page in that; and the scale at which the picture was searched
  function searchInk(pixels, add) {
    for (let n = 0; n < MAX_PAGES; n++) {
      const scale = Math.min(1, SEARCH_SIZE / Math.max(pixels.height, pixels.width));
      const ink = findInk(rescale(pixels, scale));
      if (!ink || !ink.page) return [ink, pixels, scale];
      const [top, bottom, left, right] = ink.box.map((side) => side / scale);
      const edge = PAGE_EDGE * Math.max(bottom - top, right - left);
      const page = crop(pixels, Math.trunc(top + edge), Math.trunc(bottom - edge) + 1, Math.trunc(left + edge), Math.trunc(right - edge) + 1);
      if (!page.data.length) break;
      pixels = page;
      add(`cut out the page, ${sizeOf(pixels)}`, toChannels(pixels, 1));
    }
    return [null, pixels, 1];
  }

  // the ink in a part of the picture, found again at a finer scale; or, if that shows no more or something else, resized
  function refineInk(ink, part, place, scale, fineScale) {
    if (scale < Math.min(1, fineScale)) {
      const refined = findInk(rescale(part, fineScale));
      if (refined && refined.darker === ink.darker && !refined.page) return refined;
    }
    const [height, width] = [part.height, part.width].map((side) => Math.max(1, round(side * fineScale)));
    const [top, bottom, left, right] = place.map((side, n) => Math.trunc(side * scale) + (n % 2));
    const cut = (image) => resizeInk(crop(image, top, bottom, left, right), height, width);
    const mask = cut(like(ink.mask, Float32Array.from(ink.mask.data)));
    return { share: cut(ink.share), mask: like(mask, mask.data.map((value) => (value > 0.5 ? 1 : 0))) };
  }

  // the mask with the soft edges of its marks, two pixels wide
  function dilate({ height, width, data }) {
    const out = new Uint8Array(data.length);
    data.forEach((set, i) => {
      if (!set) return;
      const y = Math.floor(i / width), x = i % width;
      for (let v = Math.max(0, y - 2); v <= Math.min(height - 1, y + 2); v++) out.fill(1, v * width + Math.max(0, x - 2), v * width + Math.min(width, x + 3));
    });
    return out;
  }

  function prepareInk(pixels, shape, statistics) {
    const steps = [];
    let latest = pixels;
    const add = (text, image) => {
      const same = image.height === latest.height && image.width === latest.width && image.data.every((level, i) => {
        for (let c = 0; c < latest.channels; c++) if (latest.data[i * latest.channels + c] !== level) return false;
        return true;
      });
      if (same) return;
      steps.push({ text, picture: image });
      latest = image;
    };
    let gray = toChannels(pixels, 1);
    add("made gray", gray);
    if (isAligned(invert(gray), shape, statistics)) {
      add("inverted", invert(gray));
      return steps;
    }
    const [found, page, scale] = searchInk(pixels, add);
    if (!found) {
      add("no ink found", picture(shape[1], shape[2], 1, new Uint8Array(shape[1] * shape[2]).fill(statistics.background)));
      return steps;
    }
    gray = toChannels(page, 1);
    if (found.darker !== statistics.ink < statistics.background) {
      gray = invert(gray);
      add("inverted", gray);
    }
    const [top, bottom, left, right] = found.box.map((edge) => edge / scale);
    const size = Math.max(bottom - top, right - left), margin = MARGIN * size + 1;
    const start = (side) => Math.max(0, Math.trunc(side - margin)), end = (side, most) => Math.min(most, Math.trunc(side + margin));
    const place = [start(top), end(bottom, page.height), start(left), end(right, page.width)];
    const besides = found.others ? `, ${found.others} other mark${found.others > 1 ? "s" : ""} left aside` : "";
    const part = crop(gray, ...place);
    add(`cropped to ${sizeOf(part)}${besides}`, part);

    const box = Math.min(statistics.box, Math.max(shape[1], shape[2]));
    const ink = refineInk(found, crop(page, ...place), place, scale, Math.min(DETAIL * box, MAX_DETAIL) / size);
    let strokes = like(ink.share, ink.share.data.map((value) => clip((value - 0.25) * 2, 0, 1)));
    add("separated the ink from its paper", toGrayLevels(strokes, statistics));
    const near = dilate(ink.mask);
    strokes = like(strokes, strokes.data.map((value, i) => value * near[i]));
    add("removed what else there was", toGrayLevels(strokes, statistics));
    const [matched, text] = matchStrokeWidth(strokes, shape, statistics, box);
    add(text, toGrayLevels(matched, statistics));
    const placed = placeInk(matched, shape, statistics, box);
    add(`scaled to ${box} pixels, centred by ${statistics.centred}`, toGrayLevels(placed, statistics));
    const inked = placed.data.filter((value) => value > LEVEL), full = inked.length ? percentile(inked, 0.95) : 1;
    add("stretched the contrast", toGrayLevels(like(placed, placed.data.map((value) => value / (full < PALE ? full : 1))), statistics));
    return steps;
  }

  const toSpec = (pixels, { shape: [C, H, W], fit }) => toSize(toChannels(pixels, C), H, W, fit || "pad");

  // A picture in gray or in colours -> [{text, picture}, ...], from the original to what the network sees, each in the
  // network's size.
  return (pixels, spec) => {
    const [, H, W] = spec.shape, statistics = spec.look;
    const isSame = pixels.height === H && pixels.width === W;
    const original = { text: isSame ? "original" : "original, only resized", picture: toSpec(pixels, spec) };
    const sized = spec.fit ? toSize(pixels, H, W, spec.fit) : pixels;
    if (statistics && statistics.plain && (sized.height !== H || sized.width !== W || isInverted(sized, statistics))) {
      const steps = prepareInk(pixels, spec.shape, statistics);
      return [original, ...steps.map(({ text, picture }) => ({ text, picture: toSpec(picture, spec) }))];
    }
    if (isSame) return [original];
    const reason = spec.fit ? ", as in the training" : statistics ? "" : ", and no more: the checkpoint does not say what its images look like";
    return [original, { text: `resized from ${sizeOf(pixels)}${reason}`, picture: toSpec(pixels, spec) }];
  };
})();
