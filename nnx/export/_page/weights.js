"use strict";
// Reads the numbers of a network from the page: base 85, three characters for an integer with a scale, five for a float.

const readNumbers = (listed, text, alphabet) => {
  const HALF = Math.floor(85 ** 3 / 2);
  const digit = new Uint8Array(128);
  [...alphabet].forEach((character, n) => (digit[character.charCodeAt(0)] = n));
  let at = 0;
  const next = (digits) => {
    let value = 0;
    for (let k = 0; k < digits; k++) value = value * 85 + digit[text.charCodeAt(at++)];
    return value;
  };
  const bits = new DataView(new ArrayBuffer(4));
  const float = () => {
    bits.setUint32(0, next(5));
    return bits.getFloat32(0);
  };

  const numbers = {};
  for (const { name, shape, scale, values } of listed) {
    const length = shape.reduce((a, b) => a * b, 1);
    const data = values || Float32Array.from({ length }, scale ? () => (next(3) - HALF) * scale : float);
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
