"use strict";
// Draws what a network sees and does. Positive values are orange, negative ones blue, zero is the background.

const pictures = (() => {
  const GAP = 1; // pixels between maps
  const MAX_SIDE = 1600; // pixels of a picture that is read

  // The image in a file.
  function open(file) {
    return createImageBitmap(file).catch(() => {
      throw new Error("The browser can't read this image: save it as PNG or JPEG");
    });
  }

  // A copy of an image on white, of at most `side` pixels.
  function shrink(bitmap, side = MAX_SIDE) {
    const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  function bytes(data) {
    return Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  }

  // {shape, scale, data} -> numbers from -1 to 1, of the largest magnitude
  function values(packed) {
    return Array.from(new Int8Array(bytes(packed.data).buffer), (level) => level / 127);
  }

  function colour(name) {
    const number = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
    return [0, 2, 4].map((at) => parseInt(number.slice(at, at + 2), 16));
  }

  // How maps of a layer lie on a canvas: {maps, rows, columns, across, width, height} in pixels.
  function layout(kind, [maps, rows, columns]) {
    if (kind === "units") {
      const across = Math.min(32, columns);
      return { maps: columns, rows: 1, columns: 1, across, width: across, height: Math.ceil(columns / across), gap: 0 };
    }
    const across = maps <= 4 ? maps : Math.min(maps, maps % 12 === 0 ? 12 : columns > 8 ? 8 : 16);
    const down = Math.ceil(maps / across);
    return { maps, rows, columns, across, width: across * (columns + GAP) - GAP, height: down * (rows + GAP) - GAP, gap: GAP };
  }

  function prepareLayer(canvas, kind, shape) {
    const place = layout(kind, shape);
    canvas.width = place.width;
    canvas.height = place.height;
  }

  function drawLayer(canvas, kind, packed) {
    const { maps, rows, columns, across, width, height, gap } = layout(kind, packed.shape);
    const image = new ImageData(width, height);
    const all = packed && values(packed);
    const [plus, minus] = [colour("--plus"), colour("--minus")];
    const signed = kind !== "belief" && kind !== "attention";
    for (let map = 0, i = 0; map < maps; map++) {
      const top = Math.floor(map / across) * (rows + gap), left = (map % across) * (columns + gap);
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++, i++) {
          const value = all[i], at = 4 * ((top + row) * width + left + column);
          image.data.set(value < 0 && signed ? minus : plus, at);
          image.data[at + 3] = 18 + 237 * Math.abs(value) ** 0.8;
        }
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // {shape: [channels, height, width], data} -> ImageData
  function asImageData({ shape: [channels, height, width], data }) {
    const pixels = bytes(data);
    const image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[channels === 3 ? 3 * i + c : channels * i];
      image.data[4 * i + 3] = 255;
    }
    return image;
  }

  function put(canvas, image) {
    canvas.width = image.width;
    canvas.height = image.height;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // The contributions over a pale copy of the image.
  function drawContributions(canvas, picture, packed) {
    const image = asImageData(picture);
    const [plus, minus] = [colour("--plus"), colour("--minus")];
    values(packed).forEach((value, i) => {
      const strength = Math.abs(value) ** 0.6, tint = value < 0 ? minus : plus;
      for (let c = 0; c < 3; c++) {
        const pale = 40 + image.data[4 * i + c] * 0.25;
        image.data[4 * i + c] = pale * (1 - strength) + tint[c] * strength;
      }
    });
    put(canvas, image);
  }

  const drawImage = (canvas, picture) => put(canvas, asImageData(picture));

  return { MAX_SIDE, open, shrink, values, prepareLayer, drawLayer, drawImage, drawContributions };
})();
