"use strict";
// Reads the numbers of a network from the page: base 85, five characters for four bytes.

const readNumbers = (listed, text, alphabet) => {
  const digit = new Uint8Array(128);
  [...alphabet].forEach((character, n) => (digit[character.charCodeAt(0)] = n));
  const bytes = new Uint8Array((text.length / 5) * 4), view = new DataView(bytes.buffer);
  for (let i = 0, at = 0; i < text.length; i += 5, at += 4) {
    let value = 0;
    for (let k = 0; k < 5; k++) value = value * 85 + digit[text.charCodeAt(i + k)];
    view.setUint32(at, value);
  }

  const single = new DataView(new ArrayBuffer(4));
  // The leading bytes of a 32-bit float, or a 16-bit float.
  const read = {
    2: (at) => {
      const bits = view.getUint16(at, true), exponent = (bits >> 10) & 31, fraction = bits & 1023;
      const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
      return bits & 0x8000 ? -size : size;
    },
    3: (at) => {
      single.setUint32(0, (bytes[at + 2] << 24) | (bytes[at + 1] << 16) | (bytes[at] << 8));
      return single.getFloat32(0);
    },
    4: (at) => view.getFloat32(at, true),
  };

  const numbers = {};
  let at = 0;
  for (const { name, shape, width, values } of listed) {
    const count = shape.reduce((a, b) => a * b, 1);
    const data = values || Float32Array.from({ length: count }, (_, i) => read[width](at + i * width));
    if (!values) at += count * width;
    numbers[name] = arithmetic.tensor(shape, data);
  }
  return numbers;
};

// {shape, type, data} a batch of raw inputs in base64 -> the probabilities of all of them, as JSON
function answerAll({ shape, type, data }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const kinds = { uint8: Uint8Array, float32: Float32Array, float64: Float64Array };
  const values = new kinds[type](bytes.buffer), each = values.length / shape[0];
  const sample = (n) => arithmetic.tensor(shape.slice(1), values.subarray(n * each, (n + 1) * each));
  return JSON.stringify(Array.from({ length: shape[0] }, (_, n) => Array.from(network.predict(sample(n)).data)));
}
